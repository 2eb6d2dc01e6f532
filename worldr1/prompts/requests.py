"""Files of clips to make or to evaluate: a prompt a line, and in .jsonl what else belongs to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from worldr1.prompts.sampler import read_prompts
from worldr1.run.files import reading


class ClipRequest(NamedTuple):
    """One clip. What is None is left to the settings of the command."""

    prompt: str
    seed: int | None = None
    sample_id: int | None = None  # which of the draws of a seed
    negative_prompt: str | None = None
    camera: Path | None = None  # a pose file; None: the words of the prompt, or the command's
    theme: str | None = None  # that tables of an evaluation are grouped by


def read_requests(path: Path) -> list[ClipRequest]:
    """The clips of a .jsonl file (a line an object of `prompt`, `seed`, `sample_id`, `negative_prompt`, `camera`,
    `theme`; all but the first may be left out), or of a text file, one prompt a line.

    `camera` is a path, from the folder of the file, or "words". Other keys are left to other commands.

    Raises:
      ValueError: as `prompts.sampler.read_prompts`; a line of a .jsonl that is no such object, by its number.
    """
    path = Path(path)
    if path.suffix.lower() != ".jsonl":
        return [ClipRequest(prompt) for prompt in read_prompts(path)]
    try:
        with reading(path, "a .jsonl file of prompts"):
            lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ValueError(f"prompts: file must be readable, got {path} ({error.strerror or error})") from error
    found = [_request(line, path, number) for number, line in enumerate(lines, start=1) if line.strip()]
    if not found:
        raise ValueError(f"prompts: {path} must hold at least one prompt, got an empty file")
    return found


def _request(line: str, path: Path, number: int) -> ClipRequest:
    where = f"prompts: {path} line {number}"
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} must be JSON, got {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        raise ValueError(f'{where} must be an object with a "prompt", a text that is not empty, got {line[:100]}')
    for name, limit in (("seed", 2**63), ("sample_id", 2**32)):
        value = row.get(name)
        if value is not None and (type(value) is not int or not 0 <= value < limit):
            raise ValueError(f"{where}: {name} must be a whole number in [0, {limit}), got {value!r}")
    for name in ("negative_prompt", "camera", "theme"):
        if row.get(name) is not None and not isinstance(row[name], str):
            raise ValueError(f"{where}: {name} must be a text, got {row[name]!r}")
    camera = row.get("camera")
    return ClipRequest(
        row["prompt"].strip(), row.get("seed"), row.get("sample_id"), row.get("negative_prompt"),
        None if camera in (None, "words") else path.parent / camera, row.get("theme"),
    )  # fmt: skip
