"""The files of an evaluation's folder, read with tolerance: one that goes on or was stopped has a page too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from worldr1.report.load import dictionary, load_json
from worldr1.run.files import read_arrays

_SCHEMA = 1
PUBLISHED = Path(__file__).parent.parent / "assets" / "published.json"


@dataclass(frozen=True)
class EvaluationFiles:
    """What an evaluation's folder holds. A file absent or damaged leaves its field empty and a line in `missing`."""

    path: Path
    about: dict[str, Any]  # evaluation.json
    arms: tuple[str, ...]
    rows: dict[str, dict[str, dict[str, Any]]]  # clip -> arm -> line of clips.jsonl, in the order of the file
    summary: dict[str, Any]
    published: dict[str, Any]
    missing: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[dict[str, Any]]:
        """All lines of clips.jsonl."""
        for arms in self.rows.values():
            yield from arms.values()

    def video(self, row: dict[str, Any]) -> Path | None:
        """The file of a line's clip, where one is named."""
        name = row.get("file")
        return self.path / name if isinstance(name, str) and name else None  # an absolute name stays what it is

    def cameras(self, row: dict[str, Any]) -> dict[str, np.ndarray]:
        """Arrays of a line's cameras: those of the contract's shapes that are finite. OSError, ValueError: no file."""
        arm, clip = str(row["arm"]), str(row["clip"])
        arrays = read_arrays(self.path / "cameras" / arm / f"{clip}.npz", "an archive of numpy arrays")
        return {name: a for name, a in arrays.items() if a.dtype.kind == "f" and a.size and np.isfinite(a).all()}


def is_evaluation(folder: Path) -> bool:
    """Whether a folder is an evaluation's and not a run's."""
    return not (folder / "config.json").exists() and any(
        (folder / name).is_file() for name in ("evaluation.json", "clips.jsonl", "summary.json")
    )


def load_evaluation(folder: Path) -> EvaluationFiles:
    """Read an evaluation's folder; `missing` says in whole sentences what could not be read."""
    folder = Path(folder)
    missing: list[str] = []
    about = load_json(folder / "evaluation.json", "settings, and what was not run,", missing)
    if about and about.get("schema") != _SCHEMA:
        missing.append(f"evaluation.json is of schema {about.get('schema')!r}; this page knows {_SCHEMA}.")
    rows = _clips(folder / "clips.jsonl", missing)
    summary = load_json(folder / "summary.json", "means and intervals", missing)
    seen = dict.fromkeys(arm for arms in rows.values() for arm in arms)
    told = about.get("arms")
    arms = tuple(str(a) for a in told) if isinstance(told, list) and told else tuple(seen) or ("videos",)
    published = load_json(PUBLISHED, "published figures", missing) if PUBLISHED.is_file() else {}
    return EvaluationFiles(folder, about, arms[:2], rows, summary, published, missing)


def _clips(path: Path, missing: list[str]) -> dict[str, dict[str, dict[str, Any]]]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        missing.append(f"No {path.name}: no clip is shown.")
        return {}
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    damaged = 0
    for line in lines:
        try:
            row = json.loads(line)
            clip, arm = row["clip"], row["arm"]
            assert isinstance(clip, str) and isinstance(arm, str)
        except (ValueError, KeyError, TypeError, RecursionError, AssertionError):
            damaged += bool(line.strip())
            continue
        row["measures"] = dictionary(row.get("measures"))
        rows.setdefault(clip, {})[arm] = row
    if damaged:
        missing.append(f"{path.name}: {damaged} damaged line(s) left out.")
    if not rows:
        missing.append(f"{path.name} holds no clip: none is shown.")
    return rows
