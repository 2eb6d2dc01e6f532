"""WorldScore: the folders that its evaluation walks, in its static form.

    ARM/worldscore_output/static/generated/text/prompts/0007/
        frames/000.png ...  videos/output.mp4  input_image.png (the first frame)  camera_data.json  image_data.json

camera_data.json holds the requested path as its camera metric compares it with DROID-SLAM's: camera-to-world, turned
and mirrored to A c2w B with A = diag(-1, 1, 1, 1), B = diag(1, 1, -1, 1).

Source: Duan et al. 2025, WorldScore, arXiv 2504.00983; github.com/haoyi-duan/WorldScore, world_generators/README.md,
worldscore/benchmark/helpers/evaluator.py, metrics/third_party/camera_error_metrics.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from worldr1.evaluation.exports.source import EvaluatedClip, put_video
from worldr1.run.files import whole, write_json

KINDS = (
    "push_in", "pull_out", "move_left", "move_right", "orbit_left", "orbit_right", "pan_left", "pan_right",
    "pull_left", "pull_right", "fixed",
)  # fmt: skip
"""Motions that WorldScore has a name for."""
_BEFORE, _AFTER = np.diag([-1.0, 1.0, 1.0, 1.0]), np.diag([1.0, 1.0, -1.0, 1.0])


def cameras_interp(cam_c2w: np.ndarray) -> np.ndarray:
    """Camera-to-world [F, 4, 4], OpenCV, as WorldScore's camera metric takes them."""
    return _BEFORE @ cam_c2w @ _AFTER


def export(clip: EvaluatedClip, folder: Path) -> list[str]:
    """Write one clip; what of it WorldScore cannot judge, in sentences."""
    import imageio.v3 as imageio

    own = folder / clip.arm / "worldscore_output" / "static" / "generated" / "text" / "prompts" / clip.name
    shutil.rmtree(own, ignore_errors=True)  # of an earlier export
    requested = clip.cameras.get("requested_cam_c2w")
    if requested is None or len(clip.kinds) != 1 or clip.kinds[0] not in KINDS:
        return [
            f"not exported: WorldScore takes one of its own motions a clip, got {', '.join(clip.motions) or 'none'}"
        ]
    put_video(clip, own / "videos" / "output.mp4")
    (own / "frames").mkdir(exist_ok=True)
    for k, frame in enumerate(clip.frames):
        with whole(own / "frames" / f"{k:03d}.png") as unfinished:
            imageio.imwrite(unfinished, frame, extension=".png")
    with whole(own / "input_image.png") as unfinished:
        imageio.imwrite(unfinished, clip.frames[0], extension=".png")
    write_json(own / "camera_data.json", {"cameras_interp": cameras_interp(requested).tolist(), "scale": 1.0})
    count = len(clip.frames)
    image = {
        "visual_movement": "static", "visual_style": "generated", "scene_type": "text", "category": "prompts",
        "camera_path": list(clip.kinds), "prompt_list": [clip.prompt], "content_list": [], "num_scenes": 1,
        "total_frames": count, "anchor_frame_idx": [0, count - 1],
    }  # fmt: skip
    write_json(own / "image_data.json", image)
    return []


def finish(folder: Path, clips: Sequence[EvaluatedClip]) -> None:
    """A model's configuration for each arm, for WorldScore's config/model_configs."""
    for arm in dict.fromkeys(clip.arm for clip in clips):
        if not (folder / arm).is_dir():
            continue  # no clip with a motion of WorldScore's
        own = next(clip for clip in clips if clip.arm == arm)
        lines = [f"model: {arm}", f"runs_root: {(folder / arm).resolve()}", "generate_type: t2v"]
        lines += [f"frames: {len(own.frames)}", f"fps: {max(1, round(own.fps))}"]
        with whole(folder / f"{arm}.yaml") as unfinished:
            unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8")
