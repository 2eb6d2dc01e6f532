import dataclasses
import math
from dataclasses import replace

import pytest
import torch
from fakes import brightness, fake_config, fake_iteration, fake_learner, fake_rollout

from worldr1.config import ModelConfig, RolloutConfig, ScheduleConfig, UpdateConfig
from worldr1.learn.update import NonFiniteGuard, check_window, learning_rate, policy_step, update_alarms
from worldr1.rollout.sample import window_step
from worldr1.rollout.schedule import step_weights


def state_of(learner):
    return torch.cat([p.detach().flatten().clone() for p in learner.ema.params])


def test_gradient_is_that_of_the_formula():
    config = fake_config(update=UpdateConfig(learning_rate=1.0, updates_per_rollout=1, kl_beta=0.0))
    learner = fake_learner(config)
    _, rollout, advantage = fake_rollout(learner, config)
    # At ratio 1: d/dtheta of - mean_{n, s} w_s A_n sqrt(elements) log_prob_ns.
    weights = step_weights(rollout.sigmas, rollout.steps, config.schedule).weights
    total = torch.zeros(())
    for s, weight in enumerate(weights):
        log_prob = window_step(learner.policy, rollout, index=s, rows=slice(0, 16), config=config).log_prob
        log_ratio = math.sqrt(rollout.samples[0, 0].numel()) * log_prob
        total = total - weight * (advantage.advantage * log_ratio).mean() / len(weights)
    expected = torch.autograd.grad(total, learner.ema.params[1:])  # A has no gradient at B = 0
    taken = []
    learner.optimizer.register_step_pre_hook(
        lambda optimizer, *_: taken.extend(p.grad.clone() for p in optimizer.param_groups[0]["params"])
    )
    figures = policy_step(*learner, rollout, advantage, config=config, lr=1.0)
    assert taken[0].abs().max() == 0
    for got, want in zip(taken[1:], expected, strict=True):
        assert torch.allclose(got, want, rtol=1e-4, atol=1e-7)
    norm = math.sqrt(sum(float(g.square().sum()) for g in expected))
    assert math.isclose(figures["grad_norm"], norm, rel_tol=1e-4)


def test_the_first_update_sees_ratio_one_and_later_ones_do_not():
    config = fake_config()
    learner = fake_learner(config)
    figures = fake_iteration(learner, config, iteration=0)
    assert figures["ratio_first_deviation"] <= 1e-6 < figures["ratio_max_deviation"]
    assert figures["num_updates"] == 2 and figures["skipped_updates"] == 0
    assert 0 < figures["clip_fraction"] <= 0.5 and figures["kl"] > 0


def test_reward_rises():
    config = fake_config(max_iterations=30, update=UpdateConfig(learning_rate=2e-2, kl_beta=0.0))
    learner = fake_learner(config)
    before = brightness(fake_rollout(learner, config)[1]).reward
    for i in range(30):
        fake_iteration(learner, config, iteration=i)
    gain = brightness(fake_rollout(learner, config)[1]).reward - before  # the same prompts, noise and draws
    assert gain.mean() > 0.05 and (gain > 0).all()


def test_micro_batches_do_not_change_the_gradient():
    states = []
    for micro_batch in (16, 8, 4):
        config = fake_config(rollout=RolloutConfig(group_size=4, prompts_per_iteration=4, micro_batch=micro_batch))
        learner = fake_learner(config)
        fake_iteration(learner, config, iteration=0)
        states.append(state_of(learner))
    assert torch.allclose(states[0], states[1], atol=1e-6) and torch.allclose(states[0], states[2], atol=1e-6)


def test_kl_pulls_towards_the_base():
    moved = {}
    for beta in (0.0, 200.0):
        config = fake_config(update=UpdateConfig(learning_rate=1e-2, kl_beta=beta), max_iterations=10)
        learner = fake_learner(config)
        kls = [fake_iteration(learner, config, iteration=i)["kl"] for i in range(10)]
        moved[beta] = float(learner.policy.bias.detach().norm())
        assert math.isnan(kls[-1]) if beta == 0 else kls[-1] > 0
    assert moved[200.0] < 0.5 * moved[0.0]


def test_no_active_sample_no_update():
    config = fake_config()
    learner = fake_learner(config)
    _, rollout, advantage = fake_rollout(learner, config)
    nothing = dataclasses.replace(
        advantage, advantage=torch.zeros(16), mask=torch.zeros(16, dtype=torch.bool), num_active=0
    )
    before = state_of(learner)
    figures = policy_step(*learner, rollout, nothing, config=config, lr=1e-2)
    assert torch.equal(before, state_of(learner)) and not learner.optimizer.state
    assert figures["num_updates"] == 0 and figures["skipped_updates"] == 2 and figures["clip_fraction"] == 0


def test_masked_samples_do_not_touch_the_gradient():
    # The same group of 4 beside one that is masked, whose latents are the zeros that a rollout leaves after a NaN.
    config = fake_config(rollout=RolloutConfig(group_size=4, prompts_per_iteration=2, micro_batch=4))
    learner = fake_learner(config)
    _, rollout, advantage = fake_rollout(learner, config)
    mask = torch.tensor([True] * 4 + [False] * 4)
    half = dataclasses.replace(advantage, advantage=advantage.advantage * mask, mask=mask, num_active=4)
    broken = dataclasses.replace(rollout, samples=rollout.samples.clone(), prev_samples=rollout.prev_samples.clone())
    broken.samples[:, 4:] = 0
    broken.prev_samples[:, 4:] = 0
    broken = dataclasses.replace(broken, finite=mask)
    policy_step(*learner, broken, half, config=config, lr=1e-2)
    other = fake_learner(config)
    policy_step(*other, rollout, half, config=config, lr=1e-2)
    assert torch.equal(state_of(learner), state_of(other))


def test_a_gradient_that_is_not_finite_changes_nothing_and_ends_the_run_at_the_third():
    config = fake_config()
    learner = fake_learner(config)
    _, rollout, advantage = fake_rollout(learner, config)
    bad = dataclasses.replace(advantage, advantage=torch.full((16,), math.nan))
    before, guard = state_of(learner), NonFiniteGuard()
    for attempt in range(3):
        figures = policy_step(*learner, rollout, bad, config=config, lr=1e-2)
        assert figures["nonfinite_updates"] == 2 and figures["num_updates"] == 0
        if attempt < 2:
            guard.check(figures)
    with pytest.raises(RuntimeError, match="3 iterations in a row"):
        guard.check(figures)
    assert torch.equal(before, state_of(learner)) and torch.isfinite(state_of(learner)).all()
    assert all(torch.equal(s, p) for s, p in zip(learner.ema.shadow, learner.ema.params, strict=True))


def test_guard_forgets_after_a_good_iteration():
    guard = NonFiniteGuard()
    bad, good = {"nonfinite_updates": 2, "num_updates": 0}, {"nonfinite_updates": 0, "num_updates": 2}
    for figures in (bad, bad, good, bad, bad):
        guard.check(figures)
    assert guard.in_a_row == 2


def test_ema_steps_once_per_optimizer_step():
    config = fake_config(update=UpdateConfig(learning_rate=1e-2, ema_decay=0.5, updates_per_rollout=3))
    learner = fake_learner(config)
    seen = [state_of(learner)]
    learner.optimizer.register_step_post_hook(lambda *_: seen.append(state_of(learner)))
    fake_iteration(learner, config, iteration=0)
    assert len(seen) == 4
    expected = seen[0]
    for state in seen[1:]:
        expected = 0.5 * expected + 0.5 * state
    assert torch.allclose(torch.cat([s.flatten() for s in learner.ema.shadow]), expected, atol=1e-7)


def test_ema_applied_gives_back_the_parameters():
    config = fake_config()
    learner = fake_learner(config)
    fake_iteration(learner, config, iteration=0)
    own, average = state_of(learner), torch.cat([s.flatten() for s in learner.ema.shadow])
    with pytest.raises(KeyError), learner.ema.applied():
        assert torch.equal(state_of(learner), average) and not torch.equal(average, own)
        raise KeyError
    assert torch.equal(state_of(learner), own)


def test_learning_rate_decays_to_its_fraction():
    config = UpdateConfig(learning_rate=2.0, final_lr_fraction=0.1)
    rates = [learning_rate(i, max_iterations=5, config=config) for i in range(5)]
    assert rates == pytest.approx([2.0, 1.55, 1.1, 0.65, 0.2])
    assert learning_rate(0, max_iterations=1, config=config) == 2.0
    warm = UpdateConfig(learning_rate=2.0, final_lr_fraction=1.0, warmup_iterations=4)
    assert [learning_rate(i, max_iterations=6, config=warm) for i in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


def test_a_window_without_adapter_is_refused():
    config = fake_config(model=ModelConfig(adapter_sigma_min=0.65), schedule=ScheduleConfig(window_range=(0, 4)))
    check_window(config)
    with pytest.raises(ValueError, match=r"got \(0, 6\) whose step 5 has sigma 0.545; end it at 5"):
        check_window(replace(config, schedule=ScheduleConfig(window_range=(0, 6))))


def test_guard_gradient_at_the_start_and_clip_after_it():
    """At ratio 1 the gradient of -A sum[z d mean] / (|dt| sqrt(elements)); later updates compare with its mean."""
    update = UpdateConfig(learning_rate=1e-2, kl_beta=0.0, surrogate="guard", clip_range=2e-5)
    config = fake_config(update=update, schedule=ScheduleConfig(window_size=2))
    learner = fake_learner(config)
    _, rollout, advantage = fake_rollout(learner, config)
    total = torch.zeros(())
    for s, step in enumerate(rollout.steps):
        out = window_step(learner.policy, rollout, index=s, rows=slice(0, 16), config=config)
        z = (rollout.prev_samples[s] - out.prev_sample_mean.detach()) / out.std[0]
        dt = rollout.sigmas[step] - rollout.sigmas[step + 1]
        moved = (z * out.prev_sample_mean).flatten(1).sum(1) / math.sqrt(z[0].numel())
        total = total - (advantage.advantage * moved).mean() / (2 * dt)
    expected = torch.autograd.grad(total, learner.ema.params[1:])
    taken = []
    learner.optimizer.register_step_pre_hook(
        lambda optimizer, *_: taken.append([p.grad.clone() for p in optimizer.param_groups[0]["params"]])
    )
    figures = policy_step(*learner, rollout, advantage, config=config, lr=1e-2)
    for got, want in zip(taken[0][1:], expected, strict=True):
        assert torch.allclose(got, want, rtol=1e-3, atol=1e-6)
    assert figures["ratio_first_deviation"] == 0 and figures["num_updates"] == 2
    assert 0.2 < figures["clip_fraction"] <= 0.5 and figures["ratio_max_deviation"] > 2e-5


def test_guard_raises_the_reward():
    update = UpdateConfig(learning_rate=2e-2, kl_beta=0.0, surrogate="guard", clip_range=1e-2)
    config = fake_config(max_iterations=20, update=update)
    learner = fake_learner(config)
    before = brightness(fake_rollout(learner, config)[1]).reward
    for i in range(20):
        fake_iteration(learner, config, iteration=i)
    gain = brightness(fake_rollout(learner, config)[1]).reward - before
    assert gain.mean() > 0.03 and (gain > 0).all()


def test_figures_by_step():
    config = fake_config(schedule=ScheduleConfig(window_size=2), update=UpdateConfig(updates_per_rollout=1))
    learner = fake_learner(config)
    _, rollout, advantage = fake_rollout(learner, config)
    figures = policy_step(*learner, rollout, advantage, config=config, lr=1e-2)
    steps = list(figures["steps"].values())
    weights, lambdas = step_weights(rollout.sigmas, rollout.steps, config.schedule)
    assert [s["lambda"] for s in steps] == list(lambdas) and [s["weight"] for s in steps] == list(weights)
    assert [s["ratio"] for s in steps] == [1.0, 1.0]
    # By hand: the gradient of each step's part of the loss at ratio 1.
    other, norms = fake_learner(config), []
    for s in range(2):
        out = window_step(other.policy, rollout, index=s, rows=slice(0, 16), config=config)
        log_ratio = math.sqrt(rollout.samples[0, 0].numel()) * out.log_prob
        loss = -weights[s] * (advantage.advantage * log_ratio).mean() / 2
        norms.append(math.sqrt(sum(float(g.square().sum()) for g in torch.autograd.grad(loss, other.ema.params[1:]))))
    assert [s["grad_norm"] for s in steps] == pytest.approx(norms, rel=1e-3)
    one = fake_config(update=UpdateConfig(updates_per_rollout=1))
    figures = fake_iteration(fake_learner(one), one, iteration=0)
    assert next(iter(figures["steps"].values()))["grad_norm"] == figures["grad_norm"]


def test_alarm_when_rollout_and_training_disagree():
    config = fake_config()
    learner = fake_learner(config)
    _, rollout, advantage = fake_rollout(learner, config)
    assert update_alarms(policy_step(*learner, rollout, advantage, config=config, lr=1e-2)) == ()
    learner = fake_learner(config)
    drifted = dataclasses.replace(rollout, log_prob=rollout.log_prob + 3e-3 / math.sqrt(rollout.samples[0, 0].numel()))
    alarms = update_alarms(policy_step(*learner, drifted, advantage, config=config, lr=1e-2))
    assert len(alarms) == 1 and "log-prob drift" in alarms[0] and "3.0e-03" in alarms[0]
