"""Public functions of the SDE step: `sde_step`, `ode_step`, `grpo_loss`."""

import math
from typing import Literal, NamedTuple

import torch

from worldr1_kernels._checks import check_choice, check_same_device, check_tensor
from worldr1_kernels._dispatch import resolve_backend
from worldr1_kernels._library import needs_grad
from worldr1_kernels.philox import check_sample_ids, check_seed
from worldr1_kernels.sde_step.coefficients import SDE_TYPES, check_sigmas, step_coefficients
from worldr1_kernels.sde_step.ops import FLOAT64_PROBES, PROBES, SdeLogProb, sde_log_prob_op, sde_sample_op


class SdeStepOutput(NamedTuple):
    """One stochastic step; D is the number of elements of a sample."""

    prev_sample: torch.Tensor
    """The sample at sigma_next, [N, ...]."""
    prev_sample_mean: torch.Tensor
    """Mean of its Gaussian, [N, ...]."""
    log_prob: torch.Tensor
    """[N], nats, MEAN over the D elements."""
    std: torch.Tensor
    """[N], standard deviation of the Gaussian (the same for all samples)."""
    kl: torch.Tensor | None
    """[N], nats, mean over elements, to the Gaussian of velocity_ref; None without one."""


class GrpoLoss(NamedTuple):
    """Clipped policy-gradient loss and what to watch with it."""

    loss: torch.Tensor
    """Scalar, mean over the valid entries; 0 when there are none."""
    ratio: torch.Tensor
    """exp(log_prob - log_prob_old), same shape; 1 where not valid. Detached."""
    clip_fraction: torch.Tensor
    """Scalar, share of valid entries with |ratio - 1| > clip_range. Detached."""
    approx_kl: torch.Tensor
    """Scalar, mean of ratio - 1 - ln(ratio) over valid entries: KL(old | new) of the step mean density. Detached."""


def _check_latents(op: str, tensors: dict[str, torch.Tensor | None]) -> None:
    """All tensors floating point, of the shape of the first, on its device; samples not empty."""
    shape: torch.Size | None = None
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        check_tensor(op, name, tensor)
        if not tensor.is_floating_point():
            raise TypeError(f"{op}: {name} must be floating point, got {tensor.dtype}")
        if shape is None:
            shape = tensor.shape
            if tensor.dim() < 2 or 0 in shape[1:]:
                raise ValueError(f"{op}: {name} must have shape [N, ...] with elements per sample, got {list(shape)}")
        elif tensor.shape != shape:
            raise ValueError(f"{op}: {name} must have the shape of velocity {list(shape)}, got {list(tensor.shape)}")
    check_same_device(op, tensors)


def _check_guidance(op: str, velocity_uncond: torch.Tensor | None, guidance_scale: float) -> None:
    if not math.isfinite(guidance_scale):
        raise ValueError(f"{op}: guidance_scale must be finite, got {guidance_scale}")
    if velocity_uncond is None and guidance_scale != 1.0:
        raise ValueError(f"{op}: velocity_uncond must be given when guidance_scale is not 1, got {guidance_scale}")


def sde_step(
    velocity: torch.Tensor,
    sample: torch.Tensor,
    sigma: float,
    sigma_next: float,
    *,
    seed: int | None = None,
    noise: torch.Tensor | None = None,
    prev_sample: torch.Tensor | None = None,
    sample_ids: torch.Tensor | None = None,
    step: int = 0,
    velocity_uncond: torch.Tensor | None = None,
    guidance_scale: float = 1.0,
    sde_type: Literal["flow", "linear", "dance", "cps"] = "linear",
    noise_level: float = 0.7,
    sigma_max: float | None = None,
    velocity_ref: torch.Tensor | None = None,
    backend: Literal["auto", "reference", "triton", "native"] = "auto",
) -> SdeStepOutput:
    """One stochastic step of flow matching with its log-density: guidance, step, draw and log_prob.

        v = v_uncond + guidance_scale (velocity - v_uncond)
        mean = a sample + b v;   prev_sample = mean + s z,  z ~ N(0, I);   a, b, s from sde_type (README.md)
        log_prob = mean_elements[-(prev_sample - mean)^2 / (2 s^2)] - ln s - ln(2 pi) / 2
        kl = mean_elements[(mean - mean_ref)^2] / (2 s^2)

    Exactly one of `seed`, `noise`, `prev_sample` says where prev_sample comes from. With `prev_sample` (training form)
    the result is differentiable; the other two (rollout) return constants.

    Args:
      velocity: Model output eps - x0 (conditional), [N, ...], float32, bfloat16, float16 or float64.
      sample: Latent at sigma, [N, ...]. Keep it in float32: stored in bfloat16 it changes the ratio.
      sigma: Noise level of `sample`, host float in (0, 1].
      sigma_next: Noise level of the result, in [0, sigma).
      seed: Draw z by Philox with key `seed` in [0, 2^63) and counter (element, step, sample id): the same numbers
        however the batch is split.
      noise: Use this z, [N, ...].
      prev_sample: Score this sample at sigma_next instead of drawing one, [N, ...].
      sample_ids: Integer [N] in [0, 2^32), for `seed`. Default 0..N-1.
      step: Index of the step in [0, 2^32), for `seed`.
      velocity_uncond: Unconditional model output, [N, ...].
      guidance_scale: Must be 1 without velocity_uncond.
      sde_type: `flow` (Flow-GRPO, eta = noise_level), `linear` (its Wan variant: std_dev_t = sigma_max sigma,
        noise_level unused), `dance` (DanceGRPO), `cps` (coefficient preserving, noise_level in (0, 1]).
      noise_level: eta, finite and > 0.
      sigma_max: sigmas[1] of the grid, in (0, 1]; None is 1. `flow` takes std_dev_t at min(sigma, sigma_max) and needs
        it at sigma = 1, where it would diverge; `linear` scales with it; the others do not use it.
      velocity_ref: Reference model output, guided already if guidance is used, [N, ...]; asks for `kl`. A constant.
      backend: "native" (C++, CPU), "triton" (CUDA), "reference" (torch) or "auto", which takes the first of them that
        can run. The first two compute in float32: with a float64 input "auto" is the reference, and they raise.
    Returns:
      SdeStepOutput(prev_sample [N, ...], prev_sample_mean [N, ...], log_prob [N] nats (mean over elements), std [N],
      kl [N] or None), float32 (float64 if an input is). With prev_sample given: prev_sample_mean, log_prob and kl are
      differentiable in velocity and velocity_uncond.
    Raises:
      ValueError: sigma_next >= sigma or outside [0, 1]; not exactly one source of prev_sample; shapes or devices
        differ; noise_level not finite or not > 0; `flow` at sigma 1 without sigma_max; the last `cps` step, which has
        no density; guidance without velocity_uncond; seed, step or sample_ids out of range; `sample`, `noise`,
        `prev_sample` or `velocity_ref` requires a gradient.
      TypeError: not tensors, not floating point, seed or step not an int.
      RuntimeError: the backend chosen by name is not available, or computes in float32 and an input is float64.
    Source: Flow-GRPO, arXiv 2505.05470, eq. 8; DanceGRPO, arXiv 2505.07818; Flow-CPS, arXiv 2509.05952.
    """
    op = "sde_step"
    if (seed is not None) + (noise is not None) + (prev_sample is not None) != 1:
        given = [n for n, v in (("seed", seed), ("noise", noise), ("prev_sample", prev_sample)) if v is not None]
        raise ValueError(f"{op}: exactly one of seed, noise, prev_sample must be given, got {given or 'none'}")
    constants = {"sample": sample, "noise": noise, "prev_sample": prev_sample, "velocity_ref": velocity_ref}
    _check_latents(op, {"velocity": velocity, "velocity_uncond": velocity_uncond, **constants})
    for name, tensor in constants.items():
        if tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{op}: {name} must not require a gradient (it is a constant here), detach it")
    _check_guidance(op, velocity_uncond, guidance_scale)
    check_choice(op, "sde_type", sde_type, SDE_TYPES)
    sigma, sigma_next = float(sigma), float(sigma_next)
    check_sigmas(op, sigma, sigma_next)
    coefficients = step_coefficients(
        op, sde_type, sigma, sigma_next, noise_level=float(noise_level), sigma_max=sigma_max
    )
    if isinstance(step, bool) or not isinstance(step, int):
        raise TypeError(f"{op}: step must be an int (the index of the denoising step), got {type(step).__name__}")
    if not 0 <= step < 2**32:
        raise ValueError(f"{op}: step must be in [0, 2**32), got {step}")
    inputs = (velocity, velocity_uncond, sample, noise, prev_sample)
    is_double = any(t is not None and t.dtype == torch.float64 for t in inputs)
    chosen = resolve_backend(op, backend, velocity.device, FLOAT64_PROBES if is_double else PROBES)
    scalars = (float(guidance_scale), *coefficients)

    if prev_sample is not None:
        if needs_grad((velocity, velocity_uncond)):
            outputs = SdeLogProb.apply(velocity, velocity_uncond, sample, prev_sample, velocity_ref, scalars, chosen)
        else:
            outputs = sde_log_prob_op(velocity, sample, prev_sample, velocity_uncond, velocity_ref, *scalars, chosen)
        mean, log_prob, kl = outputs
    else:
        if seed is not None:
            check_seed(op, seed)
        ids = None if sample_ids is None else check_sample_ids(op, sample_ids, velocity.shape[0], velocity.device)
        with torch.no_grad():
            prev_sample, mean, log_prob, kl = sde_sample_op(
                velocity, sample, velocity_uncond, velocity_ref, noise, ids, *scalars, seed or 0, step, chosen
            )
    std = torch.full_like(log_prob, coefficients.std, requires_grad=False)
    return SdeStepOutput(prev_sample, mean, log_prob, std, None if velocity_ref is None else kl)


def ode_step(
    velocity: torch.Tensor,
    sample: torch.Tensor,
    sigma: float,
    sigma_next: float,
    *,
    velocity_uncond: torch.Tensor | None = None,
    guidance_scale: float = 1.0,
) -> torch.Tensor:
    """One deterministic Euler step of flow matching. It has no density: only `sde_step` gives a log_prob.

        sample + (sigma_next - sigma) v,   v = v_uncond + guidance_scale (velocity - v_uncond)

    Args:
      velocity: Model output eps - x0 (conditional), [N, ...], any floating dtype.
      sample: Latent at sigma, [N, ...].
      sigma: Noise level of `sample`, host float in (0, 1].
      sigma_next: Noise level of the result, in [0, sigma).
      velocity_uncond: Unconditional model output, [N, ...].
      guidance_scale: Must be 1 without velocity_uncond.
    Returns:
      [N, ...], float32 (float64 if an input is). Differentiable in all tensors.
    Raises:
      ValueError: sigma_next >= sigma or outside [0, 1]; shapes or devices differ; guidance without velocity_uncond.
      TypeError: not tensors, or not floating point.
    """
    op = "ode_step"
    _check_latents(op, {"velocity": velocity, "velocity_uncond": velocity_uncond, "sample": sample})
    _check_guidance(op, velocity_uncond, guidance_scale)
    sigma, sigma_next = float(sigma), float(sigma_next)
    check_sigmas(op, sigma, sigma_next)
    wide = torch.float64 if torch.float64 in (velocity.dtype, sample.dtype) else torch.float32
    guided = velocity.to(wide)
    if velocity_uncond is not None:
        guided = velocity_uncond.to(wide) + guidance_scale * (guided - velocity_uncond.to(wide))
    return sample.to(wide) + (sigma_next - sigma) * guided


def grpo_loss(
    log_prob: torch.Tensor,
    log_prob_old: torch.Tensor,
    advantage: torch.Tensor,
    *,
    clip_range: float,
    valid: torch.Tensor | None = None,
) -> GrpoLoss:
    """Clipped policy-gradient loss of group-relative policy optimisation.

        ratio = exp(log_prob - log_prob_old)
        loss = mean_valid max(-A ratio, -A clip(ratio, 1 - clip_range, 1 + clip_range))

    Args:
      log_prob: Of the policy being trained, [N] or [N, S], nats.
      log_prob_old: Of the policy that made the rollout, same shape. A constant.
      advantage: Same shape. A constant.
      clip_range: In (0, 1). Small (1e-3) because log_prob is a mean over elements.
      valid: Bool, same shape; False entries leave loss, gradient and figures, whatever they hold (NaN too).
    Returns:
      GrpoLoss(loss scalar, ratio like log_prob, clip_fraction scalar, approx_kl scalar), float32 (float64 if log_prob
      is). `loss` is differentiable in log_prob.
    Raises:
      ValueError: shapes differ, or clip_range is not in (0, 1).
      TypeError: not tensors, or valid is not bool.
    Source: PPO, arXiv 1707.06347, eq. 7; GRPO, arXiv 2402.03300; approx_kl: http://joschu.net/blog/kl-approx.html
    """
    op = "grpo_loss"
    check_tensor(op, "log_prob", log_prob)
    for name, tensor in (("log_prob_old", log_prob_old), ("advantage", advantage), ("valid", valid)):
        if tensor is None:
            continue
        check_tensor(op, name, tensor)
        if tensor.shape != log_prob.shape:
            raise ValueError(
                f"{op}: {name} must have the shape of log_prob {list(log_prob.shape)}, got {list(tensor.shape)}"
            )
    if valid is not None and valid.dtype != torch.bool:
        raise TypeError(f"{op}: valid must be bool, got {valid.dtype}")
    if not 0.0 < clip_range < 1.0:
        raise ValueError(f"{op}: clip_range must be in (0, 1), got {clip_range}")

    wide = torch.float64 if log_prob.dtype == torch.float64 else torch.float32
    log_ratio = log_prob.to(wide) - log_prob_old.detach().to(wide)
    weight_of = advantage.detach().to(wide)
    if valid is None:
        count = torch.tensor(float(max(1, log_ratio.numel())), dtype=wide, device=log_ratio.device)
    else:
        # Replaced before exp: a NaN multiplied by a zero mask would still poison the gradient.
        log_ratio = torch.where(valid, log_ratio, 0.0)
        weight_of = torch.where(valid, weight_of, 0.0)
        count = valid.sum().clamp(min=1).to(wide)
    ratio = torch.exp(log_ratio.detach())
    clipped = torch.clamp(ratio, 1.0 - clip_range, 1.0 + clip_range)
    # Where the clipped one is the larger, it is a constant. torch.maximum would give the other the gradient 0 * ratio,
    # which is NaN where the ratio is beyond float32.
    follows = torch.where(weight_of > 0, ratio <= 1.0 + clip_range, ratio >= 1.0 - clip_range) & (weight_of != 0)
    followed = torch.exp(torch.where(follows, log_ratio, 0.0))
    loss = (-weight_of * torch.where(follows, followed, clipped)).sum() / count
    with torch.no_grad():
        clip_fraction = ((ratio - 1.0).abs() > clip_range).to(wide).sum() / count
        approx_kl = (torch.expm1(log_ratio) - log_ratio).sum() / count
    return GrpoLoss(loss, ratio, clip_fraction, approx_kl)
