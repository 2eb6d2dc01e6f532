"""Schemas, choice of implementation, fake kernels and autograd of the SDE step."""

from typing import Any

import torch

from worldr1_kernels import _native
from worldr1_kernels._dispatch import Probe, always_available, triton_unavailable
from worldr1_kernels._library import define_op
from worldr1_kernels.sde_step import native_impl, reference
from worldr1_kernels.sde_step.arguments import Draw, Score

# In the order in which "auto" tries them.
PROBES: dict[str, Probe] = {
    "native": _native.unavailable,
    "triton": triton_unavailable,
    "reference": always_available,
}


def _no_float64(device: torch.device) -> str | None:
    del device
    return "it computes in float32, got float64 tensors; use backend='reference' or 'auto'"


FLOAT64_PROBES: dict[str, Probe] = {"native": _no_float64, "triton": _no_float64, "reference": always_available}


def _launcher(backend: str) -> Any:
    if backend == "triton":
        # Here and not above: importing triton costs a second and fixes whether its interpreter is used.
        from worldr1_kernels.sde_step import triton_impl

        return triton_impl
    return native_impl


# All outputs are contiguous, whatever the strides of the inputs. The reference takes the values one by one.
def _sample_impl(*args: Any) -> tuple[torch.Tensor, ...]:
    *values, backend = args
    if backend == "reference":
        outputs = reference.sample_step(*values)
    else:
        outputs = _launcher(backend).sample_step(Draw(*values))
    return tuple(t.contiguous() for t in outputs)


def _log_prob_impl(*args: Any) -> tuple[torch.Tensor, ...]:
    *values, backend = args
    outputs = reference.log_prob(*values) if backend == "reference" else _launcher(backend).log_prob(Score(*values))
    return tuple(t.contiguous() for t in outputs)


def _log_prob_backward_impl(*args: Any) -> tuple[torch.Tensor, ...]:
    *values, backend = args
    if backend == "reference":
        outputs = reference.log_prob_backward(*values)
    else:
        outputs = _launcher(backend).log_prob_backward(*values[:3], Score(*values[3:]))
    return tuple(t.contiguous() for t in outputs)


def _latent_like(sample: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return sample.new_empty(sample.shape, dtype=dtype)


def _log_prob_and_kl(given: Draw | Score, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    num = given.sample.shape[0]
    kl = given.sample.new_empty(0 if given.velocity_ref is None else num, dtype=dtype)
    return given.sample.new_empty(num, dtype=dtype), kl


def _sample_fake(*args: Any) -> tuple[torch.Tensor, ...]:
    given = Draw(*args[:-1])
    dtype = reference.arithmetic_dtype(given.velocity, given.sample, given.velocity_uncond, given.noise)
    return _latent_like(given.sample, dtype), _latent_like(given.sample, dtype), *_log_prob_and_kl(given, dtype)


def _log_prob_fake(*args: Any) -> tuple[torch.Tensor, ...]:
    given = Score(*args[:-1])
    dtype = reference.arithmetic_dtype(given.velocity, given.sample, given.velocity_uncond, given.prev_sample)
    return _latent_like(given.sample, dtype), *_log_prob_and_kl(given, dtype)


def _log_prob_backward_fake(*args: Any) -> tuple[torch.Tensor, torch.Tensor]:
    given = Score(*args[3:-1])
    velocity, velocity_uncond = given.velocity, given.velocity_uncond
    uncond = velocity.new_empty(0) if velocity_uncond is None else velocity_uncond.new_empty(velocity_uncond.shape)
    return velocity.new_empty(velocity.shape), uncond


sde_sample_op = define_op(
    "sde_sample(Tensor velocity, Tensor sample, Tensor? velocity_uncond, Tensor? velocity_ref, Tensor? noise, "
    "Tensor? sample_ids, float guidance_scale, float coef_sample, float coef_velocity, float std, int seed, int step, "
    "str backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _sample_impl,
    _sample_fake,
)
sde_log_prob_op = define_op(
    "sde_log_prob(Tensor velocity, Tensor sample, Tensor prev_sample, Tensor? velocity_uncond, Tensor? velocity_ref, "
    "float guidance_scale, float coef_sample, float coef_velocity, float std, str backend) "
    "-> (Tensor, Tensor, Tensor)",
    _log_prob_impl,
    _log_prob_fake,
)
sde_log_prob_backward_op = define_op(
    "sde_log_prob_backward(Tensor? grad_mean, Tensor? grad_log_prob, Tensor? grad_kl, Tensor velocity, Tensor sample, "
    "Tensor prev_sample, Tensor? velocity_uncond, Tensor? velocity_ref, float guidance_scale, float coef_sample, "
    "float coef_velocity, float std, str backend) -> (Tensor, Tensor)",
    _log_prob_backward_impl,
    _log_prob_backward_fake,
)


class SdeLogProb(torch.autograd.Function):
    """The training form; differentiable in velocity and velocity_uncond. Saves its inputs and nothing else."""

    @staticmethod
    def forward(
        ctx: Any,
        velocity: torch.Tensor,
        velocity_uncond: torch.Tensor | None,
        sample: torch.Tensor,
        prev_sample: torch.Tensor,
        velocity_ref: torch.Tensor | None,
        scalars: tuple[float, float, float, float],
        backend: str,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(velocity, velocity_uncond, sample, prev_sample, velocity_ref)
        ctx.scalars, ctx.backend = scalars, backend
        return sde_log_prob_op(velocity, sample, prev_sample, velocity_uncond, velocity_ref, *scalars, backend)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        velocity, velocity_uncond, sample, prev_sample, velocity_ref = ctx.saved_tensors
        grad, grad_uncond = sde_log_prob_backward_op(
            *grads, velocity, sample, prev_sample, velocity_uncond, velocity_ref, *ctx.scalars, ctx.backend
        )
        return grad, (None if velocity_uncond is None else grad_uncond), None, None, None, None, None
