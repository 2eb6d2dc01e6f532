"""Launcher of csrc/{cpu,cuda}/sde_step*: float32, the same bits in every run and however the batch is split.

`level` names the CPU's instruction set, "" takes the best. `emulated` is for tests: the CUDA kernels themselves, run by
an interpreter on CPU tensors, its value the seed of the order in which threads run.
"""

import math
from typing import Any

import torch
from torch import Tensor

from worldr1_kernels import _native
from worldr1_kernels._native import address
from worldr1_kernels.sde_step.arguments import Draw, Score
from worldr1_kernels.sde_step.coefficients import step_constants


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float32).contiguous()


def _velocities(tensors: tuple[Tensor | None, ...], emulated: int | None) -> tuple[Tensor | None, ...]:
    """Contiguous; bfloat16 as it is, other dtypes widened. A device takes all of them in one dtype."""
    given = [t for t in tensors if t is not None]
    one_dtype = given[0].is_cuda or emulated is not None
    keep = not one_dtype or all(t.dtype == torch.bfloat16 for t in given)
    return tuple(
        None if t is None else t.contiguous() if keep and t.dtype == torch.bfloat16 else _wide(t) for t in tensors
    )


def _typed(tensor: Tensor | None) -> tuple[int, bool]:
    """Address, and whether it holds bfloat16."""
    return (0, False) if tensor is None else (tensor.data_ptr(), tensor.dtype == torch.bfloat16)


_arrivals: dict[tuple[torch.device, int], Tensor] = {}
"""Counts of finished blocks by (device, stream): zeros, to which every launch returns them. The work of one stream is
in order, so that no two launches count in the same place at once."""


def _arrivals_for(sample: Tensor, stream: int) -> Tensor:
    """Zeros, int32 [at least N]."""
    num = sample.shape[0]
    if sample.is_cuda and torch.cuda.is_current_stream_capturing():
        # A replay may run on any stream, beside other work: a graph has counts, and their zeroing, of its own.
        return torch.zeros(num, dtype=torch.int32, device=sample.device)
    kept = _arrivals.get((sample.device, stream))
    if kept is None or kept.numel() < num:
        kept = torch.zeros(max(64, 2 * num), dtype=torch.int32, device=sample.device)
        _arrivals[sample.device, stream] = kept
    return kept


def _run(
    form: str,
    given: Draw | Score,
    guidance_scale: float,
    sample: Tensor,
    *,
    level: str,
    emulated: int | None,
    **arguments: Any,
) -> None:
    """`sample` is given.sample as it is read; `arguments` are those of `form` alone."""
    num_samples, num_elements = sample.shape[0], math.prod(sample.shape[1:])
    constants = step_constants(guidance_scale, given.coef_sample, given.coef_velocity, given.std, num_elements)
    arguments |= {"sample": sample.data_ptr(), "num_samples": num_samples, "num_elements": num_elements}
    arguments |= constants._asdict()
    if not sample.is_cuda and emulated is None:
        _native.cpu().sde_step_form(form, num_threads=torch.get_num_threads(), level=level, **arguments)
        return
    module = _native.cuda() if emulated is None else _native.cpu()
    run = module.sde_step_form if emulated is None else module.sde_step_emulated
    with torch.cuda.device_of(sample):
        stream = torch.cuda.current_stream(sample.device).cuda_stream if emulated is None else emulated
        if form == "backward":
            run(form, stream=stream, **arguments)
            return
        num_sums = num_samples * module.sde_step_chunks(num_elements)
        sums = sample.new_empty(num_sums * (2 if arguments["kl"] else 1), dtype=torch.float64)
        counts = _arrivals_for(sample, stream)
        run(form, stream=stream, sums=sums.data_ptr(), arrivals=counts.data_ptr(), **arguments)


def _kl_like(sample: Tensor, velocity_ref: Tensor | None) -> Tensor:
    return sample.new_empty(0 if velocity_ref is None else sample.shape[0])


# The three functions return what their namesakes in reference.py do. Tensors bound to a name live until the call
# returns: only addresses cross. On a device the stream's order keeps their memory until the kernel has read it.


def sample_step(given: Draw, *, level: str = "", emulated: int | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draws prev_sample: (prev_sample, mean, log_prob [N], kl [N] or [0]), float32."""
    v, u, r = _velocities((given.velocity, given.velocity_uncond, given.velocity_ref), emulated)
    x, z = _wide(given.sample), None if given.noise is None else _wide(given.noise)
    ids = None if given.sample_ids is None else given.sample_ids.contiguous()
    prev_sample, mean, log_prob = torch.empty_like(x), torch.empty_like(x), x.new_empty(x.shape[0])
    kl = _kl_like(x, r)
    _run(
        "draw", given, given.guidance_scale, x, level=level, emulated=emulated,
        velocity=_typed(v), velocity_uncond=_typed(u), velocity_ref=_typed(r), noise=address(z),
        sample_ids=address(ids), prev_sample=prev_sample.data_ptr(), mean=mean.data_ptr(),
        log_prob=log_prob.data_ptr(), kl=0 if r is None else kl.data_ptr(), seed=given.seed, step=given.step,
    )  # fmt: skip
    return prev_sample, mean, log_prob, kl


def log_prob(given: Score, *, level: str = "", emulated: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Density of a given prev_sample: (mean, log_prob [N], kl [N] or [0]), float32."""
    v, u, r = _velocities((given.velocity, given.velocity_uncond, given.velocity_ref), emulated)
    x, prev = _wide(given.sample), _wide(given.prev_sample)
    mean, density, kl = torch.empty_like(x), x.new_empty(x.shape[0]), _kl_like(x, r)
    _run(
        "score", given, given.guidance_scale, x, level=level, emulated=emulated,
        velocity=_typed(v), velocity_uncond=_typed(u), velocity_ref=_typed(r), prev_sample=prev.data_ptr(),
        mean=mean.data_ptr(), log_prob=density.data_ptr(), kl=0 if r is None else kl.data_ptr(),
    )  # fmt: skip
    return mean, density, kl


def log_prob_backward(
    grad_mean: Tensor | None,
    grad_log_prob: Tensor | None,
    grad_kl: Tensor | None,
    given: Score,
    *,
    level: str = "",
    emulated: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of (velocity, velocity_uncond) in their dtypes; the second is [0] without guidance."""
    velocity, velocity_uncond, velocity_ref = given.velocity, given.velocity_uncond, given.velocity_ref
    # Without a reference kl is an empty tensor, and its gradient is nobody's.
    if grad_kl is None or velocity_ref is None:
        grad_kl = velocity_ref = None
    v, u, r = _velocities((velocity, velocity_uncond, velocity_ref), emulated)
    x, prev = _wide(given.sample), _wide(given.prev_sample)
    gm, gl, gk = (None if g is None else _wide(g) for g in (grad_mean, grad_log_prob, grad_kl))
    assert v is not None
    grad, grad_uncond = torch.empty_like(v), v.new_empty(0) if u is None else torch.empty_like(u)
    _run(
        "backward", given, 1.0 if u is None else given.guidance_scale, x, level=level, emulated=emulated,
        velocity=_typed(v), velocity_uncond=_typed(u), velocity_ref=_typed(r), prev_sample=prev.data_ptr(),
        grad_mean=address(gm), grad_log_prob=address(gl), grad_kl=address(gk), grad_velocity=_typed(grad),
        grad_velocity_uncond=_typed(None if u is None else grad_uncond),
    )  # fmt: skip
    uncond_dtype = velocity.dtype if velocity_uncond is None else velocity_uncond.dtype
    return grad.to(velocity.dtype), grad_uncond.to(uncond_dtype)
