"""A film of a camera that goes once around a scene.

python -m worldr1_kernels.rasterize.view scene.ply --out turntable.mp4
"""

import argparse
import math
import sys
import warnings
from collections.abc import Iterable, Sequence
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldr1_kernels.rasterize.api import rasterize
from worldr1_kernels.rasterize.io import Splats, degree, load_splats, whole_file

AXES = {
    sign + name: [(-1.0 if sign else 1.0) * (i == k) for k in range(3)]
    for sign in ("", "-")
    for i, name in enumerate("xyz")
}
SHARE_IN_VIEW = 0.9  # of the opacity: single Gaussians far out do not make the scene small
NEAR_PLANE = 0.01  # of the radius that holds that share


def unit_scene(splats: Splats) -> Splats:
    """The scene moved and scaled, so that its middle is 0 and nine tenths of its opacity lie within 1: what is filmed
    does not depend on the unit of the file, nor does float32 run out of range or digits.

    Args:
      splats: At least one Gaussian of opacity > 0.
    Returns:
      Splats, float32.
    """
    means, weights = splats.means.double(), splats.opacities.double()
    scales = splats.scales.double()
    # Amid what lies between the outer twentieths of each axis: a Gaussian at the end of the world does not move it.
    edges = [(1 - SHARE_IN_VIEW) / 2, (1 + SHARE_IN_VIEW) / 2]
    middle = torch.empty(3, dtype=torch.float64)
    for k, axis in enumerate(means.unbind(1)):
        along, order = axis.sort()
        shares = weights[order].cumsum(0) / weights.sum()
        middle[k] = along[torch.searchsorted(shares, torch.tensor(edges).to(shares)).clamp_max(len(along) - 1)].mean()
    reach = (means - middle).norm(dim=1) + scales.amax(1)
    nearest, order = reach.sort()
    seen = weights[order].cumsum(0) >= SHARE_IN_VIEW * weights.sum()
    radius = float(nearest[seen][0]) or 1.0
    return splats._replace(means=((means - middle) / radius).float(), scales=(scales / radius).float())


def turntable(*, num_frames: int, fov: float, up: Sequence[float], elevation: float, zoom: float) -> Tensor:
    """World-to-camera matrices on a circle around a `unit_scene`, which look at its middle.

    Args:
      num_frames: One turn.
      fov: Of the narrower side of the picture, radians.
      up: Axis of the turn, the direction that is up in the picture.
      elevation: Of the camera above the horizon, radians.
      zoom: 1 shows nine tenths of the scene; larger is closer.
    Returns:
      [num_frames, 4, 4], float32.
    """
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
    viewmats[:, 2, 3] = 1 / (math.sin(fov / 2) * zoom)  # the distance: the middle is straight ahead
    return viewmats.float()


class Film:
    """Renders the pictures of one scene, and keeps count of what they do not show."""

    def __init__(self, splats: Splats, K: Tensor, width: int, height: int, background: Tensor, backend: str) -> None:
        self.splats, self.K, self.size, self.background, self.backend = splats, K, (width, height), background, backend
        self.in_picture = torch.zeros(len(splats.means), dtype=torch.bool, device=splats.means.device)
        self.num_invalid, self.covered, self.has_contrast = 0, 0.0, False

    def picture(self, viewmat: Tensor) -> Tensor:
        """One picture [H, W, 3], uint8, on the CPU."""
        width, height = self.size
        found = rasterize(
            *self.splats,
            viewmat[None],
            self.K[None],
            width,
            height,
            near_plane=NEAR_PLANE,
            far_plane=math.inf,
            sh_degree=degree(self.splats),
            rasterize_mode=self.splats.rasterize_mode,
            backgrounds=self.background[None],
            backend=self.backend,
        )
        if num_overflow := int(found.meta["num_overflow"]):
            raise ValueError(
                f"view: pictures must be smaller or Gaussians fewer: no room for {num_overflow} (tile, Gaussian) pairs"
            )
        out = (found.render_colors[0].clamp(0, 1) * 255).round().byte().cpu()
        points = self.splats.means @ viewmat[:3, :3].T + viewmat[:3, 3]
        place = points @ self.K.T
        inside = (place[:, :2] >= 0) & (place[:, :2] <= place[:, 2:] * torch.tensor(self.size).to(place))
        self.in_picture |= inside.all(1) & (points[:, 2] > NEAR_PLANE)
        self.num_invalid = int(found.meta["num_invalid"])
        self.covered = max(self.covered, float(found.render_alphas.max()))
        self.has_contrast |= bool((out != out[0, 0]).any())
        return out

    def remarks(self) -> Iterable[str]:
        """What a viewer should know, once all pictures are made.

        Raises:
          ValueError: no picture shows anything.
        """
        if self.covered < 1 / 255:
            raise ValueError("view: the film must show a Gaussian, but no picture has one of opacity 1/255 in it")
        num, outside = len(self.in_picture), int((~self.in_picture).sum())
        if self.num_invalid:
            yield f"left out {self.num_invalid} of {num} Gaussians that have a zero quaternion or are not finite"
        if outside:
            yield f"{outside} of {num} Gaussians ({100 * outside / num:.3g} %) are centred outside every picture"
        if not self.has_contrast:
            yield "every picture is of one colour"


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m worldr1_kernels.rasterize.view",
        description="Film a camera that goes once around a scene of 3D Gaussians.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("scene", type=Path, help="splat file, .ply (plain or packed) or .spz")
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
    kind, _, index = args.device.partition(":")
    must(kind in ("cpu", "cuda") and (not index or index.isdecimal()),
         f"--device must be cpu, cuda or cuda:N, got {args.device}")  # fmt: skip
    num_gpus = torch.cuda.device_count() if kind == "cuda" and torch.cuda.is_available() else 0
    must(kind == "cpu" or int(index or 0) < num_gpus,
         f"--device {args.device} needs a CUDA device, torch sees {num_gpus}; use --device cpu")  # fmt: skip


def _imageio() -> Any:
    try:
        return import_module("imageio.v2")
    except ImportError as error:
        raise RuntimeError('view: imageio must be installed: pip install "imageio[ffmpeg]"') from error


def write_film(path: Path, pictures: Iterable[np.ndarray], num_pictures: int, fps: int) -> None:
    """Writes a .gif or .mp4, whole or not at all, and looks at it: neither ffmpeg nor its reader fails on a full disk.

    Args:
      path: Ends in .gif or .mp4.
      pictures: [H, W, 3] each, uint8.
      num_pictures: As many as there are.
      fps: Pictures per second.
    Raises:
      OSError: the file cannot be written, or does not hold the pictures.
    """
    imageio = _imageio()
    with whole_file(path) as unfinished:
        if path.suffix.lower() == ".gif":
            buffer = BytesIO()  # a writer of a file would try again, and complain again, whenever it is collected
            with imageio.get_writer(buffer, format="GIF", duration=1000 / fps, loop=0) as writer:
                for picture in pictures:
                    writer.append_data(picture)
            unfinished.write_bytes(buffer.getvalue())
            return
        options = {"fps": fps, "codec": "libx264", "quality": 9, "macro_block_size": 1, "ffmpeg_log_level": "quiet"}
        with imageio.get_writer(str(unfinished), **options) as writer:
            for picture in pictures:
                writer.append_data(picture)
        try:
            with imageio.get_reader(str(unfinished)) as reader:
                num_written = reader.count_frames()
        except (OSError, RuntimeError, IndexError, ValueError, StopIteration):  # what is no film at all
            num_written = 0
        if num_written != num_pictures:
            raise OSError(
                f"view: {path} must hold {num_pictures} pictures, ffmpeg has written {num_written}: is the disk full?"
            )


def film(args: argparse.Namespace) -> None:
    """Writes the film that the arguments describe."""
    _check(args)
    _imageio()  # before the work
    splats = load_splats(args.scene, drop_invalid=args.drop_invalid)
    if len(splats.means) == 0 or float(splats.opacities.sum()) <= 0:
        raise ValueError(f"view: {args.scene} must hold at least one Gaussian that is not transparent, got none")
    fov, num = math.radians(args.fov), len(splats.means)
    elevation = math.radians(args.elevation)
    viewmats = turntable(num_frames=args.frames, fov=fov, up=AXES[args.up], elevation=elevation, zoom=args.zoom)
    focal = min(args.width, args.height) / 2 / math.tan(fov / 2)
    K = torch.tensor([[focal, 0, args.width / 2], [0, focal, args.height / 2], [0, 0, 1]], device=args.device)
    background = torch.tensor(args.background, device=args.device)
    splats = unit_scene(splats)
    splats = splats._replace(**{name: field.to(args.device) for name, field in splats._asdict().items()})
    made = Film(splats, K, args.width, args.height, background, args.backend)
    remarks: list[str] = []

    def pictures() -> Iterable[np.ndarray]:
        for i, viewmat in enumerate(viewmats.to(args.device)):
            yield made.picture(viewmat).numpy()
            print(f"\r{args.scene.name}: {num} Gaussians, picture {i + 1} of {args.frames}", end="", file=sys.stderr,
                  flush=True)  # fmt: skip
        remarks.extend(made.remarks())

    with torch.no_grad():
        write_film(args.out, pictures(), args.frames, args.fps)
    print(file=sys.stderr)
    for remark in remarks:
        print(f"view: {args.scene}: {remark}", file=sys.stderr)
    print(f"{args.out}: {args.frames} pictures of {args.width} x {args.height}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 2 and a line on stderr for what the user can mend."""
    args = _arguments().parse_args(arguments)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(message, file=sys.stderr)
        try:
            film(args)
        except (ValueError, TypeError, RuntimeError, OSError, MemoryError, ImportError) as error:
            text = (str(error) or type(error).__name__).strip().splitlines()[0]
            print("\n" + (text if text.startswith(("view:", "load_splats:")) else f"view: {text}"), file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
