"""The forward-process update: loss by definition, gradient in float64 and where it is known, what it leaves out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from fakes import FakePolicy, brightness, fake_config, fake_iteration, fake_learner, fake_rollout
from mixture import Mixture, MixturePolicy, plane_batch
from thread_ranks import ThreadRanks
from torch import Tensor

from worldr1.config import AdvantageConfig, ForwardConfig, RolloutConfig, ScheduleConfig, TrainConfig, UpdateConfig
from worldr1.datatypes import PromptBatch, RewardOutput, Rollout
from worldr1.learn.advantage import group_advantage
from worldr1.learn.forward import MEANS, draw, forward_loss, forward_step, running_means
from worldr1.learn.update import NonFiniteGuard, check_window, make_optimizer, update_alarms
from worldr1.models.ema import Ema
from worldr1.rollout.schedule import euler_sigmas, forward_steps, rollout_steps

MIXTURE = Mixture(weights=(0.3, 0.5, 0.2), means=((-1.5, 0.5), (1.0, 1.2), (0.5, -1.5)), stds=(0.4, 0.5, 0.3))
TOWARDS = torch.tensor([0.8, -0.6], dtype=torch.float64)
SIGMAS = euler_sigmas(8, 2.0)


def forward_config(*, updates: int = 2, rate: float = 1e-2, micro_batch: int = 8, **forward: Any) -> TrainConfig:
    config = fake_config(
        update=UpdateConfig(estimator="forward", learning_rate=rate, ema_decay=0.5, updates_per_rollout=updates),
        rollout=RolloutConfig(group_size=4, prompts_per_iteration=4, micro_batch=micro_batch),
        forward=ForwardConfig(**forward),
    )
    return replace(config, model=replace(config.model, adapter_sigma_min=0.5))


def state_of(learner) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in learner.ema.params])


def recorded(optimizer: torch.optim.Optimizer) -> list[tuple[list[Tensor], list[Tensor]]]:
    """(parameters, gradients) before each step that follows."""
    seen: list[tuple[list[Tensor], list[Tensor]]] = []

    def note(o: torch.optim.Optimizer, *_: Any) -> None:
        params = o.param_groups[0]["params"]
        seen.append(([p.detach().clone() for p in params], [p.grad.clone() for p in params]))

    optimizer.register_step_pre_hook(note)
    return seen


def double_policy(params: list[Tensor]) -> FakePolicy:
    policy = FakePolicy()
    policy.base = policy.base.double()
    policy.a, policy.b, policy.bias = (torch.nn.Parameter(p.double()) for p in params)
    return policy


def by_definition(
    params: list[Tensor],
    sampled: list[Tensor],
    batch: PromptBatch,
    rollout: Rollout,
    advantage: Tensor,
    config: TrainConfig,
    *,
    update: int,
    means: Tensor,
    mask: Tensor | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Gradient of the mean loss in float64, one sample after the other, and the means after the update."""
    policy, old_policy, f = double_policy(params), double_policy(sampled), config.forward
    steps = forward_steps(rollout.sigmas, config.model.adapter_sigma_min)
    ids = batch.repeat(batch.group_ids) if f.share_draw else batch.sample_ids
    shape = tuple(rollout.latents.shape[1:])
    total, away_of = torch.zeros((), dtype=torch.float64), {k: [] for k in range(len(steps))}
    kept = [n for n in range(len(ids)) if mask is None or mask[n]]
    for n in kept:
        drawn = draw(ids[n : n + 1], shape, steps=steps, seed=config.seed, update=update, device=torch.device("cpu"))
        k = int(drawn.steps)
        s, eps, x0 = rollout.sigmas[k], drawn.eps.double(), rollout.latents[n : n + 1].double()
        x, embeds = (1 - s) * x0 + s * eps, rollout.prompt_embeds[n : n + 1].double()
        v = policy.velocity(x, s, embeds)
        v_old = old_policy.velocity(x, s, embeds).detach()
        base = policy.velocity(x, s, embeds, adapter=False).detach()
        towards = ((v - v_old) * ((eps - x0) - v_old)).mean()
        total = total - 2 * float(advantage[n]) * towards + f.prox * ((v - v_old) ** 2).mean()
        total = total + f.kl * ((v - base) ** 2).mean() + 2 * f.mean * ((v - base) * means[k]).mean()
        away_of[k].append((v - base).detach()[0])
    moved = means.clone()
    for k, found in away_of.items():
        if found:
            moved[k] = f.mean_decay * means[k] + (1 - f.mean_decay) * torch.stack(found).mean(0)
    return list(torch.autograd.grad(total / len(kept), [policy.a, policy.b, policy.bias])), moved


@pytest.mark.parametrize("share", [True, False], ids=["one-draw-a-group", "own-draws"])
def test_gradient_and_means_are_those_of_the_definition(share: bool) -> None:
    """Two iterations of two updates: the second has an old policy apart from the trained one, later ones have means."""
    config = forward_config(share_draw=share, prox=0.7, kl=0.4, mean=0.6, mean_decay=0.6)
    learner = fake_learner(config)
    with torch.no_grad():
        learner.policy.b.normal_(generator=torch.Generator().manual_seed(2)).mul_(0.3)
    means = running_means(learner.policy, config)
    expected = means[MEANS].double()
    seen = recorded(learner.optimizer)
    for iteration in range(2):
        batch, rollout, advantage = fake_rollout(learner, config, iteration=iteration)
        forward_step(*learner, batch, rollout, advantage, means=means, config=config, lr=1e-2)
        sampled = seen[2 * iteration][0]
        for update in range(2):
            params, got = seen[2 * iteration + update]
            want, expected = by_definition(
                params, sampled, batch, rollout, advantage.advantage, config, update=update, means=expected
            )
            for a, b in zip(got, want, strict=True):
                assert b.abs().max() > 1e-4 and torch.allclose(a.double(), b, rtol=2e-4, atol=2e-6)
    assert expected.abs().max() > 1e-3 and torch.allclose(means[MEANS].double(), expected, rtol=1e-4, atol=1e-6)


def tensors(n: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    names = ("velocity", "old", "target", "base", "mean")
    out = {name: torch.randn(n, 2, 3, generator=generator, dtype=torch.float64) for name in names}
    return out | {"advantage": torch.randn(n, generator=generator, dtype=torch.float64)}


def test_it_is_the_two_term_form_of_diffusion_nft() -> None:
    """r |v+ - target|^2 + (1 - r) |v- - target|^2 with beta 1, r = (1 + A) / 2: equal but for |target - v_old|^2."""
    t = tensors()
    t["velocity"].requires_grad_()
    ours = forward_loss(
        t["velocity"], old=t["old"], target=t["target"], advantage=t["advantage"], config=ForwardConfig()
    )
    (gradient,) = torch.autograd.grad(ours.sum(), t["velocity"])
    beta, r = 1.0, ((1 + t["advantage"]) / 2)[:, None, None]
    positive = (1 - beta) * t["old"] + beta * t["velocity"]
    negative = (1 + beta) * t["old"] - beta * t["velocity"]
    theirs = r * (positive - t["target"]) ** 2 + (1 - r) * (negative - t["target"]) ** 2
    (expected,) = torch.autograd.grad(theirs.mean((1, 2)).sum(), t["velocity"])
    assert torch.allclose(gradient, expected, rtol=1e-12, atol=1e-14)
    constant = (t["target"] - t["old"]).square().mean((1, 2))
    assert torch.allclose(ours + constant, theirs.mean((1, 2)), rtol=1e-12)


def test_the_minimum_lies_where_the_module_says() -> None:
    t = tensors()
    best = (t["old"] + t["advantage"][:, None, None] / 0.7 * (t["target"] - t["old"])).requires_grad_()
    config = ForwardConfig(prox=0.7, kl=0.5, mean=0.25)
    loss = forward_loss(best, old=t["old"], target=t["target"], advantage=t["advantage"], config=config)
    (gradient,) = torch.autograd.grad(loss.sum(), best)
    assert gradient.abs().max() < 1e-14
    # With a reference: 2 kl (v - base) + 2 mean m more, a mean over 6 elements.
    held = forward_loss(
        best, old=t["old"], target=t["target"], advantage=t["advantage"], config=config, base=t["base"], mean=t["mean"]
    )
    (gradient,) = torch.autograd.grad(held.sum(), best)
    assert torch.allclose(gradient, (2 * 0.5 * (best - t["base"]) + 2 * 0.25 * t["mean"]) / 6, atol=1e-14)


def known_gradient(sigma: float) -> Tensor:
    """d/d[W, b] of -E[A (target - v) . (x W + b)] with A = TOWARDS . (x0 - E x0) / its deviation, [3, 2].

    Given x and its component, x0 is Gaussian and target = (x - x0) / sigma: the conditional mean of A target is known.
    What is left is an integral over the plane, taken on a grid.
    """
    m = MIXTURE
    centre = (m.weights[:, None] * m.means).sum(0)
    spread = (m.weights * (((m.means - centre) @ TOWARDS) ** 2 + m.stds**2)).sum().sqrt()
    axis = torch.linspace(-7, 7, 561, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)  # [n, 2]
    variance = (1 - sigma) ** 2 * m.stds**2 + sigma**2  # [K]
    off = x[:, None] - (1 - sigma) * m.means  # [n, K, 2]
    density = m.weights * (-off.square().sum(2) / (2 * variance)).exp() / (2 * math.pi * variance)  # [n, K]
    x0 = m.means + off * ((1 - sigma) * m.stds**2 / variance)[:, None]  # [n, K, 2]
    left = (m.stds**2 * sigma**2 / variance)[:, None]  # of x0 in each direction
    reward = ((x0 - centre) @ TOWARDS)[..., None]  # [n, K, 1]
    both = reward * (x[:, None] - x0) / sigma - left * TOWARDS / sigma  # E[reward target | x, k]
    total = density.sum(1)
    v = (density[..., None] * (x[:, None] - x0) / sigma).sum(1) / total.clamp(min=1e-300)[:, None]
    weighed = (density[..., None] * (both - reward * v[:, None])).sum(1) / spread  # [n, 2]: p(x) E[A (target - v) | x]
    area = float(axis[1] - axis[0]) ** 2
    return -torch.cat([x, torch.ones_like(x[:, :1])], 1).T @ weighed * area


@pytest.mark.parametrize("share", [True, False], ids=["one-draw-a-group", "own-draws"])
def test_gradient_is_unbiased_on_a_mixture_whose_gradient_is_known(share: bool) -> None:
    """32,000 exact samples through advantage and update: direction and length, at each sigma."""
    groups, size = 4000, 8
    config = TrainConfig(
        model=replace(TrainConfig().model, adapter_sigma_min=0.0),
        schedule=ScheduleConfig(num_steps=8, shift=2.0),
        rollout=RolloutConfig(group_size=size, micro_batch=groups * size),
        advantage=AdvantageConfig(clip=100.0),
        update=UpdateConfig(estimator="forward", updates_per_rollout=1),
        forward=ForwardConfig(kl=0.0, mean=0.0, share_draw=share),
    )
    generator = torch.Generator().manual_seed(5)
    which = torch.multinomial(MIXTURE.weights, groups * size, replacement=True, generator=generator)
    noise = torch.randn(groups * size, 2, generator=generator, dtype=torch.float64)
    x0 = MIXTURE.means[which] + MIXTURE.stds[which, None] * noise
    policy, batch = MixturePolicy(MIXTURE, SIGMAS), plane_batch(groups, size)
    finite = torch.ones(groups * size, dtype=torch.bool)
    rollout = Rollout(
        video=None, prompt_embeds=torch.zeros(groups * size, 1, 1), negative_embeds=None, samples=torch.empty(0),
        prev_samples=torch.empty(0), log_prob=torch.empty(0), steps=(), sigmas=SIGMAS, finite=finite,
        latents=x0.float().view(-1, 2, 1, 1, 1),
    )  # fmt: skip
    advantage = group_advantage(
        RewardOutput(reward=x0 @ TOWARDS, valid=finite), group_size=size, config=config.advantage
    )
    optimizer = make_optimizer(policy.adapter_parameters(), config.update)
    seen = recorded(optimizer)
    ema = Ema(policy.adapter_parameters(), decay=0.0)
    figures = forward_step(policy, optimizer, ema, batch, rollout, advantage, means={}, config=config, lr=1e-9)
    (w, b) = seen[0][1]
    deviations = (x0 @ TOWARDS).view(groups, size)
    inside = (deviations - deviations.mean(1, keepdim=True)).square().mean().sqrt()
    centred = (x0 @ TOWARDS) - MIXTURE.weights @ (MIXTURE.means @ TOWARDS)
    assert forward_steps(SIGMAS, 0.0) == tuple(range(7)) and not w[7].any() and not b[7].any()
    for i in range(7):
        share_of_step = figures["steps"][str(i)]["num"] / (groups * size)
        got = torch.cat([w[i], b[i][None]]).double() / share_of_step
        # A group's own mean takes 1 / G of a sample's reward away; the loss is a mean over 2 elements of -2 A ...
        want = known_gradient(SIGMAS[i]) * (1 - 1 / size) * float(centred.square().mean().sqrt() / inside)
        cosine = float(torch.nn.functional.cosine_similarity(got.flatten(), want.flatten(), dim=0))
        assert cosine >= 0.99, (i, cosine)
        length = float((got * want).sum() / want.square().sum())
        assert math.isclose(length, 1.0, abs_tol=0.1), (i, length)


def test_draws_belong_to_their_ids() -> None:
    ids = torch.tensor([7, 3, 7, 2**32 - 1])
    kwargs = {"steps": (0, 1, 2), "seed": 5, "device": torch.device("cpu")}
    all_of_them = draw(ids, (3, 1, 1, 3), update=0, **kwargs)
    assert all_of_them.eps.shape == (4, 3, 1, 1, 3) and all_of_them.eps.dtype == torch.float32
    assert torch.equal(all_of_them.eps[0], all_of_them.eps[2]) and all_of_them.steps[0] == all_of_them.steps[2]
    for n in (3, 1):  # whatever stands beside it
        alone = draw(ids[n : n + 1], (3, 1, 1, 3), update=0, **kwargs)
        assert torch.equal(alone.eps[0], all_of_them.eps[n]) and alone.steps[0] == all_of_them.steps[n]
    many = torch.arange(9000)
    one = draw(many, (1, 1, 2, 2), update=0, **kwargs)
    counts = one.steps.bincount()
    assert len(counts) == 3 and bool(((counts - 3000).abs() < 5 * math.sqrt(2000)).all())
    assert abs(float(one.eps.mean())) < 5 / math.sqrt(36000) and math.isclose(float(one.eps.std()), 1.0, abs_tol=0.02)
    for other in ({**kwargs, "update": 1}, {**kwargs, "update": 0, "seed": 6}):
        apart = draw(many, (1, 1, 2, 2), **other)
        correlation = float((apart.eps * one.eps).mean())
        assert (
            abs(correlation) < 5 / math.sqrt(36000) and 0.25 < float((apart.steps == one.steps).float().mean()) < 0.42
        )


def test_micro_batches_do_not_change_the_gradient() -> None:
    states = []
    for micro_batch in (16, 8, 1):
        config = forward_config(micro_batch=micro_batch)
        learner = fake_learner(config)
        means = running_means(learner.policy, config)
        for iteration in range(2):
            fake_iteration(learner, config, iteration=iteration, means=means)
        states.append(torch.cat([state_of(learner), means[MEANS].flatten()]))
    assert torch.allclose(states[0], states[1], atol=1e-5) and torch.allclose(states[0], states[2], atol=1e-5)


@pytest.mark.parametrize("share", [True, False], ids=["one-draw-a-group", "own-draws"])
@pytest.mark.parametrize("world_size", [2, 8])
def test_ranks_train_as_one(world_size: int, share: bool) -> None:
    """Eight ranks split the groups of four."""

    def run() -> tuple[list[dict], Tensor]:
        config = forward_config(micro_batch=2, share_draw=share)
        learner = fake_learner(config)
        means = running_means(learner.policy, config)
        lines = [fake_iteration(learner, config, iteration=i, means=means) for i in range(3)]
        return lines, torch.cat([state_of(learner), means[MEANS].flatten()])

    one, every = run(), ThreadRanks(world_size).run(run)
    for lines, state in every:
        assert torch.equal(state, every[0][1]) and torch.allclose(state, one[1], atol=2e-5)
        for line, expected in zip(lines, one[0], strict=True):
            assert line["steps"].keys() == expected["steps"].keys()
            for key in ("kl", "prox", "drift", "grad_norm", "num_updates", "reward"):
                assert line[key] == pytest.approx(expected[key], rel=1e-3, abs=1e-6, nan_ok=True), key
    assert float(one[1].abs().max()) > 1e-3


def test_masked_samples_do_not_touch_the_gradient_even_with_nan_latents() -> None:
    config = forward_config(micro_batch=4, kl=0.5)
    learner = fake_learner(config)
    batch, rollout, advantage = fake_rollout(learner, config)
    mask = torch.ones(16, dtype=torch.bool)
    mask[[2, 4, 5, 6, 7]] = False  # one of a group, and a whole one: its calls are left out
    masked = replace(advantage, mask=mask, num_active=11, advantage=torch.where(mask, advantage.advantage, torch.nan))
    results = []
    for fill in (math.nan, 1e3):
        latents = torch.where(mask.view(-1, 1, 1, 1, 1), rollout.latents, fill)
        learner = fake_learner(config)
        calls: list[int] = []
        velocity = learner.policy.velocity
        learner.policy.velocity = lambda x, *a, calls=calls, own=velocity, **k: calls.append(len(x)) or own(x, *a, **k)
        means = running_means(learner.policy, config)
        seen = recorded(learner.optimizer)
        figures = forward_step(
            *learner, batch, replace(rollout, latents=latents), masked, means=means, config=config, lr=1e-2
        )
        assert len(calls) == 3 * (2 + 3) and figures["num_updates"] == 2  # first update 2 passes a call, second 3
        assert sum(step["num"] for step in figures["steps"].values()) == 2 * 11
        results.append([*seen[0][1], *seen[1][1], means[MEANS]])
        expected = torch.zeros_like(means[MEANS], dtype=torch.float64)
        for update, (params, got) in enumerate(seen):
            want, expected = by_definition(
                params,
                seen[0][0],
                batch,
                rollout,
                advantage.advantage,
                config,
                update=update,
                means=expected,
                mask=mask,
            )
            for a, b in zip(got, want, strict=True):
                assert torch.allclose(a.double(), b, rtol=2e-4, atol=2e-6)
        assert torch.allclose(means[MEANS].double(), expected, rtol=1e-4, atol=1e-6)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b) and torch.isfinite(a).all() and (a.abs().max() > 0 or a is results[0][0])


def test_no_active_sample_no_update() -> None:
    config = forward_config()
    learner = fake_learner(config)
    batch, rollout, advantage = fake_rollout(learner, config)
    nothing = replace(advantage, advantage=torch.zeros(16), mask=torch.zeros(16, dtype=torch.bool), num_active=0)
    before, means = state_of(learner), running_means(learner.policy, config)
    figures = forward_step(*learner, batch, rollout, nothing, means=means, config=config, lr=1e-2)
    assert torch.equal(before, state_of(learner)) and not learner.optimizer.state and not means[MEANS].any()
    assert figures["num_updates"] == 0 and figures["skipped_updates"] == 2 and math.isnan(figures["kl"])


def test_a_gradient_that_is_not_finite_changes_nothing_and_counts() -> None:
    config = forward_config()
    learner = fake_learner(config)
    means = running_means(learner.policy, config)
    fake_iteration(learner, config, iteration=0, means=means)
    batch, rollout, advantage = fake_rollout(learner, config, iteration=1)
    bad = replace(advantage, advantage=torch.full((16,), math.nan))
    before, guard, held = state_of(learner), NonFiniteGuard(), means[MEANS].clone()
    for attempt in range(3):
        figures = forward_step(*learner, batch, rollout, bad, means=means, config=config, lr=1e-2)
        assert figures["nonfinite_updates"] == 2 and figures["num_updates"] == 0
        if attempt < 2:
            guard.check(figures)
    with pytest.raises(RuntimeError, match="3 iterations in a row"):
        guard.check(figures)
    assert torch.equal(before, state_of(learner)) and torch.equal(held, means[MEANS]) and held.abs().max() > 0


def test_figures_say_what_there_is() -> None:
    config = forward_config()
    learner = fake_learner(config)
    figures = fake_iteration(learner, config, iteration=0, means=running_means(learner.policy, config))
    for name in ("ratio_mean", "ratio_max_deviation", "ratio_first_deviation", "clip_fraction", "approx_kl"):
        assert math.isnan(figures[name])
    assert update_alarms(figures) == () and figures["num_updates"] == 2
    # The first update finds D = 0 and v = base; the second does not.
    assert figures["kl"] > 0 and figures["prox"] > 0 and figures["drift"] > 0
    assert set(figures["steps"]) == {"0", "1", "2", "3", "4", "5"} and SIGMAS[5] >= 0.5 > SIGMAS[6]
    free = forward_config(kl=0.0, mean=0.0)
    assert running_means(learner.policy, free) == {} and running_means(learner.policy, fake_config()) == {}
    learner = fake_learner(free)
    figures = fake_iteration(learner, free, iteration=0)
    assert math.isnan(figures["kl"]) and math.isnan(figures["drift"]) and figures["prox"] > 0


def test_the_penalty_on_the_mean_pulls_back_what_all_samples_share() -> None:
    """FakePolicy's bias moves all samples alike; advantages of 0 leave it alone."""
    ends = []
    for mean in (0.0, 0.3):
        config = forward_config(kl=0.0, mean=mean)
        learner = fake_learner(config)
        with torch.no_grad():
            learner.policy.bias.fill_(0.3)
        means = running_means(learner.policy, config)
        batch, rollout, advantage = fake_rollout(learner, config)
        advantage = replace(advantage, advantage=torch.zeros(16))
        for _ in range(8):
            forward_step(*learner, batch, rollout, advantage, means=means, config=config, lr=1e-2)
        ends.append(learner.policy.bias.detach().clone())
    assert (ends[0] == 0.3).all() and (ends[1] < 0.25).all() and (ends[1] > 0).all()


def test_an_adapter_without_a_sigma_is_refused() -> None:
    config = forward_config()
    check_window(config)
    assert rollout_steps(config, iteration=3) == () and len(rollout_steps(fake_config(), iteration=3)) == 1
    check_window(replace(config, model=replace(config.model, adapter_sigma_min=1.0)))
    config = replace(config, schedule=replace(config.schedule, compat=True))  # a grid that starts below 1
    with pytest.raises(ValueError, match="model.adapter_sigma_min must be at most 0.999"):
        check_window(replace(config, model=replace(config.model, adapter_sigma_min=1.0)))


def climbed(seed: int, permute: bool, iterations: int = 25) -> float:
    config = replace(forward_config(rate=2e-2), seed=seed)
    learner = fake_learner(config, seed=seed)
    means = running_means(learner.policy, config)
    before = brightness(fake_rollout(learner, config)[1]).reward.mean()
    for i in range(iterations):
        batch, rollout, advantage = fake_rollout(learner, config, iteration=i)
        if permute:
            scores = brightness(rollout)
            order = torch.cat(
                [4 * g + torch.randperm(4, generator=torch.Generator().manual_seed(100 * i + g)) for g in range(4)]
            )
            shuffled = RewardOutput(reward=scores.reward[order], valid=rollout.finite)
            advantage = group_advantage(shuffled, group_size=4, config=config.advantage)
        forward_step(*learner, batch, rollout, advantage, means=means, config=config, lr=2e-2)
    return float(brightness(fake_rollout(learner, config)[1]).reward.mean() - before)


def t_of(values: list[float]) -> float:
    x = torch.tensor(values, dtype=torch.float64)
    return float(x.mean() / (x.std() / math.sqrt(len(x))))


def test_the_reward_rises() -> None:
    assert climbed(0, False, iterations=15) > 0.02


@pytest.mark.slow
def test_a_tiny_policy_climbs_a_known_reward_and_not_a_permuted_one() -> None:
    """Six seeds each. Student's t with 5 degrees of freedom: 6.9 is one in a thousand."""
    ups, drifts = [climbed(s, False) for s in range(6)], [climbed(s, True) for s in range(6)]
    assert min(ups) > 0.03 and t_of(ups) > 6.9
    assert abs(t_of(drifts)) < 6.9 and max(map(abs, drifts)) < min(ups)
