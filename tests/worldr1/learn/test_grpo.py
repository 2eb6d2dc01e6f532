import math

import torch

from worldr1.learn.grpo import guarded_log_ratio, step_loss


def loss_of(log_prob, log_prob_old, advantage, *, mask=None, kl=None, clip_range=0.1, kl_beta=0.0, scale=1.0):
    mask = torch.ones(len(log_prob), dtype=torch.bool) if mask is None else torch.tensor(mask)
    return step_loss(
        log_prob, torch.tensor(log_prob_old), advantage=torch.tensor(advantage), mask=mask,
        kl=kl, clip_range=clip_range, kl_beta=kl_beta, scale=scale,
    )  # fmt: skip


def test_surrogate_by_hand():
    # Ratios 1.2, 0.8, 1.05, 1.2: clipped where it would pay to go further.
    log_prob = torch.tensor([math.log(1.2), math.log(0.8), math.log(1.05), math.log(1.2)], requires_grad=True)
    got = loss_of(log_prob, [0.0] * 4, [1.0, -1.0, 2.0, -1.0], scale=0.5)
    assert math.isclose(got.loss.item(), 0.5 * (-1.1 + 0.9 - 2.1 + 1.2), rel_tol=1e-6)
    got.loss.backward()
    assert torch.allclose(log_prob.grad, 0.5 * torch.tensor([0.0, 0.0, -2.1, 1.2]), atol=1e-6)
    count, deviation, clipped = got.sums[:3].tolist()
    assert (count, round(clipped, 6)) == (4, 3) and math.isclose(deviation, 0.25, abs_tol=1e-6)
    assert math.isclose(float(got.max_deviation), 0.2, abs_tol=1e-6)


def test_at_ratio_one_the_gradient_is_minus_the_advantage():
    advantage = [0.3, -2.0, 1.0]
    log_prob = torch.zeros(3, requires_grad=True)
    loss_of(log_prob, [0.0] * 3, advantage).loss.backward()
    assert torch.allclose(log_prob.grad, -torch.tensor(advantage))


def test_a_step_against_the_gradient_raises_the_probability_of_good_samples():
    log_prob = torch.zeros(2, requires_grad=True)
    loss_of(log_prob, [0.0, 0.0], [1.0, -1.0]).loss.backward()
    moved = log_prob - 0.1 * log_prob.grad
    assert moved[0] > 0 > moved[1]


def test_masked_samples_leave_loss_and_gradient_even_if_nan():
    log_prob = torch.tensor([0.02, math.nan], requires_grad=True)
    kl = torch.tensor([0.5, math.nan], requires_grad=True)
    got = loss_of(log_prob, [0.0, 0.0], [1.0, 1.0], mask=[True, False], kl=kl, kl_beta=0.1)
    got.loss.backward()
    assert math.isclose(got.loss.item(), -math.exp(0.02) + 0.05, rel_tol=1e-6)
    assert log_prob.grad[1] == 0 and math.isclose(kl.grad[0].item(), 0.1, rel_tol=1e-6) and kl.grad[1] == 0
    assert got.sums[0] == 1 and math.isclose(float(got.sums[4]), 0.5, rel_tol=1e-6)


def test_parts_add_up_to_the_whole():
    generator = torch.Generator().manual_seed(0)
    log_prob, old, advantage = (0.1 * torch.randn(6, generator=generator) for _ in range(3))
    mask = torch.tensor([True, True, False, True, True, True])

    def part(rows):
        return step_loss(
            log_prob[rows], old[rows], advantage=advantage[rows], mask=mask[rows], kl=log_prob[rows].square(),
            clip_range=0.05, kl_beta=0.3, scale=0.2,
        )  # fmt: skip

    whole, halves = part(slice(None)), [part(slice(0, 3)), part(slice(3, 6))]
    assert torch.allclose(whole.loss, halves[0].loss + halves[1].loss, atol=1e-7)
    assert torch.allclose(whole.sums, halves[0].sums + halves[1].sums, atol=1e-6)


def test_guarded_log_ratio_is_the_published_formula():
    """std (log_prob - log_prob_old + b) with b = mean((mean - mean_old)^2) / (2 std^2), in float64."""
    generator = torch.Generator().manual_seed(0)
    mean_old, z, move = (torch.randn(5, 3, 7, generator=generator, dtype=torch.float64) for _ in range(3))
    std = torch.full((5,), 0.3, dtype=torch.float64)
    mean, drawn = mean_old + 0.01 * move, mean_old + 0.3 * z

    def log_prob(m):
        return torch.distributions.Normal(m, 0.3).log_prob(drawn).flatten(1).mean(1)

    b = (mean - mean_old).square().flatten(1).mean(1) / (2 * 0.3**2)
    expected = 0.3 * (log_prob(mean) - log_prob(mean_old) + b)
    assert torch.allclose(guarded_log_ratio(mean, mean_old, drawn, std=std), expected, atol=1e-14)


def test_guarded_log_ratio_is_centred_where_the_plain_one_is_not():
    """Over draws of the old policy, whatever the new mean: 0 against minus the KL."""
    z = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean_old, std = torch.zeros(20_000, 4, dtype=torch.float64), torch.full((20_000,), 0.5, dtype=torch.float64)
    mean = mean_old + 0.4
    guarded = guarded_log_ratio(mean, mean_old, 0.5 * z, std=std)
    plain = (-(0.5 * z - 0.4).square() + (0.5 * z).square()).mean(1) / (2 * 0.25)
    scatter = 0.4 / math.sqrt(4 * 20_000)
    assert abs(float(guarded.mean())) < 4 * scatter
    assert abs(float(plain.mean()) + 0.4**2 / (2 * 0.25)) < 4 * scatter / 0.5
