"""Run directory -> report.html: what happened, whether the gates hold, and the pictures to judge it by."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from worldr1.camera.motion import parse_motion
from worldr1.config import TrainConfig, to_json
from worldr1.report import plots, sheets
from worldr1.report.load import RunFiles, load_run, number
from worldr1.run.files import told, write_text

_TEMPLATE = Path(__file__).parent / "template.html"
_SCRIPT = Path(__file__).parent / "page.js"
_CONTROLS = {"permuted": "Control run, rewards shuffled inside each group: ", "random": "Control run, random rewards: "}


def write_report(run_dir: Path) -> Path:
    """Write RUN_DIR/report.html from the files of the run; the page needs nothing outside itself.

    Args:
      run_dir: `output_dir` of a run, finished or stopped early.
    Returns:
      Path of the page; an older page is replaced in one step.
    Raises:
      ValueError: run_dir is no run directory.
      RuntimeError: the page cannot be written.
    """
    run = load_run(run_dir)
    html = render(run)
    target = run.path / "report.html"
    try:
        write_text(target, html)
    except OSError as error:
        raise RuntimeError(f"report: {target} must be writable, got {error}; free space or change its mode") from error
    return target


def render(run: RunFiles) -> str:
    """The page as text. Every string that comes from a file is escaped by the template engine."""
    script = _SCRIPT.read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["figure"] = figure

    def part(what: str, make: Callable[[RunFiles], Any], otherwise: Any) -> Any:
        # The numbers of a damaged file may be anything that JSON or an array can hold: what cannot be drawn of them
        # costs its own part of the page.
        try:
            return make(run)
        except Exception as error:
            run.missing.append(f"The files hold what cannot be shown ({told(error)}): {what} left out.")
            return otherwise

    unknown = "The outcome of this run cannot be read from its files."
    sentence, mood = part("the outcome is", outcome, (unknown, "none"))
    rows, num_samples = part("the videos are", _sample_rows, ([], 0))
    nothing = {"curves": [], "prompts": [], "files": [], "after": "", "video": ""}
    parts = {
        "gates": part("the gates are", _gates, []),
        "measures": part("the measures are", _measures, []),
        "validation": part("the validations are", _validation, nothing),
        "curves": part("the curves are", _curves, []),
        "motions": part("the motions are", _motions, {"rows": [], "svg": ""}),
        "facts": part("the facts of the run are", _facts, []),
        "settings": part("the settings are", _settings, []),
    }
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        sentence=sentence,
        mood=mood,
        run_name=run.path.resolve().name,
        missing=run.missing,
        rows=rows,
        num_samples=num_samples,
        **parts,
        script=Markup(script),
        script_hash=Markup(base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()),
    )


def outcome(run: RunFiles) -> tuple[str, str]:
    """What the run shows, in one sentence, and how the page should colour it: good, mixed or none."""
    prefix = _CONTROLS.get(str(run.study.get("control", "none")), "")
    if run.environment.get("random_weights"):
        prefix = "Random weights, a rehearsal: these scores mean nothing. " + prefix
    measures = _dict(run.study.get("metrics"))
    what, measure = "obedience to the camera", _dict(measures.get("obedience"))
    if measures and not measure:  # a study without labels
        what, measure = "camera score (S_traj by the evaluator)", _dict(measures.get("trajectory_score"))
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
    """The newest validation in a sentence; an empty string where there is none."""
    newest = run.validation[-1] if run.validation else {}
    reward = _dict(newest.get("reward"))
    base, adapter, gain, stderr = (number(reward.get(k)) for k in ("base", "adapter", "gain", "stderr"))
    if not math.isfinite(gain):
        return ""
    spread = f" ± {figure(stderr)}" if math.isfinite(stderr) else ""
    return (
        f"After {newest['iteration'] + 1} iterations: reward {figure(base)} to {figure(adapter)} ({gain:+.3f}{spread}) "
        f"on {reward.get('num')} validation prompts; no before/after study yet."
    )


def _validation(run: RunFiles) -> dict[str, Any]:
    """Curves of the validations, and the newest sheets: inside the page where small, else by name beside it."""
    curves = []
    names = dict.fromkeys(name for row in run.validation for name in _dict(row.get("terms")))
    for name in [None, *names]:
        figures = [row.get("reward") if name is None else _dict(row.get("terms")).get(name) for row in run.validation]
        rows = [_dict(value) for value in figures]
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


def figure(value: Any) -> str:
    """A measured number as text: three significant places or three decimals; an empty string where there is none."""
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value)
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return "not finite"
    if value and abs(value) < 0.001:
        return f"{value:.1e}"
    text = f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"
    return text.removeprefix("-") if value == 0 else text


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
    for name, measure in _dict(run.study.get("metrics")).items():
        measure = _dict(measure)
        out.append({
            "label": name.replace("_", " "),
            "definition": measure.get("definition", ""),
            "unit": measure.get("unit", ""),
            **{k: measure.get(k) for k in ("before", "after", "gain", "stderr")},
        })  # fmt: skip
    return out


def _sample_rows(run: RunFiles) -> tuple[list[dict[str, Any]], int]:
    """The contact sheet: one entry a sample shown, and how many samples there are in all."""
    s = run.samples
    if not s:
        return [], 0
    fps = number(_dict(run.config.get("video")).get("fps"))
    prompts = [str(p) for p in s["prompts"]] if "prompts" in s else []
    prompts += [""] * (s["before"].shape[0] - len(prompts))
    wanted = number(_dict(run.config.get("evaluation")).get("num_sheet_rows"))
    chosen = choose_rows(prompts[: s["before"].shape[0]], int(wanted) if wanted >= 1 else 9)
    pairs = sheets.encode_pairs(s["before"][chosen], s["after"][chosen], fps=fps if fps > 0 else 8.0)
    rows = []
    for i, (before, after) in zip(chosen, pairs, strict=False):  # the budget may end the pairs first
        prompt, paths = prompts[i], _paths(s, i)
        rows.append({
            "prompt": prompt,
            "before": before,
            "after": after,
            "obeyed": [_flag(s, name, i) for name in ("obeyed_before", "obeyed_after")],
            "path": Markup(plots.top_view(paths, f"Camera path from above: {prompt}") if paths else ""),
            "errors": Markup(plots.path_errors(paths, f"Path in 3D, error per frame: {prompt}") if paths else ""),
        })  # fmt: skip
    return rows, s["before"].shape[0]


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
    terms = list(dict.fromkeys(name for row in rows for name in _dict(row.get("terms"))))
    series = [("total reward", [(number(row.get("reward")), number(row.get("reward_stderr"))) for row in rows])]
    for term in terms:
        values = [_dict(_dict(row.get("terms")).get(term)) for row in rows]
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
    for motion, value in _dict(run.study.get("per_motion")).items():
        value = _dict(value)
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


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
