"""A run's files -> its page: what happened, whether the gates hold, and the pictures to judge it by."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from markupsafe import Markup

from worldr1.camera.motion import parse_motion
from worldr1.config import TrainConfig, to_json
from worldr1.report import orbit, plots, sheets
from worldr1.report.document import document, figure, part
from worldr1.report.load import RunFiles, dictionary, number

REFRESH_S = 30
"""A page of a run that goes on loads itself again after so many seconds."""
_CONTROLS = {"permuted": "Control run, rewards shuffled inside each group: ", "random": "Control run, random rewards: "}


def render(run: RunFiles, *, live: bool = False) -> str:
    """The page as text; `live`: it loads itself again every REFRESH_S seconds."""
    missing = run.missing
    unknown = "The outcome of this run cannot be read from its files."
    sentence, mood = part(missing, "the outcome is", lambda: outcome(run), (unknown, "none"))
    rows, num_samples, paths = part(missing, "the videos are", lambda: _sample_rows(run), ([], 0, []))
    nothing = {"curves": [], "prompts": [], "files": [], "after": "", "video": ""}
    return document(
        "run.html",
        scenes={"paths": paths, "splats": []},
        refresh_s=REFRESH_S if live else 0,
        name=run.path.resolve().name,
        sentence=sentence,
        mood=mood,
        missing=missing,
        rows=rows,
        num_samples=num_samples,
        gates=part(missing, "the gates are", lambda: _gates(run), []),
        measures=part(missing, "the measures are", lambda: _measures(run), []),
        held_out=part(missing, "the obedience while training is", lambda: _held_out(run), ""),
        validation=part(missing, "the validations are", lambda: _validation(run), nothing),
        curves=part(missing, "the curves are", lambda: _curves(run), []),
        motions=part(missing, "the motions are", lambda: _motions(run), {"rows": [], "svg": ""}),
        facts=part(missing, "the facts of the run are", lambda: _facts(run), []),
        settings=part(missing, "the settings are", lambda: _settings(run), []),
    )


def outcome(run: RunFiles) -> tuple[str, str]:
    """What the run shows, in one sentence, and how the page should colour it: good, mixed or none."""
    prefix = _CONTROLS.get(str(run.study.get("control", "none")), "")
    if run.environment.get("random_weights"):
        prefix = "Random weights, a rehearsal: these scores mean nothing. " + prefix
    measures = dictionary(run.study.get("metrics"))
    what, measure = "obedience to the camera", dictionary(measures.get("obedience"))
    if measures and not measure:  # a study without labels
        what, measure = "camera score (S_traj by the evaluator)", dictionary(measures.get("trajectory_score"))
    before, after, gain = (number(measure.get(k)) for k in ("before", "after", "gain"))
    if not math.isfinite(gain):
        return prefix + (_so_far(run) or _no_study(run)), "none"
    stderr, count = number(measure.get("stderr")), run.study.get("num_samples")
    ratio = gain / stderr if stderr > 0 else math.nan
    verdicts = [gate["passed"] for gate in _gates(run) if gate["passed"] is not None]
    passed = sum(verdicts)
    size = f" on {count} held-out samples" if isinstance(count, int) else ""
    sure = math.isfinite(ratio) and abs(ratio) > 2
    verb = "rose" if gain > 0 and sure else "fell" if gain < 0 and sure else "did not change beyond chance"
    spread = f" ± {figure(stderr)}, {abs(ratio):.1f} s.e." if math.isfinite(ratio) else ""
    text = f"{prefix}{what} {verb}: {figure(before)} to {figure(after)} ({gain:+.3f}{spread}){size}"
    if verdicts:
        text += f"; {passed} of {len(verdicts)} gates hold."
    mood = "none" if prefix else "good" if verdicts and passed == len(verdicts) else "mixed"
    return text[0].upper() + text[1:], mood


def _no_study(run: RunFiles) -> str:
    return f"No before/after study: {len(run.metrics)} iterations trained, and no gain is claimed."


def _so_far(run: RunFiles) -> str:
    """The newest validation, or look at held-out prompts, in a sentence; an empty string where there is none."""
    newest = run.validation[-1] if run.validation else {}
    reward = dictionary(newest.get("reward"))
    base, adapter, gain, stderr = (number(reward.get(k)) for k in ("base", "adapter", "gain", "stderr"))
    if not math.isfinite(gain):
        return _seen_last(run)
    spread = f" ± {figure(stderr)}" if math.isfinite(stderr) else ""
    return (
        f"After {_iterations(newest['iteration'] + 1)}: reward {figure(base)} to {figure(adapter)} "
        f"({gain:+.3f}{spread}) on {reward.get('num')} validation prompts; no before/after study yet."
    )


def _seen_last(run: RunFiles) -> str:
    newest = run.held_out[-1] if run.held_out else {}
    obedience = dictionary(newest.get("obedience"))
    mean, stderr = (number(obedience.get(k)) for k in ("mean", "stderr"))
    if not math.isfinite(mean):
        return ""
    spread = f" ± {figure(stderr)}" if math.isfinite(stderr) else ""
    return (
        f"After {_iterations(newest['iteration'] + 1)}: obedience to the camera {figure(mean)}{spread} on "
        f"{obedience.get('num')} held-out samples; no before/after study yet."
    )


def _validation(run: RunFiles) -> dict[str, Any]:
    """Curves of the validations, and the newest sheets: inside the page where small, else by name beside it."""
    curves = []
    names = dict.fromkeys(name for row in run.validation for name in dictionary(row.get("terms")))
    for name in [None, *names]:
        figures = [
            row.get("reward") if name is None else dictionary(row.get("terms")).get(name) for row in run.validation
        ]
        rows = [dictionary(value) for value in figures]
        base, adapter, stderr = (
            np.array([number(r.get(k)) for r in rows], dtype=float) for k in ("base", "adapter", "stderr")
        )
        if np.isfinite(adapter).any():
            done = np.array([row["iteration"] + 1 for row in run.validation], dtype=float)
            label = name or "total reward"
            curve = plots.Curve(label, done, adapter, stderr)
            curves.append({"label": label, "svg": Markup(plots.validation_curve(curve, base))})
    prompts = run.validation[-1].get("prompts") if run.validation else None
    prompts = [str(p) for p in prompts] if isinstance(prompts, list) else []
    files = [{"name": p.name, "link": p.relative_to(run.path).as_posix()} for p in run.sheets]
    grid = run.sheets[0] if run.sheets else None
    small = grid is not None and grid.stat().st_size <= sheets.MAX_VIDEO_BYTES
    return {
        "curves": curves,
        "prompts": prompts,
        "files": files,
        "after": run.sheets[0].parent.name.removeprefix("iteration_").lstrip("0") if run.sheets else "",
        "video": sheets.video_uri(grid) if small and grid is not None else "",
    }


def _gates(run: RunFiles) -> list[dict[str, Any]]:
    gates = run.study.get("gates")
    out = []
    for gate in gates if isinstance(gates, list) else []:
        if isinstance(gate, dict):
            passed = gate.get("passed")
            out.append({
                "label": gate.get("label", gate.get("name", "")),
                "value": gate.get("value"),
                "stderr": gate.get("stderr"),
                "threshold": gate.get("threshold", ""),
                "passed": passed if isinstance(passed, bool) else None,
                "note": gate.get("note", ""),
            })  # fmt: skip
    return out


def _measures(run: RunFiles) -> list[dict[str, Any]]:
    out = []
    for name, measure in dictionary(run.study.get("metrics")).items():
        measure = dictionary(measure)
        out.append({
            "label": name.replace("_", " "),
            "definition": measure.get("definition", ""),
            "unit": measure.get("unit", ""),
            **{k: measure.get(k) for k in ("before", "after", "gain", "stderr")},
        })  # fmt: skip
    return out


def _sample_rows(run: RunFiles) -> tuple[list[dict[str, Any]], int, list[dict[str, Any]]]:
    """Before and after: an entry a sample shown, how many samples there are in all, and the paths of those shown."""
    s = run.samples
    if not s:
        return [], 0, []
    fps = number(dictionary(run.config.get("video")).get("fps"))
    before, after = s["before"], s["after"]
    prompts = [str(p) for p in s["prompts"]] if "prompts" in s else []
    prompts += [""] * (len(before) - len(prompts))
    wanted = number(dictionary(run.config.get("evaluation")).get("num_sheet_rows"))
    chosen = choose_rows(prompts[: len(before)], int(wanted) if wanted >= 1 else 9)
    pairs = sheets.encode_rows(((before[i], after[i]) for i in chosen), fps=fps if fps > 0 else 8.0)
    rows, in_space = [], []
    for i, clips in zip(chosen, pairs, strict=False):  # the budget may end the pairs first
        prompt, paths = prompts[i], _paths(s, i)
        rows.append({
            "prompt": prompt,
            "cells": [
                {"name": name, "clip": clip, "obeyed": _flag(s, f"obeyed_{name}", i)}
                for name, clip in zip(("before", "after"), clips, strict=True)
            ],
            "path": Markup(plots.top_view(paths, f"Camera path from above: {prompt}") if paths else ""),
            "errors": Markup(plots.path_errors(paths, f"Path in 3D, error per frame: {prompt}") if paths else ""),
        })  # fmt: skip
        if paths:
            in_space.append({"name": prompt or f"sample {i}", "paths": [_in_space(*path) for path in paths]})
    return rows, len(before), in_space


def _in_space(name: str, colour: str, viewmats: np.ndarray) -> dict[str, Any]:
    return {"name": name, "colour": plots.VARIABLES[colour], **orbit.path(np.linalg.inv(viewmats), unit=False)}


def _held_out(run: RunFiles) -> Markup | str:
    """The curve of obedience on held-out prompts; an empty string where nothing was measured while training."""
    points = [(number(row["iteration"]) + 1, dictionary(row.get("obedience"))) for row in run.held_out]
    watched = [(i, number(m.get("mean")), number(m.get("stderr"))) for i, m in points]
    watched = [point for point in watched if math.isfinite(point[1])]
    study = dictionary(dictionary(run.study.get("metrics")).get("obedience"))
    ends = [(0.0, number(study.get("before"))), (float(len(run.metrics)), number(study.get("after")))]
    ends = [(i, mean) for i, mean in ends if math.isfinite(mean)]
    return Markup(plots.obedience_curve(watched, ends)) if watched else ""


def choose_rows(prompts: list[str], num: int) -> list[int]:
    """Which samples the sheet shows: the first of each camera motion, then of the rest. Outcomes play no part."""
    first: dict[tuple[str, ...], int] = {}
    for i, prompt in enumerate(prompts):
        first.setdefault(tuple(token.kind for token in parse_motion(prompt)), i)
    firsts = list(first.values())
    taken = set(firsts)
    return (firsts + [i for i in range(len(prompts)) if i not in taken])[:num]


def _paths(samples: dict[str, np.ndarray], i: int) -> list[tuple[str, str, np.ndarray]]:
    """(name, colour, viewmats) of the cameras of a sample that the file holds."""
    found = []
    for key, name, colour in (
        ("requested", "requested", plots.ASKED),
        ("recovered_before", "before", plots.BEFORE),
        ("recovered_after", "after", plots.AFTER),
    ):
        viewmats = samples.get(key)
        if viewmats is None or viewmats.ndim != 4 or viewmats.shape[2:] != (4, 4) or i >= viewmats.shape[0]:
            continue
        if viewmats.shape[1] and np.isfinite(viewmats[i].astype(float)).all():
            found.append((name, colour, viewmats[i].astype(float)))
    return found


def _flag(samples: dict[str, np.ndarray], name: str, i: int) -> bool | None:
    values = samples.get(name)
    return bool(values[i]) if values is not None and values.ndim == 1 and i < values.shape[0] else None


def _curves(run: RunFiles) -> list[dict[str, Any]]:
    rows = run.metrics
    if not rows:
        return []
    iterations = np.array([row["iteration"] for row in rows], dtype=float)
    dynamic = np.array([row.get("phase") == "dynamic" for row in rows])
    terms = list(dict.fromkeys(name for row in rows for name in dictionary(row.get("terms"))))
    series = [("total reward", [(number(row.get("reward")), number(row.get("reward_stderr"))) for row in rows])]
    for term in terms:
        values = [dictionary(dictionary(row.get("terms")).get(term)) for row in rows]
        series.append((term, [(number(v.get("mean")), number(v.get("stderr"))) for v in values]))
    out = []
    for label, points in series:
        figures = np.array(points, dtype=float)
        if np.isfinite(figures[:, 0]).any():
            curve = plots.Curve(label, iterations, figures[:, 0], figures[:, 1])
            out.append({"label": label, "svg": Markup(plots.reward_curve(curve, dynamic))})
    return out


def _motions(run: RunFiles) -> dict[str, Any]:
    rows = []
    for motion, value in dictionary(run.study.get("per_motion")).items():
        value = dictionary(value)
        before, after, num = number(value.get("before")), number(value.get("after")), number(value.get("num"))
        if math.isfinite(before) and math.isfinite(after):
            rows.append((str(motion), before, after, int(num) if num > 0 else 0))
    return {"rows": rows, "svg": Markup(plots.obedience_bars(rows)) if rows else ""}


def _facts(run: RunFiles) -> list[tuple[str, str]]:
    facts = []
    if run.config:
        facts.append(("seed", str(run.config.get("seed", ""))))
        facts.append(("iterations", f"{len(run.metrics)} of {run.config.get('max_iterations', '?')}"))
    seconds = [number(row.get("seconds")) for row in run.timings]
    if seconds and math.isfinite(sum(seconds)):
        facts.append(("training time", f"{sum(seconds):.0f} s, {sum(seconds) / len(seconds):.2f} s an iteration"))
    if math.isfinite(number(run.study.get("seconds"))):
        facts.append(("judging time", f"{number(run.study['seconds']):.0f} s"))
    for name, value in run.environment.items():
        if value == []:
            continue
        shown = " ".join(str(v) for v in value) if isinstance(value, list) else figure(value)
        facts.append((name.replace("_", " "), shown))
    return facts


def _settings(run: RunFiles) -> list[tuple[str, str, bool]]:
    """Every setting as (name, value, differs from the default)."""
    default = dict(_flat(to_json(TrainConfig())))
    return [(name, str(value), name in default and default[name] != value) for name, value in _flat(run.config)]


def _flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for name, value in tree.items():
        out += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return out


def _iterations(num: int) -> str:
    return f"{num} iteration" + ("" if num == 1 else "s")
