"""Lines of clips -> means with intervals, over all clips, by motion and by theme; and the table that is printed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from worldr1.evaluation.folder import Row, measure_of
from worldr1.evaluation.intervals import clustered_mean
from worldr1.evaluation.measures import MEASURES

_NUM_REASONS = 5


def summarise(rows: Sequence[Row], arms: Sequence[str]) -> dict[str, Any]:
    """The content of summary.json.

    Args:
      rows: Lines of clips.jsonl, of all arms.
      arms: "videos", or "base" and "tuned".
    Returns:
      measures (unit, better, definition), arms, differences with two arms (the second minus the first, of the clips
      that have both), by_motion, by_theme, states (arm -> state -> clips), reasons (arm -> the most frequent reasons
      why something could not be judged -> clips).
    """
    out: dict[str, Any] = {"measures": {name: measure._asdict() for name, measure in MEASURES.items()}}
    out["arms"] = _by_arm(rows, arms)
    if len(arms) == 2:
        out["differences"] = _differences(rows, arms)
    for key, column in (("by_motion", "motion"), ("by_theme", "theme")):
        names = sorted({row[column] for row in rows if row[column] is not None})
        out[key] = {name: _by_arm([row for row in rows if row[column] == name], arms) for name in names}
    out["states"] = {arm: dict(Counter(row["state"] for row in rows if row["arm"] == arm)) for arm in arms}
    told = {arm: Counter(row["reason"] for row in rows if row["arm"] == arm and row["reason"]) for arm in arms}
    out["reasons"] = {arm: dict(counts.most_common(_NUM_REASONS)) for arm, counts in told.items()}
    return out


def _by_arm(rows: Sequence[Row], arms: Sequence[str]) -> dict[str, Any]:
    out = {}
    for arm in arms:
        own = [row for row in rows if row["arm"] == arm]
        prompts = [row["prompt"] for row in own]
        out[arm] = {name: clustered_mean([measure_of(row, name) for row in own], prompts) for name in MEASURES}
    return out


def _differences(rows: Sequence[Row], arms: Sequence[str]) -> dict[str, Any]:
    before, after = ({row["clip"]: row for row in rows if row["arm"] == arm} for arm in arms)
    clips = [clip for clip in before if clip in after]
    prompts = [before[clip]["prompt"] for clip in clips]
    return {
        name: clustered_mean([measure_of(after[c], name) - measure_of(before[c], name) for c in clips], prompts)
        for name in MEASURES
    }


def table(summary: dict[str, Any]) -> str:
    """Means with their intervals, a measure a line; then the same by motion, a motion a line."""
    arms = list(summary["arms"])
    heads = [*arms, "difference"] if "differences" in summary else arms
    lines = [f"{'':18}" + "".join(f"{head:>28}" for head in heads) + f"{'clips':>8}"]
    for name, measure in summary["measures"].items():
        found = [summary["arms"][arm][name] for arm in arms]
        cells = [*found, summary["differences"][name]] if "differences" in summary else found
        unit = f" {measure['unit']}" if measure["unit"] else ""
        lines.append(f"{name + unit:18}" + "".join(_cell(c) for c in cells) + f"{found[-1]['count']:8d}")
    for arm in arms:
        counts = ", ".join(f"{count} {state}" for state, count in sorted(summary["states"][arm].items()))
        lines.append(f"{arm}: {counts}")
        lines += [f"  {count}: {reason}" for reason, count in summary["reasons"][arm].items()]
    return "\n".join(lines)


def group_table(summary: dict[str, Any], key: str, names: Sequence[str]) -> str:
    """Means of some measures, a line a group and arm; key is "by_motion" or "by_theme". "" where there is no group."""
    if not summary[key]:
        return ""
    lines = [f"{key.replace('_', ' '):26}" + "".join(f"{name:>18}" for name in names) + f"{'clips':>8}"]
    for group, arms in summary[key].items():
        for arm, found in arms.items():
            num = max(found[name]["count"] for name in found)
            cells = "".join(f"{_number(found[name]['mean']):>18}" for name in names)
            lines.append(f"{group + ' ' + arm:26}{cells}{num:8d}")
    return "\n".join(lines)


def _cell(value: dict[str, Any]) -> str:
    interval = "" if math.isnan(value["low"]) else f" [{_number(value['low'])}, {_number(value['high'])}]"
    return f" {_number(value['mean']) + interval:>27}"  # a space whatever the length


def _number(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
