"""Scenes for the tests of splat files, and the two packages that read and write such files beside this one."""

from pathlib import Path
from typing import Any

import gaussforge
import numpy as np
import numpy.lib.recfunctions
import plyfile
import torch

from worldr1_kernels.rasterize.io import Splats
from worldr1_kernels.testing import generator, normal


def scene(num: int = 50, sh_degree: int = 2, seed: int = 0) -> Splats:
    means, quats = normal((num, 3), seed), normal((num, 4), seed + 1)
    scales = (0.05 * normal((num, 3), seed + 2)).exp() * 0.1
    opacities = torch.rand(num, generator=generator(seed + 3)).clamp(0.01, 0.99)
    colors = 0.3 * normal((num, (sh_degree + 1) ** 2, 3), seed + 4)
    return Splats(means, quats, scales, opacities, colors.clamp(-1, 1))


def rows(path: Path) -> np.ndarray:
    return plyfile.PlyData.read(str(path))["vertex"].data


def without(table: np.ndarray, *names: str) -> np.ndarray:
    return np.lib.recfunctions.drop_fields(table, names, usemask=False)


def write_rows(path: Path, table: np.ndarray, *, text: bool = False, order: str = "<") -> None:
    plyfile.PlyData([plyfile.PlyElement.describe(table, "vertex")], text=text, byte_order=order).write(str(path))


def forge(content: bytes, source: str, target: str, **options: Any) -> bytes:
    return gaussforge.GaussForge().convert(content, source, target, **options)["data"]


def assert_close(actual: Splats, expected: Splats, **tolerances: float) -> None:
    for name, one, other in zip(Splats._fields, actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=tolerances.get(name, 1e-6), msg=lambda m, n=name: n + m)


def with_value(name: str, value: float) -> Splats:
    field = getattr(scene(6), name).double().clone()
    field.view(6, -1)[4, -1] = value
    return scene(6)._replace(**{name: field})
