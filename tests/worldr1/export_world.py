"""An evaluation's folder of rendered clips: what was asked for, carried out, carried out half-way, not at all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worldr1.camera.motion import parse_motion
from worldr1.camera.trajectory import build_trajectory
from worldr1.config import MICRO_CAMERA
from worldr1.microworld.captions import make_caption
from worldr1.microworld.scene import render_clips
from worldr1.run.video import write_video

PROMPTS = ("The camera pushes in, then pulls out. A red ball.", "The camera pans left, then pans right. A box.")
ARMS = ("truth", "half", "frozen")
FRAMES, SIZE, FPS = 17, 64, 16


def paths_of(prompt: str) -> dict[str, Tensor]:
    """Arm -> viewmats [F, 4, 4]; half-way stops at the middle frame: it never comes back."""
    path = build_trajectory(parse_motion(prompt), FRAMES, MICRO_CAMERA).float()
    stop = torch.arange(FRAMES).clamp_max(FRAMES // 2)
    return {"truth": path, "half": path[stop], "frozen": path[:1].repeat(FRAMES, 1, 1)}


def evaluation_of_renders(folder: Path, *, prompts: tuple[str, ...] = PROMPTS, wrong_depth: bool = False) -> Path:
    """The files of `python -m worldr1.evaluate`, with a reconstructor that knows the truth.

    The frozen arm is declared moving, too, so that its exact depth is exported; `wrong_depth` adds an arm `wrong`:
    the truth with depth that is off by 20 % from frame to frame.
    """
    folder.mkdir(parents=True)
    lines = []
    arms = (*ARMS, "wrong") if wrong_depth else ARMS
    for i, prompt in enumerate(prompts):
        requested = torch.linalg.inv(paths_of(prompt)["truth"].double()).numpy()
        for arm in arms:
            path = paths_of(prompt)["truth" if arm == "wrong" else arm]
            clips = render_clips(
                [make_caption("fixed", 5)], [2_000_000 + i], paths=path[None], height=SIZE, width=SIZE,
                num_frames=FRAMES, detail=0.5,
            )  # fmt: skip
            file = folder / "videos" / arm / f"{i:04d}.mp4"
            file.parent.mkdir(parents=True, exist_ok=True)
            write_video(clips.video[0], file, fps=FPS, upscale=1)
            depth = clips.depth[0].numpy()
            if arm == "wrong":
                depth = depth * (1 + 0.2 * (-1.0) ** np.arange(FRAMES))[:, None, None]
            cameras = folder / "cameras" / arm / f"{i:04d}.npz"
            cameras.parent.mkdir(parents=True, exist_ok=True)
            np.savez(
                cameras, requested_cam_c2w=requested, recovered_cam_c2w=np.linalg.inv(path.double().numpy()),
                K=clips.K.double().numpy(), depth=depth.astype(np.float16),
            )  # fmt: skip
            tokens = [f"{t.kind} x{t.magnitude:g}" for t in parse_motion(prompt)]
            lines.append({
                "clip": f"{i:04d}", "arm": arm, "prompt": prompt, "seed": i, "motions": tokens, "motion": "composite",
                "theme": None, "file": f"videos/{arm}/{i:04d}.mp4", "state": "moving", "reason": "",
                "measures": {"mvcs": 1.0, "lpips": None},
            })  # fmt: skip
    (folder / "clips.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    not_run = [{"column": "lpips", "reason": "no weights", "how": ""}]
    about = {"schema": 1, "arms": list(arms), "reconstructor": "truth", "not_run": not_run, "complete": True}
    (folder / "evaluation.json").write_text(json.dumps(about))
    return folder
