"""The grid, the window and the step weights against their definitions."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from worldr1.config import ScheduleConfig
from worldr1.rollout.schedule import euler_sigmas, rollout_sigmas, sde_window, step_weights, unipc_sigmas
from worldr1_kernels.sde_step import sde_step


@pytest.mark.parametrize("num_steps, shift", [(1, 1.0), (8, 2.0), (20, 3.0), (50, 3.0), (7, 0.5)])
def test_grid_starts_at_one_ends_at_zero_and_is_the_shifted_line(num_steps: int, shift: float) -> None:
    sigmas = euler_sigmas(num_steps, shift)
    line = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
    expected = shift * line / (1 + (shift - 1) * line)
    assert len(sigmas) == num_steps + 1 and sigmas[0] == 1.0 and sigmas[-1] == 0.0
    assert torch.allclose(torch.tensor(sigmas, dtype=torch.float64), expected, atol=1e-15, rtol=0)
    assert all(b < a for a, b in zip(sigmas, sigmas[1:], strict=False))


def test_grid_is_that_of_the_diffusers_euler_scheduler() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1 - i / 20 for i in range(20)])
    assert torch.allclose(scheduler.sigmas.double(), torch.tensor(euler_sigmas(20, 3.0)).double(), atol=1e-6)


@pytest.mark.parametrize("num_steps, shift", [(1, 1.0), (8, 2.0), (20, 3.0), (50, 5.0)])
def test_unipc_grid_is_what_the_scheduler_makes_of_wans_range_and_not_for_rollouts(
    num_steps: int, shift: float
) -> None:
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(0.999, 0, num_steps + 1)[:-1])  # as Wan's own code has it
    sigmas = unipc_sigmas(num_steps, shift)
    assert torch.allclose(scheduler.sigmas.double(), torch.tensor(sigmas, dtype=torch.float64), atol=1e-7, rtol=0)
    assert sigmas[0] < 1.0 and sigmas[-1] == 0.0 and (shift != 3.0 or round(sigmas[0], 5) == 0.99967)
    schedule = ScheduleConfig(num_steps=num_steps, shift=shift)
    assert rollout_sigmas(schedule) == euler_sigmas(num_steps, shift) != sigmas
    assert rollout_sigmas(replace(schedule, compat=True)) == sigmas


@pytest.mark.parametrize("num_steps, shift", [(0, 2.0), (8, 0.0), (8, math.nan), (8, math.inf)])
def test_grid_refuses_bad_input(num_steps: int, shift: float) -> None:
    with pytest.raises(ValueError, match="euler_sigmas"):
        euler_sigmas(num_steps, shift)
    with pytest.raises(ValueError, match="euler_sigmas"):
        unipc_sigmas(num_steps, shift)


def test_window_is_contiguous_inside_its_range_and_uniform() -> None:
    schedule = ScheduleConfig(num_steps=20, window_size=3, window_range=(2, 9))
    starts = []
    for iteration in range(4000):
        window = sde_window(schedule, seed=5, iteration=iteration)
        assert window == tuple(range(window[0], window[0] + 3)) and 2 <= window[0] and window[-1] < 9
        starts.append(window[0])
    counts = torch.bincount(torch.tensor(starts))[2:]
    assert len(counts) == 5  # starts 2 .. 6
    assert (counts - 800).abs().max() < 4.5 * math.sqrt(4000 * 0.2 * 0.8)


def test_window_is_a_function_of_seed_and_iteration_alone() -> None:
    schedule = ScheduleConfig()
    first = [sde_window(schedule, seed=1, iteration=i) for i in range(50)]
    torch.manual_seed(123)
    torch.rand(7)
    assert first == [sde_window(schedule, seed=1, iteration=i) for i in range(50)]
    assert first != [sde_window(schedule, seed=2, iteration=i) for i in range(50)]
    assert len(set(first)) == 3  # (0,1), (1,2), (2,3)


def test_sliding_window_moves_one_step_an_interval_from_the_noise_and_starts_again() -> None:
    schedule = ScheduleConfig(
        num_steps=20, window_size=3, window_range=(1, 6), window_mode="sliding", window_interval=4
    )
    starts = [sde_window(schedule, seed=i, iteration=i) for i in range(16)]
    assert starts == [tuple(range(s, s + 3)) for s in (1, 2, 3, 1) for _ in range(4)]


@pytest.mark.parametrize("window_range, size", [((0, 8), 2), ((3, 3), 1), ((0, 2), 3), ((-1, 3), 1)])
def test_window_never_holds_the_last_step_and_must_fit(window_range: tuple[int, int], size: int) -> None:
    with pytest.raises(ValueError, match="sde_window"):
        sde_window(ScheduleConfig(num_steps=8, window_size=size, window_range=window_range), seed=0, iteration=0)


@pytest.mark.parametrize("sde_type", ["flow", "linear", "dance", "cps"])
def test_weights_equalise_the_gradient_of_log_prob(sde_type: str) -> None:
    """1 / lambda makes the gradient with respect to the velocity equally large at each step, whatever the SDE."""
    schedule = ScheduleConfig(num_steps=20, shift=3.0, sde_type=sde_type, noise_level=0.7, window_range=(0, 19))
    sigmas, steps = euler_sigmas(20, 3.0), (0, 3, 9, 18)
    weights, lambdas = step_weights(sigmas, steps, schedule)
    norms = []
    generator = torch.Generator().manual_seed(0)
    for step, weight in zip(steps, weights, strict=True):
        velocity = torch.randn(1, 50000, dtype=torch.float64, generator=generator).requires_grad_()
        sample = torch.randn(1, 50000, dtype=torch.float64, generator=generator)
        z = torch.randn(1, 50000, dtype=torch.float64, generator=generator)
        kwargs = dict(sde_type=sde_type, noise_level=0.7, sigma_max=sigmas[1])
        drawn = sde_step(velocity.detach(), sample, sigmas[step], sigmas[step + 1], noise=z, **kwargs).prev_sample
        scored = sde_step(velocity, sample, sigmas[step], sigmas[step + 1], prev_sample=drawn, **kwargs)
        scored.log_prob.sum().backward()
        norms.append(float(velocity.grad.norm()) * weight)
    everywhere = step_weights(sigmas, tuple(range(19)), schedule).weights
    assert math.isclose(sum(everywhere) / 19, 1.0, rel_tol=1e-12)
    assert list(weights) == [everywhere[i] for i in steps]  # whatever else is in the window
    assert max(norms) / min(norms) < 1.03
    assert max(n / w / x for n, w, x in zip(norms, weights, lambdas, strict=True)) < 1.03 / math.sqrt(50000)


def test_weights_follow_the_written_formula() -> None:
    sigmas, schedule = euler_sigmas(8, 2.0), ScheduleConfig(window_range=(0, 4))
    inverse = []
    for i in (0, 1, 2, 3):
        sigma, dt = sigmas[i], sigmas[i] - sigmas[i + 1]
        clamped = min(sigma, sigmas[1])
        std = 0.7 * math.sqrt(clamped / (1 - clamped))
        inverse.append(1 / (math.sqrt(dt) * (1 / std + std * (1 - sigma) / (2 * sigma))))
    expected = [w / (sum(inverse) / 4) for w in inverse]
    got = step_weights(sigmas, (0, 1, 2, 3), schedule)
    assert got.weights == pytest.approx(expected, rel=1e-12)
    assert got.lambdas == pytest.approx([1 / w for w in inverse], rel=1e-12)
    alone = [step_weights(sigmas, (i,), schedule).weights[0] for i in range(4)]
    assert alone == list(got.weights)  # a window of one step is not always worth 1


def test_weights_refuse_steps_outside_the_grid() -> None:
    for steps in ((), (8,), (-1,)):
        with pytest.raises(ValueError, match="step_weights"):
            step_weights(euler_sigmas(8, 2.0), steps, ScheduleConfig())
    with pytest.raises(ValueError, match=r"window_range must lie in the grid of 4 steps, got \(0, 5\)"):
        step_weights(euler_sigmas(4, 2.0), (0,), ScheduleConfig(window_range=(0, 5)))
