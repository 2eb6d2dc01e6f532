"""The micro-batch by memory: what is counted, that a row's bytes bound those of many, and what is chosen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import fake_config, fake_rollout
from torch import Tensor

from worldr1.config import ModelConfig, RolloutConfig, TrainConfig, UpdateConfig
from worldr1.cost.budget import fit_micro_batch, peak_bytes, sample_bytes
from worldr1.learn.update import Learner, make_optimizer
from worldr1.models.ema import Ema
from worldr1.models.wan import WanPolicy, load_policy
from worldr1.rollout.sample import window_rows, window_step

CPU = torch.device("cpu")
PROMPT = "push in"


def make_config(folder: Path, *, checkpointing: bool = False, **rollout: object) -> TrainConfig:
    settings = {"group_size": 4, "prompts_per_iteration": 2, "micro_batch": 8, "share_initial_noise": True, **rollout}
    return fake_config(
        model=ModelConfig(path=folder, lora_rank=2, gradient_checkpointing=checkpointing),
        rollout=RolloutConfig(**settings),  # type: ignore[arg-type]
        update=UpdateConfig(kl_beta=0.0),
    )


@pytest.fixture(scope="module")
def policy(tiny_wan: Path) -> WanPolicy:
    return load_policy(make_config(tiny_wan).model, device="cpu")


def test_counted_are_the_tensors_made_inside_while_they_live() -> None:
    kept = torch.zeros(1000)  # 4,000 bytes, there before
    weight = torch.ones(1000, requires_grad=True)

    def call() -> None:
        x = kept.view(10, 100).add(1.0)  # + 4,000, and a view of what was there
        y = x * 2.0  # + 4,000
        del x  # - 4,000
        z = y.t()  # a view
        del y
        z.exp_()  # no new memory: 4,000
        del z

    assert peak_bytes(call, CPU) == 8000
    # exp saves its result for the backward pass, though no name holds it: 3 x 4,000, and the scalar of the sum.
    assert peak_bytes(lambda: weight.exp().exp().exp().sum().backward, CPU) == 12_004
    assert peak_bytes(lambda: kept.view(-1), CPU) == 0


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_many_rows_take_no_more_than_so_many_times_one(tiny_wan: Path, checkpointing: bool, share: bool) -> None:
    config = make_config(tiny_wan, checkpointing=checkpointing, guidance_scale=3.0, share_first_step=share)
    own = load_policy(config.model, device="cpu")
    params = own.adapter_parameters()
    _, rollout, _ = fake_rollout(Learner(own, make_optimizer(params, config.update), Ema(params, decay=0.5)), config)
    (rows,) = window_rows(rollout, 0, config)

    def update() -> None:
        window_step(own, rollout, index=0, rows=rows, config=config).log_prob.sum().backward()

    one = sample_bytes(own, PROMPT, config)
    assert all(p.grad is None for p in params)
    num_latents = 2 if share else 8
    assert 0.7 * num_latents * one.update <= peak_bytes(update, CPU) <= num_latents * one.update
    latents: Tensor = rollout.samples[0]
    assert 0.7 * 8 * one.decode <= peak_bytes(lambda: own.decode(latents), CPU) <= 8 * one.decode


def test_checkpointing_takes_less(policy: WanPolicy, tiny_wan: Path) -> None:
    less = make_config(tiny_wan, checkpointing=True)
    assert sample_bytes(load_policy(less.model, device="cpu"), PROMPT, less).update < 0.9 * (
        sample_bytes(policy, PROMPT, make_config(tiny_wan)).update
    )


def test_a_row_of_the_forward_estimator_has_no_guidance_in_its_update(policy: WanPolicy, tiny_wan: Path) -> None:
    guided = make_config(tiny_wan, guidance_scale=4.0, share_initial_noise=False)
    forward = replace(guided, update=replace(guided.update, estimator="forward"))
    need, score = sample_bytes(policy, PROMPT, forward), sample_bytes(policy, PROMPT, guided)
    assert 0.3 < need.update / score.update < 0.8 and need.decode == score.decode
    assert all(p.grad is None for p in policy.adapter_parameters())


def test_the_largest_divisor_that_fits_is_taken(policy: WanPolicy, tiny_wan: Path) -> None:
    config = make_config(tiny_wan)
    need = max(sample_bytes(policy, PROMPT, config))
    for budget, expected in ((1.0, 1), (3.9, 2), (4.0, 4), (7.9, 4), (1000.0, 8)):
        asked = replace(config, rollout=replace(config.rollout, memory_budget_gib=budget * need / 2**30))
        fitted = fit_micro_batch(policy, PROMPT, asked, num_samples=8)
        assert fitted == replace(asked, rollout=replace(asked.rollout, micro_batch=expected))
    short = replace(config, rollout=replace(config.rollout, memory_budget_gib=0.9 * need / 2**30))
    with pytest.raises(ValueError, match="memory_budget_gib must be at least .* for one sample"):
        fit_micro_batch(policy, PROMPT, short, num_samples=8)
