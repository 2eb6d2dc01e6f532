"""Launcher of the C++ SDE step: float32 on the CPU, the same bits on any instruction set and any number of threads."""

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


def _velocity(tensor: Tensor | None) -> Tensor | None:
    """Contiguous; bfloat16 and float32 are read as they are, others are widened first."""
    if tensor is None or tensor.dtype == torch.bfloat16:
        return None if tensor is None else tensor.contiguous()
    return _wide(tensor)


def _typed(tensor: Tensor | None) -> tuple[int, bool]:
    """Address, and whether it holds bfloat16."""
    return (0, False) if tensor is None else (tensor.data_ptr(), tensor.dtype == torch.bfloat16)


def _run(form: str, level: str, given: Draw | Score, guidance_scale: float, sample: Tensor, **arguments: Any) -> None:
    """`sample` is given.sample as it is read; `arguments` are those of `form` alone."""
    num_elements = math.prod(sample.shape[1:])
    constants = step_constants(guidance_scale, given.coef_sample, given.coef_velocity, given.std, num_elements)
    _native.cpu().sde_step_form(
        form,
        sample=sample.data_ptr(),
        num_samples=sample.shape[0],
        num_elements=num_elements,
        **constants._asdict(),
        num_threads=torch.get_num_threads(),
        level=level,
        **arguments,
    )


def _kl_like(sample: Tensor, velocity_ref: Tensor | None) -> Tensor:
    return sample.new_empty(0 if velocity_ref is None else sample.shape[0])


# The three functions return what their namesakes in reference.py do. Tensors bound to a name live until the call
# returns: only addresses cross. `level` names an instruction set, "" takes the best.


def sample_step(given: Draw, *, level: str = "") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draws prev_sample: (prev_sample, mean, log_prob [N], kl [N] or [0]), float32."""
    v, u, r = _velocity(given.velocity), _velocity(given.velocity_uncond), _velocity(given.velocity_ref)
    x, z, ids = _wide(given.sample), None if given.noise is None else _wide(given.noise), given.sample_ids.contiguous()
    prev_sample, mean, log_prob = torch.empty_like(x), torch.empty_like(x), x.new_empty(x.shape[0])
    kl = _kl_like(x, r)
    _run(
        "draw", level, given, given.guidance_scale, x,
        velocity=_typed(v), velocity_uncond=_typed(u), velocity_ref=_typed(r), noise=address(z),
        sample_ids=ids.data_ptr(), prev_sample=prev_sample.data_ptr(), mean=mean.data_ptr(),
        log_prob=log_prob.data_ptr(), kl=0 if r is None else kl.data_ptr(), seed=given.seed, step=given.step,
    )  # fmt: skip
    return prev_sample, mean, log_prob, kl


def log_prob(given: Score, *, level: str = "") -> tuple[Tensor, Tensor, Tensor]:
    """Density of a given prev_sample: (mean, log_prob [N], kl [N] or [0]), float32."""
    v, u, r = _velocity(given.velocity), _velocity(given.velocity_uncond), _velocity(given.velocity_ref)
    x, prev = _wide(given.sample), _wide(given.prev_sample)
    mean, density, kl = torch.empty_like(x), x.new_empty(x.shape[0]), _kl_like(x, r)
    _run(
        "score", level, given, given.guidance_scale, x,
        velocity=_typed(v), velocity_uncond=_typed(u), velocity_ref=_typed(r), prev_sample=prev.data_ptr(),
        mean=mean.data_ptr(), log_prob=density.data_ptr(), kl=0 if r is None else kl.data_ptr(),
    )  # fmt: skip
    return mean, density, kl


def log_prob_backward(
    grad_mean: Tensor | None, grad_log_prob: Tensor | None, grad_kl: Tensor | None, given: Score, *, level: str = ""
) -> tuple[Tensor, Tensor]:
    """Gradients of (velocity, velocity_uncond) in their dtypes; the second is [0] without guidance."""
    velocity, velocity_uncond, velocity_ref = given.velocity, given.velocity_uncond, given.velocity_ref
    v, u = _velocity(velocity), _velocity(velocity_uncond)
    x, prev = _wide(given.sample), _wide(given.prev_sample)
    gm, gl = (None if g is None else _wide(g) for g in (grad_mean, grad_log_prob))
    # Without a reference kl is an empty tensor, and its gradient is nobody's.
    gk, r = (None, None) if grad_kl is None or velocity_ref is None else (_wide(grad_kl), _velocity(velocity_ref))
    assert v is not None
    grad, grad_uncond = torch.empty_like(v), v.new_empty(0) if u is None else torch.empty_like(u)
    _run(
        "backward", level, given, 1.0 if u is None else given.guidance_scale, x,
        velocity=_typed(v), velocity_uncond=_typed(u), velocity_ref=_typed(r), prev_sample=prev.data_ptr(),
        grad_mean=address(gm), grad_log_prob=address(gl), grad_kl=address(gk), grad_velocity=_typed(grad),
        grad_velocity_uncond=_typed(None if u is None else grad_uncond),
    )  # fmt: skip
    uncond_dtype = velocity.dtype if velocity_uncond is None else velocity_uncond.dtype
    return grad.to(velocity.dtype), grad_uncond.to(uncond_dtype)
