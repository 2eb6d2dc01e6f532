"""What a user brings to be evaluated: clips as files, their prompts, their camera paths."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from worldr1.prompts.requests import read_requests
from worldr1.run.files import read_arrays, reading
from worldr1.run.video import MAX_PIXELS, read_video

CLIP_SUFFIXES = (".mp4", ".npz")
POSE_SUFFIXES = (".txt", ".tum", ".json")


class Prompt(NamedTuple):
    """A line of a prompts file."""

    text: str
    theme: str | None = None
    seed: int | None = None


def read_prompt_file(path: Path) -> list[Prompt]:
    """The prompts of a file, and where it is .jsonl their `theme` and `seed`. Errors as of `requests.read_requests`."""
    return [Prompt(line.prompt, line.theme, line.seed) for line in read_requests(path)]


def list_files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files of a folder, in the order of their names, numbers within names as numbers: clip_2 before clip_10.

    Raises:
      ValueError: no such folder, none in it, or two of one name with different suffixes.
    """
    if not folder.is_dir():
        raise ValueError(f"evaluate: {folder} must be a folder, it is not there")
    files = [p for p in folder.iterdir() if p.suffix.lower() in suffixes and p.is_file() and p.name[0] != "."]
    if not files:
        raise ValueError(f"evaluate: {folder} must hold {' or '.join(suffixes)} files, got none")
    files.sort(
        key=lambda p: ([int(part) if k % 2 else part for k, part in enumerate(re.split(r"(\d+)", p.stem))], p.name)
    )
    for a, b in zip(files, files[1:], strict=False):
        if a.stem == b.stem:
            raise ValueError(f"evaluate: {folder} must hold each clip once, got {a.name} and {b.name}")
    return files


def read_clip(path: Path, *, fps: float) -> tuple[Tensor, float]:
    """The frames of a clip and how many come a second.

    An .npz has a key `video`, uint8 [F, H, W, 3] or [F, 3, H, W]; where both could be meant, colours are last.

    Args:
      path: .mp4 or .npz.
      fps: Of an .npz, which does not say.
    Returns:
      uint8 [F, 3, H, W]; fps.
    Raises:
      ValueError: damaged, empty, too large, or of another form.
      OSError: it cannot be read.
    """
    if path.suffix.lower() == ".mp4":
        return read_video(path)
    what = "an .npz file with a key `video`, uint8 [F, H, W, 3] or [F, 3, H, W]"
    with reading(path, what):
        array = read_arrays(path, what)["video"]
        if str(array.dtype) != "uint8" or array.ndim != 4 or 3 not in (array.shape[3], array.shape[1]):
            raise ValueError(f"{array.dtype} {list(array.shape)}")
        if array.size == 0 or array.size > 3 * MAX_PIXELS:
            raise ValueError(f"{array.size // 3} pixels, must be 1 to {MAX_PIXELS}")
        video = torch.from_numpy(array)
        return (video.movedim(-1, 1) if array.shape[3] == 3 else video).contiguous(), fps
