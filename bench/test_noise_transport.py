"""Speed of noise transport: `python -m pytest bench/test_noise_transport.py -s [--record]`; `-m slow`: the large size.

81 frames, 16 channels, every fourth captured and reduced to 60 x 104. On a CPU the figure is plan and transport
together; on a GPU the transport has a row, and so has the plan, made there. The notes give each. Peers run a few of the
80 fields and are scaled by their number: at full length the slower one takes a quarter of an hour. On a CPU everything
is called once, warm, in processor time. Values are compared first, and each row is recorded when it is there.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.noise_peers import value_keyed
from bench.report import Case, print_table, record
from bench.timing import Timing, measure, turns
from worldr1_kernels import noise_transport, plan_transport
from worldr1_kernels.noise_transport.plan import LISTS

FRAMES, CHANNELS, CAPTURE = 81, 16, 4
# Motions of the size that they have at 480 x 832, as a flow about the centre: zoom across and down a frame, pixels a
# frame. A push in stretches pixels, a pull out merges them, a squeeze does both in every frame.
MOTIONS = {
    "push in": (0.009, 0.009, 0.0),
    "pan": (0.0, 0.0, 2.6),
    "pull out": (-0.009, -0.009, 0.0),
    "squeeze": (0.009, -0.009, 0.0),
}
PLAN_BYTES = 168
"""Of a pixel and float32 field: what the plan's kernels read and write, lists aside; README.md of the family."""


def _flow(motion: str, height: int, width: int, device: str) -> Tensor:
    """The same field 80 times, in the memory of one: [80, 2, H, W]."""
    across, down, shift = MOTIONS[motion]
    y = torch.arange(height, dtype=torch.float32, device=device) - (height - 1) / 2
    x = torch.arange(width, dtype=torch.float32, device=device) - (width - 1) / 2
    y, x = torch.meshgrid(down * y, across * x + shift * height / 480, indexing="ij")
    return torch.stack([x, y]).expand(FRAMES - 1, -1, -1, -1)


def _timed(variants: dict[str, Callable[[], object]], device: str) -> dict[str, Timing]:
    """One turn on a CPU, where a call takes seconds; on a GPU the better of two rounds."""
    if device == "cuda":
        return measure(variants, rounds=2, seconds_per_round=0.0, min_calls=1, device=device)
    return turns(variants, count=1)


def _scaled(timing: Timing, factor: float) -> Timing:
    return timing._replace(**{name: factor * getattr(timing, name) for name in ("p20", "p50", "p80", "cpu_p50")})


def _check(device: str) -> None:
    """Small, against the reference; and the peer keeps the variance."""
    noise = torch.randn(2, CHANNELS, 120, 208, generator=torch.Generator().manual_seed(0)).to(device)
    options: dict[str, Any] = {"seed": 1, "capture": CAPTURE, "reduce": 8}
    for motion in MOTIONS:
        flow = _flow(motion, 120, 208, device)[:8] * 4
        plan = plan_transport(flow, capture=CAPTURE, backend="native")
        native = noise_transport(noise, plan, backend="native", **options)
        plan = plan_transport(flow, capture=CAPTURE, backend="reference")
        plain = noise_transport(noise, plan, backend="reference", **options)
        assert float((native - plain).abs().max()) < 5e-6
    assert abs(float(value_keyed(noise, flow, capture=CAPTURE, reduce=1).var()) - 1) < 0.02


def _run(motion: str, height: int, width: int, batch: int, device: str, peers: dict[str, int]) -> list[Case]:
    """The row of the transport (on a CPU with its plan), and on a GPU that of the plan. `peers`: name -> fields that it
    runs. The value-keyed peer runs one sample at a time, and here one of them."""
    flow, reduce = _flow(motion, height, width, device), height // 60
    noise = torch.randn(batch, CHANNELS, height, width, generator=torch.Generator().manual_seed(0)).to(device)
    options: dict[str, Any] = {"seed": 1, "capture": CAPTURE, "reduce": reduce}
    plan = plan_transport(flow, capture=CAPTURE, backend="native")

    def draw(fields: int, backend: Any) -> Tensor:
        made = plan_transport(flow[:fields], capture=CAPTURE, backend=backend)
        return noise_transport(noise, made, backend=backend, **options)

    assert abs(float(noise_transport(noise, plan, backend="native", **options).var()) - 1) < 0.02
    variants: dict[str, Callable[[], object]] = {
        "plan": lambda: plan_transport(flow, capture=CAPTURE, backend="native"),
        "transport": lambda: noise_transport(noise, plan, backend="native", **options),
        "both": lambda: draw(FRAMES - 1, "native"),
        "torch reference": lambda: draw(peers["torch reference"], "reference"),
        "value-keyed torch": lambda: value_keyed(
            noise[:1], flow[: peers["value-keyed torch"]], capture=CAPTURE, reduce=reduce
        ),
    }
    if device == "cuda":
        variants["triton"] = lambda: noise_transport(noise, plan, backend="triton", **options)
    timings = _timed(variants, device)
    others = {"triton": timings["triton"]} if device == "cuda" else {}
    for name, fields in peers.items():
        samples = batch if name == "value-keyed torch" else 1
        others[f"{name} ({fields} fields scaled)"] = _scaled(timings[name], samples * (FRAMES - 1) / fields)
    count = dict(zip(LISTS, plan.offsets[-1].tolist(), strict=True))
    share = {kind: rows / (FRAMES - 1) / (height * width) for kind, rows in count.items()}
    plan_bytes = sum(t.nbytes for t in plan.tensors())
    notes = (
        f"plan {timings['plan'].decisive:.0f} ms, transport {timings['transport'].decisive:.0f} ms, "
        f"of the pixels a frame {share['member']:.1%} stretched, {share['hit']:.1%} merged, {share['fresh']:.1%} "
        f"fresh, plan {plan_bytes / 1e6:.0f} MB"
    )
    captured = len(range(0, FRAMES, CAPTURE))
    # Of the transport: the plan but for its density, and the noise. A group's value is read once and written to its
    # members, those that merge are read and written as one, a fresh one is written. A captured frame is read, the first
    # of them being the noise, and its reduction written.
    read = count["group"] + count["hit"] + (captured - 1) * height * width
    written = count["fresh"] + count["member"] + count["merge"] + captured * height * width // reduce**2
    num_bytes = plan_bytes - plan.density.nbytes + noise.nbytes + 4 * batch * CHANNELS * (read + written)
    shape = f"B{batch}-C{CHANNELS}-F{FRAMES}-H{height}-W{width}-r{reduce}"
    if device == "cpu":  # the figure has the plan in it, which moves other bytes: they are not counted
        return [Case(motion, shape, "float32", "native", timings["both"], others, notes)]
    moved = PLAN_BYTES * (FRAMES - 1) * height * width + plan_bytes
    return [
        Case(motion, shape, "float32", "native", timings["transport"], others, notes, num_bytes=num_bytes),
        Case(f"plan of {motion}", shape, "float32", "native", timings["plan"], {}, notes, num_bytes=moved),
    ]


def _report(cases: list[Case], record_figures: bool) -> None:
    print()
    print_table(cases)
    for case in cases:
        print(f"{case.name:16} {case.shape:30} {case.notes}")
    if record_figures:
        print(f"recorded in {record(cases, 'noise_transport')}")


def test_480(record_figures: bool, device: str) -> None:
    _check(device)
    peers = {"torch reference": 4, "value-keyed torch": 2}
    for motion in MOTIONS:
        _report(_run(motion, 480, 832, 1, device, peers), record_figures)
    _report(_run("push in", 480, 832, 8, device, peers), record_figures)


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("batch", [1, 8])
def test_960(batch: int, record_figures: bool, device: str) -> None:
    """A minute of a core, and some GB: the noise of 8 samples takes .8, the reference's state and temporaries more."""
    _check(device)
    peers = {"torch reference": 4, "value-keyed torch": 1}
    _report(_run("push in", 960, 1664, batch, device, peers), record_figures)
