"""The CUDA noise transport without a device: its kernels, run thread by thread on the CPU, equal to C++ bit for bit."""

import pytest
import torch

from worldr1_kernels import _native
from worldr1_kernels.noise_transport import native_impl, plan_transport
from worldr1_kernels.noise_transport.native_impl import transport, transport_emulated
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
    """Also the SIMD kernels, where they do not fuse: then only the device's fused multiplications are left to differ."""
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
    on_device = {name for name, t in zip(native_impl.TENSORS, plan.tensors(), strict=True) if t.device.type == "meta"}
    assert on_device == {"slots", "device_offsets", *native_impl.LIST_TENSORS}


def test_what_the_kernel_cannot_number_is_refused() -> None:
    fits = _native.cpu().noise_transport_fits
    assert fits(64, 16, 960, 1664) and fits(1, 4, 2**14, 2**15) and not fits(2**18, 4, 960, 1664)
    plan = plan_transport(torch.zeros(1, 2, 960, 1664))
    noise = torch.zeros(1).expand(2**18, 4, 960, 1664)  # no memory of its own
    with pytest.raises(ValueError, match=r"takes B \(C / 4\) .* < 2\^31, got \[262144, 4, 960, 1664\]"):
        transport_emulated(noise, plan, torch.arange(2**18), 0, 1, 8)
    with pytest.raises(TypeError, match="backend 'native' on CUDA takes float32, got float64"):
        transport_emulated(noise[:1].double(), plan, torch.arange(1), 0, 1, 8)


def test_division_by_multiplication() -> None:
    divide, top = _native.cpu().divide, 2**31 - 1
    for by in [*range(1, 70), 127, 128, 129, 1664, 65535, 65536, 65537, 2**30 - 1, 2**30, 2**30 + 1, top]:
        for n in [0, 1, by - 1, by, by + 1, 7 * by - 1, 7 * by, top // by * by - 1, top // by * by, top - 1, top]:
            if 0 <= n <= top:
                assert divide(n, by) == n // by, (n, by)
