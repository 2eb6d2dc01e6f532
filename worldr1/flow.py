"""Camera trajectory -> optical flow of a front-parallel plane."""

from __future__ import annotations

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
      ValueError: wrong shapes, depth <= 0, or a camera step that puts part of the plane behind the camera.
    """
    if viewmats.ndim != 3 or viewmats.shape[-2:] != (4, 4) or len(viewmats) < 2:
        raise ValueError(f"camera_flow: viewmats must have shape [F >= 2, 4, 4], got {list(viewmats.shape)}")
    if K.shape != (3, 3):
        raise ValueError(f"camera_flow: K must have shape [3, 3], got {list(K.shape)}")
    if not depth > 0:
        raise ValueError(f"camera_flow: depth must be > 0, got {depth}")
    viewmats, K = viewmats.double(), K.double()
    step = viewmats[1:] @ torch.linalg.inv(viewmats[:-1])  # [F-1, 4, 4]
    normal = torch.tensor([[0.0, 0.0, 1.0 / depth]], dtype=torch.float64, device=K.device)
    homography = K @ (step[:, :3, :3] + step[:, :3, 3:] @ normal) @ torch.linalg.inv(K)  # [F-1, 3, 3]
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float64, device=K.device) + 0.5,
        torch.arange(width, dtype=torch.float64, device=K.device) + 0.5,
        indexing="ij",
    )
    u = torch.stack([x, y, torch.ones_like(x)]).reshape(3, -1)  # [3, HW]
    moved = homography @ u  # [F-1, 3, HW]
    if not bool((moved[:, 2] > 1e-6).all()):
        raise ValueError(
            f"camera_flow: a camera step passes the plane at depth {depth}; use a larger depth or smaller steps"
        )
    return (moved[:, :2] / moved[:, 2:] - u[:2]).reshape(-1, 2, height, width)
