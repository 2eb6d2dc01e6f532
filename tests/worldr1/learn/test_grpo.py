import math

import pytest
import torch

from worldr1.learn.grpo import centred_log_ratio, step_loss


def loss_of(log_ratio, advantage, *, mask=None, kl=None, clip_range=0.1, kl_beta=0.0, scale=1.0):
    mask = torch.ones(len(log_ratio), dtype=torch.bool) if mask is None else torch.tensor(mask)
    return step_loss(
        log_ratio, advantage=torch.tensor(advantage), mask=mask,
        kl=kl, clip_range=clip_range, kl_beta=kl_beta, scale=scale,
    )  # fmt: skip


def test_surrogate_by_hand():
    # Ratios 1.2, 0.8, 1.05, 1.2: clipped where it would pay to go further.
    log_ratio = torch.tensor([math.log(1.2), math.log(0.8), math.log(1.05), math.log(1.2)], requires_grad=True)
    got = loss_of(log_ratio, [1.0, -1.0, 2.0, -1.0], scale=0.5)
    assert math.isclose(got.loss.item(), 0.5 * (-1.1 + 0.9 - 2.1 + 1.2), rel_tol=1e-6)
    got.loss.backward()
    assert torch.allclose(log_ratio.grad, 0.5 * torch.tensor([0.0, 0.0, -2.1, 1.2]), atol=1e-6)
    count, deviation, clipped = got.sums[:3].tolist()
    assert (count, round(clipped, 6)) == (4, 3) and math.isclose(deviation, 0.25, abs_tol=1e-6)
    assert math.isclose(float(got.max_deviation), 0.2, abs_tol=1e-6)


def test_at_ratio_one_the_gradient_is_minus_the_advantage():
    advantage = [0.3, -2.0, 1.0]
    log_ratio = torch.zeros(3, requires_grad=True)
    loss_of(log_ratio, advantage).loss.backward()
    assert torch.allclose(log_ratio.grad, -torch.tensor(advantage))


def test_a_step_against_the_gradient_raises_the_probability_of_good_samples():
    log_ratio = torch.zeros(2, requires_grad=True)
    loss_of(log_ratio, [1.0, -1.0]).loss.backward()
    moved = log_ratio - 0.1 * log_ratio.grad
    assert moved[0] > 0 > moved[1]


def test_masked_samples_leave_loss_and_gradient_even_if_nan():
    log_ratio = torch.tensor([0.02, math.nan], requires_grad=True)
    kl = torch.tensor([0.5, math.nan], requires_grad=True)
    got = loss_of(log_ratio, [1.0, 1.0], mask=[True, False], kl=kl, kl_beta=0.1)
    got.loss.backward()
    assert math.isclose(got.loss.item(), -math.exp(0.02) + 0.05, rel_tol=1e-6)
    assert log_ratio.grad[1] == 0 and math.isclose(kl.grad[0].item(), 0.1, rel_tol=1e-6) and kl.grad[1] == 0
    assert got.sums[0] == 1 and math.isclose(float(got.sums[4]), 0.5, rel_tol=1e-6)


def test_parts_add_up_to_the_whole():
    generator = torch.Generator().manual_seed(0)
    log_ratio, advantage = (0.1 * torch.randn(6, generator=generator) for _ in range(2))
    mask = torch.tensor([True, True, False, True, True, True])

    def part(rows):
        return step_loss(
            log_ratio[rows], advantage=advantage[rows], mask=mask[rows], kl=log_ratio[rows].square(),
            clip_range=0.05, kl_beta=0.3, scale=0.2,
        )  # fmt: skip

    whole, halves = part(slice(None)), [part(slice(0, 3)), part(slice(3, 6))]
    assert torch.allclose(whole.loss, halves[0].loss + halves[1].loss, atol=1e-7)
    assert torch.allclose(whole.sums, halves[0].sums + halves[1].sums, atol=1e-6)


def test_centred_log_ratio_is_its_formula():
    """sqrt(D) (log_prob - log_prob_old + b) with b = mean((mean - mean_old)^2) / (2 std^2), in float64."""
    generator = torch.Generator().manual_seed(0)
    mean_old, z, move = (torch.randn(5, 3, 7, generator=generator, dtype=torch.float64) for _ in range(3))
    std = torch.full((5,), 0.3, dtype=torch.float64)
    mean, drawn = mean_old + 0.01 * move, mean_old + 0.3 * z

    def log_prob(m):
        return torch.distributions.Normal(m, 0.3).log_prob(drawn).flatten(1).mean(1)

    b = (mean - mean_old).square().flatten(1).mean(1) / (2 * 0.3**2)
    expected = math.sqrt(21) * (log_prob(mean) - log_prob(mean_old) + b)
    assert torch.allclose(centred_log_ratio(mean, mean_old, drawn, std=std), expected, atol=1e-13)


@pytest.mark.parametrize("elements", [4, 400])
def test_centred_log_ratio_spreads_alike_at_every_size(elements: int):
    """Over draws of the old policy, where each element of the mean moved by rho std: N(0, rho^2), whatever the size."""
    num, rho = 20_000, 0.8
    z = torch.randn(num, elements, generator=torch.Generator().manual_seed(0))
    mean_old, std = torch.zeros(num, elements), torch.full((num,), 0.5)
    ratio = centred_log_ratio(mean_old + 0.5 * rho, mean_old, 0.5 * z, std=std)
    assert abs(float(ratio.mean())) < 4 * rho / math.sqrt(num)
    assert float(ratio.std()) == pytest.approx(rho, rel=0.02)
    # The plain difference of mean log-densities is neither centred nor of one size.
    plain = (-(0.5 * z - 0.5 * rho).square() + (0.5 * z).square()).mean(1) / (2 * 0.25)
    assert float(plain.mean()) == pytest.approx(-(rho**2) / 2, abs=4 * rho / math.sqrt(num * elements))
    assert float(plain.std()) == pytest.approx(rho / math.sqrt(elements), rel=0.02)


def test_its_gradient_is_that_of_log_prob_times_the_root_of_the_elements():
    generator = torch.Generator().manual_seed(1)
    mean_old, z = (torch.randn(3, 5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    mean, std = mean_old.clone().requires_grad_(), torch.full((3,), 0.3, dtype=torch.float64)
    drawn = mean_old + 0.3 * z
    (ours,) = torch.autograd.grad(centred_log_ratio(mean, mean_old, drawn, std=std).sum(), mean)
    log_prob = torch.distributions.Normal(mean, 0.3).log_prob(drawn).flatten(1).mean(1)
    (plain,) = torch.autograd.grad(log_prob.sum(), mean)
    assert torch.allclose(ours, math.sqrt(20) * plain, rtol=1e-12)
