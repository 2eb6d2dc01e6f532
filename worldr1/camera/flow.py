"""Camera trajectory -> optical flow of a front-parallel plane, whole or field by field."""

from __future__ import annotations

import math
from copy import copy

import torch
from torch import Tensor


class CameraFlow:
    """Where each pixel goes from frame t to t + 1 if the scene is a plane facing camera t at distance `depth`.

        u' ~ K (R + t n^T / depth) K^-1 u,  n = (0, 0, 1)

    A sequence of F - 1 fields [2, height, width], (dx, dy) in pixels, float64. Each is computed when it is asked for:
    81 frames at 960x1664 would take 2 GB together, 26 MB one by one.

    Args:
      viewmats: World-to-camera, [F, 4, 4].
      K: Intrinsics for a height x width image, [3, 3], pixels. Pixel centres are at +.5.
      depth: Distance of the plane, scene units, > 0.
      height: Of the image.
      width: Of the image.
    Raises:
      ValueError: wrong shapes or devices; viewmats that are not finite or not of this layout; K not invertible; depth
        not finite and > 0; an empty image; a camera step that puts part of the plane in view behind the camera.
    """

    def __init__(self, viewmats: Tensor, K: Tensor, *, depth: float, height: int, width: int) -> None:
        viewmats, K = viewmats.double(), K.double()
        _check(viewmats, K, depth, height, width)
        step = viewmats[1:] @ torch.linalg.inv(viewmats[:-1])  # [F-1, 4, 4]
        normal = torch.tensor([[0.0, 0.0, 1.0 / depth]], dtype=torch.float64, device=K.device)
        self._homography = K @ (step[:, :3, :3] + step[:, :3, 3:] @ normal) @ torch.linalg.inv(K)  # [F-1, 3, 3]
        self._y = torch.arange(height, dtype=torch.float64, device=K.device)[:, None] + 0.5  # [H, 1]
        self._x = torch.arange(width, dtype=torch.float64, device=K.device) + 0.5  # [W]
        # Along a row and along a column z rises or falls throughout: the least of an image is in a corner.
        zx, zy, z1 = self._homography[:, 2, :, None, None].unbind(1)
        if not bool((zx * self._x[[0, -1]] + zy * self._y[[0, -1]] + z1 > 1e-6).all()):
            raise ValueError(
                f"camera_flow: a camera step passes the plane at depth {depth}; use a larger depth or smaller steps"
            )

    def to(self, device: torch.device | str) -> CameraFlow:
        """The same fields, made on `device`, bit for bit: each is sums, products and quotients of float64, rounded one
        by one, and the matrices are those of here."""
        moved = copy(self)
        moved._homography, moved._x, moved._y = (t.to(device) for t in (self._homography, self._x, self._y))
        return moved

    def __len__(self) -> int:
        return len(self._homography)

    def __getitem__(self, index: int) -> Tensor:
        """Field `index`, [2, height, width]. The operations are written out: a matrix product may sum in another order
        on another machine, and a flow that rounds the other way moves another pixel of the noise."""
        h, x, y = self._homography[index], self._x, self._y
        z = h[2, 0] * x + h[2, 1] * y  # [H, W]
        z += h[2, 2]
        field = torch.empty(2, *z.shape, dtype=torch.float64, device=z.device)
        for out, row, start in ((field[0], h[0], x), (field[1], h[1], y)):
            torch.add(row[0] * x, row[1] * y, out=out)
            out.add_(row[2]).div_(z).sub_(start)
        return field


def camera_flow(viewmats: Tensor, K: Tensor, *, depth: float, height: int, width: int) -> Tensor:
    """All fields of `CameraFlow` in one tensor.

    Args:
      viewmats, K, depth, height, width: As for `CameraFlow`.
    Returns:
      flow [F-1, 2, height, width], (dx, dy) in pixels, float64.
    Raises:
      ValueError: as `CameraFlow`.
    """
    fields = CameraFlow(viewmats, K, depth=depth, height=height, width=width)
    flow = torch.empty(len(fields), 2, height, width, dtype=torch.float64, device=K.device)
    for index, out in enumerate(flow):
        out.copy_(fields[index])
    return flow


def _check(viewmats: Tensor, K: Tensor, depth: float, height: int, width: int) -> None:
    if viewmats.ndim != 3 or viewmats.shape[-2:] != (4, 4) or len(viewmats) < 2:
        raise ValueError(f"camera_flow: viewmats must have shape [F >= 2, 4, 4], got {list(viewmats.shape)}")
    if K.shape != (3, 3):
        raise ValueError(f"camera_flow: K must have shape [3, 3], got {list(K.shape)}")
    if viewmats.device != K.device:
        raise ValueError(f"camera_flow: K must be on {viewmats.device} like viewmats, got {K.device}")
    if not 0 < depth < math.inf:
        raise ValueError(f"camera_flow: depth must be finite and > 0, got {depth}")
    if height < 1 or width < 1:
        raise ValueError(f"camera_flow: height and width must be >= 1, got {height} x {width}")
    if not bool(viewmats.isfinite().all()):
        raise ValueError("camera_flow: viewmats must be finite, got NaN or infinity")
    if not bool((viewmats[:, 3] - viewmats.new_tensor([0.0, 0.0, 0.0, 1.0])).abs().max() < 1e-6):
        raise ValueError(f"camera_flow: the last row of viewmats must be (0, 0, 0, 1), got {viewmats[0, 3].tolist()}")
    if not bool(K.isfinite().all()) or float(torch.linalg.det(K)) == 0.0:
        raise ValueError(f"camera_flow: K must be finite and invertible, got {K.tolist()}")
