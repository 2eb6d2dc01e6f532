"""What the plan takes besides a tensor: a flow that comes field by field, and the dither of its rounding."""

import math
from typing import Any

import pytest
import torch

from worldr1_kernels.noise_transport import noise_transport, plan_transport
from worldr1_kernels.noise_transport.plan import dither
from worldr1_kernels.testing import normal

F64 = torch.float64
BACKENDS = ["reference", "native"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_dither_keeps_the_mean_speed_and_whole_pixels(backend: Any) -> None:
    noise = normal((1, 1, 1, 64), 12)
    flow = torch.zeros(80, 2, 1, 64)
    flow[:, 0] = 0.3
    assert torch.equal(noise_transport(noise, flow, seed=0)[0, 0, -1], noise[0, 0])
    plan = plan_transport(flow, dither=True, backend=backend)
    for frame, row in enumerate(noise_transport(noise, plan, seed=0)[0, 0, :, 0]):
        ideal = 0.3 * frame
        steps = range(max(0, math.ceil(ideal - 2)), math.floor(ideal + 2) + 1)
        assert any(torch.equal(row[s:], noise[0, 0, 0, : 64 - s]) for s in steps)
    flow[:, 0] = 2.0
    plain, dithered = (plan_transport(flow, dither=d, backend=backend).tensors() for d in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(plain, dithered, strict=True))


def test_dither_stays_within_two_pixels_of_any_speed() -> None:
    offsets = torch.tensor([dither(i) for i in range(120)], dtype=F64)
    assert float(offsets.abs().max()) < 0.5  # what rests never moves
    speed = torch.linspace(0, 1, 1001, dtype=F64)[:, None, None]
    moved = torch.round(speed + offsets).cumsum(1)  # [1001, 120, 2]
    ideal = speed * torch.arange(1, 121)[:, None]
    assert float((moved - ideal).abs().max()) < 2.0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_flow_may_come_field_by_field(backend: Any) -> None:
    class Lazy:
        asked: list[int] = []

        def __len__(self) -> int:
            return len(flow)

        def __getitem__(self, index: int) -> torch.Tensor:
            self.asked.append(index)
            return flow[index]

    flow = 2.0 * normal((5, 2, 9, 7), 5, dtype=F64)
    expected = plan_transport(flow, capture=2, backend=backend)
    for fields in (Lazy(), list(flow)):
        plan = plan_transport(fields, capture=2, backend=backend)
        assert all(torch.equal(a, b) for a, b in zip(plan.tensors(), expected.tensors(), strict=True))
        assert (plan.num_slots, plan.stride) == (expected.num_slots, expected.stride)
    assert Lazy.asked == [0, 0, 1, 2, 3, 4]  # the first also for its shape
    bad: list[tuple[list[torch.Tensor], type[Exception], str]] = [
        ([], ValueError, "flow must have a field if it is a sequence, got none"),
        ([flow[0], flow[1, :, 1:]], ValueError, r"flow\[1\] must have shape \[2, H, W\] with H = 9, got \[2, 8, 7\]"),
        ([flow[0], flow[1].half()], TypeError, r"flow\[1\] must have dtype float32, float64, got float16"),
        ([flow[0], flow[1] / 0.0], ValueError, r"flow\[1\] must be finite"),
    ]
    for sequence, error, message in bad:
        with pytest.raises(error, match=message):
            plan_transport(sequence, backend=backend)
    with pytest.raises(TypeError, match="flow must be a torch.Tensor, got NoneType"):
        plan_transport(None)  # type: ignore[arg-type]
