"""Splat files: the .ply of 3D Gaussian splatting, plain or packed, and .spz.

Axes stay as they are in the file: a .ply of a reconstruction is mostly y down, as everything here; a .spz of other
programs is mostly y up.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from worldr1_kernels.rasterize import ply, spz
from worldr1_kernels.rasterize.splats import Splats, degree

__all__ = ["Splats", "degree", "load_splats", "save_splats", "whole_file"]

SUFFIXES = (".ply", ".spz")
MAX_DEGREE = {".ply": 4, ".spz": 3}
_CLOSEST_TO_ONE = 1e-6  # of an opacity: its logit must stay finite


def load_splats(path: str | os.PathLike[str], *, drop_invalid: bool = False) -> Splats:
    """Reads a scene.

    Args:
      path: A .ply with the properties x y z, f_dc_0..2, f_rest_0.. (none, 9, 24, 45 or 72, channel by channel), opacity
        (logit), scale_0..2 (logarithms), rot_0..3 (wxyz) of its element vertex, in any order, others ignored, ascii or
        binary; or a packed .ply (SuperSplat, gsplat's `ply_compressed`); or a .spz of version 1 to 4.
      drop_invalid: Leave out Gaussians with a value that is not finite, in place of an error; a UserWarning says how
        many.
    Returns:
      Splats, float32, CPU; `antialiased` where the file says so.
    Raises:
      ValueError: another suffix; not such a file, or cut off; properties are missing; values are not finite.
      OSError: the file cannot be read.
      RuntimeError: a .spz of version 4, and gaussforge is not installed.
    """
    path = _checked("load_splats", path)
    content = path.read_bytes()
    try:
        with np.errstate(all="ignore"):  # what is or becomes infinite or NaN is found below
            splats = ply.decode(content) if path.suffix.lower() == ".ply" else spz.decode(content)
    except ValueError as error:
        kind = ".ply of 3D Gaussians" if path.suffix.lower() == ".ply" else ".spz"
        raise ValueError(f"load_splats: {path} must be a whole {kind}, but {error}") from error
    except RuntimeError as error:
        raise RuntimeError(f"load_splats: {path} cannot be read: {error}") from error
    good = torch.stack([field.isfinite().flatten(1).all(1) for field in (*splats[:3], splats[3][:, None], splats[4])])
    kept = good.all(0)
    if not bool(kept.all()):
        bad = (~kept).nonzero()
        what = f"{len(bad)} of {len(kept)} Gaussians that are not, the first in row {int(bad[0])}"
        if not drop_invalid:
            raise ValueError(
                f"load_splats: {path} must hold finite values, got {what}; use drop_invalid=True to leave them out"
            )
        warnings.warn(f"load_splats: {path} must hold finite values: left out {what}", stacklevel=2)
        splats = Splats(*(field[kept] for field in splats), antialiased=splats.antialiased)
    return splats


def save_splats(path: str | os.PathLike[str], splats: Splats, *, clip: bool = False) -> None:
    """Writes a scene; the file appears whole or not at all.

    A .ply keeps float32, opacities to 1e-6 of 0 and 1. A .spz (version 3) is quantised by its format: positions to
    1/4096 of a unit, logarithms of scales to 1/16, the rest to 8 bits and less. Nothing is clipped to a range in
    silence.

    Args:
      path: .ply or .spz (up to degree 3).
      splats: Any float dtype and device. `antialiased` is kept: a comment of the .ply, a flag of the .spz.
      clip: For a .spz: clip scales and colours to what it holds, in place of an error; a UserWarning says how many.
    Raises:
      ValueError: another suffix; shapes; K is no (degree + 1)^2 that the format knows; not finite, in float32 too;
        scales <= 0; opacities outside [0, 1]; for a .spz a value beyond its range (means 2048, scales 4.4e-5 to 390,
        colours 3.33 and 1), a zero quaternion, or Gaussians finer than its positions.
      OSError: the file cannot be written.
    """
    path = _checked("save_splats", path)
    suffix = path.suffix.lower()
    _check_splats(splats, MAX_DEGREE[suffix])
    wide = splats._replace(**{name: field.detach().cpu().double() for name, field in splats._asdict().items()})
    if suffix == ".spz":
        content = spz.encode(spz.fit(wide, clip=clip))
    else:
        opacities = wide.opacities.clamp(_CLOSEST_TO_ONE, 1.0 - _CLOSEST_TO_ONE).logit()
        raw = wide._replace(scales=wide.scales.log(), opacities=opacities)
        raw = raw._replace(**{name: field.float() for name, field in raw._asdict().items()})
        _check_finite(raw)
        content = ply.encode(raw)
    with whole_file(path) as unfinished:
        unfinished.write_bytes(content)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name beside `path`, renamed to it when the block ends well and removed when it does not."""
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _checked(op: str, path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{op}: path must end in .ply or .spz, got {path}")
    return path


def _check_finite(splats: Splats) -> None:
    for name, field in splats._asdict().items():
        if not bool(field.isfinite().all()):
            raise ValueError(
                f"save_splats: {name} must be finite, got {int((~field.isfinite()).sum())} values that are not"
                " in float32"
            )


def _check_splats(splats: Splats, max_degree: int) -> None:
    num = len(splats.means)
    shapes = {"means": (num, 3), "quats": (num, 4), "scales": (num, 3), "opacities": (num,)}
    for name, shape in shapes.items():
        got = getattr(splats, name)
        if tuple(got.shape) != shape:
            raise ValueError(f"save_splats: {name} must have shape {list(shape)}, got {list(got.shape)}")
    sizes = [(d + 1) ** 2 for d in range(max_degree + 1)]
    colors = splats.colors
    if colors.ndim != 3 or len(colors) != num or colors.shape[1] not in sizes or colors.shape[2] != 3:
        raise ValueError(
            f"save_splats: colors must have shape [{num}, K, 3] with K of {sizes}, got {list(colors.shape)}"
        )
    _check_finite(splats)
    if num and float(splats.scales.min()) <= 0:
        raise ValueError(f"save_splats: scales must be > 0, got {float(splats.scales.min())}")
    if num and not 0 <= float(splats.opacities.min()) <= float(splats.opacities.max()) <= 1:
        raise ValueError(f"save_splats: opacities must be in [0, 1], got {float(splats.opacities.min())} to "
                         f"{float(splats.opacities.max())}")  # fmt: skip
