import math

import pytest
import torch

from worldr1.config import AdvantageConfig
from worldr1.datatypes import RewardOutput
from worldr1.learn.advantage import group_advantage


def rewards(values, *, valid=None, **terms):
    values = torch.tensor(values)
    breakdown = {k: torch.tensor(v) for k, (v, _) in terms.items()}
    weights = {k: w for k, (_, w) in terms.items()}
    good = torch.tensor(valid) if valid is not None else torch.ones(len(values), dtype=torch.bool)
    return RewardOutput(reward=torch.where(good, values, torch.nan), valid=good, breakdown=breakdown, weights=weights)


def test_group_std_by_hand():
    got = group_advantage(rewards([1.0, 3.0, 0.0, 0.5]), group_size=2, config=AdvantageConfig(std="group"))
    expected = [-1 / 1.0001, 1 / 1.0001, -0.25 / 0.2501, 0.25 / 0.2501]
    assert torch.allclose(got.advantage, torch.tensor(expected), atol=1e-6)
    assert torch.allclose(got.group_std, torch.tensor([1.0, 0.25], dtype=torch.float64))
    assert "with G = 2" in got.alarms[0]


def test_global_std_by_hand():
    values = [1.0, 3.0, 0.0, 0.5]
    got = group_advantage(rewards(values), group_size=2, config=AdvantageConfig(std="global"))
    inside = torch.tensor(
        [-1.0, 1.0, -0.25, 0.25], dtype=torch.float64
    )  # what is left of each without its group's mean
    expected = inside / (inside.square().mean().sqrt() + 1e-4)
    assert torch.allclose(got.advantage.double(), expected, atol=1e-6)
    assert math.isclose(got.metrics()["advantage_abs"], float(expected.abs().mean()), rel_tol=1e-6)


def test_terms_of_equal_weight_weigh_alike_whatever_differs_between_the_groups():
    """A term whose level depends on the prompt counted for less while the spread between groups was in its std."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(40, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    b = b + 5.0 * torch.randn(40, 1, generator=generator, dtype=torch.float64)
    values = {"a": (a.flatten().tolist(), 1.0), "b": (b.flatten().tolist(), 1.0)}
    config = AdvantageConfig(std="global", clip=100.0)
    got = group_advantage(rewards((a + b).flatten().tolist(), **values), group_size=8, config=config).advantage
    parts = [(x - x.mean(1, keepdim=True)).flatten() for x in (a, b)]
    weight = [float(got.double() @ p / p.square().sum() * p.std()) for p in parts]
    assert weight[0] == pytest.approx(weight[1], rel=0.1)


def test_each_term_is_normalised_before_it_is_weighed():
    # The second term has 1,000 times the variance; with weights 3 and 4 the first still counts 3 / 5.
    a, b = [0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1000.0, 1000.0]
    total = [x + y for x, y in zip(a, b, strict=True)]
    got = group_advantage(rewards(total, a=(a, 3.0), b=(b, 4.0)), group_size=4, config=AdvantageConfig())
    za, zb = torch.tensor([-1.0, 1.0, -1.0, 1.0]), torch.tensor([-1.0, -1.0, 1.0, 1.0])
    assert torch.allclose(got.advantage, (3 * za + 4 * zb) / 5, atol=1e-3)
    together = group_advantage(
        rewards(total, a=(a, 3.0), b=(b, 4.0)), group_size=4, config=AdvantageConfig(normalize_each=False)
    )
    assert torch.allclose(together.advantage, zb, atol=2e-3), "without it the large term is all there is"


def test_a_term_of_weight_zero_is_left_out():
    got = group_advantage(
        rewards([0.0, 1.0], a=([0.0, 1.0], 1.0), b=([math.nan, 5.0], 0.0)), group_size=2, config=AdvantageConfig()
    )
    assert got.mask.all() and got.advantage[1] > 0.9


def test_invalid_samples_leave_the_statistics():
    clean = group_advantage(rewards([1.0, 2.0, 4.0]), group_size=3, config=AdvantageConfig())
    masked = group_advantage(
        rewards([1.0, 2.0, 4.0, 1e9], valid=[True, True, True, False]), group_size=4, config=AdvantageConfig()
    )
    assert torch.equal(masked.advantage[:3], clean.advantage) and masked.advantage[3] == 0
    assert masked.mask.tolist() == [True, True, True, False] and masked.num_active == 3


def test_a_nan_reward_marked_valid_is_masked_all_the_same():
    output = RewardOutput(reward=torch.tensor([1.0, math.nan, 2.0]), valid=torch.ones(3, dtype=torch.bool))
    got = group_advantage(output, group_size=3, config=AdvantageConfig())
    assert got.mask.tolist() == [True, False, True] and torch.isfinite(got.advantage).all()


def test_dead_and_nearly_empty_groups_are_dropped():
    got = group_advantage(
        rewards([5.0, 5.0, 1.0, 2.0, 7.0, 8.0], valid=[True, True, True, True, True, False]),
        group_size=2, config=AdvantageConfig(),
    )  # fmt: skip
    assert got.mask.tolist() == [False, False, True, True, False, False]
    assert got.num_dropped_groups == 2 and got.num_active == 2
    assert got.group_std[0] == 0 and math.isnan(got.group_std[2])


def test_all_groups_dropped_says_so():
    got = group_advantage(rewards([1.0, 1.0, 2.0, 2.0]), group_size=2, config=AdvantageConfig())
    assert got.num_active == 0 and not got.advantage.any()
    assert any("no update" in alarm for alarm in got.alarms)


def test_alarm_at_a_small_spread():
    got = group_advantage(rewards([1.0, 1.0005, 0.0, 1.0]), group_size=2, config=AdvantageConfig())
    assert got.mask.all() and got.alarms == ("1 of 2 groups teach almost nothing: reward std below 0.001",)


def test_clip():
    values = [0.0] * 99 + [1.0]
    got = group_advantage(rewards(values), group_size=100, config=AdvantageConfig(clip=5.0))
    assert got.advantage.max() == 5.0


def test_advantages_of_a_group_sum_to_zero():
    values = torch.randn(24, generator=torch.Generator().manual_seed(0)).tolist()
    got = group_advantage(rewards(values), group_size=8, config=AdvantageConfig())
    assert got.advantage.view(3, 8).sum(1).abs().max() < 1e-5


def test_size_must_be_whole_groups():
    with pytest.raises(ValueError, match="multiple of group_size 3, got 4"):
        group_advantage(rewards([1.0, 2.0, 3.0, 4.0]), group_size=3, config=AdvantageConfig())


NAN = math.nan
OTHERS = {"recon": ([0.2, 0.6, 0.5, 0.9, 0.1, 0.3], 1.0), "gen": ([0.3, 0.1, 0.2, -0.4, 0.6, 0.2], 0.5)}
TRAJ = [0.9, 0.2, 0.4]


def two_groups(traj):
    """A group that has S_traj, one whose camera nobody knows; `traj` are the six values, weight 2."""
    terms = {"traj": (traj, 2.0), **OTHERS}
    total = sum(torch.tensor(v).nan_to_num(0.0) * w for v, w in terms.values())
    return rewards(total.tolist(), **terms)


def rows_of(output, rows, *, without=()):
    """The same output for some rows and terms alone."""
    names = [k for k in output.breakdown if k not in without]
    return RewardOutput(
        reward=output.reward[rows], valid=output.valid[rows],
        breakdown={k: output.breakdown[k][rows] for k in names}, weights={k: output.weights[k] for k in names},
    )  # fmt: skip


def test_a_term_that_does_not_apply_to_a_group_is_left_out_there():
    config = AdvantageConfig(std="group")
    both = two_groups([*TRAJ, NAN, NAN, NAN])
    got = group_advantage(both, group_size=3, config=config)
    asked, unasked = slice(0, 3), slice(3, 6)
    assert got.mask.all() and got.num_active == 6
    alone = group_advantage(rows_of(both, asked), group_size=3, config=config)
    assert torch.equal(got.advantage[asked], alone.advantage)
    others = group_advantage(rows_of(both, unasked, without=["traj"]), group_size=3, config=config)
    assert torch.equal(got.advantage[unasked], others.advantage), "weights of the terms that are there"


def test_its_deviation_is_over_the_groups_that_have_it():
    both = two_groups([*TRAJ, NAN, NAN, NAN])
    got = group_advantage(both, group_size=3, config=AdvantageConfig(std="global"))
    expected = torch.zeros(6, dtype=torch.float64)
    squares = torch.tensor([2.0**2] * 3 + [0.0] * 3, dtype=torch.float64)
    traj = torch.tensor(TRAJ, dtype=torch.float64)
    expected[:3] += 2.0 * (traj - traj.mean()) / (traj.std(correction=0) + 1e-4)
    for values, weight in OTHERS.values():
        v = torch.tensor(values, dtype=torch.float64)
        inside = v - v.view(2, 3).mean(1).repeat_interleave(3)
        expected += weight * inside / (inside.square().mean().sqrt() + 1e-4)
        squares += weight**2
    assert torch.allclose(got.advantage.double(), expected / squares.sqrt(), atol=1e-6)


def test_one_sample_without_a_term_that_its_group_has_is_masked():
    got = group_advantage(two_groups([*TRAJ, NAN, 0.5, 0.1]), group_size=3, config=AdvantageConfig())
    assert got.mask.tolist() == [True, True, True, False, True, True]


def test_a_group_to_which_no_term_applies_is_dropped():
    both = rewards([0.1, 0.2, 0.3, 0.4], traj=([0.1, 0.2, NAN, NAN], 1.0))
    got = group_advantage(both, group_size=2, config=AdvantageConfig())
    assert got.mask.tolist() == [True, True, False, False] and got.num_dropped_groups == 1
    assert bool(got.advantage.isfinite().all())
