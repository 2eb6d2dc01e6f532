"""Camera trajectories in plain torch. Arithmetic is float64 whatever the inputs; results take the inputs' dtype.

Every function here is differentiable. Norms and angles have the subgradient 0 where they have a kink (zero vector,
equal rotations, rotations half a turn apart), so no gradient is ever NaN. Differences within rounding of what is
compared count as 0: their direction, and with it a gradient of length one, would be noise.
"""

import math
from typing import NamedTuple

import torch

STATIC_EXTENT = 1e-5
"""A requested path that stays within this times (1 + distance of its first camera from the origin) is a fixed camera:
above the rounding of float32 matrices, below any motion one would ask for. Scene units."""
STATIC_SHARE = 0.01
"""A recovered path within this share of the median depth is a camera at rest: a scale would only blow up its noise."""
SMALLEST_RATIO = 0.01
"""In a metric world a path shorter than this share of the requested one counts as this long."""
ROUNDING = 1e-14
"""Differences below this times what is compared are rounding, and count as 0."""
MIN_ANGLE = math.radians(10.0)
"""Rotation errors are measured against the requested angle, but never against less than this."""


class Errors(NamedTuple):
    """Fields of TrajectoryError, in its order."""

    rotation: torch.Tensor
    translation: torch.Tensor
    scale: torch.Tensor
    rot_err: torch.Tensor
    trans_err: torch.Tensor
    cam_mc: torch.Tensor
    path_pred: torch.Tensor
    path_target: torch.Tensor


def norm(x: torch.Tensor, dims: int = 1) -> torch.Tensor:
    """Euclidean norm over the last `dims` dimensions; gradient 0 at 0."""
    squares = x.square().flatten(-dims).sum(-1)
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)


def _beyond_rounding(difference: torch.Tensor, squares: torch.Tensor | float) -> torch.Tensor:
    """`difference` [..., k], or 0 where its square is within rounding of `squares`, those of what was compared."""
    counts = difference.square().sum(-1) > ROUNDING**2 * squares
    return torch.where(counts[..., None], difference, 0.0)


def _ratio(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    """numerator / denominator, 0 where the denominator is 0; no NaN in the gradient either."""
    positive = denominator > 0
    return torch.where(positive, numerator / torch.where(positive, denominator, 1.0), 0.0)


def angle(rotation: torch.Tensor) -> torch.Tensor:
    """Angle in [0, pi] of rotations [..., 3, 3]: atan2 of the sine (skew part) and the cosine (trace)."""
    skew = torch.stack(
        [
            rotation[..., 2, 1] - rotation[..., 1, 2],
            rotation[..., 0, 2] - rotation[..., 2, 0],
            rotation[..., 1, 0] - rotation[..., 0, 1],
        ],
        dim=-1,
    )
    trace = rotation.diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.atan2(norm(_beyond_rounding(skew, 1.0)), trace - 1.0)


def geodesic_distance(R_a: torch.Tensor, R_b: torch.Tensor) -> torch.Tensor:
    """Angle of R_a^T R_b, [...], dtype of R_a."""
    return angle(R_a.double().transpose(-1, -2) @ R_b.double()).to(R_a.dtype)


def centers(viewmats: torch.Tensor) -> torch.Tensor:
    """Camera centres -R^T t of world-to-camera matrices [..., 4, 4], [..., 3]."""
    return -(viewmats[..., :3, :3].transpose(-1, -2) @ viewmats[..., :3, 3:])[..., 0]


def relative_poses(viewmats: torch.Tensor) -> torch.Tensor:
    """E_t E_0^-1, [..., F, 4, 4]: the first camera becomes the world. The inverse is rigid, not numeric; frame 0 is the
    identity, a constant."""
    first, rest = viewmats[..., :1, :, :], viewmats[..., 1:, :, :]
    rotation = rest[..., :3, :3] @ first[..., :3, :3].transpose(-1, -2)  # [..., F-1, 3, 3]
    translation = rest[..., :3, 3:] - rotation @ first[..., :3, 3:]
    identity = torch.eye(4, dtype=viewmats.dtype, device=viewmats.device).expand_as(first)
    moved = torch.cat([torch.cat([rotation, translation], -1), identity[..., 3:, :].expand(rest[..., 3:, :].shape)], -2)
    return torch.cat([identity, moved], -3)


def path_length(points: torch.Tensor) -> torch.Tensor:
    """Length of the polyline [..., F, 3], [...]."""
    return norm(points[..., 1:, :] - points[..., :-1, :]).sum(-1)


def least_squares_scale(pred: torch.Tensor, target: torch.Tensor, median_depth: torch.Tensor | None) -> torch.Tensor:
    """max(0, <pred, target>) / <pred, pred> for points [..., F, 3]; 0 for a path at rest."""
    inner = (pred * target).flatten(-2).sum(-1)
    scale = _ratio(inner.clamp(min=0.0), pred.square().flatten(-2).sum(-1))
    if median_depth is None:
        return scale
    return torch.where(norm(pred).amax(-1) < STATIC_SHARE * median_depth, 0.0, scale)


@torch.no_grad()
def _similarity(pred: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Least squares, target ~ scale R pred + offset: scale [N], R [N, 3, 3], offset [N, 3] (Umeyama 1991)."""
    mean_pred, mean_target = pred.mean(-2, keepdim=True), target.mean(-2, keepdim=True)
    covariance = (target - mean_target).transpose(-1, -2) @ (pred - mean_pred)  # [N, 3, 3]
    U, S, Vh = torch.linalg.svd(covariance)
    sign = torch.ones_like(S)
    sign[..., 2] = torch.where(torch.linalg.det(U @ Vh) < 0, -1.0, 1.0)
    rotation = (U * sign[..., None, :]) @ Vh
    scale = _ratio((S * sign).sum(-1), (pred - mean_pred).square().flatten(-2).sum(-1))
    offset = mean_target[..., 0, :] - scale[..., None] * (rotation @ mean_pred.transpose(-1, -2))[..., 0]
    return scale, rotation, offset


def _deviation(moved: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    return _beyond_rounding(moved - goal, moved.square().sum(-1) + goal.square().sum(-1))


def _aligned(
    pred: torch.Tensor, target: torch.Tensor, scale_mode: str, median_depth: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Both paths in comparable units, and the scale [N]: (pred, target, scale)."""
    if scale_mode == "sim3":
        scale, rotation, offset = _similarity(pred, target)
        moved = scale[..., None, None] * (pred @ rotation.transpose(-1, -2)) + offset[..., None, :]
        return moved, target, scale
    if scale_mode == "max_norm":
        largest_pred, largest_target = norm(pred).amax(-1), norm(target).amax(-1)
        unit_pred = _ratio(pred, largest_pred[..., None, None])
        return unit_pred, _ratio(target, largest_target[..., None, None]), _ratio(largest_target, largest_pred)
    if scale_mode == "none":
        scale = torch.ones_like(pred[..., 0, 0])
    else:
        scale = least_squares_scale(pred, target, median_depth)
    return scale[..., None, None] * pred, target, scale


def trajectory_error(
    viewmats_pred: torch.Tensor,
    viewmats_target: torch.Tensor,
    median_depth: torch.Tensor | None,
    relative_to: str,
    scale_mode: str,
) -> Errors:
    """See the public function; `median_depth` is a tensor [N] here."""
    dtype = viewmats_pred.dtype
    pred, target = viewmats_pred.double(), viewmats_target.double()
    if relative_to == "first":
        pred, target = relative_poses(pred), relative_poses(target)
    depth = None if median_depth is None else median_depth.double()
    R_pred, R_target = pred[..., :3, :3], target[..., :3, :3]
    path_pred, path_target = centers(pred), centers(target)  # [N, F, 3]
    moved, goal, scale = _aligned(path_pred, path_target, scale_mode, depth)
    rotation = angle(R_pred.transpose(-1, -2) @ R_target)  # [N, F]
    deviation = _deviation(moved, goal)
    translation = norm(deviation)  # [N, F]
    turned = _beyond_rounding((R_pred - R_target).flatten(-2), 1.0)
    pose_difference = torch.cat([turned, deviation], -1)  # [N, F, 12]
    errors = Errors(
        rotation,
        translation,
        scale,
        rotation.sum(-1),
        translation.sum(-1),
        norm(pose_difference).sum(-1),
        path_length(path_pred),
        path_length(path_target),
    )
    return Errors(*(e.to(dtype) for e in errors))


def trajectory_reward(
    viewmats_pred: torch.Tensor,
    viewmats_target: torch.Tensor,
    median_depth: torch.Tensor,
    k_t: float,
    k_r: float,
    metric: bool,
) -> torch.Tensor:
    """See the public function; `median_depth` is a tensor [N] here."""
    depth = median_depth.double()
    target_world = viewmats_target.double()
    relative_pred, relative_target = relative_poses(viewmats_pred.double()), relative_poses(target_world)
    pred, target = centers(relative_pred), centers(relative_target)  # [N, F, 3]
    length_pred, length_target = path_length(pred), path_length(target)
    reach = 1.0 + norm(centers(target_world[..., 0, :, :]))
    fixed = norm(target).amax(-1) <= STATIC_EXTENT * reach  # [N]

    scale = least_squares_scale(pred, target, depth)
    deviation = norm(_deviation(scale[..., None, None] * pred, target)).mean(-1)
    # No scale can turn a path round: it stops at 0, where running against the request would cost what standing still
    # does. The share of the path that runs against it is charged on top.
    inner = (pred * target).flatten(-2).sum(-1)
    cosine = _ratio(inner, norm(pred, 2) * norm(target, 2))
    moving = norm(pred).amax(-1) >= STATIC_SHARE * depth
    against = torch.where(moving, (-cosine).clamp(min=0.0), 0.0)
    drift = norm(pred).mean(-1) / (0.05 * depth) * 0.25
    safe_length = torch.where(fixed, 1.0, length_target)
    e_t = torch.where(fixed, drift, deviation / safe_length * (1.0 + against))

    rotation = angle(relative_pred[..., :3, :3].transpose(-1, -2) @ relative_target[..., :3, :3])
    requested = angle(relative_target[..., :3, :3]).amax(-1)
    e_r = rotation.mean(-1) / requested.clamp(min=MIN_ANGLE)

    exponent = k_t * e_t + k_r * e_r
    if metric:
        # A path that runs against the request covers none of it, however long it is: what it pays for that is, by the
        # share `against`, what a camera at rest pays.
        log_ratio = torch.log((length_pred / safe_length).clamp(min=SMALLEST_RATIO)).abs()
        exponent = exponent + torch.where(fixed, 0.0, log_ratio - math.log(SMALLEST_RATIO) * against)
    return torch.exp(-exponent).to(viewmats_pred.dtype)
