"""Camera control as the literature measures it: RotErr, TransErr, CamMC, and the camera error of WorldScore."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from worldr1_kernels import relative_poses, trajectory_error

_BISECTIONS = 60


class CameraControl(NamedTuple):
    """Every field is [N], dtype of the recovered matrices. NaN where the request does not travel, since a path without
    length has no scale; `rot_err` and `rotation_deg` are defined there too."""

    rot_err: Tensor
    """Sum over frames of the angle between recovered and requested orientation, radians."""
    trans_err: Tensor
    """Sum over frames of the distance of the camera centres, each path divided by its own largest |centre|."""
    cam_mc: Tensor
    """Sum over frames of the Frobenius norm of the difference of [R | centre], scaled alike."""
    rotation_deg: Tensor
    """Mean over frames of the angle, degrees."""
    translation: Tensor
    """Mean over frames of the distance after the scale that makes this mean smallest, units of the request."""
    camera_error: Tensor
    """sqrt(rotation_deg * translation)."""


def camera_control(viewmats_pred: Tensor, viewmats_target: Tensor, *, min_path: float | Tensor = 0.0) -> CameraControl:
    """How well recovered cameras follow the requested ones; poses relative to the first camera.

    WorldScore's scale may be negative: a camera that runs backwards along the right line has no error of translation.
    Its error is also 0 as soon as one of the two factors is. RotErr and TransErr have neither weakness.

    Args:
      viewmats_pred: Recovered world-to-camera, shape [N, F, 4, 4], float32 or float64, F >= 2.
      viewmats_target: Requested, same shape.
      min_path: A requested path that is not longer than this does not travel. A number or [N], scene units.
    Returns:
      CameraControl.
    Raises:
      ValueError: shapes or devices differ; F < 2; not finite; not rigid (reflections too).
      TypeError: dtype.
    Source: CameraCtrl, arXiv 2404.02101 (RotErr, TransErr); MotionCtrl, arXiv 2312.03641 (CamMC); the normalization by
      each path's own largest |centre| and the sum over frames follow CamI2V, arXiv 2410.15957; WorldScore, arXiv
      2504.00983 (camera error; the scale is that of its released code, by least absolute distances).
    """
    error = trajectory_error(viewmats_pred, viewmats_target, scale="max_norm")
    pred, target = (_centers(v) for v in (viewmats_pred, viewmats_target))
    scale = least_distance_scale(pred, target)
    rotation_deg = torch.rad2deg(error.rotation.mean(dim=1))
    translation = (scale[:, None, None] * pred - target).norm(dim=-1).mean(dim=1).to(error.rotation)
    travels = error.path_target > min_path

    def where_it_travels(value: Tensor) -> Tensor:
        return torch.where(travels, value, torch.nan)

    return CameraControl(
        error.rot_err,
        where_it_travels(error.trans_err),
        where_it_travels(error.cam_mc),
        rotation_deg,
        where_it_travels(translation),
        where_it_travels((rotation_deg * translation).sqrt()),
    )


def least_distance_scale(pred: Tensor, target: Tensor) -> Tensor:
    """argmin_s sum_t |s pred_t - target_t|, of either sign; 0 for a path that stays at the origin.

    The sum is convex in s: its slope is bisected between the smallest and the largest s that suits one frame.

    Args:
      pred: Points, shape [N, F, 3], float64.
      target: Same shape.
    Returns:
      [N].
    """
    squares, inner = pred.square().sum(-1), (pred * target).sum(-1)  # [N, F]
    moves = squares > 0
    best = torch.where(moves, inner / squares.clamp_min(1e-300), 0.0)
    low = torch.where(moves, best, torch.inf).amin(1)
    high = torch.where(moves, best, -torch.inf).amax(1)
    at_rest = ~moves.any(1)
    low, high = low.masked_fill(at_rest, 0.0), high.masked_fill(at_rest, 0.0)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        distance = (middle[:, None, None] * pred - target).norm(dim=-1)
        rise = middle[:, None] * squares - inner
        slope = torch.where(distance > 0, rise / distance.clamp_min(1e-300), 0.0).sum(1)
        low, high = torch.where(slope < 0, middle, low), torch.where(slope < 0, high, middle)
    return 0.5 * (low + high)


def _centers(viewmats: Tensor) -> Tensor:
    """Camera centres relative to the first camera, [N, F, 3], float64."""
    relative = relative_poses(viewmats.double())
    return -(relative[..., :3, :3].mT @ relative[..., :3, 3:])[..., 0]
