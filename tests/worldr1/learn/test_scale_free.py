"""Nothing in the update depends on the number of elements of a latent: gradient, step, clip, norm clip, KL."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fakes import FakePolicy, brightness, fake_config, fake_iteration, fake_learner, fake_rollout
from torch import Tensor, nn

from worldr1.config import RolloutConfig, TrainConfig, UpdateConfig, VideoConfig
from worldr1.datatypes import RewardOutput
from worldr1.learn.advantage import group_advantage
from worldr1.learn.update import Learner, make_optimizer, policy_step, running_norm
from worldr1.models.ema import Ema

SMALL, LARGE = (16, 12), (64, 80)  # latent height and width; with 4 channels and 3 frames 2,304 and 61,440 elements


class PixelPolicy(FakePolicy):
    """A pointwise network of 352 adapter parameters, and videos of one pixel a frame: the means of the latents."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.a = nn.Parameter(torch.randn(4, 32, generator=generator))
        self.b = nn.Parameter(0.05 * torch.randn(32, 4, generator=generator))
        self.bias = nn.Parameter(0.05 * torch.randn(32, 3, generator=generator))

    def velocity(
        self, sample: Tensor, sigma: float, prompt_embeds: Tensor, *, adapter: bool = True, exact: bool = True
    ) -> Tensor:
        x = sample.movedim(1, -1)  # [N, f, h, w, C]
        out = x @ self.base
        if adapter:
            hidden = torch.tanh(x @ self.a)
            out = out + hidden @ self.b + nn.functional.pad(hidden @ self.bias, (1, 0))
        return out.movedim(-1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        means = latents[:, :3].mean((3, 4)) * latents[0, 0, 0].numel() ** 0.5  # [N, 3, f], of unit size
        return means.sigmoid().movedim(2, 1)[..., None, None]  # [N, f, 3, 1, 1]


def config_of(size: tuple[int, int], **update: float) -> TrainConfig:
    base = fake_config(
        max_iterations=1000,
        rollout=RolloutConfig(group_size=4, prompts_per_iteration=4, micro_batch=16),
        update=UpdateConfig(learning_rate=2e-3, ema_decay=0.5, **update),
    )
    return replace(base, video=VideoConfig(height=4 * size[0], width=4 * size[1], num_frames=9))


def learner_of(config: TrainConfig) -> Learner:
    policy = PixelPolicy()
    params = policy.adapter_parameters()
    return Learner(policy, make_optimizer(params, config.update), Ema(params, decay=0.5))


def state_of(learner: Learner) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in learner.ema.params])


def figures_at(size: tuple[int, int], iterations: int = 8) -> dict[str, float]:
    """Means of what the update says, and the relative change of the adapter in an iteration."""
    config = config_of(size)
    learner = learner_of(config)
    assert learner.policy.latent_shape(config.video) == (4, 3, *size)
    rows = []
    for i in range(iterations):
        before = state_of(learner)
        figures = fake_iteration(learner, config, iteration=i)
        rows.append(figures | {"moved": float((state_of(learner) - before).norm() / before.norm())})
    names = ("moved", "grad_norm", "clip_fraction", "ratio_max_deviation", "kl")
    return {name: sum(row[name] for row in rows) / iterations for name in names}


def test_an_update_does_the_same_at_2304_and_at_61440_elements() -> None:
    small, large = figures_at(SMALL), figures_at(LARGE)
    print(small, large)
    assert large["moved"] == pytest.approx(small["moved"], rel=0.1)
    assert large["grad_norm"] == pytest.approx(small["grad_norm"], rel=0.25)  # 1 / sqrt(elements) would be 5 times less
    assert large["ratio_max_deviation"] == pytest.approx(small["ratio_max_deviation"], rel=0.4)
    assert large["kl"] == pytest.approx(small["kl"], rel=0.3)
    assert 0.02 < small["clip_fraction"] < 0.48 and abs(large["clip_fraction"] - small["clip_fraction"]) < 0.12


def test_the_size_of_the_gradient_does_not_matter_to_the_step() -> None:
    """AdamW's eps is far below a gradient of any size: at Wan's size, unscaled, it was one with it."""
    moved = []
    for scale in (1.0, 1e-6):
        config = fake_config(update=UpdateConfig(learning_rate=1e-2, updates_per_rollout=1, kl_beta=0.0))
        learner = fake_learner(config)
        _, rollout, advantage = fake_rollout(learner, config)
        small = replace(advantage, advantage=scale * advantage.advantage)
        policy_step(*learner, rollout, small, config=config, lr=1e-2)
        moved.append(torch.cat([p.detach().flatten() for p in learner.ema.params[1:]]))
    assert torch.allclose(moved[0], moved[1], rtol=1e-3)


def test_a_gradient_far_above_those_before_is_cut_to_a_multiple_of_their_norm() -> None:
    config = fake_config(
        update=UpdateConfig(learning_rate=1e-3, updates_per_rollout=1, kl_beta=0.0, max_grad_ratio=3.0)
    )
    learner = fake_learner(config)
    assert running_norm(learner.optimizer) == float("inf")  # nothing to compare the first one with
    usual = [fake_iteration(learner, config, iteration=i) for i in range(5)]
    mean_square = sum(row["grad_norm"] ** 2 for row in usual) / 5
    assert running_norm(learner.optimizer) == pytest.approx(mean_square**0.5, rel=0.01)
    assert sum(row["cut_gradients"] for row in usual) == 0
    _, rollout, advantage = fake_rollout(learner, config, iteration=5)
    wild = replace(advantage, advantage=100.0 * advantage.advantage)
    seen: list[float] = []
    learner.optimizer.register_step_pre_hook(
        lambda optimizer, *_: seen.append(
            float(torch.cat([p.grad.flatten() for p in optimizer.param_groups[0]["params"]]).norm())
        )
    )
    limit = 3.0 * running_norm(learner.optimizer)
    figures = policy_step(*learner, rollout, wild, config=config, lr=1e-3)
    assert figures["cut_gradients"] == 1 and figures["grad_norm"] > 10 * limit
    assert seen[0] == pytest.approx(limit, rel=1e-3)


def trained(*, clip_range: float, noise: bool, seed: int) -> dict[str, float]:
    """Eight iterations of ten updates each on brightness or on a random reward: what was gained, KL, clip fraction."""
    update = UpdateConfig(
        learning_rate=3e-2, final_lr_fraction=1.0, updates_per_rollout=10, kl_beta=1e-9, clip_range=clip_range,
        ema_decay=0.5,
    )  # fmt: skip
    config = fake_config(max_iterations=1000, seed=seed, update=update)
    learner, generator = fake_learner(config), torch.Generator().manual_seed(seed)
    before = brightness(fake_rollout(learner, config)[1]).reward.mean()
    figures: dict[str, float] = {}
    for i in range(8):
        _, rollout, _ = fake_rollout(learner, config, iteration=i)
        value = torch.randn(16, generator=generator) if noise else brightness(rollout).reward
        scores = RewardOutput(reward=value, valid=rollout.finite)
        advantage = group_advantage(scores, group_size=4, config=config.advantage)
        figures = policy_step(*learner, rollout, advantage, config=config, lr=3e-2)
    after = brightness(fake_rollout(learner, config)[1]).reward.mean()
    return {"gain": float(after - before), "kl": figures["kl"], "clipped": figures["clip_fraction"]}


@pytest.mark.parametrize("seed", [0, 1])
def test_the_clip_fires_and_helps(seed: int) -> None:
    """Ten updates on one rollout follow the draws of 16 samples further than these say. With the clip a random reward
    moves the policy several times less, and a true one is learned as well."""
    clipped, free = (trained(clip_range=c, noise=True, seed=seed) for c in (0.05, 0.999))
    assert clipped["clipped"] > 0.1 and clipped["kl"] < 0.3 * free["kl"]
    clipped, free = (trained(clip_range=c, noise=False, seed=seed) for c in (0.05, 0.999))
    assert clipped["gain"] > 0.9 * free["gain"] > 0.1 and clipped["kl"] < 0.5 * free["kl"]
