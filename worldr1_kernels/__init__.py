"""Kernels for reinforcement learning of video models: noise transport, SDE steps, SE(3) and Gaussian rasterization.

Useful alone: imports torch, numpy and the standard library only; Triton is imported by the first call that runs it.
`python -m worldr1_kernels` prints which backends are there and why.
"""

from worldr1_kernels.sde_step import GrpoLoss, SdeStepOutput, grpo_loss, ode_step, sde_step

__all__ = [
    "GrpoLoss",
    "SdeStepOutput",
    "grpo_loss",
    "ode_step",
    "sde_step",
]

__version__ = "0.1.0"

from worldr1_kernels.rasterize import RasterizeOutput, rasterization, rasterize

__all__ = ["RasterizeOutput", "rasterization", "rasterize"]
