"""The folder of an evaluation: what is in it, and how an interrupted one goes on.

OUT/
    evaluation.json     settings, versions, what was not run, whether it is complete
    clips.jsonl         a line a clip and arm, in order, each written when the clip is done
    summary.json        means with intervals, at the end
    videos/ARM/0007.mp4 clips that were made here
    cameras/ARM/0007.npz requested_cam_c2w, recovered_cam_c2w [F, 4, 4] camera-to-world; K [3, 3], depth [F, h, w]
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from worldr1.run.files import read_json, whole, write_json, write_text
from worldr1.run.metrics import plain

SCHEMA = 1
OURS = ("evaluation.json", "clips.jsonl", "summary.json", "videos", "cameras", "report.html")
OTHERS = ("config.json", "metrics.jsonl", "checkpoints")
"""Files of a run: its folder is not an evaluation's."""


class EvaluationFolder:
    """Reads and writes an evaluation's files; rank 0 alone uses it to write `clips.jsonl` and what is beside it."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def open(self, settings: Mapping[str, Any]) -> None:
        """Make sure that the folder is free, or holds an evaluation of these very settings.

        Raises:
          ValueError: it holds something else, or an evaluation of other settings; the first one that differs is named.
        """
        file = self.path / "evaluation.json"
        if not file.is_file():
            there = [name for name in (*OURS, *OTHERS) if (self.path / name).exists()]
            if there:
                raise ValueError(
                    f"evaluate: {self.path} must be an evaluation's folder, or one without files of their names, got "
                    f"{', '.join(there)} and no evaluation.json; choose another --output-dir"
                )
            return
        found = read_json(file, "the evaluation.json of an evaluation")
        if found.get("schema") != SCHEMA or not isinstance(found.get("settings"), dict):
            raise ValueError(
                f"evaluate: {file} must be of schema {SCHEMA}, got {found.get('schema')!r}; choose another --output-dir"
            )
        old, new = _flat(found["settings"]), _flat(plain(dict(settings)))
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                raise ValueError(
                    f"evaluate: {self.path} holds an evaluation with {name} = {old.get(name)!r}, and this one has "
                    f"{new.get(name)!r}; choose another --output-dir, or the same settings to go on with it"
                )

    def describe(self, values: Mapping[str, Any]) -> None:
        """Write evaluation.json."""
        write_json(self.path / "evaluation.json", plain({"schema": SCHEMA, **values}))

    def rows(self, order: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        """The lines that are done: the longest beginning of `order`, (clip, arm) each, that the file holds whole.

        What comes after it (a line cut short) is taken off the file.
        """
        path = self.path / "clips.jsonl"
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if path.is_file() else []
        found: list[dict[str, Any]] = []
        for line, key in zip(lines, order, strict=False):
            try:
                row = json.loads(line)
                good = line.endswith("\n") and (row["clip"], row["arm"]) == key and isinstance(row["measures"], dict)
            except (ValueError, KeyError, TypeError, RecursionError):
                good = False
            if not good:
                break
            found.append(row)
        if len(found) < len(lines):
            write_text(path, "".join(lines[: len(found)]))
        return found

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add lines to clips.jsonl."""
        text = "".join(json.dumps(plain(dict(row))) + "\n" for row in rows)
        with (self.path / "clips.jsonl").open("a", encoding="utf-8") as file:
            file.write(text)

    def write_cameras(self, clip: str, arm: str, arrays: Mapping[str, Tensor]) -> None:
        """Write the cameras of a clip; nothing where there are none."""
        path = self.path / "cameras" / arm / f"{clip}.npz"
        if not arrays:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as unfinished, unfinished.open("wb") as file:
            found: dict[str, Any] = {name: value.numpy() for name, value in arrays.items()}
            np.savez_compressed(file, **found)

    def video(self, clip: str, arm: str) -> Path:
        """Where a clip that is made here goes; its folder is there."""
        path = self.path / "videos" / arm / f"{clip}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


Row = dict[str, Any]
"""A line of clips.jsonl."""


def measure_of(row: Mapping[str, Any], name: str) -> float:
    """A measure of a line; NaN for null."""
    value = row["measures"].get(name)
    return math.nan if value is None else float(value)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in tree.items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return out
