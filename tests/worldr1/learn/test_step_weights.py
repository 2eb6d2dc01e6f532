"""The weights of the steps on the embedded model: its gradients are of one size at every step that may be drawn."""

from __future__ import annotations

from dataclasses import replace

import pytest

from worldr1.camera.noise import initial_noise
from worldr1.config import TrainConfig
from worldr1.learn.advantage import group_advantage
from worldr1.learn.update import make_optimizer, policy_step
from worldr1.models.ema import Ema
from worldr1.models.wan import load_policy
from worldr1.prompts.sampler import prompt_batch, read_prompts
from worldr1.rewards import build_rewards
from worldr1.rollout.sample import sample
from worldr1.rollout.schedule import rollout_sigmas


@pytest.mark.slow
def test_gradients_of_the_default_run_are_of_one_size_over_the_window_range() -> None:
    """With its own prompts and rewards; what is left is the model's own dependence on sigma."""
    config = TrainConfig()
    config = replace(config, update=replace(config.update, updates_per_rollout=1, kl_beta=0.0))
    policy = load_policy(config.model, device="cpu")
    rewards = build_rewards(config, device="cpu")
    prompts, sigmas = read_prompts(config.prompts), rollout_sigmas(config.schedule)
    norms: dict[int, float] = {}
    weights: dict[int, float] = {}
    for step in range(*config.schedule.window_range):
        total = 0.0
        for iteration in range(5):
            batch = prompt_batch(prompts, config=config, iteration=iteration, dynamic=False, rank=0, world_size=1)
            noise = initial_noise(batch, policy.latent_shape(config.video), config=config)
            rollout = sample(policy, batch, noise, sigmas=sigmas, steps=(step,), config=config)
            scores = rewards.score(batch, rollout.video, finite=rollout.finite)
            advantage = group_advantage(scores, group_size=batch.group_size, config=config.advantage)
            params = policy.adapter_parameters()
            optimizer = make_optimizer(params, config.update)
            figures = policy_step(policy, optimizer, Ema(params, decay=0.0), rollout, advantage, config=config, lr=0.0)
            total += figures["grad_norm"] ** 2
            weights[step] = figures["steps"][str(step)]["weight"]
        norms[step] = total**0.5
    assert max(norms.values()) < 1.4 * min(norms.values())  # 1.37
    plain = {step: norm / weights[step] for step, norm in norms.items()}
    assert max(plain.values()) > 2.0 * min(plain.values())  # without the weights
