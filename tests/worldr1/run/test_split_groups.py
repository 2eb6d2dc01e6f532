"""Groups dealt to more ranks than there are prompts: what all ranks hold together is what one rank holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from fakes import PROMPTS, brightness, fake_config, fake_learner, fake_rollout
from oracle_world import Brightness
from thread_ranks import ThreadRanks
from torch import Tensor

from worldr1.camera.noise import initial_noise
from worldr1.config import AdvantageConfig, NoiseConfig, RewardConfig, RolloutConfig, ScheduleConfig, UpdateConfig
from worldr1.config_checks import validate
from worldr1.cost.flops import passes_per_sample
from worldr1.datatypes import PromptBatch, RewardOutput
from worldr1.learn.advantage import group_advantage
from worldr1.learn.selftest import run_self_tests
from worldr1.learn.update import policy_step
from worldr1.presets import preset
from worldr1.prompts.sampler import prompt_batch, rank_share
from worldr1.rewards import RewardStack
from worldr1.rewards.controls import permuted, randomised
from worldr1.run.metrics import reward_metrics

P, G = 6, 8
WORLD_SIZES = [1, 2, 3, 4, 6, 8, 12, 16]
SHAPE = (4, 3, 2, 2)


def config_of(**rollout: Any):
    settings = {
        "group_size": G, "prompts_per_iteration": P, "micro_batch": 4, "share_initial_noise": True,
        "share_first_step": True, **rollout,
    }  # fmt: skip
    return fake_config(
        noise=NoiseConfig(),
        rollout=RolloutConfig(**settings),
        schedule=ScheduleConfig(window_size=2),
        update=UpdateConfig(learning_rate=1e-2, ema_decay=0.5),
        max_iterations=3,
    )


def batches(config, world_size: int, iteration: int = 5) -> list[PromptBatch]:
    """Of each rank."""
    return [
        prompt_batch(PROMPTS, config=config, iteration=iteration, dynamic=False, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]


def noisy_rewards(n: int) -> RewardOutput:
    """Two terms of n samples, every seventh invalid, one group without spread."""
    generator = torch.Generator().manual_seed(4)
    terms = {"a": torch.randn(n, generator=generator), "b": torch.rand(n, generator=generator)}
    for term in terms.values():
        term[G : 2 * G] = 0.5
    valid = torch.arange(n) % 7 != 3
    terms = {name: torch.where(valid, term, torch.nan) for name, term in terms.items()}
    return RewardOutput(terms["a"] + terms["b"], valid, terms, {"a": 1.0, "b": 1.0})


def rows_of(output: RewardOutput, rows: slice) -> RewardOutput:
    terms = {name: term[rows] for name, term in output.breakdown.items()}
    return replace(output, reward=output.reward[rows], valid=output.valid[rows], breakdown=terms)


def own_rows(ranks: ThreadRanks, n: int) -> slice:
    share = n // ranks.size
    return slice(ranks.rank() * share, (ranks.rank() + 1) * share)


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, NaN for NaN."""
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_ranks_together_hold_the_samples_of_one(world_size: int) -> None:
    config = config_of()
    (whole,), parts = batches(config, 1), batches(config, world_size)
    assert (
        whole.group_size == G
        and len(whole.prompts) == P
        and whole.group_ids.tolist() == [240 + G * k for k in range(P)]
    )
    n, piece = rank_share(config.rollout, world_size)
    assert {(p.num_samples, p.group_size, len(p.prompts)) for p in parts} == {(n, piece, n // piece)}
    for field in ("group_ids", "viewmats"):
        joined = torch.cat([p.repeat(getattr(p, field)) for p in parts])
        assert torch.equal(joined, whole.repeat(getattr(whole, field))), field
    assert torch.equal(torch.cat([p.sample_ids for p in parts]), whole.sample_ids)
    for field in ("prompts", "tokens"):
        joined = [x for p in parts for x in getattr(p, field) for _ in range(p.group_size)]
        assert joined == [x for x in getattr(whole, field) for _ in range(G)], field


@pytest.mark.parametrize("mode", ["plain", "transport"])
@pytest.mark.parametrize("share", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_what_is_drawn_once_a_group_is_the_same_in_all_its_pieces(world_size: int, share: bool, mode: str) -> None:
    config = replace(config_of(share_initial_noise=share, share_first_step=False), noise=NoiseConfig(mode=mode))
    (whole,), parts = batches(config, 1), batches(config, world_size)
    noise = initial_noise(whole, SHAPE, config=config)
    assert torch.equal(torch.cat([initial_noise(p, SHAPE, config=config) for p in parts]), noise)
    inside = noise.unflatten(0, (P, G))
    assert bool((inside == inside[:, :1]).all()) == share
    stack = RewardStack(RewardConfig(), seed=3, reconstructor=None, critic=None, aesthetic=None, perceptual=None)
    joined = torch.cat([torch.stack(stack._offsets(p)) for p in parts], 1)
    assert torch.equal(joined, torch.stack(stack._offsets(whole))) and len(joined[0].unique()) == P


@pytest.mark.parametrize("std", ["group", "global"])
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_advantages_are_over_whole_groups(world_size: int, std: str) -> None:
    rewards, config = noisy_rewards(P * G), AdvantageConfig(std=std)
    one, ranks = group_advantage(rewards, group_size=G, config=config), ThreadRanks(world_size)
    assert one.num_dropped_groups == 1 and 0 < one.num_active < P * G
    parts = ranks.run(lambda: group_advantage(rows_of(rewards, own_rows(ranks, P * G)), group_size=G, config=config))
    for name in ("advantage", "mask"):
        assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(one, name))
    for part in parts:
        assert part.metrics() == one.metrics() and part.alarms == one.alarms and part.num_active == one.num_active


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_control_experiments_are_those_of_one_rank(world_size: int) -> None:
    config, rewards, ranks = config_of(), noisy_rewards(P * G), ThreadRanks(world_size)
    (whole,), parts = batches(config, 1), batches(config, world_size)
    one = permuted(rewards, whole, seed=1)
    assert not same(one.reward, rewards.reward)
    got = ranks.run(lambda: permuted(rows_of(rewards, own_rows(ranks, P * G)), parts[ranks.rank()], seed=1))
    assert same(torch.cat([g.reward for g in got]), one.reward)
    for name, term in one.breakdown.items():
        assert same(torch.cat([g.breakdown[name] for g in got]), term)
    random = ranks.run(lambda: randomised(rows_of(rewards, own_rows(ranks, P * G)), parts[ranks.rank()], seed=1))
    assert same(torch.cat([g.reward for g in random]), randomised(rewards, whole, seed=1).reward)


def three_iterations(config) -> dict[str, Any]:
    """The lines of metrics.jsonl, the adapter, and the size of every transformer call."""
    learner, calls = fake_learner(config), []
    velocity = learner.policy.velocity
    learner.policy.velocity = lambda x, *args, **options: calls.append(len(x)) or velocity(x, *args, **options)
    lines = []
    for iteration in range(3):
        _, rollout, advantage = fake_rollout(learner, config, iteration=iteration)
        figures = policy_step(*learner, rollout, advantage, config=config, lr=1e-2)
        lines.append({**reward_metrics(brightness(rollout)), **advantage.metrics(), **figures})
    return {"lines": lines, "state": learner.policy.adapter_state(), "calls": calls}


def assert_alike(got: Any, expected: Any, where: str) -> None:
    """Figures up to the rounding of other batch shapes."""
    if isinstance(expected, dict):
        assert got.keys() == expected.keys(), where
        for key in expected:
            assert_alike(got[key], expected[key], f"{where} {key}")
    elif where.endswith(("clip_fraction", "ratio_first_deviation")):
        # A count of ratios beyond a bound that some meet to the last digits; and rounding itself.
        assert got == pytest.approx(expected, abs=0.02 if where.endswith("fraction") else 1e-6), where
    else:
        assert got == pytest.approx(expected, rel=1e-4, abs=1e-6, nan_ok=True), where


@pytest.mark.parametrize("share", [0, 1, 2], ids=["own", "prefix", "first-step"])
@pytest.mark.parametrize(
    "world_size", [2, 3, 4, 6, 8, *(pytest.param(n, marks=pytest.mark.slow) for n in WORLD_SIZES if n > 8)]
)
def test_ranks_train_as_one(world_size: int, share: int) -> None:
    n, piece = rank_share(config_of().rollout, world_size)
    micro_batch = n // piece if share == 2 else n  # all pieces in one call
    config = config_of(micro_batch=micro_batch, share_initial_noise=share > 0, share_first_step=share > 1)
    one = three_iterations(config)
    every = ThreadRanks(world_size).run(lambda: three_iterations(config))
    for got in every:
        assert got["calls"] == every[0]["calls"]
        for line, expected in zip(got["lines"], one["lines"], strict=True):
            assert_alike(line, expected, "")
        for name, value in one["state"].items():
            assert torch.equal(got["state"][name], every[0]["state"][name])
            assert torch.allclose(got["state"][name], value, atol=1e-5) and value.abs().max() > 1e-3
    if share == 0:
        passes = passes_per_sample(config, world_size=world_size)
        assert sum(every[0]["calls"]) == pytest.approx(3 * n * passes.forwards)


def test_self_tests_pass_on_pieces() -> None:
    config = config_of(micro_batch=1)
    tests = ThreadRanks(16).run(lambda: run_self_tests(fake_learner(config).policy, prompts=PROMPTS, config=config))
    assert {len(t) for t in tests} == {5}


def test_a_rank_judges_its_pieces_as_one_rank_judges_groups() -> None:
    config, n = config_of(), P * G
    video = torch.rand(n, 9, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    video[[1, 9, 40]] = torch.nan
    (whole,), parts, ranks = batches(config, 1), batches(config, 12), ThreadRanks(12)
    for control in ("none", "permuted", "random"):
        stack = RewardStack(
            RewardConfig(weight_traj=0, weight_recon=0, weight_meta=0, control=control),
            seed=2, reconstructor=None, critic=None, aesthetic=Brightness(), perceptual=None,
        )  # fmt: skip
        one = stack.score(whole, video)
        got = ranks.run(lambda: stack.score(parts[ranks.rank()], video[own_rows(ranks, n)]))  # noqa: B023
        assert same(torch.cat([g.reward for g in got]), one.reward) and int(one.valid.sum()) == n - 3


@pytest.mark.parametrize(("world_size", "share"), [(48, (8, 8)), (64, (6, 2)), (96, (4, 4)), (384, (1, 1))])
def test_shares_at_wan_size(world_size: int, share: tuple[int, int]) -> None:
    """48 prompts of 8 samples on up to 384 devices."""
    config = preset("wan2.1-1.3b")
    assert rank_share(config.rollout, world_size) == share
    parts = [
        prompt_batch(PROMPTS, config=config, iteration=1, dynamic=True, rank=rank, world_size=world_size)
        for rank in (0, 1, world_size - 1)
    ]
    for rank, part in zip((0, 1, world_size - 1), parts, strict=True):
        assert part.sample_ids.tolist() == list(range(384 + rank * share[0], 384 + (rank + 1) * share[0]))
        assert torch.equal(part.repeat(part.group_ids), part.sample_ids // 8 * 8)
    assert parts[0].group_size == share[1]


@pytest.mark.parametrize(
    ("world_size", "message"),
    [(100, "got 48 x 8 = 384; start 96 or 128 ranks"), (500, "got 48 x 8 = 384; start 384 or 192 ranks")],
)
def test_other_numbers_of_ranks_are_refused_before_anything_is_loaded(world_size: int, message: str) -> None:
    config = preset("wan2.1-1.3b")
    with pytest.raises(ValueError, match=f"must be a multiple of the {world_size} ranks, {message}"):
        validate(config, world_size=world_size)
    with pytest.raises(ValueError, match=f"must be a multiple of the {world_size} ranks, got 384"):
        prompt_batch(PROMPTS, config=config, iteration=0, dynamic=False, rank=0, world_size=world_size)


def test_the_micro_batch_divides_the_samples_of_a_rank() -> None:
    config = replace(fake_config(), rollout=RolloutConfig(group_size=8, prompts_per_iteration=48, micro_batch=4))
    with pytest.raises(ValueError, match="micro_batch must divide the 6 samples of a rank, got 4"):
        validate(config, world_size=64)
    for micro_batch in (1, 2, 3, 6, 32):  # as few as there are, where there are fewer
        validate(replace(config, rollout=replace(config.rollout, micro_batch=micro_batch)), world_size=64)
