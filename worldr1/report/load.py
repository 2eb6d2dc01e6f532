"""The files of a run directory, read with tolerance: a run that stopped early has a page too."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from worldr1.run.files import numbered, read_arrays, read_json
from worldr1.run.video import num_frames_of


@dataclass(frozen=True)
class RunFiles:
    """What a run directory holds. A file absent or damaged leaves its field empty and a sentence in `missing`."""

    path: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]  # one an iteration, in order
    timings: list[dict[str, Any]]
    study: dict[str, Any]
    validation: list[dict[str, Any]]  # one a validation, in order; empty where none was asked for
    held_out: list[dict[str, Any]]  # one a look at held-out prompts while training: iteration, obedience
    sheets: list[Path]  # .mp4 of the newest validation: the grid of all prompts first
    samples: dict[str, np.ndarray]  # before, after uint8 [n, F, 3, H, W]; prompts [n]; viewmats [n, F, 4, 4]
    missing: list[str] = field(default_factory=list)


def load_run(run_dir: Path) -> RunFiles:
    """Read a run directory.

    Args:
      run_dir: `output_dir` of a run.
    Returns:
      RunFiles; `missing` says in whole sentences what could not be read.
    Raises:
      ValueError: run_dir is not a folder, or holds no file of a run at all.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise ValueError(
            f"report: the folder must be the output_dir of a run or of an evaluation, got {run_dir} (no such folder)"
        )
    missing: list[str] = []
    config = load_json(run_dir / "config.json", "settings", missing)
    metrics = load_lines(run_dir / "metrics.jsonl", "reward curves", missing)
    timings = load_lines(run_dir / "timings.jsonl", "times", missing)
    environment = load_json(run_dir / "environment.json", "versions of the machine", missing)
    study = load_json(run_dir / "evaluation" / "study.json", "before/after figures and gates", missing)
    samples = _samples(run_dir / "evaluation" / "samples.npz", missing)
    validation_folder = run_dir / "validation"
    validation: list[dict[str, Any]] = []
    if (validation_folder / "validation.jsonl").is_file():
        validation = load_lines(validation_folder / "validation.jsonl", "validation curves", missing)
    held_out: list[dict[str, Any]] = []
    if (validation_folder / "obedience.jsonl").is_file():
        held_out = load_lines(validation_folder / "obedience.jsonl", "curve of obedience", missing)
    if not (config or metrics or study or samples):
        raise ValueError(
            "report: a run's folder must hold config.json, metrics.jsonl or evaluation/, an evaluation's "
            f"evaluation.json, clips.jsonl or summary.json, got {run_dir} with none of them"
        )
    asked = config.get("max_iterations")
    done = len(metrics)
    if isinstance(asked, int) and done < asked:
        missing.append(f"{done} of {asked} iterations are done: the run goes on, or was stopped.")
    sheets = _newest_sheets(validation_folder, missing)
    return RunFiles(
        run_dir, config, environment, metrics, timings, study, validation, held_out, sheets, samples, missing
    )


def number(value: Any) -> float:
    """A JSON value as a float; NaN where it is not a number."""
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:  # an integer of hundreds of digits
        return math.nan


def dictionary(value: Any) -> dict[str, Any]:
    """A JSON object; an empty one in place of anything else."""
    return value if isinstance(value, dict) else {}


def load_json(path: Path, what: str, missing: list[str]) -> dict[str, Any]:
    """The object of a JSON file; an empty one and a line in `missing` where it cannot be read."""
    try:
        return read_json(path, "a JSON object")
    except FileNotFoundError:
        missing.append(f"No {path.name}: the {what} are not shown.")
    except (OSError, ValueError) as error:
        missing.append(f"{path.name} cannot be read ({error}): the {what} are not shown.")
    return {}


def load_lines(path: Path, what: str, missing: list[str]) -> list[dict[str, Any]]:
    """Lines of a file that have an iteration, in its order; damaged ones are left out and counted in `missing`."""
    try:
        lines = path.read_bytes().splitlines()  # a damaged byte costs its own line
    except OSError:
        missing.append(f"No {path.name}: the {what} are not shown.")
        return []
    rows: dict[int, dict[str, Any]] = {}
    damaged = 0
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            damaged += bool(line.strip())
            continue
        if isinstance(row, dict) and type(row.get("iteration")) is int and 0 <= row["iteration"] < 2**53:
            rows[row["iteration"]] = row  # a resumed run may repeat an iteration: the later line holds
        else:
            damaged += 1
    if damaged:
        missing.append(f"{path.name}: {damaged} damaged line(s) left out.")
    if not rows:
        missing.append(f"{path.name} holds no iteration: the {what} are not shown.")
    return [rows[k] for k in sorted(rows)]


def _newest_sheets(folder: Path, missing: list[str]) -> list[Path]:
    """Files of the newest validation whose grid can be played; one that is being written has whole files only."""
    for _, newest in reversed(numbered(folder)):
        whole = (p for p in newest.glob("*.mp4") if not p.name.startswith("."))
        found = sorted(whole, key=lambda p: (len(p.name), p.name))  # grid.mp4, prompt_00.mp4 ... prompt_100.mp4
        if found and found[0].name == "grid.mp4":  # written last
            try:
                num_frames_of(found[0])
            except (OSError, ValueError) as error:
                missing.append(f"The grid of {newest.name} cannot be played ({error}): an older one is shown, if any.")
            else:
                return found
    return []


def _samples(path: Path, missing: list[str]) -> dict[str, np.ndarray]:
    try:
        arrays = read_arrays(path, "an archive of numpy arrays")
    except FileNotFoundError:
        missing.append(f"No evaluation/{path.name}: the videos and trajectories are not shown.")
        return {}
    except (OSError, ValueError) as error:
        missing.append(f"evaluation/{path.name} cannot be read ({error}): the videos and trajectories are not shown.")
        return {}
    before, after = arrays.get("before"), arrays.get("after")
    ok = before is not None and after is not None and before.dtype == np.uint8 and before.shape == after.shape
    if not ok or before is None or before.ndim != 5 or before.shape[2] != 3 or 0 in before.shape:
        missing.append(
            f"evaluation/{path.name} must hold before and after, uint8 [n, F, 3, H, W]: no videos are shown."
        )
        return {}
    return arrays
