"""Triton kernels of the SDE step. Imported by triton_impl.py at its first use, never with the package.

Products and sums stay separate operations (the launcher turns fusion off) and the normals are the polynomials of
csrc/common/sde_step.h: mean and draw carry the same bits as the C++ kernels'. Every velocity is widened right after its
load. Offsets are 64-bit before the first product; optional tensors are None, which Triton specialises on.
"""

import triton
import triton.language as tl

_STREAM = tl.constexpr(1 << 16)  # STREAM_SDE << 16, see worldr1_kernels/philox.py


@triton.jit
def _philox(c0, c1, c2, c3, k0, k1):
    """Ten rounds of Philox4x32, uint32."""
    for _ in tl.static_range(10):
        high0, high2 = tl.umulhi(c0, 0xD2511F53), tl.umulhi(c2, 0xCD9E8D57)
        low0 = tl.mul(c0, 0xD2511F53, sanitize_overflow=False)
        low2 = tl.mul(c2, 0xCD9E8D57, sanitize_overflow=False)
        c0, c1, c2, c3 = high2 ^ c1 ^ k0, low2, high0 ^ c3 ^ k1, low0
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def _radius(word):
    """sqrt(-2 ln u), u = ((word >> 9) + 1/2) 2^-23."""
    h = (word >> 9).to(tl.int32).to(tl.float32) + 0.5
    bits = h.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    e = (exponent - 23).to(tl.float32)
    p = f * -0.07634492963552475 + 0.12761574983596802
    p = p * f - 0.13160182535648346
    p = p * f + 0.14201758801937103
    p = p * f - 0.16623356938362122
    p = p * f + 0.20001226663589478
    p = p * f - 0.2500081956386566
    p = p * f + 0.3333333134651184
    s = f * f
    y = p * (s * f)
    y = y + e * 1.428606765330187e-6
    y = y - 0.5 * s
    return tl.sqrt_rn(-2.0 * ((f + y) + e * 0.693145751953125))


@triton.jit
def _turn(word):
    """(cos, sin) of 2 pi (u - 1/2), u as above; quarter turns are taken off in integers."""
    w = (word >> 9).to(tl.int32)
    k = (w + 1048576) >> 21
    f = ((w - (k << 21)).to(tl.float32) + 0.5) * 7.490140774280007e-7
    s = f * f
    in_sine = (s * -0.00019515282474458218 + 0.00833216030150652) * s - 0.16666655242443085
    in_cosine = (s * 2.44331567955669e-5 - 0.0013887316454201937) * s + 0.04166664555668831
    sine = f + f * s * in_sine
    cosine = (1.0 - 0.5 * s) + s * s * in_cosine
    odd = (k & 1) != 0
    a, b = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    return tl.where(((k + 1) & 2) == 0, -a, a), tl.where((k & 2) == 0, -b, b)


@triton.jit
def _normals(block, step, sample_id, seed, BLOCK: tl.constexpr):
    """Normals of elements [block * BLOCK, ...), four to a counter."""
    quad = block * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    c0 = quad.to(tl.uint32)
    zero = c0 * 0
    key = seed.to(tl.int64)
    k0, k1 = zero + (key & 0xFFFFFFFF).to(tl.uint32), zero + (key >> 32).to(tl.uint32)
    x0, x1, x2, x3 = _philox(c0, zero + step.to(tl.uint32), zero + sample_id.to(tl.uint32), zero + _STREAM, k0, k1)
    r0, r2 = _radius(x0), _radius(x2)
    cos0, sin0 = _turn(x1)
    cos2, sin2 = _turn(x3)
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
        z = _normals(block, step, tl.load(sample_ids + n), seed, BLOCK)
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
