"""A run directory made of numbers chosen here, for the tests of the page: no training, no model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from worldr1.camera.motion import parse_motion
from worldr1.camera.trajectory import build_trajectory
from worldr1.config import MICRO_CAMERA, TrainConfig, to_json
from worldr1.microworld.captions import split_captions

NUM_ITERATIONS = 80


def make_run(folder: Path, *, num_samples: int = 9, height: int = 32, width: int = 32, num_frames: int = 9) -> Path:
    """Write every file of a finished run; the gain in obedience is .323 +- .034, eight of nine gates hold."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation").mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(to_json(TrainConfig(seed=7, max_iterations=80))))
    environment = {
        "started": "2026-11-23T02:00:00+00:00",
        "argv": ["worldr1/train.py"],
        "torch": "2.13.0",
        "device": "cpu",
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    with (folder / "metrics.jsonl").open("w") as file:
        for i in range(NUM_ITERATIONS):
            up = 1 - np.exp(-i / 25)
            terms = {
                name: {"mean": base + gain * up + rng.normal() * 0.03, "stderr": 0.03, "weight": 1.0}
                for name, base, gain in (
                    ("traj", 0.4, 0.35),
                    ("recon", 0.7, 0.05),
                    ("meta", 0.5, 0.1),
                    ("gen", 0.1, 0.05),
                )
            }
            row = {
                "iteration": i,
                "phase": "dynamic" if 40 <= i < 44 else "main",
                "reward": sum(t["mean"] for t in terms.values()),
                "reward_stderr": 0.06,
                "terms": terms,
            }
            file.write(json.dumps(row) + "\n")
    lines = (json.dumps({"iteration": i, "seconds": 2.5}) for i in range(NUM_ITERATIONS))
    (folder / "timings.jsonl").write_text("\n".join(lines) + "\n")
    write_study(folder)
    captions = [c.text for c in split_captions()[1]][:: max(1, 48 // num_samples)][:num_samples]
    asked = [build_trajectory(parse_motion(text), num_frames, MICRO_CAMERA) for text in captions]
    requested = torch.stack(asked).float().numpy()
    wobble = rng.normal(size=requested.shape).cumsum(1).astype(np.float32) * 0.02
    wobble[:, 0] = wobble[:, :, 3] = 0
    y, x = np.mgrid[:height, :width]
    frames = np.empty((num_samples, num_frames, 3, height, width), np.uint8)
    for n in range(num_samples):
        for f in range(num_frames):
            inside = np.hypot(x - width * (0.3 + 0.05 * f), y - height / 2) < height / 4
            for c in range(3):
                frames[n, f, c] = np.where(inside, 255 if c == n % 3 else 40, 90 + 3 * y * 32 // height)
    np.savez(
        folder / "evaluation" / "samples.npz",
        before=frames,
        after=frames[:, ::-1],
        prompts=np.array(captions),
        requested=requested,
        recovered_before=requested[::-1] + wobble[::-1],
        recovered_after=requested + wobble,
        obeyed_before=np.arange(num_samples) % 2 == 0,
        obeyed_after=np.ones(num_samples, bool),
    )
    return folder


def write_study(folder: Path, **changes: object) -> None:
    """evaluation/study.json; `changes` replace top-level entries."""
    measures = {
        "obedience": ("motion obedience", "", 0.583, 0.906, 0.034),
        "rotation_error": ("rotation error", "deg", 7.6, 2.2, 0.5),
        "psnr_requested": ("PSNR at requested poses", "dB", 20.8, 23.06, 0.17),
    }
    gates = [
        {"name": f"gate{i}", "label": label, "value": value, "stderr": None, "threshold": must, "passed": value != 0.12}
        for i, (label, value, must) in enumerate(
            [("obedience gain", 0.323, ">= 0.20 and > 4 s.e."), ("PSNR at requested poses, gain", 2.26, ">= 1 dB")]
            + [(f"further gate {k}", 0.01 * k, "<= 0.10") for k in range(6)]
            + [("largest drop of a motion", 0.12, "<= 0.10")]
        )
    ]
    motions = (
        "fixed",
        "push_in",
        "pull_out",
        "move_left",
        "move_right",
        "pan_left",
        "pan_right",
        "orbit_left",
        "orbit_right",
    )
    study = {
        "format": 1,
        "control": "none",
        "iteration": NUM_ITERATIONS,
        "num_samples": 192,
        "seconds": 41.0,
        "metrics": {
            name: {
                "definition": label,
                "unit": unit,
                "before": before,
                "after": after,
                "gain": after - before,
                "stderr": stderr,
            }
            for name, (label, unit, before, after, stderr) in measures.items()
        },
        "gates": gates,
        "per_motion": {
            m: {"num": 21, "before": 0.4 + 0.03 * i, "after": 0.95 - 0.02 * i} for i, m in enumerate(motions)
        },
        **changes,
    }
    (folder / "evaluation" / "study.json").write_text(json.dumps(study))
