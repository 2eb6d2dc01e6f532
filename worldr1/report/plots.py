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
VARIABLES = {
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
def validation_curve(adapter: Curve, base: np.ndarray) -> str:
    """One term over the validations: the adapter with a band of one standard error of the paired difference, and the
    base as a line. Returns SVG.

    Args:
      adapter: Means of the adapter's clips; stderr is that of the difference to the base.
      base: Means of the base's clips, [n].
    """
    fig, ax = _figure(3.3, 2.0)
    x, mean, stderr = _thin(adapter)
    known = np.isfinite(stderr)
    ax.fill_between(x, mean - stderr, mean + stderr, where=known.tolist(), color=AFTER, alpha=0.22, linewidth=0)
    ax.errorbar(x, mean, yerr=np.where(known, stderr, 0.0), color=AFTER, linewidth=1.4, marker="o", markersize=3)
    ax.plot(adapter.iterations, base, color=BEFORE, linewidth=1.4, linestyle="--", marker="o", markersize=2)
    ax.set_xlabel("iterations done")
    ax.margins(x=0.05)
    ax.grid(True, axis="y")
    return _svg(fig, f"{adapter.label} by validation, base and adapter")


@rc_context(_STYLE)
def obedience_curve(watched: Sequence[tuple[float, float, float]], study: Sequence[tuple[float, float]]) -> str:
    """Obedience over training: what was watched, and the study's figures as squares at both ends. Returns SVG.

    Args:
      watched: (iterations done, mean, standard error or NaN).
      study: (iterations done, mean).
    """
    fig, ax = _figure(4.6, 1.9)
    line = sorted([*(w[:2] for w in watched), *study])
    ax.plot([x for x, _ in line], [y for _, y in line], color=AFTER, linewidth=1.2, alpha=0.5)
    x, mean, stderr = (np.array(column) for column in zip(*watched, strict=True))
    spread = np.where(np.isfinite(stderr), stderr, 0.0)
    ax.errorbar(x, mean, yerr=spread, color=AFTER, linestyle="none", marker="o", markersize=4, linewidth=1.2)
    ax.plot([x for x, _ in study], [y for _, y in study], color=AFTER, linestyle="none", marker="s", markersize=5)
    ax.set_ylim(0, 1)
    ax.set_xlabel("iterations done")
    ax.set_ylabel("obeyed, share of samples")
    ax.margins(x=0.03)
    ax.grid(True, axis="y")
    return _svg(fig, "Obedience on held-out prompts by iterations done")


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
def path_errors(paths: Sequence[tuple[str, str, np.ndarray]], label: str) -> str:
    """Camera paths in 3D, and beside them by how much each frame misses the requested one. Returns SVG.

    The errors are those of worldr1_kernels.trajectory_error with scale "none": relative to the first camera, angle in
    degrees and distance of the centres in scene units.

    Args:
      paths: As for `top_view`; one of them named "requested".
      label: What a screen reader says.
    """
    fig = Figure(figsize=(6.6, 2.0), layout="constrained")
    in_3d, turn, shift = fig.subplots(1, 3, width_ratios=(1.2, 1, 1))
    for ax in (in_3d, turn, shift):
        _plain(ax)
    relative = [(name, colour, _relative(viewmats)) for name, colour, viewmats in paths]
    _draw_3d(in_3d, [(colour, centres) for _, colour, (_, centres) in relative])
    asked = next((poses for name, _, poses in relative if name == "requested"), None)
    for name, colour, (rotation, centres) in relative:
        if asked is None or name == "requested":
            continue
        angle, distance = np.rad2deg(_angles(rotation, asked[0])), np.linalg.norm(centres - asked[1], axis=1)
        for ax, values in ((turn, angle), (shift, distance)):
            ax.plot(np.arange(len(values)), values, color=colour, linewidth=1.4)
    for ax, words in ((turn, "rotation error, deg"), (shift, "distance, scene units")):
        ax.set_xlabel(f"frame; {words}")
        ax.set_ylim(bottom=0)
        ax.margins(x=0.02)
        ax.locator_params(nbins=4)
        ax.grid(True, axis="y")
    return _svg(fig, label)


def _draw_3d(ax: Any, paths: Sequence[tuple[str, np.ndarray]]) -> None:
    """Paths from behind, above and to the left of the first camera, parallel projection; their shadows on the floor
    below them tell depth from height. Axes are drawn from the first camera's place."""
    azimuth, elevation = np.deg2rad(30.0), np.deg2rad(25.0)
    across = np.array([np.cos(azimuth), 0.0, -np.sin(azimuth)])
    upward = np.array([np.sin(elevation) * np.sin(azimuth), -np.cos(elevation), np.sin(elevation) * np.cos(azimuth)])
    everything = np.concatenate([centres for _, centres in paths] + [np.zeros((1, 3))])
    reach = max(float((everything.max(0) - everything.min(0)).max()), 0.05)
    floor = float(everything[:, 1].max()) + 0.25 * reach
    for axis, name in enumerate("xyz"):
        tip = np.eye(3)[axis] * 0.22 * reach
        ax.plot([0, tip @ across], [0, tip @ upward], color=_LINE, linewidth=1.0)
        ax.text(1.25 * tip @ across, 1.25 * tip @ upward, name, color=_MUTED, size=7, ha="center", va="center")
    for colour, centres in paths:
        wide = 4.5 if colour == ASKED else 1.4
        shadow = centres * np.array([1.0, 0.0, 1.0]) + np.array([0.0, floor, 0.0])
        ax.plot(shadow @ across, shadow @ upward, color=colour, linewidth=0.6 * wide, alpha=0.25)
        ax.plot(centres @ across, centres @ upward, color=colour, linewidth=wide, solid_capstyle="round")
        ax.plot(*(centres[-1] @ np.stack([across, upward], 1)), marker="o", markersize=1.6 * wide**0.7, color=colour)
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_xlabel("in 3D, shadow below")
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)


def _relative(viewmats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotations [F, 3, 3] and centres [F, 3] relative to the first camera."""
    rotation = viewmats[:, :3, :3] @ viewmats[0, :3, :3].T
    shift = viewmats[:, :3, 3] - rotation @ viewmats[0, :3, 3]
    return rotation, -np.einsum("fji,fj->fi", rotation, shift)


def _angles(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angle of A^T B by frame, radians; by sine and cosine, so that files that are not quite rotations do no harm."""
    turn = np.einsum("fki,fkj->fij", a, b)
    sine = np.stack([turn[:, 2, 1] - turn[:, 1, 2], turn[:, 0, 2] - turn[:, 2, 0], turn[:, 1, 0] - turn[:, 0, 1]])
    return np.arctan2(np.linalg.norm(sine, axis=0), np.trace(turn, axis1=1, axis2=2) - 1.0)


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
    _plain(ax)
    return fig, ax


def _plain(ax: Any) -> None:
    ax.set_facecolor("none")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(_LINE)
    ax.tick_params(colors=_MUTED, labelsize=8, length=0)
    ax.xaxis.label.set(color=_MUTED, size=8)
    ax.yaxis.label.set(color=_MUTED, size=8)
    ax.set_axisbelow(True)


def _svg(fig: Figure, label: str) -> str:
    buffer = io.StringIO()
    fig.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", text, count=1)
    # Ids that are used, by order of use: matplotlib makes some from memory addresses. Several figures share a page, so
    # that each gets a prefix from its content.
    used = {name: f"-{k}" for k, name in enumerate(dict.fromkeys(re.findall(r'(?:url\(#|href="#)([\w-]+)', text)))}
    text = re.sub(r' id="([^"]*)"', lambda m: f' id="{used[m[1]]}"' if m[1] in used else "", text)
    text = re.sub(r'(url\(#|href="#)([\w-]+)', lambda m: m[1] + used[m[2]], text)
    prefix = "p" + hashlib.sha256(text.encode()).hexdigest()[:8]
    text = re.sub(r'( id="|url\(#|href="#)-', lambda m: f"{m[1]}{prefix}-", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)
