"""The four stochastic steps as three numbers, worked out on the host in float64.

Every step is affine in what it sees, mean = coef_sample * sample + coef_velocity * velocity, and adds std * N(0, I).
"""

import math
from typing import NamedTuple

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)

SDE_TYPES = ("flow", "linear", "dance", "cps")


class StepCoefficients(NamedTuple):
    """mean = coef_sample * sample + coef_velocity * velocity; prev_sample = mean + std * z."""

    coef_sample: float
    coef_velocity: float
    std: float


def check_sigmas(op: str, sigma: float, sigma_next: float) -> None:
    """Raises ValueError unless 0 <= sigma_next < sigma <= 1 (NaN fails too)."""
    if not (0.0 <= sigma_next <= 1.0 and 0.0 <= sigma <= 1.0):
        raise ValueError(f"{op}: sigma and sigma_next must be in [0, 1], got {sigma} and {sigma_next}")
    if not sigma_next < sigma:
        raise ValueError(
            f"{op}: sigma_next must be < sigma (the grid runs from noise to data), "
            f"got sigma {sigma}, sigma_next {sigma_next}"
        )


def step_coefficients(
    op: str, sde_type: str, sigma: float, sigma_next: float, *, noise_level: float, sigma_max: float | None
) -> StepCoefficients:
    """Coefficients of one stochastic step; `sde_type` is one of `SDE_TYPES`, the sigmas have passed `check_sigmas`.

        flow, linear, dance:  dx = [v + std_dev_t^2 / (2 sigma) eps_hat] dt + std_dev_t dW,  eps_hat = x + (1 - sigma) v
        cps:                  x' = (1 - sigma_next) x0_hat + sqrt(sigma_next^2 - std^2) eps_hat + std z

    Raises:
      ValueError: `noise_level` is not finite or not > 0; sigma_max is outside (0, 1]; `flow` at sigma = 1 without a
        sigma_max below 1; a step whose std is 0 (the last `cps` step): it has no density.
    """
    # `linear` has no free noise level; a NaN is a bug of the caller all the same.
    if not 0.0 < noise_level < math.inf:
        raise ValueError(
            f"{op}: noise_level must be finite and > 0, got {noise_level}; "
            "a deterministic step has no density: use ode_step"
        )
    if sigma_max is not None and not 0.0 < sigma_max <= 1.0:
        raise ValueError(f"{op}: sigma_max must be in (0, 1] (sigmas[1] of the grid), got {sigma_max}")

    if sde_type == "cps":
        if noise_level > 1.0:
            raise ValueError(f"{op}: noise_level must be in (0, 1] for 'cps', got {noise_level}")
        if sigma_next == 0.0:
            raise ValueError(f"{op}: the last 'cps' step (sigma_next = 0) has std 0 and no density; use ode_step")
        std = sigma_next * math.sin(0.5 * math.pi * noise_level)
        kept = sigma_next * math.cos(0.5 * math.pi * noise_level)
        return StepCoefficients((1.0 - sigma_next) + kept, kept * (1.0 - sigma) - sigma * (1.0 - sigma_next), std)

    if sde_type == "flow":
        # The grid starts at sigma = 1, where this diverges: clamped in the noise level only, not in the drift.
        clamped = sigma if sigma_max is None else min(sigma, sigma_max)
        if clamped >= 1.0:
            raise ValueError(
                f"{op}: 'flow' diverges at sigma = 1; sigma_max must be given and < 1 (sigmas[1] of the grid), "
                f"got sigma_max {sigma_max}"
            )
        std_dev_t = noise_level * math.sqrt(clamped / (1.0 - clamped))
    elif sde_type == "linear":
        std_dev_t = (1.0 if sigma_max is None else sigma_max) * sigma
    else:
        assert sde_type == "dance", sde_type
        std_dev_t = noise_level
    dt = sigma_next - sigma
    drift = std_dev_t**2 / (2.0 * sigma)
    return StepCoefficients(1.0 + drift * dt, (1.0 + drift * (1.0 - sigma)) * dt, std_dev_t * math.sqrt(-dt))


class StepConstants(NamedTuple):
    """Everything a kernel multiplies with, in float64; a float32 kernel rounds each once."""

    guidance_scale: float
    coef_sample: float
    coef_velocity: float
    std: float
    log_prob_scale: float
    """log_prob = mean square of (prev_sample - mean) * log_prob_scale - log_prob_shift."""
    log_prob_shift: float
    kl_scale: float
    """kl = mean square of (velocity - velocity_ref) * kl_scale."""
    grad_log_prob_scale: float
    """d log_prob / d velocity = (prev_sample - mean) * grad_log_prob_scale."""
    grad_kl_scale: float
    """d kl / d velocity = (velocity - velocity_ref) * grad_kl_scale."""


def step_constants(
    guidance_scale: float, coef_sample: float, coef_velocity: float, std: float, num_elements: int
) -> StepConstants:
    """Constants of a step on samples of `num_elements` elements."""
    of_residual = coef_velocity / (std**2 * max(1, num_elements))
    return StepConstants(
        guidance_scale, coef_sample, coef_velocity, std,
        -0.5 / std**2, math.log(std) + HALF_LOG_2PI, 0.5 * (coef_velocity / std) ** 2,
        of_residual, of_residual * coef_velocity,
    )  # fmt: skip
