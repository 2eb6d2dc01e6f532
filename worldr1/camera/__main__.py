"""How prompts are read: their camera words, what was not understood, and the path that comes of them.

python -m worldr1.camera "The camera pushes in, then pans left" --save path.json --plot path.png
python -m worldr1.camera --load path.txt --save path.tum
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from worldr1.camera.motion import read_camera
from worldr1.camera.pose_files import load_poses, save_realestate, save_tum
from worldr1.camera.trajectory import build_trajectory, intrinsics, plot_trajectory, save_trajectory
from worldr1.config import MICRO_CAMERA, CameraConfig
from worldr1.datatypes import MotionToken


def main(argv: Sequence[str] | None = None) -> int:
    """Print what was read, what was not and how far the camera goes, prompt by prompt; returns the exit code: 0 done, 1
    a file that cannot be read or written, 2 wrong settings."""
    parser = argparse.ArgumentParser(prog="python -m worldr1.camera", description="Show how prompts are read.")
    parser.add_argument("prompt", nargs="*")
    parser.add_argument("--load", type=Path, help="show a file's path instead: RealEstate10K, TUM or saved here")
    parser.add_argument("--frames", type=int, default=81, help="default 81")
    parser.add_argument("--micro", action="store_true", help="the camera of the micro world, not the default one")
    parser.add_argument(
        "--save", type=Path, help="write the last path: .txt as RealEstate10K, .tum as TUM, else as JSON with its words"
    )
    parser.add_argument("--fps", type=float, default=16.0, help="of .txt and .tum, default 16")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(480, 832), metavar=("H", "W"), help="of .txt, default 480 832"
    )
    parser.add_argument("--plot", type=Path, help="draw the last path")
    args = parser.parse_args(argv)
    if bool(args.prompt) == (args.load is not None):
        parser.error("give prompts, or --load a file")
    try:
        _show(args)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    return 0


def _show(args: argparse.Namespace) -> None:
    camera = MICRO_CAMERA if args.micro else CameraConfig()
    tokens: tuple[MotionToken, ...] = ()
    title = str(args.load)
    if args.load is not None:
        viewmats = load_poses(args.load).viewmats
        print(f"{args.load}: {len(viewmats)} poses")
        _say_how_far(viewmats)
    for title in args.prompt:
        tokens, unread, asked = read_camera(title)
        viewmats = build_trajectory(tokens, args.frames, camera)
        print(title)
        print("  motions:", ", ".join(f"{t.kind} x{t.magnitude:g}" for t in tokens) or "none: a camera at rest")
        print("  not understood:", "; ".join(unread) or "nothing")
        print("  asked:", "yes" if asked else "no: S_traj is left out and the initial noise is plain")
        _say_how_far(viewmats)
    if args.save is not None:
        height, width = args.size
        if args.save.suffix == ".txt":
            K = intrinsics(height, width, camera)
            save_realestate(args.save, viewmats, K=K, height=height, width=width, fps=args.fps)
        elif args.save.suffix == ".tum":
            save_tum(args.save, viewmats, fps=args.fps)
        else:
            save_trajectory(args.save, viewmats, tokens=tokens, camera=camera)
    if args.plot is not None:
        plot_trajectory(viewmats, title=title).savefig(args.plot, dpi=120)


def _say_how_far(viewmats: torch.Tensor) -> None:
    centre = torch.linalg.inv(viewmats)[:, :3, 3]
    step = viewmats[1:, :3, :3] @ viewmats[:-1, :3, :3].mT
    turn = torch.rad2deg((0.5 * (step.diagonal(dim1=1, dim2=2).sum(1) - 1)).clamp(-1, 1).acos())
    print(f"  travels {float(centre.diff(dim=0).norm(dim=1).sum()):.4g} units to", end=" ")
    print("({:.4g}, {:.4g}, {:.4g})".format(*centre[-1].tolist()), f"and turns {float(turn.sum()):.4g} degrees")


if __name__ == "__main__":
    sys.exit(main())
