"""How prompts are read: their camera words, what was not understood, and the path that comes of them.

python -m worldr1.camera "The camera pushes in, then pans left" --save path.json --plot path.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from worldr1.camera.motion import read_camera
from worldr1.camera.trajectory import build_trajectory, plot_trajectory, save_trajectory
from worldr1.config import MICRO_CAMERA, CameraConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Print what was read, what was not and how far the camera goes, prompt by prompt; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m worldr1.camera", description="Show how prompts are read.")
    parser.add_argument("prompt", nargs="+")
    parser.add_argument("--frames", type=int, default=81, help="default 81")
    parser.add_argument("--micro", action="store_true", help="the camera of the micro world, not the default one")
    parser.add_argument("--save", type=Path, help="write the path of the last prompt as JSON")
    parser.add_argument("--plot", type=Path, help="draw the path of the last prompt")
    args = parser.parse_args(argv)
    camera = MICRO_CAMERA if args.micro else CameraConfig()
    for prompt in args.prompt:
        tokens, unread, asked = read_camera(prompt)
        viewmats = build_trajectory(tokens, args.frames, camera)
        centre = torch.linalg.inv(viewmats)[:, :3, 3]
        step = viewmats[1:, :3, :3] @ viewmats[:-1, :3, :3].mT
        turn = torch.rad2deg((0.5 * (step.diagonal(dim1=1, dim2=2).sum(1) - 1)).clamp(-1, 1).acos())
        print(prompt)
        print("  motions:", ", ".join(f"{t.kind} x{t.magnitude:g}" for t in tokens) or "none: a camera at rest")
        print("  not understood:", "; ".join(unread) or "nothing")
        print("  asked:", "yes" if asked else "no: S_traj is left out and the initial noise is plain")
        print(f"  travels {float(centre.diff(dim=0).norm(dim=1).sum()):.4g} units to", end=" ")
        print("({:.4g}, {:.4g}, {:.4g})".format(*centre[-1].tolist()), f"and turns {float(turn.sum()):.4g} degrees")
    if args.save is not None:
        save_trajectory(args.save, viewmats, tokens=tokens, camera=camera)
    if args.plot is not None:
        plot_trajectory(viewmats, title=prompt).savefig(args.plot, dpi=120)
    return 0


if __name__ == "__main__":
    sys.exit(main())
