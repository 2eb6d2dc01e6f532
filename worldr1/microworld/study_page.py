"""What a study shows: study.json, study.md and study.png, from the folders of its runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldr1.run.files import read_json, whole, write_json

MEASURES = {
    "obedience": ("obedience", "{:+.3f}"),
    "psnr_requested": ("PSNR at requested poses, dB", "{:+.2f}"),
    "rotation_deg": ("rotation error, deg", "{:+.1f}"),
    "path_ratio": ("recovered / requested path", "{:+.2f}"),
    "frame_change": ("frame change", "{:+.4f}"),
    "contrast": ("contrast", "{:+.4f}"),
    "content": ("content", "{:+.3f}"),
    "broken": ("broken", "{:.3f}"),
}
"""Measure of a run's study -> its heading and how its change is written; `broken` is a share, not a change."""


@dataclass(frozen=True)
class Value:
    """A mean over runs. stderr: over runs; with one run that over its samples."""

    mean: float
    stderr: float
    runs: int

    def text(self, form: str) -> str:
        if not math.isfinite(self.mean):
            return ""
        error = f" ± {form.format(self.stderr).lstrip('+')}" if math.isfinite(self.stderr) else ""
        return form.format(self.mean) + error


def over_runs(values: list[tuple[float, float]]) -> Value:
    """Mean of (value, its standard error) over runs.

    The error is the larger of the spread of the runs and of what their own errors make of the mean: three runs may
    agree by chance.
    """
    values = [(v, e) for v, e in values if math.isfinite(v)]
    num = len(values)
    if not num:
        return Value(math.nan, math.nan, 0)
    mean = sum(v for v, _ in values) / num
    own = math.sqrt(sum(e * e for _, e in values if math.isfinite(e))) / num
    spread = math.sqrt(sum((v - mean) ** 2 for v, _ in values) / (num - 1) / num) if num > 1 else 0.0
    return Value(mean, max(own, spread), num)


def collect(output_dir: Path) -> dict[tuple[str, str], dict[str, Value]]:
    """(estimator, arm) -> measure -> change over all of its runs that have ended.

    Raises:
      ValueError: no plan, or no run that has ended.
    """
    plan = read_json(output_dir / "plan.json", "the plan of a study")
    found: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for name, run in plan.items():
        file = output_dir / name / "evaluation" / "study.json"
        if not file.is_file():
            continue
        metrics = read_json(file, "a study")["metrics"]
        row = found.setdefault((run["estimator"], run["arm"]), {key: [] for key in MEASURES})
        for key in MEASURES:
            m = metrics.get(key) or {}
            change = m.get("after") if key == "broken" else m.get("gain")
            row[key].append((_number(change), _number(m.get("stderr"))))
    if not found:
        raise ValueError(f"study: {output_dir} must hold a run that has ended, got none")
    return {pair: {key: over_runs(values) for key, values in row.items()} for pair, row in found.items()}


def verdicts(rows: dict[tuple[str, str], dict[str, Value]]) -> list[tuple[str, str]]:
    """What the article says of an arm against everything, and what is found: (verdict, sentence), contradictions first.

    The article's PSNR is that of reconstructions; ours is that at requested poses. A difference within two standard
    errors of 0 says nothing.
    """
    from worldr1.microworld.study import ARMS

    out = []
    for estimator in sorted({e for e, _ in rows}):
        full = rows.get((estimator, "full"))
        for arm in ARMS:
            row = rows.get((estimator, arm.name))
            if not arm.psnr or row is None or full is None:
                continue
            a, b = row["psnr_requested"], full["psnr_requested"]
            difference, error = a.mean - b.mean, math.hypot(a.stderr, b.stderr)
            if not abs(difference) > 2 * error:
                verdict = "not told apart"
            else:
                verdict = "agrees" if difference * arm.psnr > 0 else "CONTRADICTS"
            text = f"{estimator}, {arm.title}: PSNR {difference:+.2f} ± {error:.2f} dB against everything"
            out.append((verdict, f"{text} (article: {arm.article})"))
    order = {"CONTRADICTS": 0, "not told apart": 1, "agrees": 2}
    return sorted(out, key=lambda pair: order[pair[0]])


def write_page(output_dir: Path) -> Path:
    """Write study.json, study.md and study.png; returns the page. Errors as of `collect`."""
    from worldr1.microworld.study import ARMS

    rows = collect(output_dir)
    titles = {arm.name: arm.title for arm in ARMS}
    figures: dict[str, Any] = {}
    for (estimator, arm), row in rows.items():
        figures.setdefault(estimator, {})[arm] = {key: value.__dict__ for key, value in row.items()}
    write_json(output_dir / "study.json", figures)
    lines = ["# The study: arms of the micro world", "", "## Against the article", ""]
    lines += [f"- **{verdict}**: {sentence}" for verdict, sentence in verdicts(rows)] or ["Nothing to compare yet."]
    for estimator in sorted({e for e, _ in rows}):
        lines += ["", f"## By the {estimator} estimator", ""]
        lines += ["| arm | runs | " + " | ".join(title for title, _ in MEASURES.values()) + " |"]
        lines += ["|---|---|" + "---|" * len(MEASURES)]
        for arm in titles:
            found = rows.get((estimator, arm))
            if found is not None:
                cells = [found[key].text(form) for key, (_, form) in MEASURES.items()]
                lines.append(f"| {titles[arm]} | {found['obedience'].runs} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Changes from the base to the trained adapter on held-out prompts, pair by pair from one noise; ± is the "
        "standard error over runs, or what the errors over samples make of it where that is larger. `broken` is a "
        "share of the samples that were right before.",
        "",
        "![gain of obedience and of PSNR by arm](study.png)",
        "",
    ]
    _draw(output_dir / "study.png", rows, titles)
    page = output_dir / "study.md"
    with whole(page) as unfinished:
        unfinished.write_text("\n".join(lines), encoding="utf-8")
    return page


def _draw(path: Path, rows: dict[tuple[str, str], dict[str, Value]], titles: dict[str, str]) -> None:
    """Two bar charts side by side, one bar an arm and estimator."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    estimators = sorted({e for e, _ in rows})
    arms = [arm for arm in titles if any((e, arm) in rows for e in estimators)]
    figure = Figure(figsize=(11.0, 0.9 + 0.42 * len(arms)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    height = 0.8 / len(estimators)
    for axis, key in zip(axes, ("obedience", "psnr_requested"), strict=True):
        for k, estimator in enumerate(estimators):
            known = [(i, rows[estimator, arm][key]) for i, arm in enumerate(arms) if (estimator, arm) in rows]
            axis.barh(
                [i + (k - 0.5 * (len(estimators) - 1)) * height for i, _ in known],
                [v.mean for _, v in known], height, xerr=[v.stderr for _, v in known], label=estimator,
                error_kw={"elinewidth": 0.8},
            )  # fmt: skip
        axis.axvline(0.0, color="black", linewidth=0.8)
        axis.set_xlabel(f"gain: {MEASURES[key][0]}")
    axes[0].set_yticks(range(len(arms)), [titles[arm] for arm in arms])
    axes[0].invert_yaxis()
    axes[0].legend(frameon=False)
    with whole(path) as unfinished:
        figure.savefig(unfinished, format="png", metadata={"Software": None})


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
