"""The SDE step in plain torch: float32 by default, float64 when an input is. Sums are taken in float64 either way.

Products and sums are separate operations on purpose: a fused multiply-add in the vector part of a loop and none in
its tail would let the batch split decide the last bit.
"""

import math

import torch

from worldr1_kernels.philox import STREAM_SDE, philox_normal
from worldr1_kernels.sde_step.coefficients import HALF_LOG_2PI


def arithmetic_dtype(*tensors: torch.Tensor | None) -> torch.dtype:
    """float64 if any tensor is, else float32."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


def step_noise(
    shape: tuple[int, ...], sample_ids: torch.Tensor, *, seed: int, step: int, dtype: torch.dtype
) -> torch.Tensor:
    """N(0, 1) of `shape` [N, ...]; element e of sample i is normal e mod 4 of counter (e div 4, step, id_i, stream).

    Args:
      shape: Shape of the latent, N first.
      sample_ids: int64 [N].
      seed: Key.
      step: Index of the denoising step.
      dtype: float32 or float64.
    """
    num_elements = math.prod(shape[1:])
    device = sample_ids.device
    quads = torch.arange((num_elements + 3) // 4, device=device)[None]  # [1, Q]
    step_word = torch.full((1, 1), step, dtype=torch.int64, device=device)
    stream = torch.full((1, 1), STREAM_SDE << 16, dtype=torch.int64, device=device)
    normals = philox_normal(quads, step_word, sample_ids[:, None], stream, seed=seed, dtype=dtype)  # [N, Q, 4]
    return normals.flatten(1)[:, :num_elements].reshape(shape)


def _guided(
    velocity: torch.Tensor, velocity_uncond: torch.Tensor | None, guidance_scale: float, dtype: torch.dtype
) -> torch.Tensor:
    velocity = velocity.to(dtype)
    if velocity_uncond is None:
        return velocity
    uncond = velocity_uncond.to(dtype)
    return (velocity - uncond).mul_(guidance_scale).add_(uncond)


def _mean(velocity: torch.Tensor, sample: torch.Tensor, coef_sample: float, coef_velocity: float) -> torch.Tensor:
    return (sample.to(velocity.dtype) * coef_sample).add_(velocity * coef_velocity)


def _mean_square(difference: torch.Tensor) -> torch.Tensor:
    """Mean of squares over all but the first dimension, [N] float64; overwrites `difference`."""
    flat = difference.square_().flatten(1)
    return flat.sum(1, dtype=torch.float64) / flat.shape[1]


def _log_prob(prev_sample: torch.Tensor, mean: torch.Tensor, std: float) -> torch.Tensor:
    mean_square = _mean_square(prev_sample.to(mean.dtype) - mean)
    return (mean_square * (-0.5 / std**2) - (math.log(std) + HALF_LOG_2PI)).to(mean.dtype)


def _kl(velocity: torch.Tensor, velocity_ref: torch.Tensor | None, coef_velocity: float, std: float) -> torch.Tensor:
    if velocity_ref is None:
        return velocity.new_empty(0)
    # The means differ by coef_velocity * (v - v_ref): forming them first would only cancel digits.
    mean_square = _mean_square(velocity - velocity_ref.to(velocity.dtype))
    return (mean_square * (0.5 * (coef_velocity / std) ** 2)).to(velocity.dtype)


def sample_step(
    velocity: torch.Tensor,
    sample: torch.Tensor,
    velocity_uncond: torch.Tensor | None,
    velocity_ref: torch.Tensor | None,
    noise: torch.Tensor | None,
    sample_ids: torch.Tensor | None,
    guidance_scale: float,
    coef_sample: float,
    coef_velocity: float,
    std: float,
    seed: int,
    step: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draws prev_sample (from `noise`, or from Philox when None): (prev_sample, mean, log_prob [N], kl [N] or [0])."""
    dtype = arithmetic_dtype(velocity, sample, velocity_uncond, noise)
    guided = _guided(velocity, velocity_uncond, guidance_scale, dtype)
    mean = _mean(guided, sample, coef_sample, coef_velocity)
    if noise is None:
        if sample_ids is None:
            sample_ids = torch.arange(len(sample), device=sample.device)
        noise = step_noise(tuple(sample.shape), sample_ids, seed=seed, step=step, dtype=dtype)
    prev_sample = (noise.to(dtype) * std).add_(mean)
    # The density of the rounded prev_sample, which is what the training form will see, and not of the noise.
    return prev_sample, mean, _log_prob(prev_sample, mean, std), _kl(guided, velocity_ref, coef_velocity, std)


def log_prob(
    velocity: torch.Tensor,
    sample: torch.Tensor,
    prev_sample: torch.Tensor,
    velocity_uncond: torch.Tensor | None,
    velocity_ref: torch.Tensor | None,
    guidance_scale: float,
    coef_sample: float,
    coef_velocity: float,
    std: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Density of a given prev_sample: (mean, log_prob [N], kl [N] or [0])."""
    dtype = arithmetic_dtype(velocity, sample, velocity_uncond, prev_sample)
    guided = _guided(velocity, velocity_uncond, guidance_scale, dtype)
    mean = _mean(guided, sample, coef_sample, coef_velocity)
    return mean, _log_prob(prev_sample, mean, std), _kl(guided, velocity_ref, coef_velocity, std)


def log_prob_backward(
    grad_mean: torch.Tensor | None,
    grad_log_prob: torch.Tensor | None,
    grad_kl: torch.Tensor | None,
    velocity: torch.Tensor,
    sample: torch.Tensor,
    prev_sample: torch.Tensor,
    velocity_uncond: torch.Tensor | None,
    velocity_ref: torch.Tensor | None,
    guidance_scale: float,
    coef_sample: float,
    coef_velocity: float,
    std: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Recomputes the step and returns the gradients of (velocity, velocity_uncond); the second is [0] without guidance.

        d log_prob / d v = b (x' - mean) / (s^2 D),   d kl / d v = b^2 (v - v_ref) / (s^2 D),   d mean / d v = b
    """
    dtype = arithmetic_dtype(velocity, sample, velocity_uncond, prev_sample)
    guided = _guided(velocity, velocity_uncond, guidance_scale, dtype)
    per_sample = (-1, *[1] * (velocity.dim() - 1))
    scale = coef_velocity / (std**2 * max(1, math.prod(velocity.shape[1:])))
    grad = torch.zeros_like(guided) if grad_mean is None else grad_mean.to(dtype) * coef_velocity
    if grad_log_prob is not None:
        residual = prev_sample.to(dtype) - _mean(guided, sample, coef_sample, coef_velocity)
        grad = grad.add_(residual.mul_((grad_log_prob.to(dtype) * scale).view(per_sample)))
    if grad_kl is not None and velocity_ref is not None:
        difference = guided - velocity_ref.to(dtype)
        grad = grad.add_(difference.mul_((grad_kl.to(dtype) * (scale * coef_velocity)).view(per_sample)))
    if velocity_uncond is None:
        return grad.to(velocity.dtype), velocity.new_empty(0)
    return (grad * guidance_scale).to(velocity.dtype), grad.mul_(1.0 - guidance_scale).to(velocity_uncond.dtype)
