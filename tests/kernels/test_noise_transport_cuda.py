"""The CUDA noise transport without a device: its kernels, run thread by thread on the CPU, equal C++ bit for bit."""

import math
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from worldr1_kernels import _native
from worldr1_kernels.noise_transport import TransportPlan, api, native_impl, plan_transport
from worldr1_kernels.noise_transport.native_impl import (
    build_plan,
    build_plan_emulated,
    transport,
    transport_emulated,
)
from worldr1_kernels.noise_transport.plan import LIST_TENSORS, TENSORS
from worldr1_kernels.testing import noncontiguous, normal, poison_empty

pytestmark = pytest.mark.skipif(_native.cpu_unavailable() is not None, reason="the C++ module is not built")

F64 = torch.float64
ORDERS = (0, 1, 2, 5)  # of threads and blocks: forwards, backwards, shuffled
MOTIONS = {  # zoom a field, turn, (dx, dy)
    "expand": (0.15, 0.0, (0.0, 0.0)),
    "contract": (-0.2, 0.0, (0.0, 0.0)),
    "mixed": (0.1, -0.2, (-2.3, 1.2)),
    "away": (0.0, 0.0, (90.0, 0.0)),
}


def flow_of(case: str, frames: int, height: int, width: int) -> torch.Tensor:
    """A flow [F-1, 2, H, W] float64: a motion, "random" (all kinds of values in every frame), "collapse" (all pixels to
    one) or "spread" (all read one)."""
    if case == "random":
        return 2.0 * normal((frames - 1, 2, height, width), 5, dtype=F64)
    y, x = torch.meshgrid(torch.arange(height, dtype=F64), torch.arange(width, dtype=F64), indexing="ij")
    if case in ("collapse", "spread"):
        to = torch.stack([width // 2 - x, height // 2 - y])
        return (to if case == "collapse" else -to).expand(frames - 1, -1, -1, -1)
    zoom, turn, (dx, dy) = MOTIONS[case]
    x, y = x - (width - 1) / 2, y - (height - 1) / 2
    field = torch.stack([zoom * x - turn * y + dx, zoom * y + turn * x + dy])
    return torch.linspace(0.5, 1.5, frames - 1, dtype=F64)[:, None, None, None] * field


CASES = [*MOTIONS, "random", "collapse", "spread"]
# H, W, F, frames between captures, reduce: a ragged segment, one that ends a row early, columns by 32.
SHAPES = [
    (7, 9, 5, 1, 1),
    (1, 37, 4, 2, 1),
    (32, 48, 6, 2, 8),
    (12, 50, 5, 2, 2),
    (33, 66, 4, 1, 3),
    (32, 64, 4, 3, 16),
]


@pytest.mark.parametrize("shape", [*SHAPES, (40, 80, 3, 1, 40)], ids=lambda s: "-".join(map(str, s)))
@pytest.mark.parametrize("case", CASES)
def test_transport_equals_cpp(case: str, shape: tuple[int, ...]) -> None:
    """Also SIMD, where it does not fuse: then only the device's fused multiplications are left to differ."""
    height, width, frames, capture, reduce = shape
    plan = plan_transport(flow_of(case, frames, height, width), capture=capture)
    for batch, channels in ((1, 1), (2, 6)):
        noise, ids = normal((batch, channels, height, width), 1), torch.tensor([11, 2**32 - 1])[:batch]
        arguments = (ids, 2**62 + 9, capture, reduce)
        expected = transport(noise, plan, *arguments, scalar=True)
        if _native.cpu().has_instruction_set("x86-64-v2"):
            assert torch.equal(transport(noise, plan, *arguments, level="x86-64-v2"), expected)
        for order in ORDERS:
            with poison_empty():
                got = transport_emulated(noise, plan, *arguments, order=order)
            assert torch.equal(got, expected), order


def test_a_captured_frame_and_the_next_values_do_not_meet() -> None:
    """Values of the next frame are made while a frame is still reduced: with every slot in use again and again."""
    plan = plan_transport(flow_of("random", 12, 24, 40))
    assert plan.num_slots < 24 * 40 + len(plan.member_slot) // 4
    for frame in range(1, 12):
        rows = [slice(*pair) for pair in plan.offsets[frame - 1 : frame + 1].T.tolist()]
        new = torch.cat([plan.fresh_slot[rows[0]], plan.member_slot[rows[2]], plan.merge_slot[rows[3]]])
        assert len(new) > 500 and not torch.isin(new, plan.slots[frame - 1]).any()
    noise, ids = normal((1, 4, 24, 40), 2), torch.arange(1)
    expected = transport(noise, plan, ids, 7, 1, 8, scalar=True)
    for order in range(12):
        assert torch.equal(transport_emulated(noise, plan, ids, 7, 1, 8, order=order), expected), order


def test_one_frame_still_frames_and_empty_batches() -> None:
    noise, ids = normal((2, 3, 8, 16), 3), torch.arange(2)
    one = plan_transport(torch.zeros(0, 2, 8, 16))
    assert torch.equal(transport_emulated(noise, one, ids, 0, 1, 1), noise[:, :, None])
    still = plan_transport(torch.zeros(4, 2, 8, 16))
    assert torch.equal(transport_emulated(noise, still, ids, 0, 2, 1), noise[:, :, None].expand(-1, -1, 3, -1, -1))
    pause = flow_of("random", 7, 8, 16).clone()
    pause[1:4] = 0.0  # no barrier while nothing happens
    plan = plan_transport(pause)
    for order in ORDERS:
        got = transport_emulated(noncontiguous(noise), plan, ids, 0, 1, 4, order=order)
        assert torch.equal(got, transport(noise, plan, ids, 0, 1, 4, scalar=True))
    for empty in (noise[:0], noise[:, :0]):
        assert transport_emulated(empty, plan, ids[: len(empty)], 0, 1, 1).shape == (*empty.shape[:2], 7, 8, 16)


def test_a_plan_on_a_device_leaves_its_density_behind() -> None:
    plan = plan_transport(flow_of("random", 4, 6, 8)).to("meta")
    assert plan.density.device.type == plan.offsets.device.type == "cpu"
    on_device = {name for name, t in zip(TENSORS, plan.tensors(), strict=True) if t.device.type == "meta"}
    assert on_device == {"slots", "device_offsets", *LIST_TENSORS}


def test_what_the_kernel_cannot_number_is_refused() -> None:
    fits = _native.cpu().noise_transport_fits
    assert fits(64, 16, 960, 1664) and fits(1, 4, 2**14, 2**15) and not fits(2**18, 4, 960, 1664)
    plan = plan_transport(torch.zeros(1, 2, 960, 1664))
    noise = torch.zeros(1).expand(2**18, 4, 960, 1664)  # no memory of its own
    with pytest.raises(ValueError, match=r"takes B \(C / 4\) .* < 2\^31, got \[262144, 4, 960, 1664\]"):
        transport_emulated(noise, plan, torch.arange(2**18), 0, 1, 8)
    with pytest.raises(TypeError, match="backend 'native' on CUDA takes float32, got float64"):
        transport_emulated(noise[:1].double(), plan, torch.arange(1), 0, 1, 8)


def emulated(flow: torch.Tensor, stride: int, order: int = 0, room: list[int] | None = None) -> TransportPlan:
    shape = (len(flow), flow.shape[2], flow.shape[3])
    with poison_empty():
        return build_plan_emulated(lambda: list(flow), shape, stride=stride, order=order, room=room)


def assert_plan_equals_cpp(got: TransportPlan, flow: torch.Tensor, stride: int) -> None:
    """Bit for bit, densities and weights too."""
    shape = (len(flow), flow.shape[2], flow.shape[3])
    expected = build_plan(flow, shape, device=flow.device, stride=stride)
    for name in TENSORS:
        a, b = getattr(got, name), getattr(expected, name)
        assert a.dtype == b.dtype and torch.equal(a, b), name
    assert (got.num_slots, got.stride) == (expected.num_slots, expected.stride)


# H, W, F, frames between those that are kept: the ring of free slots comes round; sums over several warps; a tree that
# a launch of its own begins.
@pytest.mark.parametrize("shape", [(7, 9, 12, 1), (1, 37, 4, 2), (1, 1, 3, 1), (20, 29, 4, 1), (33, 66, 3, 2)])
@pytest.mark.parametrize("case", CASES)
def test_plan_equals_cpp(case: str, shape: tuple[int, int, int, int]) -> None:
    height, width, frames, stride = shape
    flow = flow_of(case, frames, height, width)
    for order, values in ((5, flow),) if height * width > 100 else ((1, flow), (2, flow.float())):
        assert_plan_equals_cpp(emulated(values, stride, order), values, stride)


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_plan_of_a_larger_image_equals_cpp(order: int) -> None:
    """131,072 leaves of the density's tree, a second launch for its sums, and sums over 258 warps."""
    flow = flow_of("random", 3, 257, 256)
    assert_plan_equals_cpp(emulated(flow, 1, order), flow, 1)


def test_plan_lists_that_are_too_short_are_made_again() -> None:
    flow = flow_of("random", 5, 12, 10)
    for room in ([1] * 5, [0, 10**4, 10**4, 10**4, 10**4], [10**4, 10**4, 10**4, 10**4, 0]):
        assert_plan_equals_cpp(emulated(flow, 2, 0, room), flow, 2)


def test_a_plan_without_fields_and_fields_after_the_last_kept() -> None:
    for flow, stride in ((torch.zeros(0, 2, 5, 6), 1), (flow_of("random", 6, 5, 6), 3), (flow_of("mixed", 3, 5, 6), 7)):
        assert_plan_equals_cpp(emulated(flow, stride), flow, stride)


@pytest.mark.parametrize(("value", "field"), [(math.nan, 0), (math.inf, 2), (-math.inf, 4)])
def test_bad_fields(value: float, field: int) -> None:
    """Named like those of C++, the first of them; also beyond the last frame that is kept."""
    flow = torch.zeros(5, 2, 5, 7)
    flow[field:, 1, 4, 6] = value
    with pytest.raises(ValueError, match=rf"flow\[{field}\] must be finite, got 1 of 70 values NaN or infinite"):
        emulated(flow, 4)
    elsewhere = [torch.zeros(2, 5, 7), torch.zeros(2, 5, 7, device="meta")]
    with pytest.raises(ValueError, match=r"flow\[1\] must be on cpu like flow\[0\], got meta"):
        build_plan_emulated(lambda: elsewhere, (2, 5, 7), stride=1)


@pytest.mark.parametrize(
    ("backend", "auto_takes", "made"),
    [
        ("native", "reference", "cuda"),
        ("auto", "native", "cuda"),
        ("auto", "reference", "c++"),
        ("triton", "native", "c++"),
        ("reference", "native", "torch"),
    ],
)
def test_where_the_plan_of_a_cuda_flow_is_made(
    backend: Any, auto_takes: str, made: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto_takes`: what "auto" chooses for CUDA tensors, which waits for a first run on a device."""

    def resolve(op: str, backend: str, device: torch.device, probes: object) -> str:
        assert op == "plan_transport" and probes is api.PLAN_PROBES
        if backend == "auto":
            return auto_takes if device.type == "cuda" else "native"
        return backend

    calls: list[str] = []
    monkeypatch.setattr(api, "resolve_backend", resolve)
    monkeypatch.setattr(native_impl, "build_plan_cuda", lambda *a, **k: calls.append("cuda"))
    monkeypatch.setattr(native_impl, "build_plan", lambda *a, **k: calls.append("c++"))
    monkeypatch.setattr(api, "build_plan", lambda *a, **k: calls.append("torch"))
    with FakeTensorMode():
        fields = [torch.zeros(2, 5, 7, device="cuda") for _ in range(3)]
    plan_transport(fields, capture=2, backend=backend)
    assert calls == [made]


@pytest.mark.skipif(_native.cuda_unavailable() is None, reason="there is a device")
def test_the_plan_of_a_cuda_flow_by_name_says_what_is_missing() -> None:
    with FakeTensorMode():
        fields = [torch.zeros(2, 5, 7, device="cuda")]
    with pytest.raises(RuntimeError, match="plan_transport: backend 'native' is not available: .*_C_cuda"):
        plan_transport(fields, backend="native")


def test_plan_and_transport_together() -> None:
    """What a device does from flow to noise."""
    flow, noise, ids = flow_of("random", 7, 24, 32), normal((2, 5, 24, 32), 4), torch.arange(2)
    got = transport_emulated(noise, emulated(flow, 2, 3), ids, 5, 2, 8, order=4)
    assert torch.equal(got, transport(noise, plan_transport(flow, capture=2), ids, 5, 2, 8, scalar=True))


def test_division_by_multiplication() -> None:
    divide, top = _native.cpu().divide, 2**31 - 1
    for by in [*range(1, 70), 127, 128, 129, 1664, 65535, 65536, 65537, 2**30 - 1, 2**30, 2**30 + 1, top]:
        for n in [0, 1, by - 1, by, by + 1, 7 * by - 1, 7 * by, top // by * by - 1, top // by * by, top - 1, top]:
            if 0 <= n <= top:
                assert divide(n, by) == n // by, (n, by)
