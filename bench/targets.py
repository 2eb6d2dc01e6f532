"""What the kernels and the loop were asked to reach, and whether a run shows it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.report import decisive

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Target:
    """Fields: family, file of the history; gpu, for which kind of device; cases, a regular expression on "name shape";
    measure; wanted; text; best, of several forms the best counts, not the worst. Measures: "peer NAME", the time of the
    fastest peer that the regular expression NAME finds, over ours; "memory NAME", so with peak memory; "of NAME", its
    time in per cent of ours; "ms"; "ceiling", per cent."""

    family: str
    gpu: bool
    cases: str
    measure: str
    wanted: float
    text: str
    best: bool = False

    @property
    def at_most(self) -> bool:
        """Times are to be short, everything else large."""
        return self.measure == "ms"


TARGETS = (
    Target("rasterize", True, "^view (?!back)", "peer gsplat", 3.0, "2 M Gaussians against gsplat 1.5.3"),
    Target("rasterize", True, "^views ", "peer gsplat", 4.0, "240 views against gsplat 1.5.3"),
    Target("rasterize", True, "^views? ", "memory gsplat", 2.0, "peak memory against gsplat 1.5.3"),
    Target("rasterize", True, "^view back ", "peer gsplat", 1.5, "backward against gsplat 1.5.3"),
    Target("noise_transport", True, "^(?!plan)", "peer value-keyed", 100.0, "against the value-keyed peer"),
    Target("noise_transport", True, "^(?!plan)", "ceiling", 60.0, "per cent of the measured copy bandwidth"),
    Target("sde_step", True, "wan (draw|score) 8x", "of copy", 85.0, "forward of 8 samples, per cent of a copy"),
    Target("sde_step", True, "wan backward 8x", "of copy", 80.0, "backward of 8 samples, per cent of a copy"),
    Target("sde_step", True, "wan (draw|score) 1x", "of copy", 60.0, "forward of one sample: launches beside 8 us"),
    Target("sde_step", True, "wan", "peer torch reference", 8.0, "against eager torch"),
    Target("sde_step", True, "wan", "peer torch.compile", 1.3, "against torch.compile"),
    Target("se3", True, "N384-F81", "peer roma", 10.0, "384 trajectories of 81 frames against roma + torch"),
    Target("wan_loop", True, "^sample", "peer official", 8.0, "samples per GPU-hour, official recipe 1", best=True),
    Target("wan_loop", True, "^forward", "ceiling", 45.0, "MFU of the rollout, % of the measured matmul", best=True),
    Target("wan_loop", True, "^training", "ceiling", 40.0, "MFU of training, % of the measured matmul", best=True),
    Target("rasterize", False, "^target N10000", "ms", 4.0, "10,000 Gaussians at 256x256, ms a core"),
    Target("rasterize", False, "^target back N10000", "ms", 4.5, "their backward, ms a core"),
    Target("rasterize", False, "^dense N65536", "ms", 35.0, "65,536 Gaussians at 256x256, ms a core"),
    Target("rasterize", False, "^target drop-in forward N", "peer rasterize", 0.87, "the drop-in against the op"),
    Target("rasterize", False, r"^(target|small) N", "peer gsplat", 500.0, "against gsplat's torch code"),
    Target("noise_transport", False, "push in|pan", "peer value-keyed", 40.0, "against the value-keyed peer"),
    Target("noise_transport", False, "push in|pan", "peer torch reference", 4.0, "against the eager reference"),
    Target("sde_step", False, "wan (draw|score)", "of copy", 85.0, "forward, per cent of a copy"),
    Target("sde_step", False, "wan backward", "of copy", 80.0, "backward, per cent of a copy"),
    Target("se3", False, "N384-F81", "peer roma", 5.0, "384 trajectories of 81 frames against roma + torch"),
)  # fmt: skip


def value(target: Target, row: Row, ceiling: float | None) -> float | None:
    """The target's figure in one row; None where the row does not hold it.

    Args:
      target: What is asked.
      row: A case.
      ceiling: Its share of the measured ceiling, in per cent.
    """
    own = decisive(row["timing"])
    if target.measure == "ms":
        return own
    if target.measure == "ceiling":
        return ceiling
    kind, _, name = target.measure.partition(" ")
    if kind == "memory":
        peaks = row.get("peaks", {})
        own = peaks.get(row["backend"])
        figures = [float(peak) for peer, peak in peaks.items() if re.search(name, peer)]
    else:
        figures = [decisive(timing) for peer, timing in row["peers"].items() if re.search(name, peer)]
    if not figures or not own:
        return None
    return min(figures) / own * (100.0 if kind == "of" else 1.0)


def table(rows: Sequence[tuple[str, Row, float | None]], *, gpu: bool) -> list[str]:
    """The targets as Markdown lines: the worst (or best) figure of the rows that each speaks of, and whether it holds.

    Args:
      rows: (family, case, share of its ceiling in per cent).
      gpu: Which targets.
    """
    lines = ["| family | target | wanted | measured | |", "|---|---|---|---|---|"]
    for target in (t for t in TARGETS if t.gpu == gpu):
        found = []
        for family, row, ceiling in rows:
            if family == target.family and re.search(target.cases, f"{row['name']} {row['shape']}"):
                figure = value(target, row, ceiling)
                if figure is not None:
                    found.append((figure, f"{row['name']} {row['shape']}"))
        wanted = f"{'<=' if target.at_most else '>='} {target.wanted:g}"
        if not found:
            lines.append(f"| {target.family} | {target.text} | {wanted} | | not measured |")
            continue
        figure, where = (max if target.at_most != target.best else min)(found)
        reached = figure <= target.wanted if target.at_most else figure >= target.wanted
        verdict = "reached" if reached else "**missed**"
        lines.append(f"| {target.family} | {target.text} | {wanted} | {figure:.3g} ({where}) | {verdict} |")
    return lines
