"""The clips of an evaluation's folder, as the exports take them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldr1.evaluation.clip_files import read_clip
from worldr1.run.files import read_arrays, read_json, whole
from worldr1.run.video import write_video

SCHEMA = 1
DEFAULT_FPS = 16.0
"""Of clips in .npz files, which do not say."""

_NAME = re.compile(r"[\w-][\w.-]*")


class LeftOut(ValueError):
    """A clip that cannot be exported; the text says why."""


@dataclass(frozen=True)
class EvaluatedClip:
    """A line of clips.jsonl with its files.

    `cameras` holds requested_cam_c2w and recovered_cam_c2w [F, 4, 4] (camera-to-world, OpenCV), K [3, 3] in pixels of
    depth [F, h, w]; only what is there, and finite. `depth` is there only where the state is "moving": elsewhere the
    evaluation keeps a placeholder.
    """

    name: str
    arm: str
    prompt: str
    seed: int | None
    motions: tuple[str, ...]
    state: str
    reason: str
    measures: Mapping[str, float | None]
    file: Path
    cameras: Mapping[str, np.ndarray]
    frames: np.ndarray  # [F, H, W, 3] uint8
    fps: float

    @property
    def kinds(self) -> tuple[str, ...]:
        """The motions without their sizes."""
        return tuple(motion.split(" x")[0] for motion in self.motions)


@dataclass(frozen=True)
class Evaluation:
    """An evaluation's folder: its description, and its lines."""

    path: Path
    about: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...]

    @property
    def arms(self) -> tuple[str, ...]:
        """In the order of the file."""
        return tuple(dict.fromkeys(str(row["arm"]) for row in self.rows))

    def clips(self) -> Iterator[EvaluatedClip | tuple[Mapping[str, Any], str]]:
        """Clip after clip, one in memory at a time; (line, reason) for one whose files are missing or damaged."""
        for row in self.rows:
            try:
                yield _clip(self.path, row)
            except (OSError, ValueError) as error:
                yield row, str(error)


def read_evaluation(path: Path) -> Evaluation:
    """An evaluation's folder.

    Raises:
      ValueError: no evaluation.json of this schema, no line in clips.jsonl; a line that is none, by its number. A last
        line that an interruption cut off is left out.
    """
    path = Path(path)
    if not (path / "evaluation.json").is_file() or not (path / "clips.jsonl").is_file():
        raise ValueError(
            f"export: {path} must be the folder of `python -m worldr1.evaluate` (evaluation.json, clips.jsonl)"
        )
    about = read_json(path / "evaluation.json", "the evaluation.json of an evaluation")
    if about.get("schema") != SCHEMA:
        raise ValueError(f"export: {path / 'evaluation.json'} must be of schema {SCHEMA}, got {about.get('schema')!r}")
    lines = (path / "clips.jsonl").read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            good = all(isinstance(row[k], str) for k in ("clip", "arm", "prompt")) and isinstance(row["measures"], dict)
        except (ValueError, KeyError, TypeError, RecursionError):
            good = False
        if good and _NAME.fullmatch(row["clip"]) and _NAME.fullmatch(row["arm"]):  # they become names of folders
            rows.append(row)
        elif line.endswith("\n"):
            raise ValueError(
                f"export: {path / 'clips.jsonl'} line {number} must be a line of an evaluation, got {line[:80]!r}"
            )
    if not rows:
        raise ValueError(f"export: {path / 'clips.jsonl'} must hold clips, got none")
    return Evaluation(path, about, tuple(rows))


def _clip(folder: Path, row: Mapping[str, Any]) -> EvaluatedClip:
    name, arm = row["clip"], row["arm"]
    if not isinstance(row.get("file"), str):
        raise LeftOut("it has no file")
    file = folder / row["file"]  # an absolute name stays what it is
    video, fps = read_clip(file, fps=DEFAULT_FPS)
    if len(video) < 2:
        raise LeftOut(f"{file} holds {len(video)} frame")
    state = str(row.get("state"))
    cameras: dict[str, np.ndarray] = {}
    path = folder / "cameras" / arm / f"{name}.npz"
    if path.is_file():
        arrays = read_arrays(path, "the cameras of a clip")
        for key, shape in {"requested_cam_c2w": (4, 4), "recovered_cam_c2w": (4, 4), "K": (3, 3), "depth": ()}.items():
            if key not in arrays or (key == "depth" and state != "moving"):
                continue
            array = arrays[key].astype(np.float64)
            wanted = array.shape == (3, 3) if key == "K" else array.ndim == 3 and len(array) == len(video)
            if not wanted or (shape and array.shape[-2:] != shape) or not np.isfinite(array).all():
                raise LeftOut(
                    f"{path}: {key} must be finite and fit the {len(video)} frames of {file.name}, got "
                    f"{list(array.shape)}"
                )
            cameras[key] = array
    return EvaluatedClip(
        name=name, arm=arm, prompt=row["prompt"], seed=row.get("seed"), motions=tuple(row.get("motions") or ()),
        state=state, reason=str(row.get("reason") or ""), measures=row["measures"], file=file, cameras=cameras,
        frames=video.movedim(1, -1).numpy(), fps=fps,
    )  # fmt: skip


def without_frames(clip: EvaluatedClip) -> EvaluatedClip:
    """The clip without pixels and depth; it still says how many frames it has."""
    cameras = {name: array for name, array in clip.cameras.items() if name != "depth"}
    return replace(clip, frames=np.empty((len(clip.frames), 0, 0, 3), np.uint8), cameras=cameras)


def put_video(clip: EvaluatedClip, path: Path) -> None:
    """The clip as an .mp4: its own file where it is one, at its own size and rate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if clip.file.suffix.lower() == ".mp4":
        with whole(path) as unfinished:
            shutil.copyfile(clip.file, unfinished)
    else:
        write_video(torch.from_numpy(clip.frames).movedim(-1, 1), path, fps=max(1, round(clip.fps)), upscale=1)


def put_array(path: Path, array: np.ndarray) -> None:
    """An .npy file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as unfinished, unfinished.open("wb") as file:
        np.save(file, array)


def put_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """An .npz file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, **arrays)


def da3_arrays(clip: EvaluatedClip, indices: np.ndarray, *, unit: float = 1.0) -> dict[str, np.ndarray]:
    """Depth and poses under the names and in the conventions of Depth Anything 3's own export.

    Args:
      clip: One with a depth.
      indices: Frames.
      unit: Lengths are divided by it.
    Returns:
      depth [n, h, w] and extrinsics [n, 3, 4] (world-to-camera, OpenCV), intrinsics [n, 3, 3] in pixels of the depth;
      float32. Its `conf` is left out, as the package does where there is none.
    Source: ByteDance-Seed/Depth-Anything-3, src/depth_anything_3/utils/export.
    """
    extrinsics = np.linalg.inv(clip.cameras["recovered_cam_c2w"][indices])
    extrinsics[:, :3, 3] /= unit
    return {
        "depth": (clip.cameras["depth"][indices] / unit).astype(np.float32),
        "extrinsics": extrinsics[:, :3].astype(np.float32),
        "intrinsics": np.repeat(clip.cameras["K"][None], len(indices), axis=0).astype(np.float32),
    }


def has_scene(clip: EvaluatedClip) -> bool:
    """Whether cameras, lens and depth were recovered."""
    return all(key in clip.cameras for key in ("recovered_cam_c2w", "K", "depth"))
