"""Stochastic flow-matching step with its log-density, and the loss that uses it."""

from worldr1_kernels.sde_step.api import GrpoLoss, SdeStepOutput, grpo_loss, ode_step, sde_step

__all__ = ["GrpoLoss", "SdeStepOutput", "grpo_loss", "ode_step", "sde_step"]
