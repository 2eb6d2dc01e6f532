"""Camera trajectories: geodesic distance, alignment, published errors, and the trajectory reward."""

from worldr1_kernels.se3.api import (
    TrajectoryError,
    align_scale,
    geodesic_distance,
    path_length,
    relative_poses,
    trajectory_error,
    trajectory_reward,
)
from worldr1_kernels.se3.faults import check

__all__ = [
    "TrajectoryError",
    "align_scale",
    "check",
    "geodesic_distance",
    "path_length",
    "relative_poses",
    "trajectory_error",
    "trajectory_reward",
]
