"""What the trainer's gradient is worth: unbiased where the answer is known, and enough to climb a known reward."""

import math
from dataclasses import replace

import pytest
import torch
from fakes import brightness, fake_config, fake_learner, fake_rollout
from mixture import Mixture, MixturePolicy, plane_batch

from worldr1.config import AdvantageConfig, ModelConfig, RolloutConfig, ScheduleConfig, TrainConfig, UpdateConfig
from worldr1.datatypes import RewardOutput
from worldr1.learn.advantage import group_advantage
from worldr1.learn.update import learning_rate, make_optimizer, policy_step
from worldr1.models.ema import Ema
from worldr1.rollout.sample import sample
from worldr1.rollout.schedule import euler_sigmas, step_weights
from worldr1_kernels.sde_step.coefficients import step_coefficients

SDE = [("flow", 0.7), ("linear", 0.7), ("dance", 0.3), ("cps", 0.8)]
MIXTURE = Mixture(weights=(0.3, 0.5, 0.2), means=((-1.5, 0.5), (1.0, 1.2), (0.5, -1.5)), stds=(0.4, 0.5, 0.3))
LIMIT = 0.035
"""Of the Kolmogorov-Smirnov distance: 10,000 exact draws exceed 0.027 once in a million; the rest is for the step."""
TARGET = torch.tensor([0.8, -0.6], dtype=torch.float64)


def reward(x0: torch.Tensor) -> torch.Tensor:
    """Best at TARGET; its gradient there and elsewhere is TARGET - x0."""
    return -0.5 * (x0 - TARGET.to(x0)).square().sum(1)


def config_of(sde_type: str, noise_level: float, *, num_steps: int, micro_batch: int) -> TrainConfig:
    return TrainConfig(
        model=ModelConfig(adapter_sigma_min=0.0),
        schedule=ScheduleConfig(num_steps=num_steps, shift=2.0, sde_type=sde_type, noise_level=noise_level),
        rollout=RolloutConfig(group_size=8, micro_batch=micro_batch, share_initial_noise=True),
        advantage=AdvantageConfig(clip=100.0),
        update=UpdateConfig(updates_per_rollout=1, kl_beta=0.0),
    )


def pathwise_gradient(config: TrainConfig, sigmas: tuple[float, ...], steps: tuple[int, ...], num: int):
    """(dJ / dW_i, dJ / db_i) of J = E reward, through the reward's own gradient and the whole sampler, in float64."""
    generator = torch.Generator().manual_seed(77)
    policy = MixturePolicy(MIXTURE, sigmas)
    w, b = (torch.zeros_like(p, dtype=torch.float64).requires_grad_() for p in (policy.w, policy.b))
    x = torch.randn(num, 2, generator=generator, dtype=torch.float64)
    for i, (sigma, after) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        if i not in steps:
            x = x + (after - sigma) * MIXTURE.velocity(x, sigma)
            continue
        c = step_coefficients(
            "test", config.schedule.sde_type, sigma, after, noise_level=config.schedule.noise_level, sigma_max=sigmas[1]
        )
        # The state before a step is not the step's own doing: its part of the gradient is that of an earlier step.
        v = MIXTURE.velocity(x, sigma) + x.detach() @ w[i] + b[i]
        z = torch.randn(num, 2, generator=generator, dtype=torch.float64)
        x = c.coef_sample * x + c.coef_velocity * v + c.std * z
    reward(x).mean().backward()
    return w.grad, b.grad


@pytest.mark.parametrize(("sde_type", "noise_level"), SDE, ids=lambda v: v if isinstance(v, str) else "")
def test_gradient_is_unbiased_on_a_mixture_whose_gradient_is_known(sde_type: str, noise_level: float) -> None:
    """10^4 samples through rollout, advantage and update: direction and length of the gradient of the mean reward."""
    groups, size, steps = 1250, 8, (1, 2)
    config = config_of(sde_type, noise_level, num_steps=8, micro_batch=groups * size)
    sigmas = euler_sigmas(8, 2.0)
    policy = MixturePolicy(MIXTURE, sigmas)
    batch = plane_batch(groups, size)
    noise = batch.repeat(torch.randn(groups, 2, 1, 1, 1, generator=torch.Generator().manual_seed(3)))
    rollout = sample(policy, batch, noise, sigmas=sigmas, steps=steps, config=config)
    scores = RewardOutput(reward=reward(policy.x0()), valid=rollout.finite)
    advantage = group_advantage(scores, group_size=size, config=config.advantage)
    optimizer = make_optimizer(policy.adapter_parameters(), config.update)
    taken: list[torch.Tensor] = []
    optimizer.register_step_pre_hook(lambda o, *_: taken.extend(p.grad.clone() for p in o.param_groups[0]["params"]))
    policy_step(
        policy, optimizer, Ema(policy.adapter_parameters(), decay=0.0), rollout, advantage, config=config, lr=1e-9
    )
    expected = pathwise_gradient(config, sigmas, steps, 60_000)
    # Loss = -mean over samples and steps of w_s A log_ratio; A = (1 - 1/G) parts of (r - mean) / std, log_ratio a sum
    # over 2 elements over the root of 2.
    grouped = scores.reward.double().view(groups, size)
    std = float((grouped - grouped.mean(1, keepdim=True)).square().mean().sqrt())
    weights = step_weights(sigmas, steps, config.schedule).weights
    for weight, i in zip(weights, steps, strict=True):
        got = -torch.cat([taken[0][i].flatten(), taken[1][i]]).double()
        want = torch.cat([expected[0][i].flatten(), expected[1][i]])
        want = want * weight * (1 - 1 / size) / ((std + 1e-4) * math.sqrt(2) * len(steps))
        cosine = float(torch.nn.functional.cosine_similarity(got, want, dim=0))
        assert cosine >= 0.99
        # Over 16 seeds this length is 1.01 +- 0.04: unbiased, with the scatter of 10^4 samples.
        assert math.isclose(float(got @ want / want.square().sum()), 1.0, abs_tol=0.15)
    others = [i for i in range(8) if i not in steps]
    assert not taken[0][others].any() and not taken[1][others].any()


def largest_gap(x0: torch.Tensor, mixture: Mixture) -> float:
    """Kolmogorov-Smirnov distance to the mixture, the larger of two projections."""
    gaps = []
    for angle in (0.3, 1.7):
        direction = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        values = (x0.double() @ direction).sort().values
        ranks = torch.arange(1, len(values) + 1, dtype=torch.float64) / len(values)
        gaps.append(float((mixture.cdf(values, direction) - ranks).abs().max()))
    return max(gaps)


def sampled(config: TrainConfig, mixture: Mixture, steps: tuple[int, ...], num: int) -> torch.Tensor:
    sigmas = euler_sigmas(config.schedule.num_steps, config.schedule.shift)
    noise = torch.randn(num, 2, 1, 1, 1, generator=torch.Generator().manual_seed(9))
    config = replace(config, rollout=replace(config.rollout, share_initial_noise=False))
    policy = MixturePolicy(mixture, sigmas)
    sample(policy, plane_batch(num // 8, 8), noise, sigmas=sigmas, steps=steps, config=config)
    return policy.x0()


@pytest.mark.parametrize(
    ("sde_type", "noise_level"),
    [("flow", 0.7), ("linear", 0.7), ("dance", 1.0)],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_sde_keeps_the_marginals_of_the_ode(sde_type: str, noise_level: float) -> None:
    """Every step but the last stochastic on a fine grid: the samples still follow the mixture that the ODE ends in."""
    num, num_steps = 10_000, 200
    config = config_of(sde_type, noise_level, num_steps=num_steps, micro_batch=num)
    gap = largest_gap(sampled(config, MIXTURE, tuple(range(num_steps - 1)), num), MIXTURE)
    assert gap < LIMIT


def test_the_ode_ends_in_the_mixture_and_noise_without_its_drift_does_not() -> None:
    num, num_steps = 10_000, 200
    sigmas = euler_sigmas(num_steps, 2.0)
    generator = torch.Generator().manual_seed(9)
    ode = torch.randn(num, 2, generator=generator)
    wrong = ode.clone()
    for sigma, after in zip(sigmas, sigmas[1:], strict=False):
        ode = ode + (after - sigma) * MIXTURE.velocity(ode, sigma)
        noise = math.sqrt(sigma - after) * torch.randn(num, 2, generator=generator)
        wrong = wrong + (after - sigma) * MIXTURE.velocity(wrong, sigma) + noise
    assert largest_gap(ode, MIXTURE) < LIMIT < 3 * LIMIT < largest_gap(wrong, MIXTURE)


def test_cps_keeps_the_marginals_where_the_clean_sample_is_known() -> None:
    """Coefficients preserved: with x0 certain, every latent is N((1 - sigma) x0, sigma^2 I), at any step size."""
    num, sigmas = 20_000, euler_sigmas(8, 2.0)
    point = Mixture(weights=(1.0,), means=((1.0, -2.0),), stds=(1e-3,))
    config = config_of("cps", 0.8, num_steps=8, micro_batch=num)
    config = replace(config, rollout=replace(config.rollout, share_initial_noise=False))
    noise = torch.randn(num, 2, 1, 1, 1, generator=torch.Generator().manual_seed(9))
    steps = tuple(range(7))
    rollout = sample(
        MixturePolicy(point, sigmas), plane_batch(num // 8, 8), noise, sigmas=sigmas, steps=steps, config=config
    )
    for i in steps:
        z = (rollout.prev_samples[i].flatten(1) - (1 - sigmas[i + 1]) * point.means[0]) / sigmas[i + 1]
        assert float(z.mean(0).abs().max()) < 5 / math.sqrt(num)
        assert torch.allclose(z.T.cov(), torch.eye(2, dtype=z.dtype), atol=5 * math.sqrt(2 / num))


def gains(control: bool, seeds: range) -> torch.Tensor:
    """Rise of the mean reward over 30 iterations on fixed noise and draws, one per seed."""
    out = []
    for seed in seeds:
        config = fake_config(
            seed=seed, max_iterations=30, update=UpdateConfig(learning_rate=2e-2, kl_beta=0.0, ema_decay=0.5)
        )
        learner = fake_learner(config, seed=seed)
        before = brightness(fake_rollout(learner, config)[1]).reward.mean()
        for i in range(30):
            _, rollout, advantage = fake_rollout(learner, config, iteration=i)
            if control:
                drawn = torch.randn(16, generator=torch.Generator().manual_seed(1000 * seed + i))
                noise = RewardOutput(reward=drawn, valid=rollout.finite)
                advantage = group_advantage(noise, group_size=4, config=config.advantage)
            lr = learning_rate(i, max_iterations=30, config=config.update)
            policy_step(*learner, rollout, advantage, config=config, lr=lr)
        out.append(float(brightness(fake_rollout(learner, config)[1]).reward.mean() - before))
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.slow
def test_a_tiny_policy_climbs_a_known_reward_and_not_a_random_one() -> None:
    """Ten seeds each. Student's t with 9 degrees of freedom: 4.78 is one in a thousand, 6.6 one in ten thousand."""
    climbed, drifted = gains(False, range(10)), gains(True, range(10))

    def t(x: torch.Tensor) -> float:
        return float(x.mean() / (x.std() / math.sqrt(len(x))))

    assert t(climbed) > 6.6 and (climbed > 0).all()
    assert abs(t(drifted)) < 4.78
    difference = climbed - drifted
    assert t(difference) > 6.6
