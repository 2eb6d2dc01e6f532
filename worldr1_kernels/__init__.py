"""Kernels for reinforcement learning of video models: noise transport, SDE steps, SE(3) and Gaussian rasterization.

Useful alone: imports torch, numpy and the standard library only; Triton is imported by the first call that runs it.
`python -m worldr1_kernels` prints which backends are there and why.
"""

from worldr1_kernels.noise_transport import TransportPlan, noise_transport, plan_transport
from worldr1_kernels.rasterize import RasterizeOutput, rasterization, rasterize
from worldr1_kernels.sde_step import GrpoLoss, SdeStepOutput, grpo_loss, ode_step, sde_step
from worldr1_kernels.se3 import (
    TrajectoryError,
    align_scale,
    geodesic_distance,
    path_length,
    relative_poses,
    trajectory_error,
    trajectory_reward,
)

__version__ = "0.1.0"

__all__ = [
    "GrpoLoss",
    "RasterizeOutput",
    "SdeStepOutput",
    "TrajectoryError",
    "TransportPlan",
    "align_scale",
    "geodesic_distance",
    "grpo_loss",
    "noise_transport",
    "ode_step",
    "path_length",
    "plan_transport",
    "rasterization",
    "rasterize",
    "relative_poses",
    "sde_step",
    "trajectory_error",
    "trajectory_reward",
]
