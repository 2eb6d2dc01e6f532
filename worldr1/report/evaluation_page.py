"""An evaluation's folder -> its page: what was measured, how sure it is, and the pictures to judge it by."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from worldr1.report import orbit, sheets
from worldr1.report.document import document, figure, interval, part
from worldr1.report.load import dictionary, number
from worldr1.report.load_evaluation import EvaluationFiles
from worldr1.run.files import read_arrays

MAX_SHOWN = 12
"""Clips with pictures."""
_MAX_SPLATS = 4  # clips with a reconstruction to turn
_MAX_LINES = 600  # of the table of all clips
_LONGEST = 400  # characters of a setting: the prompts are one of them
_HEADLINE = ("psnr", "rot_err", "motion_magnitude")
_GROUP_COLUMNS = ("psnr", "lpips", "mvcs", "rot_err", "trans_err", "path_ratio", "motion_magnitude", "dynamic_degree")
_NAMES = {
    "psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS", "psnr_self": "PSNR, all frames", "ssim_self": "SSIM, all frames",
    "lpips_self": "LPIPS, all frames", "mvcs": "MVCS", "rot_err": "RotErr", "trans_err": "TransErr", "cam_mc": "CamMC",
    "rotation_deg": "rotation error",
}  # fmt: skip
_COLOURS = ("before", "after")


def render(files: EvaluationFiles) -> str:
    """The page as text."""
    missing, summary = files.missing, files.summary
    sentence = part(missing, "the outcome is", lambda: outcome(files), "What was measured cannot be read.")
    shown, scenes = part(missing, "the clips are", lambda: _shown(files), ([], {"paths": [], "splats": []}))
    colours = dict(zip(files.arms, _COLOURS if len(files.arms) > 1 else _COLOURS[1:], strict=False))
    names = [name for name in dictionary(summary.get("measures")) if _measured(files, name)]
    return document(
        "evaluation.html",
        scenes=scenes,
        scenes_of=scenes,
        path_names=[("requested", "asked"), *colours.items()],
        name=files.path.resolve().name,
        sentence=sentence,
        missing=missing,
        arms=files.arms,
        colours=colours,
        rows=shown,
        num_clips=len(files.rows),
        measures=part(missing, "the measures are", lambda: _measures(files, names), []),
        empty=[_label(n) for n in dictionary(summary.get("measures")) if n not in names],
        groups=part(missing, "the tables by motion and theme are", lambda: _groups(files, names), []),
        published=part(missing, "the published figures are", lambda: _published(files), []),
        not_run=part(missing, "what was not run is", lambda: _not_run(files), []),
        clips=part(missing, "the list of clips is", lambda: _clips(files, names), {"rows": [], "columns": []}),
        facts=part(missing, "the settings are", lambda: _facts(files), []),
    )


def outcome(files: EvaluationFiles) -> str:
    """What was found, in one sentence: figures with intervals where there are some, and what could not be judged."""
    lines = list(files.lines())
    prompts = len({str(row.get("prompt")) for row in lines})
    text = "" if files.about.get("complete") is True else "Unfinished: "
    if not lines:
        return f"{text or 'Of this evaluation '}no clip has been measured."
    told = [words for name in _HEADLINE if (words := _headline(files, name))]
    size = f"{len(files.rows)} clip{_s(len(files.rows))} of {prompts} prompt{_s(prompts)}"
    if len(files.arms) == 2:
        verdicts = [row["verdict"] for row in _measures(files, list(dictionary(files.summary.get("measures"))))]
        better, worse, undecided = (verdicts.count(word) for word in ("better", "worse", "open"))
        decided = better + worse + undecided
        text += f"{files.arms[1]} against {files.arms[0]} on {size}"
        if decided:
            text += (
                f": better in {better} of {decided} measure{_s(decided)}, worse in {worse}, undecided in {undecided}"
            )
    else:
        text += size
    text += (": " if len(files.arms) < 2 else "; ") + ", ".join(told) if told else ""
    failed = sum(row.get("state") == "failed" for row in lines)
    failures = f"; {failed} of {len(lines)} videos could not be judged" if failed else ""
    return text[0].upper() + text[1:] + failures + "."


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _headline(files: EvaluationFiles, name: str) -> str:
    """One measure in words: "psnr 17.4 to 27.6 dB" or "psnr 20.1 dB [19.0, 21.2]"; empty where it was not measured."""
    arms = dictionary(files.summary.get("arms"))
    means = [number(dictionary(dictionary(arms.get(arm)).get(name)).get("mean")) for arm in files.arms]
    if not means or not all(map(math.isfinite, means)):
        return ""
    unit = str(dictionary(dictionary(files.summary.get("measures")).get(name)).get("unit") or "")
    words = f"{_label(name)} {' to '.join(figure(m) for m in means)} {unit}".strip()
    spread = interval(dictionary(dictionary(arms.get(files.arms[0])).get(name))) if len(means) == 1 else ""
    return f"{words} {spread}".strip()


def _measured(files: EvaluationFiles, name: str) -> bool:
    arms = dictionary(files.summary.get("arms"))
    return any(math.isfinite(number(dictionary(dictionary(a).get(name)).get("mean"))) for a in arms.values())


def _measures(files: EvaluationFiles, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row a measure: the arms' figures, their difference, and whether it is beyond chance and for the better."""
    arms, told = dictionary(files.summary.get("arms")), dictionary(files.summary.get("measures"))
    differences = dictionary(files.summary.get("differences"))
    out = []
    for name in names:
        about, difference = dictionary(told.get(name)), dictionary(differences.get(name))
        out.append({
            "label": _label(name),
            "unit": about.get("unit") or "",
            "definition": about.get("definition") or "",
            "better": {"up": "higher is better", "down": "lower is better"}.get(str(about.get("better")), ""),
            "arms": [_cell(dictionary(arms.get(arm)).get(name)) for arm in files.arms],
            "difference": _cell(difference),
            "verdict": verdict(difference, str(about.get("better"))),
        })  # fmt: skip
    return out


def _cell(value: Any) -> dict[str, Any]:
    found = dictionary(value)
    return {"count": _count(found.get("count")), **{k: _or_none(found.get(k)) for k in ("mean", "low", "high")}}


def verdict(difference: dict[str, Any], better: str) -> str:
    """What a difference says: "better", "worse", "open" (its interval holds 0), "changed" where neither way is better,
    or "" where there is no interval."""
    low, high = number(difference.get("low")), number(difference.get("high"))
    if not (math.isfinite(low) and math.isfinite(high)):
        return ""
    if low <= 0 <= high:
        return "open" if better in ("up", "down") else ""
    if better not in ("up", "down"):
        return "changed"
    return "better" if (low > 0) == (better == "up") else "worse"


def _groups(files: EvaluationFiles, names: Sequence[str]) -> list[dict[str, Any]]:
    """Tables by motion and by theme: a row a group and arm."""
    out = []
    for key, title in (("by_motion", "motion"), ("by_theme", "theme")):
        groups = dictionary(files.summary.get(key))
        columns = [name for name in _GROUP_COLUMNS if name in names]
        rows = []
        for group, arms in groups.items():
            for arm in files.arms:
                found = dictionary(dictionary(arms).get(arm))
                count = max((_count(dictionary(v).get("count")) for v in found.values()), default=0)
                cells = [_or_none(dictionary(found.get(name)).get("mean")) for name in columns]
                rows.append({"group": str(group), "arm": arm, "count": count, "cells": cells})
        if rows and columns:
            out.append({"title": title, "columns": [_label(name) for name in columns], "rows": rows})
    return out


def _clips(files: EvaluationFiles, names: Sequence[str]) -> dict[str, Any]:
    """The table of all clips."""
    columns = [name for name in _GROUP_COLUMNS if name in names]
    rows = [
        {
            "clip": row["clip"],
            "arm": row["arm"],
            "prompt": str(row.get("prompt") or ""),
            "state": str(row.get("state") or ""),
            "reason": str(row.get("reason") or ""),
            "cells": [_or_none(row["measures"].get(name)) for name in columns],
        }
        for row in files.lines()
    ]
    return {"columns": [_label(name) for name in columns], "rows": rows[:_MAX_LINES], "total": len(rows)}


def _not_run(files: EvaluationFiles) -> list[dict[str, str]]:
    found = files.about.get("not_run")
    rows = [dictionary(row) for row in found] if isinstance(found, list) else []
    return [{k: str(row.get(k) or "") for k in ("column", "reason", "how")} for row in rows]


def _facts(files: EvaluationFiles) -> list[tuple[str, str]]:
    about = files.about
    facts = [("reconstructor", str(about.get("reconstructor", "")))]
    facts += [(name, str(about[name])) for name in ("frames", "height", "width") if name in about]
    for group in ("environment", "settings"):
        facts += [(str(name), _shortened(str(value))) for name, value in dictionary(about.get(group)).items()]
    return facts


def _published(files: EvaluationFiles) -> list[dict[str, Any]]:
    """Tables of published figures (assets/published.json), this evaluation's own as last rows of one of them: the first
    of as many frames, or else the first; none where there is no file."""
    told, tables = dictionary(files.published.get("measures")), files.published.get("tables")
    found = [dictionary(table) for table in tables] if isinstance(tables, list) else []
    frames = _count(files.about.get("frames"))
    ours = next((k for k, table in enumerate(found) if table.get("frames") == frames), 0)
    out = []
    for k, table in enumerate(found):
        rows = [row for row in table.get("rows") or [] if isinstance(row, dict)]
        columns = [name for name in told if any(name in row for row in rows)]
        lines = [
            {"name": str(row.get("name")), "own": False, "cells": [_as_published(row.get(name)) for name in columns]}
            for row in rows
        ]
        for arm in files.arms if k == ours else ():
            means = dictionary(dictionary(files.summary.get("arms")).get(arm))
            names = [str(dictionary(told[name]).get("measure")) for name in columns]
            name = f"this evaluation, {arm}, {frames} frames, by {files.about.get('reconstructor')}"
            lines.append({"name": name, "own": True, "cells": [_cell(means.get(n))["mean"] for n in names]})
        heads = [dictionary(told[name]) for name in columns]
        out.append({
            **{key: str(table.get(key) or "") for key in ("title", "note", "source")},
            "columns": [(str(head.get("label") or name), str(head.get("unit") or "")) for head, name in
                        zip(heads, columns, strict=True)],
            "rows": lines,
        })  # fmt: skip
    return out


def _as_published(value: Any) -> str:
    """With the digits of the file, but for zeros at the end."""
    found = _or_none(value)
    return "" if found is None else f"{found:.12g}"


def choose_clips(files: EvaluationFiles) -> list[str]:
    """Which clips have pictures: the first of each motion, then the second of each, ... Outcomes play no part."""
    seen: Counter[str] = Counter()
    turns = []
    for clip, arms in files.rows.items():
        motion = str(next(iter(arms.values())).get("motion"))
        turns.append((seen[motion], clip))
        seen[motion] += 1
    return [clip for _, clip in sorted(turns, key=lambda turn: turn[0])][:MAX_SHOWN]


def _shown(files: EvaluationFiles) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Clips side by side, and what the script draws of them."""
    rows: list[dict[str, Any]] = []
    scenes: dict[str, Any] = {"paths": [], "splats": []}
    spent = 0
    for clip in choose_clips(files):
        arms = files.rows[clip]
        any_arm = next(iter(arms.values()))
        prompt = str(any_arm.get("prompt") or "")
        row: dict[str, Any] = {"clip": clip, "prompt": prompt, "cells": []}
        paths: list[dict[str, Any]] = []
        for arm in files.arms:
            line = arms.get(arm)
            if line is None:
                continue
            encoded, frames, why = _film(files, line)
            spent += len(encoded) if encoded else 0
            told = [
                f"{_label(n)} {figure(v)}" for n in _HEADLINE if (v := _or_none(line["measures"].get(n))) is not None
            ]
            row["cells"].append({
                "arm": arm, "clip": encoded, "why": why, "state": str(line.get("state") or ""),
                "reason": str(line.get("reason") or ""), "told": ", ".join(told),
            })  # fmt: skip
            with contextlib.suppress(OSError, ValueError, IndexError, np.linalg.LinAlgError):
                _scenes(files, line, arm, frames, paths, scenes)
        if rows and spent > sheets.MAX_BYTES:
            break
        rows.append(row)
        if paths:
            scenes["paths"].append({"name": f"{clip}: {prompt[:80]}", "paths": paths})
    return rows, scenes


def _scenes(
    files: EvaluationFiles,
    line: dict[str, Any],
    arm: str,
    frames: np.ndarray | None,
    paths: list[dict[str, Any]],
    scenes: dict[str, Any],
) -> None:
    """Add what the cameras of a line hold: the requested path once a clip, the recovered one, the reconstruction."""
    arrays = files.cameras(line)
    colour = _COLOURS[files.arms.index(arm) if len(files.arms) > 1 else 1]
    if not paths and (asked := arrays.get("requested_cam_c2w")) is not None:
        paths.append({"name": "requested", "colour": "asked", **orbit.path(asked, unit=True)})
    found = arrays.get("recovered_cam_c2w")
    if found is None:
        return
    paths.append({"name": arm, "colour": colour, **orbit.path(found, unit=True)})
    depth, K = arrays.get("depth"), arrays.get("K")
    room = len({splat["clip"] for splat in scenes["splats"]} | {line["clip"]}) <= _MAX_SPLATS
    if line.get("state") == "moving" and frames is not None and depth is not None and K is not None and room:
        cloud = orbit.splats(frames, depth, found, K)
        scenes["splats"].append({"clip": line["clip"], "name": f"{line['clip']}, {arm}", **cloud})


def _film(files: EvaluationFiles, line: dict[str, Any]) -> tuple[sheets.Clip | None, np.ndarray | None, str]:
    """A line's clip for the page and its frames, or why there are none."""
    file = files.video(line)
    if file is None:
        return None, None, "no video is named"
    try:
        if file.suffix.lower() == ".npz":
            frames = read_arrays(file, "a clip")["video"]
            frames = frames if frames.ndim != 4 or frames.shape[-1] != 3 else frames.transpose(0, 3, 1, 2)
        else:
            frames = sheets.read_frames(file, width=_count(files.about.get("width")))
        fps = number(dictionary(files.about.get("settings")).get("fps"))
        total = _count(line.get("frames") or files.about.get("frames"))
        return sheets.encode_clip(frames, fps=fps if fps > 0 else 8.0, num_frames=total), frames, ""
    except (OSError, ValueError, KeyError) as error:
        return None, None, str(error)


def _label(name: str) -> str:
    """A measure's name for the reader."""
    return _NAMES.get(name) or name.replace("_", " ")


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ... ({len(text)} characters)"


def _or_none(value: Any) -> float | None:
    found = number(value)
    return found if math.isfinite(found) else None


def _count(value: Any) -> int:
    found = number(value)
    return int(found) if math.isfinite(found) and found > 0 else 0
