"""The SDE step as the papers write it, and the grids it runs on: what the tests of every backend compare with."""

import math

import torch

NOISE_LEVELS = {"flow": 0.7, "linear": 0.7, "dance": 0.3, "cps": 0.8}


def euler_grid(num_steps: int, shift: float = 3.0) -> list[float]:
    s = [1 - i / num_steps for i in range(num_steps + 1)]
    return [shift * x / (1 + (shift - 1) * x) for x in s]


def published_step(
    sde_type: str, velocity: torch.Tensor, x: torch.Tensor, sigma: float, sigma_next: float, eta: float, top: float
) -> tuple[torch.Tensor, float]:
    """(mean, std) written from the papers' formulas, not from the affine form."""
    dt = sigma_next - sigma
    x0_hat, eps_hat = x - sigma * velocity, x + (1 - sigma) * velocity
    if sde_type == "cps":
        std = sigma_next * math.sin(eta * math.pi / 2)
        return (1 - sigma_next) * x0_hat + math.sqrt(sigma_next**2 - std**2) * eps_hat, std
    if sde_type == "dance":
        score = -(x - (1 - sigma) * x0_hat) / sigma**2
        return x + velocity * dt - 0.5 * eta**2 * score * dt, eta * math.sqrt(-dt)
    clamped = min(sigma, top)
    std_dev_t = top * sigma if sde_type == "linear" else eta * math.sqrt(clamped / (1 - clamped))
    mean = x * (1 + std_dev_t**2 / (2 * sigma) * dt) + velocity * (1 + std_dev_t**2 * (1 - sigma) / (2 * sigma)) * dt
    return mean, std_dev_t * math.sqrt(-dt)
