"""The C++ plan and transport against torch, and the statistics of whole camera motions at full length."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from scipy import stats

from worldr1_kernels import _native
from worldr1_kernels.noise_transport import TransportPlan, native_impl, noise_transport, plan_transport
from worldr1_kernels.noise_transport import plan as plan_in_torch
from worldr1_kernels.noise_transport.native_impl import transport
from worldr1_kernels.noise_transport.plan import TENSORS
from worldr1_kernels.noise_transport.reference import transport as transport_torch
from worldr1_kernels.testing import assert_close_two_errors, noncontiguous, normal, poison_empty

pytestmark = pytest.mark.skipif(_native.cpu_unavailable() is not None, reason="the C++ module is not built")

F64 = torch.float64
LEVELS = [f"x86-64-v{n}" for n in (2, 3, 4) if _native.cpu().has_instruction_set(f"x86-64-v{n}")] or [""]


def camera_like(frames: int, height: int, width: int, **motion: float) -> torch.Tensor:
    """Flow about the centre that changes from field to field, [F-1, 2, H, W] float64."""
    y, x = torch.meshgrid(torch.arange(height, dtype=F64), torch.arange(width, dtype=F64), indexing="ij")
    x, y = x - (width - 1) / 2, y - (height - 1) / 2
    zoom, turn, dx, dy = (motion.get(name, 0.0) for name in ("zoom", "turn", "dx", "dy"))
    field = torch.stack([zoom * x - turn * y + dx, zoom * y + turn * x + dy])
    speed = torch.linspace(0.5, 1.5, max(frames - 1, 1), dtype=F64)[: frames - 1]
    return speed[:, None, None, None] * field


FLOWS = {
    "zoom_in": dict(zoom=0.15),
    "zoom_out": dict(zoom=-0.2),
    "mixed": dict(zoom=0.1, turn=-0.2, dx=-2.3, dy=1.2),
    "slow": dict(zoom=0.03, dx=1.4),
}
SHAPES = [(7, 9, 4, 1), (32, 50, 9, 4), (1, 17, 5, 2), (13, 1, 4, 1), (1, 1, 3, 1), (6, 8, 1, 1)]


def flow_of(case: str, frames: int, height: int, width: int) -> torch.Tensor:
    if case == "random":
        return 2.0 * normal((frames - 1, 2, height, width), 5, dtype=F64)
    if case == "collapse":  # everything moves to one pixel, and everything else reads one pixel
        y, x = torch.meshgrid(torch.arange(height, dtype=F64), torch.arange(width, dtype=F64), indexing="ij")
        return torch.stack([width // 2 - x, height // 2 - y]).expand(frames - 1, -1, -1, -1)
    return camera_like(frames, height, width, **FLOWS[case])


def build_plan(flow: torch.Tensor, *, stride: int, level: str = "") -> TransportPlan:
    steps, _, height, width = flow.shape
    return native_impl.build_plan(flow, (steps, height, width), device=flow.device, stride=stride, level=level)


def build_plan_torch(flow: torch.Tensor, *, stride: int) -> TransportPlan:
    steps, _, height, width = flow.shape
    return plan_in_torch.build_plan(flow, (steps, height, width), device=flow.device, stride=stride)


def assert_same_plan(plan: TransportPlan, expected: TransportPlan) -> None:
    for name in TENSORS:
        got, want = getattr(plan, name), getattr(expected, name)
        assert got.dtype == want.dtype and got.shape == want.shape, name
        if name == "hit_weight":  # the square root of torch may be one unit off
            torch.testing.assert_close(got, want, rtol=4e-16, atol=0)
        else:
            assert torch.equal(got, want), name
    assert (plan.num_slots, plan.stride) == (expected.num_slots, expected.stride)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"H{s[0]}-W{s[1]}-F{s[2]}-stride{s[3]}")
@pytest.mark.parametrize("case", [*FLOWS, "random", "collapse"])
def test_plan_equals_torch_bit_for_bit(case: str, shape: tuple[int, int, int, int]) -> None:
    height, width, frames, stride = shape
    if case == "collapse":  # torch sums a merge of all pixels one after another
        height, width = min(height, 9), min(width, 17)
    for dtype in (torch.float32, F64):
        flow = flow_of(case, frames, height, width).to(dtype)
        expected = build_plan_torch(flow, stride=stride)
        for level in LEVELS:
            assert_same_plan(build_plan(flow, stride=stride, level=level), expected)


def test_plan_reads_any_layout() -> None:
    flow = flow_of("mixed", 5, 24, 20)
    expected = build_plan_torch(flow, stride=2)
    for same in (noncontiguous(flow), flow.transpose(2, 3).contiguous().transpose(2, 3), flow.repeat(2, 1, 1, 1)[:4]):
        assert_same_plan(build_plan(same, stride=2), expected)
    one = flow[:1].expand(4, -1, -1, -1)
    assert_same_plan(build_plan(one, stride=1), build_plan_torch(one, stride=1))


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_a_flow_that_is_not_finite_is_named(backend: str) -> None:
    for value, field in ((math.nan, 0), (math.inf, 2), (-math.inf, 1)):
        flow = torch.zeros(3, 2, 5, 7)
        flow[field, 1, 4, 6] = value
        with pytest.raises(ValueError, match=rf"flow\[{field}\] must be finite, got 1 of 70 values NaN or infinite"):
            plan_transport(flow, capture=2, backend=backend)  # type: ignore[arg-type]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", [*FLOWS, "random", "collapse"])
def test_values_equal_torch(case: str, level: str) -> None:
    """No worse than torch's float32 against float64; the two float32 differ by a few units in the last place."""
    for height, width, frames, stride in SHAPES[:2] if case != "collapse" else SHAPES[:1]:
        plan = build_plan(flow_of(case, frames, height, width), stride=stride)
        for channels in (1, 7, 64):
            noise, ids = normal((2, channels, height, width), 1), torch.tensor([11, 2**32 - 1])
            for reduce in (1,) if height % 2 or width % 2 else (1, 2):
                arguments = (ids, 2**62 + 9, stride, reduce)
                plain = transport_torch(noise, plan, *arguments)
                exact = transport_torch(noise.double(), plan, *arguments)
                with poison_empty():
                    got = transport(noise, plan, *arguments, level=level)
                    scalar = transport(noise, plan, *arguments, scalar=True)
                    double = transport(noise.double(), plan, *arguments)
                assert_close_two_errors(got, plain, exact, name="native")
                assert_close_two_errors(scalar, plain, exact, name="scalar twin of CUDA")
                assert float((double - exact).abs().max()) < 1e-13
                assert float((got - plain).abs().max()) <= 16 * 2.0**-24 * max(1.0, float(plain.abs().max()))


def test_normals_of_a_million_counters() -> None:
    """Box-Muller by polynomials: no worse than torch in float32, and within 8 units of 2^-24 of it (of max(1, |z|))."""
    plan = build_plan(torch.full((1, 2, 512, 512), 1100.0), stride=1)
    noise, ids = torch.zeros(1, 4, 512, 512), torch.tensor([3])
    exact = transport_torch(noise.double(), plan, ids, 5, 1, 1)[:, :, 1]
    plain = transport_torch(noise, plan, ids, 5, 1, 1)[:, :, 1]
    for level in LEVELS:
        got = transport(noise, plan, ids, 5, 1, 1, level=level)[:, :, 1]
        assert_close_two_errors(got, plain, exact, factor=1.0, eps=2.0**-23)
        # Torch rounds the angle, half a unit of pi: an error of 12 in these units that both share.
        assert float(((got - plain).abs() / exact.abs().clamp_min(1.0)).max()) < 8 * 2.0**-24


def test_result_does_not_depend_on_threads_or_instruction_set() -> None:
    plan = build_plan(flow_of("mixed", 5, 160, 96), stride=1)
    before = torch.get_num_threads()
    try:
        for batch, channels in ((1, 3), (2, 9)):
            noise, ids = normal((batch, channels, 160, 96), 2), torch.arange(batch)
            results = []
            for threads in (1, 2, 3, 7):
                torch.set_num_threads(threads)
                results.append(transport(noise, plan, ids, 4, 2, 4))
            assert all(torch.equal(result, results[0]) for result in results)
    finally:
        torch.set_num_threads(before)


def test_two_draws_at_once() -> None:
    """A second call while the pool is busy runs on its own thread, with the same result."""
    from concurrent.futures import ThreadPoolExecutor

    plan = build_plan(flow_of("zoom_in", 9, 64, 64), stride=4)
    noise = normal((4, 8, 64, 64), 3)

    def draw(seed: int) -> torch.Tensor:
        return transport(noise, plan, torch.arange(4), seed, 4, 8)

    expected = [draw(seed) for seed in range(6)]
    with ThreadPoolExecutor(3) as pool:
        assert all(torch.equal(a, b) for a, b in zip(pool.map(draw, range(6)), expected, strict=True))


_MEMORY = """
import torch
from pathlib import Path
from worldr1_kernels.noise_transport import noise_transport, plan_transport
batch, threads = BATCH, THREADS
torch.set_num_threads(threads)
y, x = torch.meshgrid(torch.linspace(-6, 6, 480), torch.linspace(-9, 9, 832), indexing="ij")
plan = plan_transport(torch.stack([x, y]).expand(12, -1, -1, -1), capture=4)
noise = torch.randn(batch, 16, 480, 832)
small = plan_transport(torch.zeros(4, 2, 8, 8), capture=4)
noise_transport(torch.zeros(batch, 16, 8, 8), small, seed=0, capture=4, reduce=8)
def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))
Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
before = status("VmRSS")
out = noise_transport(noise, plan, seed=0, capture=4, reduce=8)
assert out.isfinite().all()
print(status("VmHWM") - before, out.nbytes, noise.nbytes)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("batch", "threads"), [(1, 1), (1, 4), (8, 2)])
def test_memory_is_the_output_and_one_state(batch: int, threads: int) -> None:
    """A state holds one sample: `threads` quarters of it (four of 16 channels each) are alive at once."""
    root = Path(__file__).resolve().parents[2]
    script = _MEMORY.replace("BATCH", str(batch)).replace("THREADS", str(threads))
    result = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    grown, output, noise = map(int, result.stdout.split())
    state = noise // batch
    stacks = threads * 2**16  # the first pages of each worker's stack, which the small call does not need
    assert threads * state // 4 <= grown <= 1.5 * output + state + stacks


def motion_flow(name: str, height: int, width: int) -> torch.Tensor:
    """80 fields of about the size that the camera motions have, [80, 2, H, W]."""
    motions = {
        "push_in": dict(zoom=0.009),
        "pull_out": dict(zoom=-0.009),
        "pan": dict(dx=2.6),
        "move": dict(dx=-1.9, dy=0.7),
        "orbit": dict(dx=1.7, zoom=0.004),
        "roll": dict(turn=0.02),
        "tilt": dict(dy=1.4, zoom=-0.003),
    }
    return camera_like(81, height, width, **motions[name])


def check_white(values: torch.Tensor, scale: float = 1.0) -> None:
    """Lag-1 correlations within 3 standard errors (times `scale`), mean, variance within 4.5, and the distribution."""
    n = values.numel()
    assert abs(float(values.mean())) < 4.5 / math.sqrt(n)
    assert abs(float(values.var()) - 1) < 4.5 * math.sqrt(2 / n)
    for a, b in ((values[..., 1:], values[..., :-1]), (values[..., 1:, :], values[..., :-1, :])):
        assert abs(float((a * b).mean())) < 3 * scale / math.sqrt(a.numel())
    assert stats.kstest(values.flatten()[::7].numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize(
    ("name", "dither"),
    [(name, False) for name in ("push_in", "pull_out", "pan", "move", "orbit", "roll", "tilt")]
    + [("push_in", True), ("roll", True)],
)
def test_frame_81_of_every_motion_is_white(name: str, dither: bool) -> None:
    """240 x 280 pixels of 16 channels, 1,075,200 values, after 80 fields; and reduced by 8, 30 x 35 for 16 samples."""
    height, width = 240, 280
    plan = plan_transport(motion_flow(name, height, width), capture=80, dither=dither)
    assert plan.num_frames == 81 and len(plan.member_slot) + len(plan.fresh_slot) > 80 * height
    noise = normal((1, 16, height, width), 7)
    last = noise_transport(noise, plan, seed=1, capture=80)[:, :, 1].double()
    assert last.numel() >= 1_000_000 and abs(float(last.var()) - 1) < 0.01
    check_white(last)
    many = normal((6, 16, height, width), 8)
    small = noise_transport(many, plan, seed=2, capture=80, reduce=8)[:, :, 1].double()
    check_white(small)
    assert float(plan.density[1].mean()) == pytest.approx(1.0, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["push_in", "pan", "orbit"])
def test_every_frame_at_480p_is_white(name: str) -> None:
    """Each of the 21 captured frames at 480 x 832: 1,597,440 values of 4 channels."""
    plan = plan_transport(motion_flow(name, 480, 832), capture=4)
    video = noise_transport(normal((1, 4, 480, 832), 9), plan, seed=3, capture=4)[0].double()
    for frame in video.transpose(0, 1):
        assert abs(float(frame.var()) - 1) < 0.01
        check_white(frame, scale=4.5 / 3)  # 21 frames of 3 motions: the bound of one is not that of all
