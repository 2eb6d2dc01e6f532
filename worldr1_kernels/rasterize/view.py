"""A film of a camera that goes once around a scene.

python -m worldr1_kernels.rasterize.view scene.ply --out turntable.mp4
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from worldr1_kernels.rasterize.api import rasterize
from worldr1_kernels.rasterize.io import Splats, degree, load_splats, optional, whole_file

AXES = {
    sign + name: [(-1.0 if sign else 1.0) * (i == k) for k in range(3)]
    for sign in ("", "-")
    for i, name in enumerate("xyz")
}
SHARE_IN_VIEW = 0.9  # of the opacity: single Gaussians far out do not make the scene small


def turntable(
    splats: Splats, *, num_frames: int, fov: float, up: Sequence[float], elevation: float, zoom: float
) -> Tensor:
    """World-to-camera matrices on a circle around the scene, which looks at its middle.

    Args:
      splats: At least one Gaussian.
      num_frames: One turn.
      fov: Of the narrower side of the picture, radians.
      up: Axis of the turn, the direction that is up in the picture.
      elevation: Of the camera above the horizon, radians.
      zoom: 1 shows nine tenths of the scene; larger is closer.
    Returns:
      [num_frames, 4, 4], float32.
    """
    means, weights = splats.means.double(), splats.opacities.double()
    middle = (means * weights[:, None]).sum(0) / weights.sum()
    reach = (means - middle).norm(dim=1) + splats.scales.double().amax(1)
    nearest, order = reach.sort()
    seen = weights[order].cumsum(0) >= SHARE_IN_VIEW * weights.sum()
    distance = max(float(nearest[seen][0]), 1e-6) / (math.sin(fov / 2) * zoom)

    axis = torch.tensor(up, dtype=torch.float64)
    side = torch.tensor([0.0, 0, 1] if abs(axis[2]) < 0.5 else [0.0, -1, 0], dtype=torch.float64)
    angle = torch.arange(num_frames, dtype=torch.float64)[:, None] * (2 * math.pi / num_frames)
    around = -side * angle.cos() + torch.linalg.cross(side, axis) * angle.sin()  # [F, 3], where the camera stands
    forward = -(around * math.cos(elevation) + axis * math.sin(elevation))
    right = torch.linalg.cross(forward, axis.expand_as(forward))
    right = right / right.norm(dim=1, keepdim=True)
    down = torch.linalg.cross(forward, right)
    viewmats = torch.eye(4, dtype=torch.float64).repeat(num_frames, 1, 1)
    viewmats[:, :3, :3] = torch.stack([right, down, forward], 1)
    centers = middle - distance * forward
    viewmats[:, :3, 3] = -(viewmats[:, :3, :3] @ centers[..., None])[..., 0]
    return viewmats.float()


def render(
    splats: Splats, viewmat: Tensor, K: Tensor, width: int, height: int, background: Tensor, backend: str
) -> Tensor:
    """One picture [H, W, 3], uint8, on the CPU."""
    found = rasterize(
        *splats,
        viewmat[None],
        K[None],
        width,
        height,
        sh_degree=degree(splats),
        backgrounds=background[None],
        backend=backend,
    )
    return (found.render_colors[0].clamp(0, 1) * 255).round().byte().cpu()


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m worldr1_kernels.rasterize.view",
        description="Film a camera that goes once around a scene of 3D Gaussians.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("scene", type=Path, help="splat file, .ply or .spz")
    parser.add_argument("--out", type=Path, default=Path("turntable.mp4"), help="film to write, .mp4 or .gif")
    parser.add_argument("--frames", type=int, default=120, help="pictures of the turn")
    parser.add_argument("--fps", type=int, default=30, help="pictures per second")
    parser.add_argument("--width", type=int, default=640, help="pixels; even for .mp4")
    parser.add_argument("--height", type=int, default=480, help="pixels; even for .mp4")
    parser.add_argument("--fov", type=float, default=45.0, help="opening angle of the narrower side, degrees")
    parser.add_argument("--elevation", type=float, default=15.0, help="camera above the horizon, degrees")
    parser.add_argument(
        "--zoom", type=float, default=1.0, help="1 shows nine tenths of the scene, 2 comes twice as close"
    )
    parser.add_argument("--up", choices=list(AXES), default="-y", help="axis of the turn; write --up=-y for a minus")
    parser.add_argument("--background", type=float, nargs=3, default=[0.0] * 3, metavar=("R", "G", "B"), help="0 to 1")
    parser.add_argument("--drop-invalid", action="store_true", help="leave out Gaussians that are not finite")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--backend", default="auto", help="auto, native or reference")
    return parser


def _check(args: argparse.Namespace) -> None:
    def must(ok: bool, text: str) -> None:
        if not ok:
            raise ValueError(f"view: {text}")

    suffix = args.out.suffix.lower()
    must(suffix in (".mp4", ".gif"), f"--out must end in .mp4 or .gif, got {args.out}")
    must(args.out.parent.is_dir(), f"--out must lie in a folder that exists, got {args.out.parent}")
    must(args.frames >= 1 and args.fps >= 1, f"--frames and --fps must be >= 1, got {args.frames} and {args.fps}")
    must(args.width >= 1 and args.height >= 1, f"--width and --height must be >= 1, got {args.width} x {args.height}")
    must(suffix == ".gif" or args.width % 2 == args.height % 2 == 0,
         f"--width and --height must be even for .mp4, got {args.width} x {args.height}")  # fmt: skip
    must(0 < args.fov < 180, f"--fov must be between 0 and 180 degrees, got {args.fov}")
    must(-90 < args.elevation < 90, f"--elevation must be between -90 and 90 degrees, got {args.elevation}")
    must(0 < args.zoom < math.inf, f"--zoom must be > 0, got {args.zoom}")
    must(all(0 <= c <= 1 for c in args.background), f"--background must be in [0, 1], got {args.background}")


def film(args: argparse.Namespace) -> None:
    """Writes the film that the arguments describe."""
    _check(args)
    imageio = optional("view", "imageio.v2")
    splats = load_splats(args.scene, drop_invalid=args.drop_invalid)
    if len(splats.means) == 0 or float(splats.opacities.sum()) <= 0:
        raise ValueError(f"view: {args.scene} must hold at least one Gaussian that is not transparent, got none")
    fov = math.radians(args.fov)
    viewmats = turntable(
        splats,
        num_frames=args.frames,
        fov=fov,
        up=AXES[args.up],
        elevation=math.radians(args.elevation),
        zoom=args.zoom,
    ).to(args.device)
    focal = min(args.width, args.height) / 2 / math.tan(fov / 2)
    K = torch.tensor([[focal, 0, args.width / 2], [0, focal, args.height / 2], [0, 0, 1]], device=args.device)
    background = torch.tensor(args.background, device=args.device)
    splats = Splats(*(field.to(args.device) for field in splats))
    options = {"fps": args.fps, "codec": "libx264", "quality": 9, "macro_block_size": 1}
    if args.out.suffix.lower() == ".gif":
        options = {"duration": 1000 / args.fps, "loop": 0}
    with whole_file(args.out) as unfinished, imageio.get_writer(str(unfinished), **options) as writer, torch.no_grad():
        for i, viewmat in enumerate(viewmats):
            picture = render(splats, viewmat, K, args.width, args.height, background, args.backend)
            writer.append_data(picture.numpy())
            print(f"\r{args.scene.name}: {len(splats.means)} Gaussians, picture {i + 1} of {args.frames}", end="",
                  file=sys.stderr, flush=True)  # fmt: skip
    print(file=sys.stderr)
    print(f"{args.out}: {args.frames} pictures of {args.width} x {args.height}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 2 and a line on stderr for what the user can mend."""
    args = _arguments().parse_args(arguments)
    try:
        film(args)
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        print(f"\n{error}" if str(error).startswith(("view:", "load_splats:")) else f"\nview: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
