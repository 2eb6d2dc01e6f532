"""S_traj: does the camera of the video go where the prompt sent it?"""

from __future__ import annotations

from torch import Tensor

from worldr1.datatypes import Reconstruction
from worldr1_kernels import trajectory_reward


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
    """
    requested = requested.to(reconstruction.viewmats)
    depth = median_depth(reconstruction)
    return trajectory_reward(reconstruction.viewmats, requested, median_depth=depth, metric=metric)
