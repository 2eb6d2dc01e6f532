"""sde_step, ode_step and grpo_loss against torch.distributions, a Gaussian world with known marginals, and autograd."""

import math
from typing import Any

import pytest
import torch

from tests.kernels.sde_oracle import NOISE_LEVELS, euler_grid, published_step
from worldr1_kernels.sde_step import grpo_loss, ode_step, sde_step
from worldr1_kernels.sde_step import ops as sde_ops
from worldr1_kernels.sde_step.coefficients import SDE_TYPES, step_coefficients
from worldr1_kernels.testing import check_compiles, check_gradients, check_op, normal

SHAPE = (5, 3, 2, 5, 7)  # 210 elements: no multiple of 4


def inputs(shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    return tuple(normal(shape, seed, dtype=dtype) for seed in range(4))


@pytest.mark.parametrize("sde_type", ["flow", "linear", "dance"])
def test_marginals_of_a_gaussian_world_converge(sde_type: str) -> None:
    """x0 ~ N(mu, tau^2) has a known velocity, linear in x: mean and variance are propagated exactly through the step,
    and must approach those of (1 - sigma) x0 + sigma eps at every sigma as the grid is refined.

    `flow` starts at sigma 0.9: above, its noise per step does not shrink with the step (see the next test)."""
    mu, tau = 0.7, 0.5

    def worst_error(num_steps: int) -> float:
        grid = [s for s in euler_grid(num_steps) if sde_type != "flow" or s <= 0.9]
        mean, variance, worst = (1 - grid[0]) * mu, (1 - grid[0]) ** 2 * tau**2 + grid[0] ** 2, 0.0
        for sigma, sigma_next in zip(grid[:-1], grid[1:], strict=True):
            true_mean, true_var = (1 - sigma) * mu, (1 - sigma) ** 2 * tau**2 + sigma**2
            slope = (sigma - (1 - sigma) * tau**2) / true_var  # of E[eps - x0 | x] = slope (x - true_mean) - mu
            a, b, std = step_coefficients(
                "test", sde_type, sigma, sigma_next, noise_level=NOISE_LEVELS[sde_type], sigma_max=grid[1]
            )
            mean = a * mean + b * (slope * (mean - true_mean) - mu)
            variance = (a + b * slope) ** 2 * variance + std**2
            after = (1 - sigma_next) ** 2 * tau**2 + sigma_next**2
            worst = max(worst, abs(mean - (1 - sigma_next) * mu), abs(variance - after))
        return worst

    errors = [worst_error(n) for n in (100, 200, 400, 800)]
    assert errors[-1] < 0.01
    for coarse, fine in zip(errors[:-1], errors[1:], strict=True):
        assert fine < 0.6 * coarse  # first order


def test_flow_exceeds_the_marginal_near_sigma_one_on_any_grid() -> None:
    """A property of the formula. From an exact marginal over one data point, a step with noise std s, k = s^2 /
    (2 sigma^2) and d = sigma - sigma_next leaves the variance sigma_next^2 + sigma^2 k^2 + 2 sigma k d. For `linear`
    and `dance` k is of the order of d and the excess of second order; `flow` has s^2 = eta^2 d sigma / (1 - sigma), and
    on the first steps of any grid 1 - sigma is as small as d: s^2 tends to eta^2, k to its half, however fine it is."""
    eta = 0.7
    for num_steps in (20, 50, 1000):
        grid = euler_grid(num_steps)
        variance, excess = 1.0, []
        for sigma, sigma_next in zip(grid[:-2], grid[1:-1], strict=True):
            a, b, std = step_coefficients("test", "flow", sigma, sigma_next, noise_level=eta, sigma_max=grid[1])
            k, d = std**2 / (2 * sigma**2), sigma - sigma_next
            one_step = (a + b / sigma) ** 2 * sigma**2 + std**2 - sigma_next**2
            assert one_step == pytest.approx(sigma**2 * k**2 + 2 * sigma * k * d, abs=1e-12)
            variance = (a + b / sigma) ** 2 * variance + std**2
            excess.append(variance - sigma_next**2)
        assert excess[0] == pytest.approx(eta**4 / 4, abs=0.4 / num_steps)
        assert excess.index(max(excess)) == 1 and 0.09 < excess[1] < 0.115
        assert abs(excess[-1]) < 0.25 / num_steps  # forgotten further down, at first order


def test_flow_on_the_first_step_is_clamped_not_wild() -> None:
    """Wan's UniPC grid starts at .99967, where `flow` has std_dev_t above 30."""
    for num_steps in (20, 50):
        grid = euler_grid(num_steps)
        clamped = step_coefficients("test", "flow", 1.0, grid[1], noise_level=0.7, sigma_max=grid[1])
        raw = step_coefficients("test", "flow", 0.99967, grid[1], noise_level=0.7, sigma_max=None)
        assert clamped.std < 0.7 and clamped.coef_sample > 0.75
        assert raw.std > 3.0 and raw.coef_sample < -3.5


def test_cps_keeps_the_noise_level_exactly_when_the_data_are_known() -> None:
    """With x0 a constant, x_sigma is (1 - sigma) x0 + sigma eps on any grid: variance sigma^2 to rounding."""
    grid, mu = euler_grid(6), 0.7
    mean, variance = 0.0, 1.0
    for sigma, sigma_next in zip(grid[:-2], grid[1:-1], strict=True):
        a, b, std = step_coefficients("test", "cps", sigma, sigma_next, noise_level=0.8, sigma_max=None)
        mean = a * mean + b * ((mean - (1 - sigma) * mu) / sigma - mu)
        variance = (a + b / sigma) ** 2 * variance + std**2
        assert mean == pytest.approx((1 - sigma_next) * mu, abs=1e-12)
        assert variance == pytest.approx(sigma_next**2, abs=1e-12)


def test_cps_loses_the_spread_of_the_data_on_any_grid() -> None:
    """A property of the formula: noise is put back, the spread of x0 around x0_hat is not. Data of standard deviation
    .5 end with .40, whatever the number of steps."""
    tau, ends = 0.5, []
    for num_steps in (20, 50, 1000):
        grid, variance = euler_grid(num_steps), 1.0
        for sigma, sigma_next in zip(grid[:-2], grid[1:-1], strict=True):
            true_var = (1 - sigma) ** 2 * tau**2 + sigma**2
            slope = (sigma - (1 - sigma) * tau**2) / true_var
            a, b, std = step_coefficients("test", "cps", sigma, sigma_next, noise_level=0.8, sigma_max=None)
            variance = (a + b * slope) ** 2 * variance + std**2
        ends.append(variance - ((1 - sigma_next) ** 2 * tau**2 + sigma_next**2))
    assert all(-0.1 < end < -0.085 for end in ends)


def test_sampled_marginal_of_a_gaussian_world() -> None:
    """The drawn chain itself: 40,000 scalars through 100 Philox-drawn steps end as the data distribution."""
    mu, tau, grid = 0.7, 0.5, euler_grid(100)
    x = normal((8, 5000), 3)
    for i, (sigma, sigma_next) in enumerate(zip(grid[:-1], grid[1:], strict=True)):
        variance = (1 - sigma) ** 2 * tau**2 + sigma**2
        velocity = (sigma - (1 - sigma) * tau**2) / variance * (x - (1 - sigma) * mu) - mu
        x = sde_step(velocity, x, sigma, sigma_next, seed=4, step=i, sigma_max=grid[1]).prev_sample
    assert float(x.mean()) == pytest.approx(mu, abs=4.5 * tau / 200 + 0.003)
    assert float(x.var()) == pytest.approx(tau**2, rel=4.5 * math.sqrt(2 / 40_000) + 0.02)


@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize("sde_type", SDE_TYPES)
def test_gradients(sde_type: str, guided: bool) -> None:
    """Against autograd through the published formula in float64, and against finite differences."""
    sigma, sigma_next, top, eta = 0.83, 0.74, 0.95, NOISE_LEVELS[sde_type]
    velocity, sample, prev, reference = inputs((3, 2, 5), torch.float64)
    uncond = normal((3, 2, 5), 9, dtype=torch.float64)
    guidance = 3.5 if guided else 1.0
    weights = normal((3,), 10, dtype=torch.float64), normal((3,), 11, dtype=torch.float64)

    def kernel(v: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out = sde_step(
            v, sample, sigma, sigma_next, prev_sample=prev, velocity_uncond=u if guided else None, sde_type=sde_type,
            guidance_scale=guidance, noise_level=eta, sigma_max=top, velocity_ref=reference,
        )  # fmt: skip
        assert out.kl is not None and out.prev_sample is prev
        return out.log_prob, out.kl, out.prev_sample_mean

    def formula(v: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, ...]:
        v = u + guidance * (v - u) if guided else v
        mean, std = published_step(sde_type, v, sample, sigma, sigma_next, eta, top)
        mean_ref, _ = published_step(sde_type, reference, sample, sigma, sigma_next, eta, top)
        log_prob = torch.distributions.Normal(mean, std).log_prob(prev).flatten(1).mean(1)
        return log_prob, (mean - mean_ref).square().flatten(1).mean(1) / (2 * std**2), mean

    grads = []
    for function in (kernel, formula):
        v, u = velocity.clone().requires_grad_(), uncond.clone().requires_grad_()
        log_prob, kl, mean = function(v, u)
        loss = (weights[0] * log_prob + weights[1] * kl).sum() + (mean * sample).sum()
        grads.append(torch.autograd.grad(loss, (v, u) if guided else (v,)))
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    for index in range(3):
        check_gradients(lambda v, u, i=index: kernel(v, u)[i], (velocity, uncond) if guided else (velocity, velocity))


def test_bfloat16_velocity_has_float32_arithmetic() -> None:
    velocity, sample, prev, _ = inputs()
    narrow = velocity.bfloat16().requires_grad_()
    wide = narrow.detach().float().requires_grad_()
    outs = [sde_step(v, sample, 0.8, 0.7, prev_sample=prev) for v in (narrow, wide)]
    assert outs[0].log_prob.dtype == outs[0].prev_sample_mean.dtype == torch.float32
    assert torch.equal(outs[0].log_prob, outs[1].log_prob)
    for out in outs:
        out.log_prob.sum().backward()
    assert narrow.grad is not None and wide.grad is not None and narrow.grad.dtype == torch.bfloat16
    assert torch.equal(narrow.grad, wide.grad.bfloat16())


def test_draws_differ_between_samples_steps_and_seeds() -> None:
    zero = torch.zeros(4, 16, 16)
    draws = [sde_step(zero, zero, 0.9, 0.8, seed=s, step=t).prev_sample for s, t in ((0, 0), (0, 1), (1, 0))]
    rows = torch.cat(draws).flatten(1)  # 12 independent draws of 256
    correlation = torch.corrcoef(rows) - torch.eye(12)
    assert float(correlation.abs().max()) < 4.5 / 16
    assert torch.equal(draws[0], sde_step(zero, zero, 0.9, 0.8, seed=0).prev_sample)


def test_kl_is_that_of_torch_distributions() -> None:
    velocity, sample, noise, reference = inputs(dtype=torch.float64)
    out = sde_step(velocity, sample, 0.8, 0.7, noise=noise, velocity_ref=reference)
    other = sde_step(reference, sample, 0.8, 0.7, noise=noise)
    std = float(out.std[0])
    pair = [torch.distributions.Normal(o.prev_sample_mean, std) for o in (out, other)]
    expected = torch.distributions.kl_divergence(*pair).flatten(1).mean(1)
    assert out.kl is not None
    torch.testing.assert_close(out.kl, expected, rtol=1e-12, atol=0)


def test_ode_step_is_euler_with_guidance() -> None:
    velocity, sample, uncond, _ = inputs(dtype=torch.float64)
    guided = uncond + 4.0 * (velocity - uncond)
    got = ode_step(velocity, sample, 0.8, 0.7, velocity_uncond=uncond, guidance_scale=4.0)
    torch.testing.assert_close(got, sample - 0.1 * guided, rtol=1e-12, atol=1e-12)
    # The stochastic step turns into it as the noise goes away.
    quiet = sde_step(velocity, sample, 0.8, 0.7, seed=0, sde_type="dance", noise_level=1e-9)
    torch.testing.assert_close(quiet.prev_sample, ode_step(velocity, sample, 0.8, 0.7), rtol=0, atol=1e-8)


def test_grpo_loss_by_hand_and_gradient() -> None:
    log_ratio = torch.tensor([0.0, math.log(1.3), math.log(0.6), math.log(1.3), 0.0], dtype=torch.float64)
    old = torch.full((5,), -0.4, dtype=torch.float64)
    advantage = torch.tensor([1.0, 2.0, -1.0, -1.0, float("nan")], dtype=torch.float64)
    valid = torch.tensor([True, True, True, True, False])
    log_prob = (old + log_ratio).requires_grad_()
    out = grpo_loss(log_prob, old, advantage, clip_range=0.2, valid=valid)
    # -1, clipped -2 * 1.2, clipped 0.8, and 1.3: the clip never hides a mistake.
    assert float(out.loss.detach()) == pytest.approx((-1.0 - 2.4 + 0.8 + 1.3) / 4, rel=1e-12)
    assert float(out.clip_fraction) == 0.75
    k3 = [0.0, 0.3 - math.log(1.3), -0.4 - math.log(0.6), 0.3 - math.log(1.3)]
    assert float(out.approx_kl) == pytest.approx(sum(k3) / 4, rel=1e-10)
    (grad,) = torch.autograd.grad(out.loss, log_prob)
    torch.testing.assert_close(grad, torch.tensor([-0.25, 0, 0, 1.3 / 4, 0], dtype=torch.float64), atol=1e-12, rtol=0)
    nothing = grpo_loss(log_prob, old, advantage, clip_range=0.2, valid=torch.zeros(5, dtype=torch.bool))
    assert float(nothing.loss.detach()) == 0.0
    assert torch.equal(torch.autograd.grad(nothing.loss, log_prob)[0], torch.zeros(5, dtype=torch.float64))


def test_bad_input_of_sde_step() -> None:
    velocity, sample, noise, _ = inputs()
    nan = float("nan")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"sigma": 0.7}, "sigma_next must be < sigma"),
        ({"sigma": 0.6}, "sigma_next must be < sigma"),
        ({"sigma": nan}, r"must be in \[0, 1\]"),
        ({"sigma": 1.2}, r"must be in \[0, 1\]"),
        ({"noise_level": nan}, "noise_level must be finite and > 0, got nan"),
        ({"noise_level": 0.0}, "a deterministic step has no density: use ode_step"),
        ({"noise_level": 1.5, "sde_type": "cps"}, r"in \(0, 1\] for 'cps', got 1.5"),
        ({"sigma_next": 0.0, "sde_type": "cps"}, "the last 'cps' step"),
        ({"sigma": 1.0, "sde_type": "flow"}, "'flow' diverges at sigma = 1"),
        ({"sde_type": "liner"}, "did you mean 'linear'"),
        ({"sigma_max": 0.0}, r"sigma_max must be in \(0, 1\]"),
        ({"noise": None}, "exactly one of seed, noise, prev_sample must be given, got none"),
        ({"seed": 1}, r"exactly one of .* got \['seed', 'noise'\]"),
        ({"noise": None, "seed": -1}, "seed must be in"),
        ({"noise": None, "seed": 0, "step": -1}, "step must be in"),
        ({"noise": noise[:4]}, r"noise must have the shape of velocity \[5, 3, 2, 5, 7\], got \[4, 3, 2, 5, 7\]"),
        ({"sample": sample[:4]}, "sample must have the shape of velocity"),
        ({"velocity_ref": noise[:, :1]}, "velocity_ref must have the shape of velocity"),
        ({"guidance_scale": 2.0}, "velocity_uncond must be given"),
        ({"guidance_scale": nan}, "guidance_scale must be finite"),
        ({"sample": sample.clone().requires_grad_()}, "sample must not require a gradient"),
        ({"prev_sample": noise}, r"exactly one of .* got \['noise', 'prev_sample'\]"),
        ({"noise_level": float("inf")}, "noise_level must be finite"),
        ({"sigma_max": nan}, r"sigma_max must be in \(0, 1\]"),
        ({"sigma_next": -0.1}, r"must be in \[0, 1\]"),
        ({"sample": sample.to("meta")}, "sample must be on cpu like velocity, got meta"),
        ({"noise": None, "seed": 0, "sample_ids": torch.arange(4)}, r"sample_ids must have shape \[5\], got \[4\]"),
        ({"noise": None, "seed": 0, "sample_ids": torch.arange(5) - 1}, r"sample_ids must be in \[0, .* got -1\.\.3"),
        ({"velocity": velocity[..., :0], "sample": sample[..., :0], "noise": noise[..., :0]}, "elements per sample"),
        ({"velocity": velocity[0, 0, 0, 0], "sample": sample[0, 0, 0, 0]}, r"must have shape \[N, \.\.\.\]"),
    ]
    good: dict[str, Any] = {"velocity": velocity, "sample": sample, "sigma": 0.8, "sigma_next": 0.7, "noise": noise}
    for change, message in cases:
        with pytest.raises(ValueError, match="^sde_step: .*" + message):
            sde_step(**{**good, **change})
    with pytest.raises(TypeError, match="sample must be floating point, got torch.int64"):
        sde_step(velocity, torch.zeros(SHAPE, dtype=torch.int64), 0.8, 0.7, noise=noise)
    with pytest.raises(TypeError, match="sde_step: step must be an int .* got float"):
        sde_step(velocity, sample, 0.8, 0.7, seed=0, step=1.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="seed must be an int, got float"):
        sde_step(velocity, sample, 0.8, 0.7, seed=1.0)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="backend .triton. is not available"):
        sde_step(velocity, sample, 0.8, 0.7, noise=noise, backend="triton")


def test_grpo_loss_beyond_float32() -> None:
    """exp(200) is infinite in float32: where the clip holds, neither loss nor gradient may know of it."""
    log_prob = torch.tensor([200.0, 0.0, 200.0, -200.0], requires_grad=True)
    out = grpo_loss(log_prob, torch.zeros(4), torch.tensor([1.0, 1.0, 0.0, -2.0]), clip_range=1e-3)
    out.loss.backward()
    assert log_prob.grad is not None and log_prob.grad.tolist() == [0.0, -0.25, 0.0, 0.0]
    assert float(out.loss) == pytest.approx((-1.001 - 1.0 + 2.0 * 0.999) / 4, abs=1e-6)


def test_grpo_loss_is_the_maximum_of_the_two() -> None:
    generator = torch.Generator().manual_seed(0)
    log_prob = (0.3 * torch.randn(4000, generator=generator, dtype=torch.float64)).requires_grad_()
    advantage = torch.randn(4000, generator=generator, dtype=torch.float64)
    loss = grpo_loss(log_prob, torch.zeros_like(log_prob), advantage, clip_range=0.2).loss
    ratio = log_prob.exp()
    plain = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2)).mean()
    mine, other = (torch.autograd.grad(x, log_prob)[0] for x in (loss, plain))
    torch.testing.assert_close(loss, plain, rtol=1e-14, atol=0)
    torch.testing.assert_close(mine, other, rtol=1e-14, atol=0)


def test_bad_input_of_ode_step_and_grpo_loss() -> None:
    velocity, sample, _, _ = inputs()
    with pytest.raises(ValueError, match="ode_step: sigma_next must be < sigma"):
        ode_step(velocity, sample, 0.7, 0.8)
    with pytest.raises(ValueError, match="ode_step: velocity_uncond must be given"):
        ode_step(velocity, sample, 0.8, 0.7, guidance_scale=5.0)
    three, four = torch.zeros(3), torch.zeros(4)
    with pytest.raises(ValueError, match=r"advantage must have the shape of log_prob \[3\], got \[4\]"):
        grpo_loss(three, three, four, clip_range=0.1)
    with pytest.raises(ValueError, match=r"clip_range must be in \(0, 1\), got 0.0"):
        grpo_loss(three, three, three, clip_range=0.0)
    with pytest.raises(TypeError, match="valid must be bool"):
        grpo_loss(three, three, three, clip_range=0.1, valid=three)


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_ops_pass_opcheck(backend: str) -> None:
    v, x, p, r = inputs((2, 3, 5))
    ids, scalars = torch.arange(2), (2.0, 0.9, -0.1, 0.2)
    check_op(sde_ops.sde_sample_op, (v, x, p, r, None, ids, *scalars, 3, 1, backend))
    check_op(sde_ops.sde_sample_op, (v.bfloat16(), x, None, None, p, ids, *scalars, 0, 0, backend))
    check_op(sde_ops.sde_log_prob_op, (v, x, p, r, r, *scalars, backend))
    check_op(sde_ops.sde_log_prob_op, (v, x, p, None, None, *scalars, backend))
    g = torch.ones(2)
    check_op(sde_ops.sde_log_prob_backward_op, (x, g, g, v, x, p, r, r, *scalars, backend))
    check_op(sde_ops.sde_log_prob_backward_op, (None, g, None, v.bfloat16(), x, p, None, None, *scalars, backend))


def test_compiles_without_a_graph_break() -> None:
    velocity, sample, prev, reference = inputs((2, 3, 5))

    def rollout(v: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = sde_step(v, x, 0.8, 0.7, seed=2, step=1)
        return out.prev_sample, out.log_prob

    def train(v: torch.Tensor, x: torch.Tensor, p: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        out = sde_step(v, x, 0.8, 0.7, prev_sample=p, velocity_ref=r)
        assert out.kl is not None
        return out.log_prob + out.kl

    check_compiles(rollout, (velocity, sample))
    velocity.requires_grad_()
    check_compiles(train, (velocity, sample, prev, reference))
    compiled = torch.compile(train, fullgraph=True, backend="aot_eager")
    grads = [torch.autograd.grad(f(velocity, sample, prev, reference).sum(), velocity)[0] for f in (compiled, train)]
    assert torch.equal(*grads)
