"""The deferred update against the two passes that it replaces."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import FakePolicy, brightness, fake_config, fake_rollout
from torch import Tensor, nn

from worldr1.camera.noise import initial_noise
from worldr1.config import ModelConfig, RolloutConfig, ScheduleConfig, TrainConfig, UpdateConfig
from worldr1.datatypes import Rollout
from worldr1.learn.advantage import Advantage, group_advantage
from worldr1.learn.update import Learner, make_optimizer, policy_step, sample_gradients
from worldr1.models.ema import Ema
from worldr1.models.wan import load_policy
from worldr1.prompts.sampler import prompt_batch
from worldr1.rollout.sample import sample
from worldr1.rollout.sample_gradients import SampleGradients
from worldr1.rollout.schedule import euler_sigmas

PROMPTS = ["push in a red ball", "the camera pans left"]
STEPS = (1, 2)


def make_config(folder: Path, *, scale: float = 1.0, kl_beta: float = 0.0, micro_batch: int = 8, share: bool = False):
    return fake_config(
        model=ModelConfig(path=folder, lora_rank=4, adapter_sigma_min=0.0),
        schedule=ScheduleConfig(num_steps=5, window_size=2),
        rollout=RolloutConfig(
            group_size=4, prompts_per_iteration=2, micro_batch=micro_batch, guidance_scale=scale,
            share_initial_noise=share,
        ),
        update=UpdateConfig(updates_per_rollout=1, kl_beta=kl_beta, deferred=True),
    )  # fmt: skip


def make_learner(config: TrainConfig) -> Learner:
    """With an adapter away from its start."""
    policy = load_policy(config.model, device="cpu")
    generator = torch.Generator().manual_seed(3)
    params = policy.adapter_parameters()
    with torch.no_grad():
        for p in params:
            p.copy_(0.2 * torch.randn(p.shape, generator=generator))
    return Learner(policy, make_optimizer(params, config.update), Ema(params, decay=0.5))


def roll(learner: Learner, config: TrainConfig, gradients: bool) -> tuple[Rollout, SampleGradients | None, Advantage]:
    batch = prompt_batch(PROMPTS, config=config, iteration=0, dynamic=False, rank=0, world_size=1)
    noise = initial_noise(batch, learner.policy.latent_shape(config.video), config=config)
    buffers = sample_gradients(learner.ema.params, batch, config) if gradients else None
    rollout = sample(
        learner.policy, batch, noise, sigmas=euler_sigmas(5, 2.0), steps=STEPS, config=config, gradients=buffers
    )
    return rollout, buffers, group_advantage(brightness(rollout), group_size=4, config=config.advantage)


def taken_by(learner: Learner) -> list[Tensor]:
    """The gradients that the optimizer will be given."""
    taken: list[Tensor] = []
    learner.optimizer.register_step_pre_hook(
        lambda o, *_: taken.append(torch.cat([p.grad.flatten() for p in o.param_groups[0]["params"]]))
    )
    return taken


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("kl_beta", [0.0, 0.05])
@pytest.mark.parametrize("micro_batch", [8, 2])
def test_it_is_the_two_pass_update(tiny_wan: Path, scale: float, kl_beta: float, micro_batch: int) -> None:
    config = make_config(tiny_wan, scale=scale, kl_beta=kl_beta, micro_batch=micro_batch)
    one, two = make_learner(config), make_learner(config)
    taken_one, taken_two = taken_by(one), taken_by(two)
    rollout, buffers, advantage = roll(one, config, True)
    plain, _, same = roll(two, config, False)
    assert torch.equal(rollout.video, plain.video) and torch.equal(rollout.log_prob, plain.log_prob)
    # A sample whose reward is missing leaves both.
    mask = torch.tensor([True] * 5 + [False] + [True] * 2)
    advantage = dataclasses.replace(advantage, mask=mask, advantage=advantage.advantage * mask, num_active=7)
    assert buffers is not None
    got = policy_step(*one, rollout, advantage, config=config, lr=1e-2, gradients=buffers)
    want = policy_step(*two, plain, advantage, config=config, lr=1e-2)
    # Guidance subtracts scale - 1 parts from scale parts: their digits are lost in either order of summation.
    error, size = (taken_one[0] - taken_two[0]).norm(), taken_two[0].norm()
    assert error <= 1e-6 * (2 * scale - 1) * size and size > 1e-3
    for key in ("ratio_mean", "kl", "grad_norm", "num_updates", "clip_fraction", "approx_kl"):
        assert got[key] == pytest.approx(want[key], rel=1e-5, abs=1e-7, nan_ok=True), key
    assert got["steps"].keys() == want["steps"].keys() and (kl_beta == 0 or got["kl"] > 0)


def test_checkpointed_layers_and_a_shared_prefix_give_the_same(tiny_wan: Path) -> None:
    base = make_config(tiny_wan, kl_beta=0.05, share=True)
    grads = []
    for checkpointing in (False, True):
        config = replace(base, model=replace(base.model, gradient_checkpointing=checkpointing))
        learner = make_learner(config)
        learner.policy.transformer.train()  # diffusers recomputes in training mode too
        taken = taken_by(learner)
        rollout, buffers, advantage = roll(learner, config, True)
        policy_step(*learner, rollout, advantage, config=config, lr=1e-2, gradients=buffers)
        grads.append(taken[0])
    assert (grads[0] - grads[1]).abs().max() <= 1e-6 * grads[0].abs().max()


@pytest.mark.parametrize("kl_beta", [0.0, 0.05])
def test_later_updates_go_on_from_it(tiny_wan: Path, kl_beta: float) -> None:
    """The first of two updates deferred: the second meets the same policy, reference and old densities."""
    config = make_config(tiny_wan, kl_beta=kl_beta)
    config = replace(config, update=replace(config.update, updates_per_rollout=2))
    taken, figures = [], []
    for gradients in (True, False):
        learner = make_learner(config)
        taken.append(taken_by(learner))
        rollout, buffers, advantage = roll(learner, config, gradients)
        figures.append(policy_step(*learner, rollout, advantage, config=config, lr=1e-3, gradients=buffers))
    assert len(taken[0]) == len(taken[1]) == 2
    assert (taken[0][0] - taken[1][0]).norm() <= 1e-6 * taken[1][0].norm()
    # Adam's first step is the sign of the gradient, which rounding turns where it is nearly 0.
    assert (taken[0][1] - taken[1][1]).norm() <= 1e-3 * taken[1][1].norm()
    for key in ("ratio_mean", "ratio_max_deviation", "kl", "grad_norm", "num_updates"):
        assert figures[0][key] == pytest.approx(figures[1][key], rel=1e-3, abs=1e-6, nan_ok=True), key
    assert figures[0]["num_updates"] == 2 and figures[0]["ratio_max_deviation"] > 1e-5


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_one_backward_pass_for_a_group_gives_the_same_gradient(tiny_wan: Path, scale: float) -> None:
    """rollout.share_first_step, over both updates of a rollout, with KL and a masked sample."""
    base = make_config(tiny_wan, scale=scale, kl_beta=0.05, share=True, micro_batch=2)
    mask = torch.tensor([True] * 5 + [False] + [True] * 2)
    taken, first = [], None
    for merged in (False, True):
        config = replace(
            base,
            rollout=replace(base.rollout, share_first_step=merged),
            update=replace(base.update, deferred=False, updates_per_rollout=2),
        )
        learner = make_learner(config)
        taken.append(taken_by(learner))
        rollout, _, scored = roll(learner, config, False)
        # The same for both: a last digit of a latent may be a level of the video, and of the reward.
        scored = first = scored if first is None else first
        advantage = dataclasses.replace(scored, mask=mask, advantage=scored.advantage * mask, num_active=7)
        figures = policy_step(*learner, rollout, advantage, config=config, lr=1e-3)
        assert figures["ratio_first_deviation"] == 0.0 and figures["num_updates"] == 2
    # Not to the last digits: with another number of rows in a pass, its draws are rounded anew.
    for one, other, limit in zip(*taken, (1e-4, 1e-3), strict=True):
        assert (one - other).norm() <= limit * (2 * scale - 1) * other.norm() and other.norm() > 1e-3


@pytest.mark.parametrize("keep", ["attention", "products"])
def test_what_checkpointing_keeps_does_not_change_the_gradient(tiny_wan: Path, keep: str) -> None:
    taken = []
    for checkpointing in (False, True):
        config = make_config(tiny_wan)
        model = replace(config.model, gradient_checkpointing=checkpointing, checkpoint_keep=keep)
        config = replace(config, model=model)
        learner = make_learner(config)
        taken.append(taken_by(learner))
        rollout, buffers, advantage = roll(learner, config, True)
        policy_step(*learner, rollout, advantage, config=config, lr=1e-2, gradients=buffers)
    assert torch.equal(taken[0][0], taken[1][0]) and taken[0][0].norm() > 1e-3


def test_it_takes_no_forward_pass_of_its_own(tiny_wan: Path) -> None:
    config = make_config(tiny_wan, kl_beta=0.05)
    learner = make_learner(config)
    calls: list[bool] = []
    learner.policy.transformer.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    rollout, buffers, advantage = roll(learner, config, True)
    assert calls.count(True) == 2 and len(calls) == 5 + 2  # 5 steps, of which 2 with a graph, and 2 for the reference
    policy_step(*learner, rollout, advantage, config=config, lr=1e-2, gradients=buffers)
    assert len(calls) == 7


def test_a_sample_that_is_not_finite_leaves_the_gradient(tiny_wan: Path) -> None:
    config = make_config(tiny_wan)
    learner = make_learner(config)
    taken = taken_by(learner)
    rollout, buffers, advantage = roll(learner, config, True)
    mask = torch.tensor([True] * 7 + [False])
    advantage = dataclasses.replace(advantage, mask=mask, num_active=7)
    assert buffers is not None
    root = math.sqrt(rollout.samples[0, 0].numel())
    expected = -root * (advantage.advantage[:7] @ buffers.log_prob[:7]) / 14
    buffers.log_prob[7] = math.nan
    figures = policy_step(*learner, rollout, advantage, config=config, lr=1e-2, gradients=buffers)
    assert torch.allclose(taken[0], expected, atol=1e-6) and figures["num_updates"] == 1


def test_nor_does_its_mean_in_the_second_update(tiny_wan: Path) -> None:
    config = make_config(tiny_wan)
    config = dataclasses.replace(config, update=dataclasses.replace(config.update, updates_per_rollout=2))
    learner = make_learner(config)
    rollout, buffers, advantage = roll(learner, config, True)
    assert buffers is not None and len(buffers.means) > 0
    for (_, first), mean in buffers.means.items():
        if first <= 7 < first + len(mean):
            mean[7 - first] = math.nan
    mask = torch.tensor([True] * 7 + [False])
    advantage = dataclasses.replace(advantage, mask=mask, num_active=7)
    figures = policy_step(*learner, rollout, advantage, config=config, lr=1e-2, gradients=buffers)
    assert figures["num_updates"] == 2 and figures["nonfinite_updates"] == 0
    assert all(bool(p.isfinite().all()) for p in learner.ema.params)


def test_all_advantages_masked_is_no_update(tiny_wan: Path) -> None:
    config = make_config(tiny_wan)
    learner = make_learner(config)
    rollout, buffers, advantage = roll(learner, config, True)
    nothing = dataclasses.replace(advantage, mask=torch.zeros(8, dtype=torch.bool), num_active=0)
    before = [p.detach().clone() for p in learner.ema.params]
    figures = policy_step(*learner, rollout, nothing, config=config, lr=1e-2, gradients=buffers)
    assert all(torch.equal(a, b) for a, b in zip(before, learner.ema.params, strict=True))
    assert figures["num_updates"] == 0 and figures["skipped_updates"] == 1


def test_its_memory_is_what_is_stated(tiny_wan: Path) -> None:
    config = make_config(tiny_wan)
    params = make_learner(config).ema.params
    size = sum(p.numel() for p in params)
    for with_kl in (False, True):
        buffers = SampleGradients(params, num_samples=8, num_steps=2, with_kl=with_kl)
        assert buffers.num_bytes == 4 * size * 8 * (1 + with_kl)


def test_an_adapter_that_is_no_lora_is_refused() -> None:
    config = fake_config(update=UpdateConfig(updates_per_rollout=1, deferred=True))
    params = FakePolicy().adapter_parameters()
    learner = Learner(FakePolicy(), make_optimizer(params, config.update), Ema(params, decay=0.5))
    batch, rollout, _ = fake_rollout(learner, config)
    buffers = sample_gradients(params, batch, config)
    with pytest.raises(ValueError, match="update.deferred: every adapter parameter .* 3 of 3 are not"):
        buffers.add(rollout.log_prob[:, 0].clone().requires_grad_(), None, rows=slice(0, 16), index=0, weight=1.0)


def test_per_sample_gradients_of_a_layer_that_is_called_twice() -> None:
    layer = nn.Linear(3, 2, bias=False)
    x, y = torch.randn(4, 5, 3), torch.randn(4, 3)
    gradients = SampleGradients([layer.weight], num_samples=4, num_steps=1, with_kl=False)
    with gradients.recording():
        value = layer(x).square().flatten(1).sum(1) + layer(y).sin().sum(1)
        gradients.add(value, None, rows=slice(0, 4), index=0, weight=2.0)
    assert layer.weight.grad is None
    for n in range(4):
        own = layer(x[n]).square().sum() + layer(y[n]).sin().sum()
        expected = 2.0 * torch.autograd.grad(own, layer.weight)[0]
        assert torch.allclose(gradients.log_prob[n].view(2, 3), expected, atol=1e-5)
