"""Geometry for scripts of multi-view consistency: a folder a clip, as Depth Anything 3's own export lays it out.

    ARM/0007/exports/mini_npz/results.npz    depth, extrinsics, intrinsics of all frames
    ARM/0007/video.mp4
    prompts.json                             clip -> prompt

The article's own script for MVCS is not public; docs/evaluation.md has the formula that `worldr1.evaluate` takes.
Source: ByteDance-Seed/Depth-Anything-3, src/depth_anything_3/utils/export.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from worldr1.evaluation.exports.source import EvaluatedClip, da3_arrays, has_scene, put_arrays, put_video
from worldr1.run.files import write_json


def export(clip: EvaluatedClip, folder: Path) -> list[str]:
    """Write one clip; what of it is not there, in sentences."""
    own = folder / clip.arm / clip.name
    shutil.rmtree(own, ignore_errors=True)  # of an earlier export
    put_video(clip, own / "video.mp4")
    if not has_scene(clip):
        return [f"no depth: the clip is {clip.state}" + (f" ({clip.reason})" if clip.reason else "")]
    put_arrays(own / "exports" / "mini_npz" / "results.npz", da3_arrays(clip, np.arange(len(clip.frames))))
    return []


def finish(folder: Path, clips: Sequence[EvaluatedClip]) -> None:
    """The prompts of all clips."""
    write_json(folder / "prompts.json", {f"{clip.arm}/{clip.name}": clip.prompt for clip in clips})
