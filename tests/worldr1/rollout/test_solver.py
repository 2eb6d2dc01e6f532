"""The deterministic samplers: order of accuracy, and UniPC against diffusers' pipeline."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mixture import Mixture, MixturePolicy, plane_batch

from worldr1.config import ModelConfig, RolloutConfig, ScheduleConfig, TrainConfig
from worldr1.models.wan import load_policy
from worldr1.rollout.sample import generate, sample
from worldr1.rollout.schedule import euler_sigmas, unipc_sigmas
from worldr1.rollout.solver import OdeSolver

GAUSSIAN = Mixture(weights=(1.0,), means=((0.7, -0.4),), stds=(0.5,))


def error(name: str, num_steps: int) -> float:
    """Largest error at the end, of the flow to a Gaussian, where x0 = mean + std x1 exactly."""
    sigmas = euler_sigmas(num_steps, 2.0)
    x = torch.tensor([[1.0, 0.5], [-0.3, 2.0]], dtype=torch.float64)
    exact = GAUSSIAN.means + 0.5 * x
    solver = OdeSolver(name, sigmas)
    for i in range(num_steps):
        v = GAUSSIAN.velocity(x, sigmas[i])
        x = solver.step(v, x, i, velocity_uncond=None, guidance_scale=1.0)
    return float((x - exact).abs().max())


def test_order_of_accuracy() -> None:
    for name, order in (("euler", 1), ("multistep", 2)):
        measured = math.log2(error(name, 200) / error(name, 400))
        assert order - 0.1 < measured < order + 0.5, (name, measured)
    assert error("multistep", 20) < 0.25 * error("euler", 20)


def test_guidance_is_that_of_the_two_velocities() -> None:
    generator = torch.Generator().manual_seed(0)
    x, *vs = (torch.randn(2, 3, generator=generator) for _ in range(5))
    sigmas = euler_sigmas(4, 1.0)
    for name in ("euler", "multistep"):
        one, two = OdeSolver(name, sigmas), OdeSolver(name, sigmas)
        a = b = x
        for i in range(2):
            v, u = vs[2 * i], vs[2 * i + 1]
            a = one.step(v, a, i, velocity_uncond=u, guidance_scale=3.0)
            b = two.step(u + 3.0 * (v - u), b, i, velocity_uncond=None, guidance_scale=1.0)
        assert torch.allclose(a, b, atol=1e-6)


def test_names_and_grids_are_checked() -> None:
    with pytest.raises(ValueError, match="name must be euler, multistep or unipc, got 'heun'"):
        OdeSolver("heun", euler_sigmas(4, 1.0))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unipc needs a grid that starts below 1"):
        OdeSolver("unipc", euler_sigmas(4, 1.0))


def test_unipc_generates_what_the_diffusers_pipeline_does(tiny_wan: Path) -> None:
    from diffusers import UniPCMultistepScheduler, WanPipeline

    pipe = WanPipeline.from_pretrained(tiny_wan, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    sigmas = unipc_sigmas(7, 2.0)
    pipe.scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0)
    pipe.scheduler.set_timesteps(sigmas=torch.tensor(sigmas[:-1], dtype=torch.float64).numpy())
    # The transformer is told sigma itself, and not its whole thousandths.
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: (
            args, kwargs | {"timestep": torch.full_like(kwargs["timestep"], 1.0) * told(kwargs["timestep"])}
        ),
        with_kwargs=True,
    )  # fmt: skip

    def told(timestep: torch.Tensor) -> torch.Tensor:
        index = min(range(7), key=lambda i: abs(int(sigmas[i] * 1000) - float(timestep[0])))
        return torch.tensor(sigmas[index] * 1000)

    pipe.scheduler.set_timesteps = lambda *args, **kwargs: None
    prompts = ["the camera pans left on a green floor", "a red ball"]
    noise = torch.randn(2, 4, 3, 4, 4, generator=torch.Generator().manual_seed(7))
    expected = pipe(
        prompt=prompts, latents=noise, num_inference_steps=7, height=16, width=16, num_frames=9, guidance_scale=3.0,
        output_type="pt", max_sequence_length=16,
    ).frames  # fmt: skip
    policy = load_policy(ModelConfig(path=tiny_wan, lora_rank=4), device="cpu")
    video = generate(policy, prompts, noise, sigmas=sigmas, solver="unipc", guidance_scale=3.0)
    assert (video - expected).abs().max() < 5e-5
    euler = generate(policy, prompts, noise, sigmas=sigmas, guidance_scale=3.0)
    assert (euler - expected).abs().max() > 1e-3


def test_the_rollouts_solver_acts_after_the_window_alone() -> None:
    sigmas = euler_sigmas(8, 2.0)
    policy, batch = MixturePolicy(GAUSSIAN, sigmas), plane_batch(4, 4)
    noise = torch.randn(16, 2, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    config = TrainConfig(
        model=ModelConfig(adapter_sigma_min=0.0),
        schedule=ScheduleConfig(num_steps=8),
        rollout=RolloutConfig(group_size=4, micro_batch=8, share_initial_noise=False),
    )
    euler = sample(policy, batch, noise, sigmas=sigmas, steps=(1, 2), config=config)
    euler_end = policy.x0()
    config = replace(config, rollout=replace(config.rollout, solver="multistep"))
    higher = sample(policy, batch, noise, sigmas=sigmas, steps=(1, 2), config=config)
    assert torch.equal(euler.samples, higher.samples) and torch.equal(euler.prev_samples, higher.prev_samples)
    # From the last draw on the flow is affine: both against its exact end.
    x, s = euler.prev_samples[-1].flatten(1).double(), sigmas[3]
    spread = math.sqrt((1 - s) ** 2 * 0.25 + s**2)
    exact = GAUSSIAN.means + 0.5 * (x - (1 - s) * GAUSSIAN.means) / spread
    first, second = ((end.double() - exact).abs().max() for end in (euler_end, policy.x0()))
    assert second < 0.5 * first
