"""Triton kernels of the SDE step. Imported by triton_impl.py at its first use, never with the package.

Products and sums stay separate operations (the launcher turns fusion off) and the normals are the polynomials of
csrc/common/sde_step.h: mean and draw carry the same bits as the C++ kernels'. Every velocity is widened right after its
load. Offsets are 64-bit before the first product; optional tensors are None, which Triton specialises on.
"""

import triton
import triton.language as tl

from worldr1_kernels.philox_triton import philox, radius, turn

_STREAM = tl.constexpr(1 << 16)  # STREAM_SDE << 16, see worldr1_kernels/philox.py


@triton.jit
def _normals(block, step, sample_id, seed, BLOCK: tl.constexpr):
    """Normals of elements [block * BLOCK, ...), four to a counter."""
    quad = block * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    c0 = quad.to(tl.uint32)
    zero = c0 * 0
    key = seed.to(tl.int64)
    k0, k1 = zero + (key & 0xFFFFFFFF).to(tl.uint32), zero + (key >> 32).to(tl.uint32)
    x0, x1, x2, x3 = philox(c0, zero + step.to(tl.uint32), zero + sample_id.to(tl.uint32), zero + _STREAM, k0, k1)
    r0, r2 = radius(x0), radius(x2)
    cos0, sin0 = turn(x1)
    cos2, sin2 = turn(x3)
    return tl.reshape(tl.join(tl.join(r0 * cos0, r2 * cos2), tl.join(r0 * sin0, r2 * sin2)), [BLOCK])


@triton.jit
def _load(pointer, at, keep):
    return tl.load(pointer + at, mask=keep, other=0.0).to(tl.float32)


@triton.jit
def _load_guided(velocity, velocity_uncond, at, keep, guidance_scale):
    v = _load(velocity, at, keep)
    if velocity_uncond is not None:
        u = _load(velocity_uncond, at, keep)
        v = (v - u) * guidance_scale + u
    return v


@triton.jit
def _sum_of_squares(difference):
    square = difference * difference
    return tl.sum(square.to(tl.float64), axis=0)


@triton.jit
def _place(num_elements, num_blocks, BLOCK: tl.constexpr):
    """(sample, block of the sample, offsets into [N, D], mask) of this program."""
    program = tl.program_id(0)
    sample, block = program // num_blocks, program % num_blocks
    element = block * BLOCK + tl.arange(0, BLOCK)
    return sample, block, sample.to(tl.int64) * num_elements + element, element < num_elements


@triton.jit(do_not_specialize=["seed", "step"])
def draw_kernel(
    velocity, velocity_uncond, velocity_ref, sample, noise, sample_ids, prev_sample, mean, residuals, differences,
    num_elements, num_blocks, guidance_scale, coef_sample, coef_velocity, std, seed: tl.int64, step: tl.int64,
    BLOCK: tl.constexpr,
):  # fmt: skip
    n, block, at, keep = _place(num_elements, num_blocks, BLOCK)
    v = _load_guided(velocity, velocity_uncond, at, keep, guidance_scale)
    m = _load(sample, at, keep) * coef_sample + v * coef_velocity
    if noise is not None:
        z = _load(noise, at, keep)
    else:
        sample_id = n.to(tl.int64)
        if sample_ids is not None:
            sample_id = tl.load(sample_ids + n)
        z = _normals(block, step, sample_id, seed, BLOCK)
    p = z * std + m
    tl.store(mean + at, m, mask=keep)
    tl.store(prev_sample + at, p, mask=keep)
    # Of the rounded sample, which is what the scoring form will see. Where masked, m is 0 but z is drawn.
    tl.store(residuals + tl.program_id(0), _sum_of_squares(tl.where(keep, p - m, 0.0)))
    if velocity_ref is not None:
        tl.store(differences + tl.program_id(0), _sum_of_squares(v - _load(velocity_ref, at, keep)))


@triton.jit
def score_kernel(
    velocity, velocity_uncond, velocity_ref, sample, prev_sample, mean, residuals, differences,
    num_elements, num_blocks, guidance_scale, coef_sample, coef_velocity, BLOCK: tl.constexpr,
):  # fmt: skip
    n, block, at, keep = _place(num_elements, num_blocks, BLOCK)
    v = _load_guided(velocity, velocity_uncond, at, keep, guidance_scale)
    m = _load(sample, at, keep) * coef_sample + v * coef_velocity
    tl.store(mean + at, m, mask=keep)
    tl.store(residuals + tl.program_id(0), _sum_of_squares(_load(prev_sample, at, keep) - m))
    if velocity_ref is not None:
        tl.store(differences + tl.program_id(0), _sum_of_squares(v - _load(velocity_ref, at, keep)))


@triton.jit
def _mean_square(sums, n, num_blocks, num_elements, WIDTH: tl.constexpr):
    total = tl.zeros([WIDTH], tl.float64)
    for start in range(0, num_blocks, WIDTH):
        block = start + tl.arange(0, WIDTH)
        total += tl.load(sums + n.to(tl.int64) * num_blocks + block, mask=block < num_blocks, other=0.0)
    return tl.sum(total, axis=0) / num_elements.to(tl.float64)


@triton.jit(do_not_specialize=["num_elements"])  # 1 would arrive as a constant that has no .to
def finish_kernel(
    residuals, differences, log_prob, kl, num_elements, num_blocks,
    log_prob_scale: tl.float64, log_prob_shift: tl.float64, kl_scale: tl.float64, WIDTH: tl.constexpr,
):  # fmt: skip
    """Second stage of the sums, one program a sample, blocks in a fixed order."""
    n = tl.program_id(0)
    residual = _mean_square(residuals, n, num_blocks, num_elements, WIDTH)
    tl.store(log_prob + n, (residual * log_prob_scale - log_prob_shift).to(tl.float32))
    if differences is not None:
        difference = _mean_square(differences, n, num_blocks, num_elements, WIDTH)
        tl.store(kl + n, (difference * kl_scale).to(tl.float32))


@triton.jit
def backward_kernel(
    grad_mean, grad_log_prob, grad_kl, velocity, velocity_uncond, velocity_ref, sample, prev_sample,
    grad_velocity, grad_velocity_uncond, num_elements, num_blocks, guidance_scale, guidance_rest,
    coef_sample, coef_velocity, grad_log_prob_scale, grad_kl_scale, BLOCK: tl.constexpr,
):  # fmt: skip
    n, block, at, keep = _place(num_elements, num_blocks, BLOCK)
    v = _load_guided(velocity, velocity_uncond, at, keep, guidance_scale)
    grad = tl.zeros([BLOCK], tl.float32)
    if grad_mean is not None:
        grad += _load(grad_mean, at, keep) * coef_velocity
    if grad_log_prob is not None:
        m = _load(sample, at, keep) * coef_sample + v * coef_velocity
        grad += (_load(prev_sample, at, keep) - m) * (tl.load(grad_log_prob + n) * grad_log_prob_scale)
    if grad_kl is not None:
        grad += (v - _load(velocity_ref, at, keep)) * (tl.load(grad_kl + n) * grad_kl_scale)
    if velocity_uncond is not None:
        tl.store(grad_velocity_uncond + at, grad * guidance_rest, mask=keep)
        grad = grad * guidance_scale
    tl.store(grad_velocity + at, grad, mask=keep)
