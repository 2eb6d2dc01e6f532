"""The flow-matching grid, which of its steps are stochastic, and how much each trained step weighs."""

from __future__ import annotations

from typing import NamedTuple

import torch

from worldr1.config import ScheduleConfig, TrainConfig
from worldr1_kernels.philox import check_seed, philox4x32
from worldr1_kernels.sde_step.coefficients import step_coefficients

_STREAM_WINDOW = 16 << 16
"""Counter word of the window draw, apart from the streams of the kernels."""
NUM_TRAIN_TIMESTEPS = 1000
"""Wan's transformer is conditioned on sigma times this."""


def euler_sigmas(num_steps: int, shift: float) -> tuple[float, ...]:
    """The grid of the Euler sampler, in float64: sigma_i = shift s / (1 + (shift - 1) s), s = 1 - i / num_steps.

    It starts at exactly 1 (pure noise) and ends at 0, so that the guard for sigma = 1 in the stochastic step works;
    the grids of multistep schedulers start just below 1 and slip past it.

    Args:
      num_steps: T >= 1.
      shift: > 0; above 1 it spends more steps near the noise.
    Returns:
      T + 1 values, falling.
    Raises:
      ValueError: num_steps < 1 or shift <= 0.
    """
    if num_steps < 1:
        raise ValueError(f"euler_sigmas: num_steps must be >= 1, got {num_steps}")
    if not 0.0 < shift < float("inf"):
        raise ValueError(f"euler_sigmas: shift must be finite and > 0, got {shift}")
    grid = ((num_steps - i) / num_steps for i in range(num_steps + 1))
    return tuple(shift * s / (1.0 + (shift - 1.0) * s) for s in grid)


def unipc_sigmas(num_steps: int, shift: float) -> tuple[float, ...]:
    """The grid of Wan's UniPC sampler, in float64: that of Euler, begun at 1 - 1/1000 before the shift.

    For evaluation, and for comparison with the official release. It starts just below 1, where the stochastic steps
    are almost singular: it is no grid for training.

    Args:
      num_steps: T >= 1.
      shift: > 0.
    Returns:
      T + 1 values, falling from less than 1 to 0.
    Raises:
      ValueError: num_steps < 1 or shift <= 0.
    Source: Wan2.1, wan/utils/fm_solvers_unipc.py; Zhao et al. 2023 (UniPC), arXiv 2302.04867.
    """
    euler_sigmas(num_steps, shift)  # the same arguments are refused
    highest = 1.0 - 1.0 / NUM_TRAIN_TIMESTEPS
    grid = (highest * (num_steps - i) / num_steps for i in range(num_steps + 1))
    return tuple(shift * s / (1.0 + (shift - 1.0) * s) for s in grid)


def rollout_sigmas(schedule: ScheduleConfig) -> tuple[float, ...]:
    """The grid that rollouts run on: Euler's, and UniPC's for the official release's sampler."""
    grid = unipc_sigmas if schedule.compat else euler_sigmas
    return grid(schedule.num_steps, schedule.shift)


def sde_window(schedule: ScheduleConfig, *, seed: int, iteration: int) -> tuple[int, ...]:
    """The stochastic steps of one iteration: contiguous, inside `window_range`.

    `random` is a uniform draw, a pure function of (seed, iteration) by a counter-based generator; `sliding` starts at
    the noise and moves one step every `window_interval` iterations, then starts again. Every rank, and a resumed run,
    gets the same.

    Returns:
      window_size step indices, rising; step i goes from sigmas[i] to sigmas[i + 1].
    Raises:
      ValueError: the window does not fit the range, or the range contains the last step; negative seed or iteration.
    Source: Li et al. 2025 (MixGRPO), arXiv 2507.21802, for the sliding window.
    """
    first, last = schedule.window_range
    if not 0 <= first < last <= schedule.num_steps - 1:
        raise ValueError(
            f"sde_window: window_range must satisfy 0 <= first < last <= num_steps - 1 = {schedule.num_steps - 1} "
            f"(the last step is never trained), got {(first, last)}"
        )
    if not 1 <= schedule.window_size <= last - first:
        raise ValueError(f"sde_window: window_size must be in [1, {last - first}], got {schedule.window_size}")
    if not 0 <= iteration < 2**32:
        raise ValueError(f"sde_window: iteration must be in [0, 2**32), got {iteration}")
    check_seed("sde_window", seed)
    num_starts = last - first - schedule.window_size + 1
    if schedule.window_mode == "sliding":
        start = first + iteration // schedule.window_interval % num_starts
        return tuple(range(start, start + schedule.window_size))
    counter = [torch.tensor(word) for word in (iteration, 0, 0, _STREAM_WINDOW)]
    word = int(philox4x32(*counter, seed=seed)[0])
    start = first + word * num_starts // 2**32
    return tuple(range(start, start + schedule.window_size))


def rollout_steps(config: TrainConfig, *, iteration: int) -> tuple[int, ...]:
    """The stochastic steps of one iteration's rollouts: `sde_window`'s, none with `update.estimator` forward."""
    if config.update.estimator == "forward":
        return ()
    return sde_window(config.schedule, seed=config.seed, iteration=iteration)


def forward_steps(sigmas: tuple[float, ...], sigma_min: float) -> tuple[int, ...]:
    """Indices of the sigmas that the forward estimator may draw: where the adapter acts, never the last step's.

    Args:
      sigmas: The grid, T + 1 values.
      sigma_min: model.adapter_sigma_min.
    """
    return tuple(i for i in range(len(sigmas) - 2) if sigmas[i] >= sigma_min)


def evaluation_sigmas(solver: str, num_steps: int, shift: float) -> tuple[float, ...]:
    """The grid that a deterministic sampler (solver.OdeSolver) runs on: UniPC has its own."""
    return (unipc_sigmas if solver == "unipc" else euler_sigmas)(num_steps, shift)


class StepWeights(NamedTuple):
    """Of the trained steps, one each."""

    weights: tuple[float, ...]  # mean 1 over the steps that may be drawn
    lambdas: tuple[float, ...]


def step_weights(sigmas: tuple[float, ...], steps: tuple[int, ...], schedule: ScheduleConfig) -> StepWeights:
    """Weight of each trained step in the loss: 1 / lambda, normalised to mean 1 over `window_range`.

        lambda = |d mean / d v| / s  =  sqrt(|dt|) (1 / std + std (1 - sigma) / (2 sigma))  for flow, linear and dance

    The gradient of the log-ratio with respect to the velocity has size lambda, which differs by up to 10 times over a
    grid. The mean is taken over all steps that may be drawn, not over the window of one iteration: a window of one step
    would otherwise always weigh 1.

    Args:
      sigmas: The grid, T + 1 values.
      steps: Indices of the trained steps.
      schedule: sde_type, noise_level and window_range.
    Returns:
      StepWeights(weights, lambdas), one of each per step.
    Raises:
      ValueError: no steps, an index outside [0, T - 1], or a step without a density.
    """
    if schedule.window_range[1] > len(sigmas) - 1:
        raise ValueError(
            f"step_weights: window_range must lie in the grid of {len(sigmas) - 1} steps, got {schedule.window_range}"
        )
    if not steps or min(steps) < 0 or max(steps) > len(sigmas) - 2:
        raise ValueError(f"step_weights: steps must be indices in [0, {len(sigmas) - 2}], got {steps}")
    inverse = {}
    for i in {*range(*schedule.window_range), *steps}:
        c = step_coefficients(
            "step_weights", schedule.sde_type, sigmas[i], sigmas[i + 1],
            noise_level=schedule.noise_level, sigma_max=sigmas[1],
        )  # fmt: skip
        inverse[i] = c.std / abs(c.coef_velocity)
    usual = [inverse[i] for i in range(*schedule.window_range)]
    mean = sum(usual) / len(usual)
    return StepWeights(tuple(inverse[i] / mean for i in steps), tuple(1.0 / inverse[i] for i in steps))
