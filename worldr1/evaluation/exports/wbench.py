"""WBench: `work_dirs/MODEL` and `data/cases` as its main.py reads them after its own precomputation.

    work_dirs/ARM/videos/case_0007_combined.mp4
    work_dirs/ARM/megasam/case_0007_combined.npz    cam_c2w [n, 4, 4], intrinsic, stride ... at about 15 frames a second
    work_dirs/ARM/da3_cache/case_0007/*.npy         depth, extrinsics, intrinsics, c2w at about 3 frames a second
    work_dirs/ARM/turns.json meta.json              of a submission
    data/cases/case_0007.json                       the motions as WBench's actions, a turn each

Its poses are MegaSAM's and its depth is Depth Anything 3's; here both are those of the evaluation's reconstructor, in
units of the median depth of the clip where there is one.

Source: Ying et al. 2026, WBench, arXiv 2605.25874; github.com/meituan-longcat/WBench, main.py, src/evaluate.py,
tools/run_megasam.py, tools/run_da3_depth.py, docs/SUBMISSION.md.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldr1.evaluation.exports.source import EvaluatedClip, da3_arrays, has_scene, put_array, put_arrays, put_video
from worldr1.run.files import write_json

POSES_A_SECOND, DEPTHS_A_SECOND = 15.0, 3.0
ACTIONS = {
    "push_in": "W", "pull_out": "S", "move_left": "A", "move_right": "D",
    "pan_left": "left", "pan_right": "right", "tilt_up": "up", "tilt_down": "down",
}  # fmt: skip
ORBITS = {"orbit_left": "right", "orbit_right": "left"}
"""As third-person turns: the camera goes about a point in front of it, and a camera that turns right moves left."""


def export(clip: EvaluatedClip, folder: Path) -> list[str]:
    """Write one clip; what of it WBench will not find, in sentences."""
    left = []
    model = folder / "work_dirs" / clip.arm
    put_video(clip, model / "videos" / f"case_{clip.name}_combined.mp4")
    write_case(clip, folder / "data" / "cases" / f"case_{clip.name}.json")
    if not actions(clip.kinds)[0]:
        left.append("no motion of the prompt is an action of WBench's: navigation is not judged")
    poses_file, cache = model / "megasam" / f"case_{clip.name}_combined.npz", model / "da3_cache" / f"case_{clip.name}"
    poses_file.unlink(missing_ok=True)  # of an earlier export, in which there may have been more
    shutil.rmtree(cache, ignore_errors=True)
    unit = float(np.median(clip.cameras["depth"])) if has_scene(clip) else 1.0
    if "recovered_cam_c2w" in clip.cameras:
        stride = max(1, int(clip.fps / POSES_A_SECOND))
        poses = clip.cameras["recovered_cam_c2w"][::stride].copy()
        poses[:, :3, 3] /= unit
        put_arrays(
            poses_file,
            {
                "cam_c2w": poses, "camera_centers": poses[:, :3, 3], "intrinsic": clip.cameras.get("K", np.eye(3)),
                "stride": stride, "original_fps": clip.fps, "effective_fps": clip.fps / stride,
            },
        )  # fmt: skip
    else:
        left.append(f"no camera was recovered ({clip.reason or clip.state})")
    if not has_scene(clip):
        left.append(f"no depth: the clip is {clip.state}")
        return left
    indices = depth_frames(len(clip.frames), clip.fps)
    if len(indices) < 3:
        left.append(f"WBench takes {len(indices)} frames of it at {DEPTHS_A_SECOND:g} a second, it needs 3")
    arrays = da3_arrays(clip, indices, unit=unit)
    for name, array in arrays.items():
        put_array(cache / f"{name}.npy", array)
    c2w = clip.cameras["recovered_cam_c2w"][indices].copy()
    c2w[:, :3, 3] /= unit
    put_array(cache / "c2w.npy", c2w)
    write_json(
        cache / "meta.json", {"num_frames": len(indices), "depth_shape": list(arrays["depth"].shape), "elapsed": 0.0}
    )
    return left


def depth_frames(num_frames: int, fps: float) -> np.ndarray:
    """The frames that WBench takes for depth."""
    step = 1 if fps <= DEPTHS_A_SECOND else max(1, round(fps / DEPTHS_A_SECOND))
    return np.arange(0, num_frames, step)


def actions(kinds: Sequence[str]) -> tuple[list[str], str]:
    """Motions as actions, a turn each, and the perspective; no action where one of them is none of WBench's."""
    if kinds and all(kind in ORBITS for kind in kinds):
        return [ORBITS[kind] for kind in kinds], "third_person"
    if all(kind in ACTIONS for kind in kinds):
        return [ACTIONS[kind] for kind in kinds], "first_person"
    return [], "first_person"


def write_case(clip: EvaluatedClip, path: Path) -> None:
    """The clip's prompt as a case of WBench's."""
    turns, perspective = actions(clip.kinds)
    case: dict[str, Any] = {
        "id": clip.name,
        "description": clip.prompt,
        "settings": {"perspective": perspective, "image_prompt": clip.prompt},
        "interactions": [
            {"turn": k, "type": "navigation", "action": action, "prompt": clip.prompt}
            for k, action in enumerate(turns, start=1)
        ],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, case)


def finish(folder: Path, clips: Sequence[EvaluatedClip]) -> None:
    """meta.json and turns.json of each arm: turns of equal length, as the paths are built."""
    for arm in dict.fromkeys(clip.arm for clip in clips):
        own = [clip for clip in clips if clip.arm == arm]
        turns = {}
        for clip in own:
            count = len(actions(clip.kinds)[0])
            if count:
                share = len(clip.frames) // count
                turns[clip.name] = {"turn_frames": [*(k * share for k in range(count)), len(clip.frames)]}
        model = folder / "work_dirs" / arm
        write_json(model / "turns.json", {"fps": own[0].fps, "cases": turns})
        write_json(
            model / "meta.json", {"model_name": arm, "type": "text", "display_name": arm, "org": "", "contact": ""}
        )
