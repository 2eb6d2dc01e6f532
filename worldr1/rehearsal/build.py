"""All folders of a rehearsal, and the command that trains on them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from worldr1.rehearsal.depth_anything import save_tiny_depth_anything
from worldr1.rehearsal.hpsv3 import save_tiny_hpsv3
from worldr1.rehearsal.lpips import save_tiny_lpips
from worldr1.rehearsal.qwen import save_tiny_qwen
from worldr1.rehearsal.wan import save_tiny_wan
from worldr1.run.quiet import no_progress_bars
from worldr1.run.runtime import RANDOM_WEIGHTS


class Part(NamedTuple):
    """A folder of a rehearsal."""

    flag: str  # the setting that names it
    name: str  # of the folder
    save: Callable[..., Path]  # (folder, *, seed)


PARTS = (
    Part("--model.path", "wan", save_tiny_wan),
    Part("--reward.reconstructor", "depth-anything-3", save_tiny_depth_anything),
    Part("--reward.critic", "qwen3-vl", save_tiny_qwen),
    Part("--reward.aesthetic", "hpsv3", save_tiny_hpsv3),
    Part("--reward.perceptual", "lpips", save_tiny_lpips),
)


def build(folder: Path, *, seed: int = 0) -> Iterator[Part]:
    """Write every part into `folder`, each beside a note that its weights are random; yields those that are done.

    Raises:
      ValueError: the folder is there and holds something else.
      OSError: it cannot be written.
    """
    folder = Path(folder)
    known = {part.name for part in PARTS}
    others = [path.name for path in folder.iterdir() if path.name not in known] if folder.is_dir() else []
    if others:
        raise ValueError(f"rehearsal: {folder} must be new, empty or of an earlier rehearsal, it holds {others[0]}")
    for part in PARTS:
        own = folder / part.name
        if own.is_dir() and any(own.iterdir()) and not (own / RANDOM_WEIGHTS).is_file():
            raise ValueError(f"rehearsal: {own} must be of an earlier rehearsal, it holds no {RANDOM_WEIGHTS}")
        own.mkdir(parents=True, exist_ok=True)
        (own / RANDOM_WEIGHTS).write_text("Random weights of a rehearsal: scores and videos mean nothing.\n")
        with no_progress_bars():
            part.save(own, seed=seed)
        yield part


def flags(folder: Path) -> list[str]:
    """What names the folders to train.py and to the doctor."""
    return [word for part in PARTS for word in (part.flag, str(Path(folder) / part.name))]


def command(folder: Path) -> str:
    """The command that trains two iterations on them."""
    return shlex.join(["torchrun", "worldr1/train.py", "--preset", "rehearsal", *flags(folder)])
