"""An evaluation's folder made of numbers chosen here, for the tests of its page: no model, no measuring."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldr1.camera.motion import parse_motion
from worldr1.camera.trajectory import build_trajectory
from worldr1.config import MICRO_CAMERA
from worldr1.run.video import write_video

MOTIONS = {
    "push_in": "Camera push in.",
    "pan_left": "Camera pan left.",
    "orbit_right": "Camera orbit right.",
    "none": "",
}
MEASURES = {
    "psnr": ("dB", "up"), "rot_err": ("rad", "down"), "motion_magnitude": ("%", "same"), "lpips": ("", "down"),
    "path_ratio": ("", "same"),
}  # fmt: skip
FRAMES, SIDE = 9, 32


def make_evaluation(folder: Path, *, arms: Sequence[str] = ("base", "tuned"), num: int = 6, same: bool = True) -> Path:
    """Every file of a finished evaluation. Clip 2 of the last arm failed; LPIPS was not run.

    Tuned against base: psnr better, rot_err worse, motion_magnitude changed.
    """
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    lines = []
    for i in range(num):
        motion = list(MOTIONS)[i % len(MOTIONS)]
        prompt = f"{MOTIONS[motion]} A red ball, scene {i // 2}.".strip()
        for arm in arms:
            failed = i == 2 and arm == arms[-1]
            file = folder / "videos" / arm / f"{i:04d}.mp4"
            if i == 0 or not same:  # the others are copies of the first: encoding takes most of the time
                file.parent.mkdir(parents=True, exist_ok=True)
                write_video(_clip(rng), file, fps=8)
            else:
                file.write_bytes((folder / "videos" / arm / "0000.mp4").read_bytes())
            if not failed:
                _cameras(folder / "cameras" / arm / f"{i:04d}.npz", motion, rng)
            values: dict[str, float | None] = {"psnr": 20.0 + i, "rot_err": 1.5, "motion_magnitude": 0.8, "lpips": None}
            values["path_ratio"] = None if motion in ("none", "pan_left") else 1.1
            lines.append({
                "clip": f"{i:04d}", "arm": arm, "prompt": prompt, "seed": i,
                "motions": [] if motion == "none" else [f"{motion} x1"], "motion": motion, "theme": "toys",
                "file": f"videos/{arm}/{i:04d}.mp4", "state": "failed" if failed else "moving",
                "reason": "too few tracks" if failed else "",
                "measures": dict.fromkeys(values) if failed else values,
            })  # fmt: skip
    (folder / "clips.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_about(folder, arms=list(arms))
    write_summary(folder, arms)
    return folder


def write_about(folder: Path, **changes: Any) -> None:
    """evaluation.json; `changes` replace top-level entries."""
    about = {
        "schema": 1, "settings": {"seed": 0, "fps": 8}, "environment": {"torch": "2.13.0"}, "arms": ["base", "tuned"],
        "reconstructor": "classical", "frames": FRAMES, "height": SIDE, "width": SIDE, "complete": True,
        "not_run": [{"column": "lpips", "reason": "its weights are not there", "how": "make lpips"}],
    }  # fmt: skip
    (folder / "evaluation.json").write_text(json.dumps(about | changes))


def write_summary(folder: Path, arms: Sequence[str]) -> None:
    """summary.json."""

    def found(mean: float | None, spread: float = 0.5) -> dict[str, Any]:
        if mean is None:
            return {"mean": None, "low": None, "high": None, "count": 0, "num_prompts": 0}
        return {"mean": mean, "low": mean - spread, "high": mean + spread, "count": 6, "num_prompts": 3}

    means = {"psnr": 22.5, "rot_err": 1.5, "motion_magnitude": 0.8, "lpips": None, "path_ratio": 1.1}
    differences = {"psnr": 2.0, "rot_err": 0.7, "motion_magnitude": -0.6, "lpips": None, "path_ratio": 0.1}
    of_arms = {arm: {name: found(mean) for name, mean in means.items()} for arm in arms}
    summary: dict[str, Any] = {
        "measures": {
            name: {"unit": unit, "better": better, "definition": f"what {name} is"}
            for name, (unit, better) in MEASURES.items()
        },
        "arms": of_arms,
        "by_motion": {motion: of_arms for motion in MOTIONS},
        "by_theme": {"toys": of_arms},
    }
    if len(arms) == 2:
        summary["differences"] = {name: found(mean) for name, mean in differences.items()}
    (folder / "summary.json").write_text(json.dumps(summary))


def _clip(rng: np.random.Generator) -> torch.Tensor:
    """uint8 [F, 3, H, W]: a disc that travels over a gradient."""
    y, x = np.mgrid[:SIDE, :SIDE]
    colour = rng.integers(120, 255, 3)
    frames = np.empty((FRAMES, 3, SIDE, SIDE), np.uint8)
    for f in range(FRAMES):
        inside = np.hypot(x - 6 - 2.5 * f, y - 18) < 6
        frames[f] = np.where(inside, colour[:, None, None], (40 + 4 * y)[None])
    return torch.from_numpy(frames)


def _cameras(path: Path, motion: str, rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tokens = parse_motion(MOTIONS[motion]) if MOTIONS[motion] else []
    asked = np.linalg.inv(build_trajectory(tokens, FRAMES, MICRO_CAMERA).double().numpy())
    found = asked.copy()
    found[1:, :3, 3] += 0.05 * rng.normal(size=(FRAMES - 1, 3))
    y, x = np.mgrid[:SIDE, :SIDE]
    depth = np.where(np.hypot(x - 16, y - 18) < 8, 2.0, 3.5 - 0.03 * y)
    arrays = {
        "recovered_cam_c2w": found, "K": np.array([[30.0, 0, SIDE / 2], [0, 30.0, SIDE / 2], [0, 0, 1]]),
        "depth": np.tile(depth, (FRAMES, 1, 1)).astype(np.float16),
    }  # fmt: skip
    if motion != "none":
        arrays["requested_cam_c2w"] = asked
    np.savez_compressed(path, **arrays)
