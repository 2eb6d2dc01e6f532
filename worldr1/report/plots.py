"""The figures of the page, as inline SVG that takes its colours from the page, so that light and dark both work."""

from __future__ import annotations

import hashlib
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure  # not pyplot: no global state, no backend to choose

# matplotlib draws with these stand-in colours; in the SVG each becomes a variable of the page's style sheet.
_INK, _MUTED, _LINE, _PHASE = "#010101", "#020202", "#030303", "#040404"
BEFORE, AFTER, ASKED, CURVE = "#050505", "#060606", "#070707", "#080808"
_VARIABLES = {
    _INK: "ink", _MUTED: "muted", _LINE: "line", _PHASE: "phase",
    BEFORE: "before", AFTER: "after", ASKED: "asked", CURVE: "curve",
}  # fmt: skip
_MAX_POINTS = 300
_STYLE: Any = {  # text stays text (searchable, in the page's font), and a label is never read as mathematics
    "svg.fonttype": "none", "svg.hashsalt": "worldr1", "text.parse_math": False, "font.family": "sans-serif",
    "grid.color": _LINE, "grid.linewidth": 0.6,
}  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """A mean with its standard error over iterations; NaN is a gap."""

    label: str
    iterations: np.ndarray  # [n]
    mean: np.ndarray  # [n]
    stderr: np.ndarray  # [n], NaN where not known


@rc_context(_STYLE)
def reward_curve(curve: Curve, dynamic: np.ndarray) -> str:
    """One term of the reward over the run, with a band of one standard error; dynamic phases shaded. Returns SVG.

    Args:
      curve: What is drawn; more than 300 points are averaged in equal runs of iterations.
      dynamic: Bool [n], the iterations of the dynamic phase.
    """
    fig, ax = _figure(3.3, 2.0)
    for first, last in _runs(dynamic):
        ax.axvspan(curve.iterations[first] - 0.5, curve.iterations[last] + 0.5, color=_PHASE, linewidth=0)
    x, mean, stderr = _thin(curve)
    known = np.isfinite(stderr)
    ax.fill_between(x, mean - stderr, mean + stderr, where=known.tolist(), color=CURVE, alpha=0.22, linewidth=0)
    lonely = x.size == 1
    ax.plot(x, mean, color=CURVE, linewidth=1.4, marker="o" if lonely else None, markersize=3)
    ax.set_xlabel("iteration")
    ax.margins(x=0.01)
    ax.grid(True, axis="y")
    return _svg(fig, f"{curve.label} by iteration")


@rc_context(_STYLE)
def top_view(paths: Sequence[tuple[str, str, np.ndarray]], label: str) -> str:
    """Camera paths seen from above: centres in x and z, a short ray along each viewing direction. Returns SVG.

    Args:
      paths: (name, colour, viewmats [F, 4, 4] world-to-camera, OpenCV axes), drawn in order.
      label: What a screen reader says.
    """
    fig, ax = _figure(2.1, 2.1)
    centres = [_centres(viewmats) for _, _, viewmats in paths]
    everything = np.concatenate(centres)
    middle = (everything.min(0) + everything.max(0)) / 2
    reach = max(float((everything.max(0) - everything.min(0)).max()), 1e-6)
    ray = 0.22 * max(reach, 0.5)
    for (name, colour, viewmats), centre in zip(paths, centres, strict=True):
        wide = 6.0 if colour == ASKED else 1.4
        ax.plot(centre[:, 0], centre[:, 1], color=colour, linewidth=wide, solid_capstyle="round", label=name)
        forward = viewmats[:, 2, [0, 2]]  # third row of R: the optical axis in world coordinates
        for i in (0, len(centre) // 2, len(centre) - 1):
            tip = centre[i] + ray * forward[i]
            ends = [centre[i, 0], tip[0]], [centre[i, 1], tip[1]]
            ax.plot(*ends, color=colour, linewidth=min(wide, 3.6) * 0.7, alpha=0.8)
        ax.plot(*centre[-1], marker="o", markersize=7 if colour == ASKED else 3, color=colour)
    half = 0.6 * reach + 1.3 * ray
    ax.set_xlim(middle[0] - half, middle[0] + half)
    ax.set_ylim(middle[1] - half, middle[1] + half)
    ax.set_aspect("equal")
    ax.set_xlabel("x (right)")
    ax.set_ylabel("z (forward)")
    ax.locator_params(nbins=4)
    ax.grid(True)
    return _svg(fig, label)


@rc_context(_STYLE)
def obedience_bars(rows: Sequence[tuple[str, float, float, int]]) -> str:
    """Share of samples whose recovered motion is the one asked for, by motion, before and after. Returns SVG.

    Args:
      rows: (motion, before, after, number of samples); whiskers are 95 % Wilson intervals where the number is > 0.
    """
    fig, ax = _figure(5.6, 0.42 * len(rows) + 0.7)
    y = np.arange(len(rows))[::-1]
    for offset, index, colour, name in ((0.19, 1, BEFORE, "before"), (-0.19, 2, AFTER, "after")):
        share = np.array([row[index] for row in rows], dtype=float)
        ax.barh(y + offset, share, height=0.34, color=colour, label=name)
        for position, row, value in zip(y, rows, share, strict=True):
            if row[3] > 0 and np.isfinite(value):
                low, high = wilson(float(value), row[3])
                ax.plot([low, high], [position + offset] * 2, color=_INK, linewidth=0.8, alpha=0.7)
    ax.set_yticks(y, ["".join(c for c in row[0] if c.isprintable()) for row in rows])
    ax.set_xlim(0, 1)
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.set_xlabel("obeyed, share of samples")
    ax.grid(True, axis="x")
    return _svg(fig, "Obedience by motion, before and after training")


def wilson(share: float, num: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a share observed in `num` trials (Wilson, 1927)."""
    centre = (share + z * z / (2 * num)) / (1 + z * z / num)
    half = z / (1 + z * z / num) * (share * (1 - share) / num + z * z / (4 * num * num)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def _centres(viewmats: np.ndarray) -> np.ndarray:
    """Camera centres -R^T t in (x, z): [F, 2]."""
    centres = -np.einsum("fji,fj->fi", viewmats[:, :3, :3], viewmats[:, :3, 3])
    return centres[:, [0, 2]]


def _thin(curve: Curve) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n = curve.iterations.size
    if n <= _MAX_POINTS:
        return curve.iterations.astype(float), curve.mean, curve.stderr
    parts = np.array_split(np.arange(n), _MAX_POINTS)
    x = np.array([curve.iterations[p].mean() for p in parts])
    mean = np.array([curve.mean[p].mean() for p in parts])
    stderr = np.array([np.sqrt((curve.stderr[p] ** 2).sum()) / p.size for p in parts])
    return x, mean, stderr


def _runs(flags: np.ndarray) -> list[tuple[int, int]]:
    """First and last index of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    return [(int(a), int(b) - 1) for a, b in edges.reshape(-1, 2)]


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    fig = Figure(figsize=(width, height), layout="constrained")
    ax = fig.add_subplot()
    ax.set_facecolor("none")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(_LINE)
    ax.tick_params(colors=_MUTED, labelsize=8, length=0)
    ax.xaxis.label.set(color=_MUTED, size=8)
    ax.yaxis.label.set(color=_MUTED, size=8)
    ax.set_axisbelow(True)
    return fig, ax


def _svg(fig: Figure, label: str) -> str:
    buffer = io.StringIO()
    fig.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", text, count=1)
    # Several figures share a page: their ids must not meet.
    prefix = "p" + hashlib.sha256(text.encode()).hexdigest()[:8] + "-"
    used = set(re.findall(r'(?:url\(#|href="#)([\w-]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", text)
    text = re.sub(r'(url\(#|href="#)', lambda m: m[1] + prefix, text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)
