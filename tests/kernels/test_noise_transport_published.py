"""Against the published algorithm (Burgert et al. 2025), which groups pixels by their value: bench/noise_peers.py.

Where no two values are equal by chance and no random number is drawn, both must give the same noise. The random numbers
differ, so of a group only its sum can agree. In float32 values do meet by chance, which index keys cannot.
"""

import pytest
import torch

from bench.noise_peers import value_keyed, value_keyed_step
from worldr1_kernels.noise_transport import noise_transport, plan_transport
from worldr1_kernels.testing import normal

F64 = torch.float64


def about_the_centre(frames: int, height: int, width: int, *, zoom: float, dx: float = 0.0) -> torch.Tensor:
    """[frames - 1, 2, H, W] float64."""
    y, x = torch.meshgrid(torch.arange(height, dtype=F64), torch.arange(width, dtype=F64), indexing="ij")
    field = torch.stack([zoom * (x - (width - 1) / 2) + dx, zoom * (y - (height - 1) / 2)])
    return field.expand(frames - 1, -1, -1, -1)


@pytest.mark.parametrize(
    ("zoom", "dx", "compared"), [(-0.2, 0.0, 0.15), (-0.1, 1.3, 0.1), (0.0, 2.6, 0.5), (0.15, 0.4, 0.02)]
)
def test_copies_and_merges_are_the_published_ones(zoom: float, dx: float, compared: float) -> None:
    """After four fields, where no random number has a part: ours are the same then under another seed."""
    noise, flow = normal((1, 3, 40, 44), 1, dtype=F64), about_the_centre(5, 40, 44, zoom=zoom, dx=dx)
    ours, other = (noise_transport(noise, flow, seed=seed) for seed in (1, 2))
    undrawn = (ours == other).all(1)  # [1, F, H, W]
    assert float(undrawn[:, -1].double().mean()) > compared
    theirs = value_keyed(noise, flow, capture=1, reduce=1)
    # Their density is float32.
    assert float((ours - theirs).movedim(1, -1)[undrawn].abs().max()) < 1e-5


def test_groups_add_up_to_the_published_sum() -> None:
    height, width = 30, 26
    noise, flow = normal((1, 4, height, width), 2, dtype=F64), about_the_centre(2, height, width, zoom=0.4)
    plan = plan_transport(flow)
    assert len(plan.group_slot) > 200 and len(plan.merge_slot) == 0
    target = torch.full((plan.num_slots,), -1)
    target[plan.slots[1].long()] = torch.arange(height * width)
    group = torch.arange(len(plan.group_slot)).repeat_interleave(plan.group_start.diff())
    for frame in (
        noise_transport(noise, plan, seed=3)[0, :, 1],
        value_keyed(noise, flow, capture=1, reduce=1)[0, :, 1],
    ):
        members = frame.flatten(1)[:, target[plan.member_slot.long()]]
        sums = torch.zeros(4, len(plan.group_slot), dtype=F64).index_add_(1, group, members)
        expected = noise[0].flatten(1)[:, plan.group_slot.long()] * plan.group_start.diff().sqrt()
        assert float((sums - expected).abs().max()) < 1e-5


def test_values_that_meet_by_chance_join_strangers_there_and_not_here() -> None:
    """At 480x832 a camera at rest changes .5 % of the published algorithm's pixels in a frame."""
    noise, still = normal((1, 2, 480, 832), 3), torch.zeros(1, 2, 480, 832)
    theirs, _ = value_keyed_step(noise[0].flatten(1), torch.ones(480 * 832), still[0], torch.Generator().manual_seed(0))
    changed = float((theirs != noise[0].flatten(1)).any(0).double().mean())
    assert 0.003 < changed < 0.008
    assert torch.equal(noise_transport(noise, still, seed=0)[:, :, 1], noise)
