"""S_traj: does the camera of the video go where the prompt sent it?"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from worldr1.datatypes import Reconstruction
from worldr1_kernels import trajectory_error, trajectory_reward
from worldr1_kernels.se3 import check


class TrajectoryParts(NamedTuple):
    """What S_traj is made of: score = exp(-(4 translation + 2 rotation + extent)). Every field is [N]."""

    score: Tensor
    rotation: Tensor
    """e_r: mean angle between recovered and requested orientation over max(largest requested angle, 10 degrees)."""
    translation: Tensor
    """e_t: mean deviation of the scaled path over the requested length, doubled for a path that runs backwards; for a
    camera that is to stay, its mean distance in units of a fifth of the median depth."""
    scale: Tensor
    """Factor from recovered to requested units; 0 for a camera at rest."""
    extent: Tensor
    """|ln(recovered / requested length)| in a metric world, else 0."""
    valid: Tensor
    """Bool: the recovered poses are finite and rigid and the median depth is positive; the rest is NaN where not."""


def median_depth(reconstruction: Reconstruction) -> Tensor:
    """Median z-depth over all pixels of all frames, [N], scene units: the length that S_traj and S_meta measure by."""
    return reconstruction.depth.flatten(1).median(dim=1).values


def trajectory_term(reconstruction: Reconstruction, requested: Tensor, *, metric: bool = False) -> Tensor:
    """S_traj = exp(-(4 e_t + 2 e_r)), scale-free; see worldr1_kernels.trajectory_reward for e_t and e_r.

    Args:
      reconstruction: N recovered scenes.
      requested: Requested world-to-camera matrices, shape [N, F, 4, 4].
      metric: Both are in one unit: |ln(recovered path length / requested)| joins the exponent where a path is
        requested, so that a timid motion scores less than a whole one.
    Returns:
      [N] in [0, 1].
    Raises:
      ValueError: poses that are not finite or rigid, or a median depth that is not positive.
    """
    requested = requested.to(reconstruction.viewmats)
    depth = median_depth(reconstruction)
    reward = trajectory_reward(reconstruction.viewmats, requested, median_depth=depth, metric=metric)
    # A device says faults late: here, or they would be taken for those of the clip that is judged next.
    check(reward.device)
    return reward


@torch.no_grad()
def trajectory_parts(reconstruction: Reconstruction, requested: Tensor, *, metric: bool = False) -> TrajectoryParts:
    """S_traj taken apart, for reading a score; a scene that cannot be scored is marked and does not stop the others.

    Args:
      reconstruction: N recovered scenes.
      requested: Requested world-to-camera matrices, shape [N, F, 4, 4].
      metric: As for `trajectory_term`.
    Returns:
      TrajectoryParts, float64.
    """
    depth = median_depth(reconstruction).double()
    valid = _usable(reconstruction.viewmats) & (depth > 0) & depth.isfinite()  # [N]
    rest = torch.eye(4, dtype=torch.float64, device=valid.device)
    recovered = torch.where(valid[:, None, None, None], reconstruction.viewmats.double(), rest)
    depth = torch.where(valid, depth, 1.0)
    target = requested.to(recovered)

    def exponent(k_t: float, k_r: float, with_extent: bool) -> Tensor:
        return -trajectory_reward(recovered, target, median_depth=depth, k_t=k_t, k_r=k_r, metric=with_extent).log()

    translation, rotation = exponent(1.0, 0.0, False), exponent(0.0, 1.0, False)
    extent = exponent(0.0, 0.0, metric)
    scale = trajectory_error(recovered, target, median_depth=depth).scale
    score = torch.exp(-(4.0 * translation + 2.0 * rotation + extent))

    def where_valid(part: Tensor) -> Tensor:
        return torch.where(valid, part, torch.nan)

    return TrajectoryParts(
        score=where_valid(score),
        rotation=where_valid(rotation),
        translation=where_valid(translation),
        scale=where_valid(scale),
        extent=where_valid(extent),
        valid=valid,
    )


def _usable(viewmats: Tensor) -> Tensor:
    """[N] bool: every pose [N, F, 4, 4] is finite and rigid by the measure of worldr1_kernels."""
    finite = viewmats.isfinite().flatten(1).all(1)
    wide = viewmats.double().nan_to_num(0.0, 0.0, 0.0)
    rotation, identity = wide[..., :3, :3], torch.eye(4, dtype=torch.float64, device=viewmats.device)
    error = torch.maximum(
        (rotation.mT @ rotation - identity[:3, :3]).abs().amax((-1, -2)), (wide[..., 3, :] - identity[3]).abs().amax(-1)
    )  # [N, F]
    return finite & ((error <= 1e-3) & (torch.linalg.det(rotation) > 0)).all(1)
