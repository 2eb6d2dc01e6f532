"""Camera trajectory -> optical flow of a front-parallel plane."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def camera_flow(viewmats: Tensor, K: Tensor, *, depth: float, height: int, width: int) -> Tensor:
    """Where each pixel goes from frame t to t + 1 if the scene is a plane facing camera t at distance `depth`.

        u' ~ K (R + t n^T / depth) K^-1 u,  n = (0, 0, 1)

    Args:
      viewmats: World-to-camera, [F, 4, 4].
      K: Intrinsics for a height x width image, [3, 3], pixels. Pixel centres are at +.5.
      depth: Distance of the plane, scene units, > 0.
    Returns:
      flow [F-1, 2, height, width], (dx, dy) in pixels, float64.
    Raises:
      ValueError: wrong shapes or devices; viewmats that are not finite or not of this layout; K not invertible; depth
        not finite and > 0; an empty image; a camera step that puts part of the plane in view behind the camera.
    """
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
    viewmats, K = viewmats.double(), K.double()
    if not bool(viewmats.isfinite().all()):
        raise ValueError("camera_flow: viewmats must be finite, got NaN or infinity")
    if not bool((viewmats[:, 3] - viewmats.new_tensor([0.0, 0.0, 0.0, 1.0])).abs().max() < 1e-6):
        raise ValueError(f"camera_flow: the last row of viewmats must be (0, 0, 0, 1), got {viewmats[0, 3].tolist()}")
    if not bool(K.isfinite().all()) or float(torch.linalg.det(K)) == 0.0:
        raise ValueError(f"camera_flow: K must be finite and invertible, got {K.tolist()}")
    step = viewmats[1:] @ torch.linalg.inv(viewmats[:-1])  # [F-1, 4, 4]
    normal = torch.tensor([[0.0, 0.0, 1.0 / depth]], dtype=torch.float64, device=K.device)
    homography = K @ (step[:, :3, :3] + step[:, :3, 3:] @ normal) @ torch.linalg.inv(K)  # [F-1, 3, 3]
    y = torch.arange(height, dtype=torch.float64, device=K.device)[:, None] + 0.5  # [H, 1]
    x = torch.arange(width, dtype=torch.float64, device=K.device) + 0.5  # [W]
    flow = torch.empty(len(step), 2, height, width, dtype=torch.float64, device=K.device)
    # Written out, one frame at a time: a matrix product may sum in another order on another machine, and a flow that
    # rounds the other way moves another pixel of the noise. It also needs no more memory than the result and a frame.
    for out, h in zip(flow, homography, strict=True):
        z = h[2, 0] * x + h[2, 1] * y + h[2, 2]  # [H, W]
        if not bool((z > 1e-6).all()):
            raise ValueError(
                f"camera_flow: a camera step passes the plane at depth {depth}; use a larger depth or smaller steps"
            )
        out[0] = (h[0, 0] * x + h[0, 1] * y + h[0, 2]) / z - x
        out[1] = (h[1, 0] * x + h[1, 1] * y + h[1, 2]) / z - y
    return flow
