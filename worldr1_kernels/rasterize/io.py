"""Splat files: the usual .ply of 3D Gaussian splatting (through plyfile) and .spz (through gaussforge).

Both packages are optional: `pip install "worldr1[splats]"`. Axes stay as they are in the file: a .ply of a
reconstruction is mostly y down, as everything here; a .spz of other programs is mostly y up.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

SUFFIXES = (".ply", ".spz")
MAX_DEGREE = {".ply": 4, ".spz": 3}
_CORE = ("x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "opacity", *(f"scale_{i}" for i in range(3)))
_ROTATION = tuple(f"rot_{i}" for i in range(4))
_CLOSEST_TO_ONE = 1e-6  # of an opacity: its logit must stay finite


class Splats(NamedTuple):
    """A scene as `rasterize` takes it: `rasterize(*splats, viewmats, Ks, width, height, sh_degree=degree(splats))`."""

    means: Tensor
    """[N, 3], scene units."""
    quats: Tensor
    """[N, 4], wxyz, as in the file: of any length."""
    scales: Tensor
    """[N, 3], standard deviations, scene units."""
    opacities: Tensor
    """[N], in (0, 1)."""
    colors: Tensor
    """[N, K, 3], spherical harmonics coefficients, K = (degree + 1)^2."""


def degree(splats: Splats) -> int:
    """Degree of the spherical harmonics, 0 to 4."""
    return math.isqrt(splats.colors.shape[1]) - 1


def load_splats(path: str | os.PathLike[str], *, drop_invalid: bool = False) -> Splats:
    """Reads a scene.

    Args:
      path: A .ply with the properties x y z, f_dc_0..2, f_rest_0.. (none, 9, 24, 45 or 72, channel by channel), opacity
        (logit), scale_0..2 (logarithms), rot_0..3 (wxyz) of its element vertex, in any order, others ignored, ascii or
        binary; or a .spz.
      drop_invalid: Leave out Gaussians with a value that is not finite, in place of an error.
    Returns:
      Splats, float32, CPU.
    Raises:
      ValueError: another suffix; not such a file, or cut off; properties are missing; values are not finite.
      OSError: the file cannot be read.
      RuntimeError: the package that reads this format is not installed.
    """
    path = _checked("load_splats", path)
    raw = _read_ply(path, path.read_bytes() if path.suffix.lower() == ".ply" else _from_spz(path))
    splats = Splats(raw.means, raw.quats, raw.scales.exp(), raw.opacities.sigmoid(), raw.colors)
    good = torch.stack([field.isfinite().flatten(1).all(1) for field in (*splats[:3], splats[3][:, None], splats[4])])
    kept = good.all(0)
    if not bool(kept.all()):
        if not drop_invalid:
            raise ValueError(
                f"load_splats: {path} must hold finite values, got {int((~kept).sum())} of {len(kept)} Gaussians that "
                f"are not, the first in row {int((~kept).nonzero()[0])}; use drop_invalid=True to leave them out"
            )
        splats = Splats(*(field[kept] for field in splats))
    return splats


def save_splats(path: str | os.PathLike[str], splats: Splats) -> None:
    """Writes a scene; the file appears whole or not at all.

    A .ply keeps float32, opacities to 1e-6 of 0 and 1. A .spz is quantised by its format: positions to 1/4096 of a
    unit, logarithms of scales to 1/16, the rest to 8 bits and less.

    Args:
      path: .ply or .spz (up to degree 3).
      splats: Any float dtype and device.
    Raises:
      ValueError: another suffix; no Gaussian at all (.spz alone); shapes; K is no (degree + 1)^2 that the format knows;
        not finite; scales <= 0; opacities outside [0, 1].
      OSError: the file cannot be written.
      RuntimeError: the package that writes this format is not installed.
    """
    path = _checked("save_splats", path)
    suffix = path.suffix.lower()
    _check_splats(splats, MAX_DEGREE[suffix])
    wide = Splats(*(field.detach().cpu().double() for field in splats))
    opacities = wide.opacities.clamp(_CLOSEST_TO_ONE, 1.0 - _CLOSEST_TO_ONE).logit()
    raw = Splats(*(f.float() for f in wide._replace(scales=wide.scales.log(), opacities=opacities)))
    content = _ply_bytes(raw)
    if suffix == ".spz":
        content = _to_spz(content)
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


def optional(op: str, name: str) -> Any:
    """An optional package, or an error that says how to get it."""
    try:
        return import_module(name)
    except ImportError as error:
        raise RuntimeError(f'{op}: {name} must be installed: pip install "worldr1[splats]"') from error


def _checked(op: str, path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{op}: path must end in .ply or .spz, got {path}")
    return path


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
    for name, field in zip(Splats._fields, splats, strict=True):
        if not bool(field.isfinite().all()):
            raise ValueError(
                f"save_splats: {name} must be finite, got {int((~field.isfinite()).sum())} values that are not"
            )
    if num and float(splats.scales.min()) <= 0:
        raise ValueError(f"save_splats: scales must be > 0, got {float(splats.scales.min())}")
    if num and not 0 <= float(splats.opacities.min()) <= float(splats.opacities.max()) <= 1:
        raise ValueError(f"save_splats: opacities must be in [0, 1], got {float(splats.opacities.min())} to "
                         f"{float(splats.opacities.max())}")  # fmt: skip


def _read_ply(path: Path, content: bytes) -> Splats:
    """As in the file: scales are logarithms, opacities logits."""
    plyfile = optional("load_splats", "plyfile")
    try:
        vertex = plyfile.PlyData.read(BytesIO(content))["vertex"].data
    # Beside its own errors it lets out those of what it calls on bytes that are no header or no numbers.
    except (plyfile.PlyParseError, KeyError, ValueError, EOFError, MemoryError, OverflowError) as error:
        raise ValueError(f"load_splats: {path} must be a whole .ply with an element vertex, got {error!r}") from error
    names = set(vertex.dtype.names or ())
    missing = [name for name in (*_CORE, *_ROTATION) if name not in names]
    if missing:
        raise ValueError(f"load_splats: {path} must hold Gaussians, but its vertices have no {', '.join(missing)}")
    lists = [name for name in (*_CORE, *_ROTATION) if vertex.dtype[name].hasobject]
    rest = sum(name.startswith("f_rest_") for name in names)
    sizes = [3 * ((d + 1) ** 2 - 1) for d in range(MAX_DEGREE[".ply"] + 1)]
    if lists or rest not in sizes or any(f"f_rest_{i}" not in names for i in range(rest)):
        raise ValueError(
            f"load_splats: {path} must hold numbers, and f_rest_0 to f_rest_n with a count of {sizes}, got {rest}"
            + (f" and lists in {', '.join(lists)}" if lists else "")
        )

    def columns(*wanted: str) -> Tensor:
        table = np.empty((len(vertex), len(wanted)), np.float32)
        for i, name in enumerate(wanted):
            table[:, i] = vertex[name]
        return torch.from_numpy(table)

    higher = columns(*(f"f_rest_{i}" for i in range(rest))).reshape(len(vertex), 3, rest // 3).mT  # [N, K - 1, 3]
    colors = torch.cat([columns(*_CORE[3:6])[:, None], higher], 1)
    scales, opacities = columns(*_CORE[7:]), columns("opacity")[:, 0]
    return Splats(columns(*_CORE[:3]), columns(*_ROTATION), scales, opacities, colors)


def _ply_bytes(raw: Splats) -> bytes:
    plyfile = optional("save_splats", "plyfile")
    num = len(raw.means)
    higher = raw.colors[:, 1:].mT.flatten(1)  # channel by channel
    names = [
        "x",
        "y",
        "z",
        "nx",
        "ny",
        "nz",
        "f_dc_0",
        "f_dc_1",
        "f_dc_2",
        *(f"f_rest_{i}" for i in range(higher.shape[1])),
    ]
    names += ["opacity", "scale_0", "scale_1", "scale_2", *_ROTATION]
    parts = [raw.means, torch.zeros(num, 3), raw.colors[:, 0], higher, raw.opacities[:, None], raw.scales, raw.quats]
    table = torch.cat(parts, 1).numpy()
    vertex = np.ascontiguousarray(table).view([(name, "<f4") for name in names]).reshape(num)
    content = BytesIO()
    plyfile.PlyData([plyfile.PlyElement.describe(vertex, "vertex")], byte_order="<").write(content)
    return content.getvalue()


def _from_spz(path: Path) -> bytes:
    answer = optional("load_splats", "gaussforge").GaussForge().convert(path.read_bytes(), "spz", "ply")
    if not answer.get("data"):  # what is no .spz at all becomes an empty answer without an error
        raise ValueError(f"load_splats: {path} must be a whole .spz, got {answer.get('error', 'another content')}")
    return answer["data"]


def _to_spz(ply: bytes) -> bytes:
    answer = optional("save_splats", "gaussforge").GaussForge().convert(ply, "ply", "spz")
    if not answer.get("data"):
        raise ValueError(f"save_splats: gaussforge must be able to write the scene, got {answer.get('error')}")
    return answer["data"]
