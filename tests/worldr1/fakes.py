"""A policy of a few hundred numbers and a reward that is known in closed form, for the tests of the trainer."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from worldr1.camera.noise import initial_noise
from worldr1.config import NoiseConfig, RolloutConfig, TrainConfig, UpdateConfig, VideoConfig
from worldr1.datatypes import PromptBatch, RewardOutput, Rollout
from worldr1.learn.advantage import Advantage, group_advantage
from worldr1.learn.forward import forward_step
from worldr1.learn.update import Learner, learning_rate, make_optimizer, policy_step
from worldr1.models.ema import Ema
from worldr1.prompts.sampler import prompt_batch
from worldr1.rollout.sample import sample
from worldr1.rollout.schedule import euler_sigmas, rollout_steps
from worldr1.run import distributed

PROMPTS = ["push in", "pull out", "pan left", "pan right", "tilt up", "orbit left"]


class FakePolicy:
    """Velocity = x W + prompt + sigma (x A B + bias); A, B and bias are the adapter, B and bias start at 0."""

    def __init__(self, *, seed: int = 0, sigma_min: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.device = torch.device("cpu")
        self.sigma_min = sigma_min
        self.base = 0.3 * torch.randn(4, 4, generator=generator)
        self.a = nn.Parameter(torch.randn(4, 2, generator=generator))
        self.b = nn.Parameter(torch.zeros(2, 4))
        self.bias = nn.Parameter(torch.zeros(4))

    def latent_shape(self, video: VideoConfig) -> tuple[int, int, int, int]:
        return 4, (video.num_frames - 1) // 4 + 1, video.height // 4, video.width // 4

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        return torch.tensor([[[len(p) / 10.0, p.count("i") / 5.0]] for p in prompts])  # [N, 1, 2]

    def velocity(
        self, sample: Tensor, sigma: float | Tensor, prompt_embeds: Tensor, *, adapter: bool = True, exact: bool = True
    ) -> Tensor:
        x = sample.movedim(1, -1)  # [N, f, h, w, C]
        acts = adapter and bool(torch.as_tensor(sigma >= self.sigma_min).all())
        if isinstance(sigma, Tensor):
            assert sigma.dtype == torch.float64 and sigma.shape == (len(x),) and (acts or not adapter)
            sigma = sigma.to(x).view(-1, 1, 1, 1, 1)
        with contextlib.nullcontext() if acts else torch.no_grad():
            out = x @ self.base + prompt_embeds.sum((1, 2))[:, None, None, None, None]
            if acts:
                out = out + sigma * (x @ self.a @ self.b + self.bias)
        return out.movedim(-1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        video = latents[:, :3].sigmoid().repeat_interleave(4, 3).repeat_interleave(4, 4)  # [N, 3, f, H, W]
        return torch.cat([video[:, :, :1], video[:, :, 1:].repeat_interleave(4, 2)], 2).transpose(1, 2)

    def adapter_parameters(self) -> list[nn.Parameter]:
        return [self.a, self.b, self.bias]

    def adapter_state(self) -> dict[str, Tensor]:
        return {name: getattr(self, name).detach().clone() for name in ("a", "b", "bias")}

    def load_adapter_state(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in state.items():
                getattr(self, name).copy_(value)

    def save_lora(self, folder: Path) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)


def fake_config(**changes: object) -> TrainConfig:
    """8x8 videos of 9 frames, 4 prompts x 4 samples, plain noise."""
    config = TrainConfig(
        video=VideoConfig(height=8, width=8, num_frames=9),
        noise=NoiseConfig(mode="plain"),
        rollout=RolloutConfig(group_size=4, prompts_per_iteration=4, micro_batch=8),
        update=UpdateConfig(learning_rate=1e-2, ema_decay=0.5),
    )
    return replace(config, **changes)  # type: ignore[arg-type]


def fake_learner(config: TrainConfig, *, seed: int = 0) -> Learner:
    policy = FakePolicy(seed=seed)
    params = policy.adapter_parameters()
    return Learner(policy, make_optimizer(params, config.update), Ema(params, decay=config.update.ema_decay))


def brightness(rollout: Rollout) -> RewardOutput:
    """Mean of the video: what the policy can raise by its bias alone."""
    value = rollout.video.flatten(1).float().mean(1) / 255
    return RewardOutput(reward=value, valid=rollout.finite, breakdown={"light": value}, weights={"light": 1.0})


def fake_rollout(
    learner: Learner, config: TrainConfig, *, iteration: int = 0
) -> tuple[PromptBatch, Rollout, Advantage]:
    """Prompts, rollout and advantages of one iteration on this rank."""
    batch = prompt_batch(
        PROMPTS, config=config, iteration=iteration, dynamic=False,
        rank=distributed.rank(), world_size=distributed.world_size(),
    )  # fmt: skip
    noise = initial_noise(batch, learner.policy.latent_shape(config.video), config=config)
    rollout = sample(
        learner.policy, batch, noise,
        sigmas=euler_sigmas(config.schedule.num_steps, config.schedule.shift),
        steps=rollout_steps(config, iteration=iteration), config=config,
    )  # fmt: skip
    size = config.rollout.group_size
    return batch, rollout, group_advantage(brightness(rollout), group_size=size, config=config.advantage)


def fake_iteration(
    learner: Learner, config: TrainConfig, *, iteration: int, means: dict[str, Tensor] | None = None
) -> dict:
    """One whole iteration; returns the update's figures and the mean reward."""
    batch, rollout, advantage = fake_rollout(learner, config, iteration=iteration)
    lr = learning_rate(iteration, max_iterations=config.max_iterations, config=config.update)
    if config.update.estimator == "forward":
        figures = forward_step(*learner, batch, rollout, advantage, means=means or {}, config=config, lr=lr)
    else:
        figures = policy_step(*learner, rollout, advantage, config=config, lr=lr)
    return figures | {"reward": float(distributed.gather(brightness(rollout).reward).mean())}
