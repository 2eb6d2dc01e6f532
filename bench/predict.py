"""Predicted times of the CUDA kernels on an H200: `python -m bench.predict [--write]`. No GPU takes part.

A kernel takes the longest of three times: its bytes at the speed of a copy, its instructions at what the schedulers
issue, and the chain of one warp's instructions. A launch costs a gap. Instructions are the compiler's
(bench.static_sm90), the work is counted in the benchmark's own inputs, and what nobody has measured is an assumption,
listed with what it would take to break a target. A device's word beats this page.
"""

from __future__ import annotations

import argparse
import datetime
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from bench import static_sm90
from bench.report import _git
from worldr1_kernels.build import find_nvcc
from worldr1_kernels.rasterize import reference
from worldr1_kernels.rasterize.arguments import WEIGHTED_DEPTH, Inputs, Settings
from worldr1_kernels.rasterize.native_impl import rasterize_native
from worldr1_kernels.testing import pixel_aligned_scene

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "predicted_h200.md"
Static = Mapping[str, static_sm90.Kernel]


@dataclass(frozen=True)
class Device:
    """What is assumed of a GPU: nobody has measured it here."""

    name: str
    multiprocessors: int
    hertz: float
    copy: float  # bytes a second, read and written, of a large copy
    issue: float  # instructions a cycle that a quarter of a multiprocessor keeps up
    cycles: float  # from one instruction of a warp to its next, where nothing else hides it
    gap: float  # seconds from the end of a kernel to the start of the next
    barrier: float  # seconds of a barrier over the whole grid
    read: float  # seconds that the device idles while the host reads a number and launches what depends on it


H200 = Device("H200", 132, 1.9e9, 4.3e12, 0.7, 6.0, 1.2e-6, 1.3e-6, 20e-6)


@dataclass(frozen=True)
class Kernel:
    """The work of a kernel in one call of an op.

    Fields: name, as in the sources; warps; instructions that a warp executes, on average, in all launches; bytes read
    and written beyond the caches; launches; wait, seconds that it stands still beside all this.
    """

    name: str
    warps: float
    instructions: float
    num_bytes: float
    launches: int = 1
    wait: float = 0.0

    def times(self, device: Device) -> dict[str, float]:
        """Seconds by what may bound them."""
        issued = 4 * device.multiprocessors * device.issue * device.hertz
        return {
            "bytes": self.num_bytes / device.copy,
            "issue": self.warps * self.instructions / issued,
            "chain": self.instructions * device.cycles / device.hertz,
        }

    def standing(self, device: Device) -> float:
        """Seconds in which nothing is done."""
        return self.launches * device.gap + self.wait

    def seconds(self, device: Device) -> float:
        """All in all."""
        return max(self.times(device).values()) + self.standing(device)

    def bound(self, device: Device) -> str:
        """What takes longest."""
        times = self.times(device) | {"waiting": self.standing(device)}
        return max(times, key=lambda name: times[name])


@dataclass(frozen=True)
class Op:
    """An op at one size, and what is wanted of it.

    Fields: name; kernels in order; peer, seconds of what it is compared with (a prediction too); peer_name; wanted, how
    many times faster than that; breaks, which assumption would turn the verdict.
    """

    name: str
    kernels: Sequence[Kernel]
    peer: float
    peer_name: str
    wanted: float
    breaks: str

    def seconds(self, device: Device) -> float:
        """All kernels, one after another."""
        return sum(kernel.seconds(device) for kernel in self.kernels)


@dataclass(frozen=True)
class Work:
    """What a view of the rasterizer's benchmark asks for, counted by `count_work`."""

    pixels: int
    gaussians: int
    seen: int
    pairs: int  # of a splat and a tile of 16x16
    visits: float  # of a splat and a warp's 8x4 pixels, before the pixels are done
    share: float  # of a list that is looked at before that


def count_work(num_frames: int = 5, width: int = 832, height: int = 480) -> Work:
    """Counts the pairs of the benchmark's scene from the reference's projection, and how far its lists are read from
    the C++ rasterizer.

    Args:
      num_frames: Frames of one Gaussian a pixel.
      width: Of the view, pixels, a multiple of 16.
      height: Also.
    """
    scene = pixel_aligned_scene(num_frames, width, height, num_views=1, sh_degree=2)
    means, quats, scales, opacities, colors, viewmats, Ks = (t[None] for t in scene)
    inputs = Inputs(means, quats, scales, None, opacities, colors[:, None], viewmats, Ks, None)
    settings = Settings(width, height, 0.01, 1e10, 0.0, 0.3, 2, WEIGHTED_DEPTH, False, 0.999, 0.0)
    found = reference.project(*reference.replace_invalid(inputs), settings)
    middle, reach = (t[0, 0][found.keep[0, 0]] for t in (found.means2d, found.reach))
    size = torch.tensor([width, height])
    first = (middle - reach - 0.5).ceil().clamp_min(0).long()
    last = torch.minimum((middle + reach - 0.5).floor().long(), size - 1)
    seen = (first <= last).all(1)
    first, last = first[seen], last[seen]

    def cells(wide: int, high: int) -> int:
        cell = torch.tensor([wide, high])
        return int((last // cell - first // cell + 1).prod(1).sum())

    # Where a pixel's list ends is known for the C++ code's tiles of 8x8, in places of the tile's list.
    ends = rasterize_native(inputs, settings, for_backward=True)[4][0, 0]
    looked_at = ends.reshape(height // 8, 2, 4, width // 8, 8).amax((2, 4)).sum() / 2
    share = float(looked_at) / cells(8, 8)
    return Work(width * height, means.shape[1], int(seen.sum()), cells(16, 16), share * cells(8, 4), share)


def counts() -> Static:
    """Every kernel of csrc/cuda as compiled for sm_90a, by name. Compiles for a minute.

    Raises:
      RuntimeError: nvcc or cuobjdump is missing.
    """
    nvcc, cuobjdump = find_nvcc(os.environ), static_sm90.find_cuobjdump()
    if nvcc is None or cuobjdump is None:
        raise RuntimeError("predict: nvcc and cuobjdump (CUDA, or the triton package) must be there")
    stages = (*static_sm90.OWN_STAGES, *static_sm90.SE3_STAGES, *static_sm90.SDE_STAGES, *static_sm90.NOISE_STAGES)
    with ThreadPoolExecutor(2) as pool:
        compiled = pool.map(lambda source: static_sm90.compile_stage(source, nvcc, cuobjdump)[0], stages)
        return {kernel.name: kernel for kernels in compiled for kernel in kernels}


WARP = 32
# Read from listings: instructions of a key in a pass of CUB's sort, of a thread that only moves a few words, of a warp
# for each splat of its tile whether it touches the warp's pixels or not.
_KEY, _MOVE, _CULLING = 25, 20, 8
# And the paths that a thread takes through kernels whose listings hold many cases.
_PROJECT, _PROJECT_GRADIENTS, _SUM_PARTIALS = 1000, 1400, 45
_PLAN = {"order_kernel": 100, "merge_kernel": 25}  # most pixels have one reader and one hit, and leave at once


def forward(work: Work, static: Static, device: Device) -> list[Kernel]:
    """The rasterizer's forward of one view."""
    n, seen, pairs, pixels = (x / WARP for x in (work.gaussians, work.seen, work.pairs, work.pixels))
    blended = work.visits * static["blend_kernel<4, 0>"].loop + 8 * work.share * pairs * _CULLING
    emit = static["emit_pairs_kernel<unsigned short>"].instructions
    ranges = static["find_ranges_kernel<unsigned short>"].instructions
    return [
        Kernel("memset", 1, _MOVE, 0, launches=4),
        Kernel("project_kernel", n, _PROJECT, work.gaussians * 152 + work.seen * 66, wait=device.read),
        Kernel("sort by depth (CUB)", seen, 4 * _KEY, work.seen * 70, launches=6),
        Kernel("count_pairs_kernel", seen, static["count_pairs_kernel"].instructions, work.seen * 16),
        Kernel("sum (CUB)", seen, _MOVE, work.seen * 8, launches=2),
        Kernel("emit_pairs_kernel", seen, emit, work.seen * 16 + work.pairs * 6),
        Kernel("sort by tile (CUB)", pairs, 2 * _KEY, work.pairs * 26, launches=4),
        Kernel("find_ranges_kernel", pairs, ranges, work.pairs * 2),
        Kernel("blend_kernel<4, 0>", pixels, blended / pixels, work.pairs * 52 + work.pixels * 20),
    ]


def backward(work: Work, static: Static) -> list[Kernel]:
    """The rasterizer's backward of one view, from the lists of its forward."""
    n, pairs, pixels = (x / WARP for x in (work.gaussians, work.pairs, work.pixels))
    replayed = work.visits * static["replay_kernel"].loop + 8 * work.share * pairs * _CULLING
    cameras = static["camera_gradients_kernel"].instructions
    return [
        Kernel("replay_kernel", pixels, replayed / pixels, work.pairs * (52 + 40) + work.pixels * 28),
        Kernel("sum_partials_kernel", 10 * n, _SUM_PARTIALS, work.pairs * 48 + work.seen * 40),
        Kernel("project_gradients_kernel", n, _PROJECT_GRADIENTS, work.gaussians * (196 + 152)),
        Kernel("camera_gradients_kernel", WARP, cameras, work.gaussians * 0.3),
    ]


def noise(batch: int, device: Device) -> tuple[Kernel, float]:
    """Noise transport at 480x832 on 81 frames of a push in, every fourth kept, 16 channels, reduced by 8; and the bytes
    that it must move. The plan's rows are those of bench/test_noise_transport.py: 565,760 groups with 1,136,640
    members."""
    pixels, tasks, segments = 480 * 832, 4 * batch, 21 * 1560
    groups, members = 565_760, 1_136_640
    values = pixels + groups + 20 * pixels + members + 21 * pixels / 64  # noise, read, written
    lists = 4 * 21 * pixels + 28 * groups + 5 * members
    parts = (  # warps of a task, instructions of a warp, bytes
        (pixels / WARP, 45, pixels * 32),  # noise is loaded
        (segments, 233 + 25, segments * (4096 + 1024 + 64)),  # frames are kept
        (members / WARP, 310, members * 21),  # members draw
        (groups / WARP, 330, groups * 28 + members * 36),
    )
    warps = tasks * sum(count for count, _, _ in parts)
    instructions = tasks * sum(count * each for count, each, _ in parts) / warps
    # At every barrier a chain of loads and draws ends; in between, blocks fill each other's waiting.
    steps = 80 * (device.barrier + 310 * device.cycles / device.hertz)
    moved = tasks * sum(part[2] for part in parts)
    return Kernel("transport_kernel", warps, instructions, moved, wait=steps), 16.0 * tasks * values + lists


def noise_plan(static: Static) -> list[Kernel]:
    """The plan of 80 float64 fields at 480x832, a field after the other; merges and groups are few beside pixels."""
    fields, pixels = 80, 480 * 832
    steps = {  # pixels of a warp, bytes of a pixel
        "round_kernel<double>": (WARP, 32), "readers_kernel": (WARP, 16), "count_kernel": (256, 16),
        "sum_kernel": (65536, 0.2), "place_kernel": (256, 44), "gather_kernel": (WARP, 20), "order_kernel": (WARP, 20),
        "merge_kernel": (WARP, 4), "tree_kernel": (32 * WARP, 8.3), "normalize_kernel": (WARP, 27),
    }  # fmt: skip
    out = []
    for name, (covered, num_bytes) in steps.items():
        launches = fields * (2 if name == "tree_kernel" else 1)
        warps, moved = fields * pixels / covered, fields * pixels * num_bytes
        out.append(Kernel(name, warps, _PLAN.get(name, static[name].instructions), moved, launches))
    return out


def sde(static: Static, samples: int) -> dict[str, list[Kernel]]:
    """The SDE step on latents [16, 21, 60, 104], velocities in bfloat16, by form. A warp takes 32 groups of 8 elements;
    around the loop it runs 43, 38 and 28 instructions a group."""
    elements = samples * 16 * 21 * 60 * 104
    groups = elements / 8 / WARP
    draw, score, back = (
        static[f"{kernel}<unsigned short, {options}>"].loop
        for kernel, options in (("forward_kernel", "0, 0"), ("forward_kernel", "2, 0"), ("backward_kernel", "0"))
    )
    fill = Kernel("memset", 1, _MOVE, 0)  # of the standard deviations, a number as a tensor
    return {
        "draw": [fill, Kernel("forward_kernel", groups, draw + 43, elements * 14)],
        "score": [fill, Kernel("forward_kernel", groups, score + 38, elements * 14)],
        "backward": [Kernel("backward_kernel", groups, back + 28, elements * 12)],
    }


def ops(work: Work, static: Static, device: Device) -> list[Op]:
    """Everything that has a target, at the sizes of the benchmarks."""
    gsplat, gsplat_of_many, gsplat_back, roma = 1.85e-3, 1.9e-3, 2.8e-3, 230e-6
    view, peer = forward(work, static, device), "gsplat 1.5.3"
    wait = "a wait for the counts above 20 us; pixels that are done later than here"
    replay = "less than .5 instructions a cycle in replay: 32 warps have to hide its shared memory"
    out = [
        Op("rasterize, 2 M, a view", view, gsplat, peer, 3.0, wait),
        Op("rasterize, 2 M, one of 240 views", view, gsplat_of_many, peer, 4.0, "as above; several views a chunk"),
        Op("its backward", backward(work, static), gsplat_back, peer, 1.5, replay),
    ]
    for samples in (8, 1):
        for name, step in sde(static, samples).items():
            copy = Kernel("copy", 0, 0, step[-1].num_bytes).seconds(device)
            why = "launches are what is left: judged apart" if samples == 1 else "less than .45 instructions a cycle"
            wanted = 0.8 if name == "backward" else 0.85
            out.append(Op(f"sde_step {name}, N = {samples}", step, copy, "a copy", wanted, why))
    for batch in (8, 1):
        transport, floor = noise(batch, device)
        why = (
            "barriers and chains of 80 steps"
            if batch == 1
            else "any: gathers of 16 bytes that a cache line holds apart"
        )
        name = f"noise_transport, 480p, B = {batch}"
        out.append(Op(name, [transport], floor / device.copy, "a copy of what must move", 0.6, why))
    why = "a host that takes above 5 us a launch"
    out.append(Op("noise plan, 480p, 80 fields", noise_plan(static), 5e-3, "the time wanted", 1.0, why))
    frames = 81 / WARP
    reward = static["reward_forward_kernel<float>"].instructions * (0.5 + 0.5 * frames)  # half of it a frame
    steps = [Kernel("memset", 1, _MOVE, 0), Kernel("reward_forward_kernel", 384, reward, 4e6)]
    out.append(Op("se3 reward, 384 x 81", steps, roma, "roma + torch", 10.0, "fp64 chains above 6 cycles a link"))
    return out


def table(found: Sequence[Op], device: Device) -> str:
    """The verdicts as Markdown."""
    head = "| op | predicted us | against, us | ratio | wanted | | what would break it |"
    rows = [head, "|---|---|---|---|---|---|---|"]
    for op in found:
        own = op.seconds(device)
        verdict = "reached" if op.peer / own >= op.wanted else "**missed**"
        cells = [op.name, f"{1e6 * own:.4g}", f"{op.peer_name}, {1e6 * op.peer:.4g}", f"{op.peer / own:.2g}"]
        rows.append(f"| {' | '.join([*cells, f'{op.wanted:g}', verdict, op.breaks])} |")
    return "\n".join(rows)


def details(op: Op, device: Device) -> str:
    """The kernels of an op as Markdown."""
    rows = [f"### {op.name}", "", "| kernel | launches | warps | instructions a warp | MB | us | bound by |"]
    rows.append("|---|---|---|---|---|---|---|")
    for k in op.kernels:
        cells = [k.name, str(k.launches), f"{k.warps:.4g}", f"{k.instructions:.4g}", f"{k.num_bytes / 1e6:.4g}"]
        rows.append(f"| {' | '.join([*cells, f'{1e6 * k.seconds(device):.4g}', k.bound(device)])} |")
    return "\n".join(rows)


def page(found: Sequence[Op], work: Work, device: Device) -> str:
    """The text of docs/results/predicted_h200.md."""
    assumed = ", ".join(f"{f.name} {getattr(device, f.name):g}" for f in fields(device)[1:])
    sections = "\n\n".join(details(op, device) for op in found)
    commit = _git("rev-parse", "--short", "HEAD")
    return f"""# Predicted times of the CUDA kernels on an {device.name}

**Predictions. No GPU has run this code, nor the peers for this page.** A page of `python -m bench.gpu` replaces it.

Command: `python -m bench.predict --write`. Commit: {commit}. Date: {datetime.date.today()}.

{table(found, device)}

A ratio is the peer's predicted time over ours. gsplat's and roma's times come from reading what they launch (gsplat 1.6
to 2.1 ms forward, 1.9 a view of many, 2.6 to 3.0 backward; roma and torch 230 us): a ratio near its target says nothing
either way.

Assumed: {assumed}
(hertz, bytes a second, cycles, seconds). A kernel takes the longest of bytes / copy, instructions / issue, and the
chain of one warp's instructions; a launch costs a gap; what has to be waited for is added. Caches, bank conflicts and
divergence are not modelled. Loops and short kernels are counted by the compiler; the paths through project_kernel,
project_gradients_kernel, sum_partials_kernel, the noise, order and merge of its plan, and CUB's sorts are read from
listings by hand (constants in the script).

The rasterizer's work, counted in the benchmark's scene: {work.gaussians:,} Gaussians, {work.seen:,} seen,
{work.pairs:,} pairs with tiles of 16x16; {work.share:.0%} of a list is looked at before its pixels are done, which
leaves {work.visits:,.0f} visits of a warp.

{sections}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.predict", description=__doc__)
    parser.add_argument("--write", action="store_true", help="renew docs/results/predicted_h200.md")
    write = parser.parse_args(arguments).write
    work = count_work()
    text = page(ops(work, counts(), H200), work, H200)
    print(text)
    if write:
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
