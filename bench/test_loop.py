"""One training iteration of the micro world: `python -m pytest bench/test_loop.py -s [--record]`.

Prompts to optimizer step, rewards included: the plain loop against a shared prefix, a shared first step (one pass of
the transformer serves a group there, in the rollout and in the update), the deferred update, and it with a shared
prefix. Before timing, all are checked to take the gradient of the plain loop, from the same advantages.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from bench.report import Case, print_table, record
from bench.timing import measure
from worldr1.camera.noise import initial_noise
from worldr1.config import TrainConfig
from worldr1.cost.flops import passes_per_sample
from worldr1.datatypes import RewardOutput
from worldr1.learn.advantage import group_advantage
from worldr1.learn.update import Learner, make_optimizer, policy_step, sample_gradients
from worldr1.models.ema import Ema
from worldr1.models.wan import load_policy
from worldr1.prompts.sampler import prompt_batch, read_prompts
from worldr1.rewards import RewardStack, build_rewards
from worldr1.rewards.judging import Judging
from worldr1.rollout.sample import sample
from worldr1.rollout.schedule import rollout_sigmas

WINDOW = (2,)
"""The last of the micro run's three places: a prefix of two steps."""


pytestmark = pytest.mark.timeout(1800)  # minutes where the cores are shared


def _config(*, share: int = 0, deferred: bool = False) -> TrainConfig:
    """`share`: 1 the prefix, 2 the first stochastic step, too."""
    config = TrainConfig()
    return replace(
        config,
        rollout=replace(
            config.rollout,
            share_initial_noise=share > 0,
            share_first_step=share > 1,
            micro_batch=16,
            prompts_per_iteration=2,
        ),
        schedule=replace(config.schedule, window_range=(WINDOW[0], WINDOW[0] + 1)),
        update=replace(config.update, updates_per_rollout=1, kl_beta=0.0, deferred=deferred),
    )


def _iteration(
    learner: Learner, config: TrainConfig, prompts: list[str], noise: torch.Tensor, rewards: RewardStack | None
) -> None:
    """Without rewards the advantages are fixed numbers."""
    batch = prompt_batch(prompts, config=config, iteration=0, dynamic=False, rank=0, world_size=1)
    buffers = sample_gradients(learner.ema.params, batch, config) if config.update.deferred else None
    judging = None if rewards is None else Judging(rewards, batch)
    rollout = sample(
        learner.policy, batch, noise, sigmas=rollout_sigmas(config.schedule), steps=WINDOW, config=config,
        gradients=buffers, take=judging.add if judging else None,
    )  # fmt: skip
    if judging is None:
        scores = RewardOutput(reward=torch.linspace(-1, 1, batch.num_samples), valid=rollout.finite)
    else:
        scores = judging.finish()
    advantage = group_advantage(scores, group_size=batch.group_size, config=config.advantage)
    policy_step(*learner, rollout, advantage, config=config, lr=1e-4, gradients=buffers)


def test_iteration(record_figures: bool) -> None:
    config = _config(share=1)  # its noise, the same in a group, serves all variants
    policy = load_policy(config.model, device="cpu")
    rewards = build_rewards(config, device="cpu")
    start = policy.adapter_state()
    prompts = read_prompts(config.prompts)
    batch = prompt_batch(prompts, config=config, iteration=0, dynamic=False, rank=0, world_size=1)
    noise = initial_noise(batch, policy.latent_shape(config.video), config=config)

    def run(config: TrainConfig, rewards: RewardStack | None) -> torch.Tensor:
        """From the same parameters each time; returns the gradient's direction as Adam's first moment."""
        policy.load_adapter_state(start)
        params = policy.adapter_parameters()
        learner = Learner(policy, make_optimizer(params, config.update), Ema(params, decay=0.9))
        _iteration(learner, config, prompts, noise, rewards)
        return torch.cat([learner.optimizer.state[p]["exp_avg"].flatten() for p in params])

    configs = {
        "plain": _config(),
        "shared prefix": _config(share=1),
        "shared first step": _config(share=2),
        "deferred": _config(deferred=True),
        "shared prefix, deferred": _config(share=1, deferred=True),
    }
    expected = run(configs["plain"], None)
    for name, variant in configs.items():
        error = float((run(variant, None) - expected).norm() / expected.norm())
        # Where the prefix is shared its passes have another batch size, and round anew.
        assert error < (1e-6 if name == "deferred" else 1e-3), (name, error)

    timings = measure({name: partial(run, c, rewards) for name, c in configs.items()}, rounds=3, min_calls=1)
    best = timings.pop("shared first step")
    notes = "; ".join(f"{name}: {passes_per_sample(c).forwards:.3g} forwards a sample" for name, c in configs.items())
    case = Case("iteration", "micro world, 16 videos, with rewards", "float32", "first step", best, timings, notes)
    print()
    print_table([case])
    print(notes)
    if record_figures:
        print(f"recorded in {record([case], 'loop')}")
