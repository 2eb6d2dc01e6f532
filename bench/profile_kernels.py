"""Hardware counters of the hottest kernels, by Nsight Compute: `python -m bench.profile_kernels`.

Runs one call of each family at its benchmark's size under ncu, and prints the three kernels that took longest with
their share of peak memory and instruction throughput, occupancy and registers. Clocks are left alone.
"""

from __future__ import annotations

import argparse
import csv
import io
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

METRICS = {
    "ns": "gpu__time_duration.sum",
    "memory": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "instructions": "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "occupancy": "sm__warps_active.avg.pct_of_peak_sustained_active",
    "registers": "launch__registers_per_thread",
}
_TO_NS = {"ns": 1.0, "nsecond": 1.0, "us": 1e3, "usecond": 1e3, "ms": 1e6, "msecond": 1e6, "s": 1e9, "second": 1e9}
MAX_LAUNCHES = 200


@dataclass
class Kernel:
    """One kernel over all its launches: their number and sum of times, the other figures of its longest launch."""

    name: str
    launches: int
    ns: float
    longest: float
    figures: dict[str, float]


def read(text: str) -> list[Kernel]:
    """Kernels of ncu's CSV output, the one that took longest first.

    Raises:
      ValueError: there is no table in the text.
    """
    start = text.find('"ID"')
    if start < 0:
        raise ValueError(f"profile_kernels: ncu printed no table: {text.strip()[-300:]}")
    launches: dict[str, tuple[str, dict[str, float]]] = {}
    names = {metric: name for name, metric in METRICS.items()}
    for row in csv.DictReader(io.StringIO(text[start:])):
        metric = names.get(row["Metric Name"])
        if metric is None:
            continue
        value = float(row["Metric Value"].replace(",", ""))
        if metric == "ns":
            value *= _TO_NS[row["Metric Unit"]]
        launches.setdefault(row["ID"], (row["Kernel Name"], {}))[1][metric] = value
    kernels: dict[str, Kernel] = {}
    for name, figures in launches.values():
        kernel = kernels.setdefault(name, Kernel(name, 0, 0.0, -1.0, {}))
        kernel.launches += 1
        kernel.ns += figures["ns"]
        if figures["ns"] > kernel.longest:
            kernel.longest, kernel.figures = figures["ns"], figures
    return sorted(kernels.values(), key=lambda kernel: -kernel.ns)


def table(kernels: Sequence[Kernel]) -> str:
    """One line a kernel."""
    lines = [f"{'kernel':48} {'launches':>8} {'us':>9} {'memory':>7} {'instr.':>7} {'warps':>7} {'registers':>9}"]
    for k in kernels:
        memory, instructions, occupancy, registers = (k.figures.get(name, float("nan")) for name in list(METRICS)[1:])
        lines.append(
            f"{k.name[:48]:48} {k.launches:8d} {k.ns / 1e3:9.1f} {memory:6.1f}% {instructions:6.1f}% "
            f"{occupancy:6.1f}% {registers:9.0f}"
        )
    return "\n".join(lines)


def workloads() -> dict[str, Callable[[], object]]:
    """One call of each family on the GPU; everything is prepared before."""
    from worldr1_kernels import noise_transport, plan_transport, rasterize, trajectory_error
    from worldr1_kernels.sde_step import sde_step
    from worldr1_kernels.testing import GaussianScene, gaussian_scene, normal

    height, width = 480, 832
    scene = gaussian_scene(height * width, width, height)
    leaves = GaussianScene(*(t.cuda().requires_grad_() for t in scene))
    flow = torch.full((8, 2, height, width), 2.6).cuda()
    plan = plan_transport(flow, capture=4)
    noise = normal((1, 16, height, width), 0).cuda()
    latent = (8, 16, 21, 60, 104)
    velocity, sample = normal(latent, 1, dtype=torch.bfloat16).cuda(), normal(latent, 2).cuda()
    paths = torch.eye(4).repeat(384, 81, 1, 1).cuda()

    def render() -> object:
        image = rasterize(*leaves, width, height, render_mode="RGB+D", backend="native").render_colors
        return torch.autograd.grad(image.sum(), leaves)

    return {
        "rasterize": render,
        "noise_transport": lambda: noise_transport(noise, plan, seed=0, capture=4, reduce=8, backend="native"),
        "sde_step": lambda: sde_step(velocity, sample, 0.9, 0.86, seed=0, step=0, backend="native"),
        "se3": lambda: trajectory_error(paths, paths, backend="native"),
    }


def run() -> None:
    """What ncu looks at: each workload once, after one call that compiles and allocates."""
    for name, work in workloads().items():
        try:
            work()
        except (RuntimeError, NotImplementedError) as error:
            print(f"{name}: skipped, {error}", flush=True)
            continue
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        work()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 1 where ncu cannot read the counters."""
    parser = argparse.ArgumentParser(prog="python -m bench.profile_kernels", description=__doc__)
    parser.add_argument("--run", action="store_true", help="the workloads alone, without ncu")
    options = parser.parse_args(arguments)
    if options.run:
        run()
        return 0
    ncu = shutil.which("ncu")
    if ncu is None:
        print("profile_kernels: ncu must be on PATH", file=sys.stderr)
        return 1
    command = [
        ncu, "--clock-control", "none", "--profile-from-start", "off", "--launch-count", str(MAX_LAUNCHES), "--csv",
        "--metrics", ",".join(METRICS.values()), sys.executable, "-m", "bench.profile_kernels", "--run",
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    print(result.stdout, result.stderr, sep="\n")
    try:
        kernels = read(result.stdout)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    print(table(kernels))
    hottest = ", ".join(f"{k.name.split('(')[0][-40:]} {k.ns / 1e3:.0f} us" for k in kernels[:3])
    print(f"of {len(kernels)} kernels the hottest: {hottest}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
