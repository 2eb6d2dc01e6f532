"""Schemas and fake kernels of the SE(3) family.

The torch reference is differentiable as it stands, so a call that needs gradients goes to it directly and autograd
sees plain operations. Kernels that are opaque to autograd need a backward op of their own beside the forward one.
"""

from typing import Any

import torch

from worldr1_kernels._dispatch import Probe, always_available
from worldr1_kernels._library import define_op, needs_grad
from worldr1_kernels.se3 import reference

PROBES: dict[str, Probe] = {"reference": always_available}
_IMPLEMENTATIONS = {"reference": reference}


def _geodesic_impl(R_a: torch.Tensor, R_b: torch.Tensor, backend: str) -> torch.Tensor:
    return _IMPLEMENTATIONS[backend].geodesic_distance(R_a, R_b)


def _geodesic_fake(R_a: torch.Tensor, R_b: torch.Tensor, backend: str) -> torch.Tensor:
    return R_a.new_empty(R_a.shape[:-2])


def _error_impl(
    pred: torch.Tensor,
    target: torch.Tensor,
    median_depth: torch.Tensor | None,
    relative_to: str,
    scale_mode: str,
    backend: str,
) -> tuple[torch.Tensor, ...]:
    return tuple(_IMPLEMENTATIONS[backend].trajectory_error(pred, target, median_depth, relative_to, scale_mode))


def _error_fake(pred: torch.Tensor, target: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, ...]:
    num, frames = pred.shape[:2]
    return (pred.new_empty(num, frames), pred.new_empty(num, frames), *(pred.new_empty(num) for _ in range(6)))


def _reward_impl(
    pred: torch.Tensor,
    target: torch.Tensor,
    median_depth: torch.Tensor,
    k_t: float,
    k_r: float,
    metric: bool,
    backend: str,
) -> torch.Tensor:
    return _IMPLEMENTATIONS[backend].trajectory_reward(pred, target, median_depth, k_t, k_r, metric)


def _reward_fake(pred: torch.Tensor, *rest: Any) -> torch.Tensor:
    return pred.new_empty(pred.shape[0])


geodesic_op = define_op(
    "geodesic_distance(Tensor R_a, Tensor R_b, str backend) -> Tensor", _geodesic_impl, _geodesic_fake
)
trajectory_error_op = define_op(
    "trajectory_error(Tensor pred, Tensor target, Tensor? median_depth, str relative_to, str scale_mode, str backend) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _error_impl,
    _error_fake,
)
trajectory_reward_op = define_op(
    "trajectory_reward(Tensor pred, Tensor target, Tensor median_depth, float k_t, float k_r, bool metric, "
    "str backend) -> Tensor",
    _reward_impl,
    _reward_fake,
)


def run_geodesic(R_a: torch.Tensor, R_b: torch.Tensor, backend: str) -> torch.Tensor:
    """`geodesic_op`, or the reference itself where a gradient is wanted."""
    if needs_grad((R_a, R_b)):
        return reference.geodesic_distance(R_a, R_b)
    return geodesic_op(R_a, R_b, backend)


def run_error(
    pred: torch.Tensor,
    target: torch.Tensor,
    median_depth: torch.Tensor | None,
    relative_to: str,
    scale_mode: str,
    backend: str,
) -> tuple[torch.Tensor, ...]:
    """`trajectory_error_op`, or the reference itself where a gradient is wanted."""
    if needs_grad((pred, target)):
        return reference.trajectory_error(pred, target, median_depth, relative_to, scale_mode)
    return trajectory_error_op(pred, target, median_depth, relative_to, scale_mode, backend)


def run_reward(
    pred: torch.Tensor,
    target: torch.Tensor,
    median_depth: torch.Tensor,
    k_t: float,
    k_r: float,
    metric: bool,
    backend: str,
) -> torch.Tensor:
    """`trajectory_reward_op`, or the reference itself where a gradient is wanted."""
    if needs_grad((pred, target)):
        return reference.trajectory_reward(pred, target, median_depth, k_t, k_r, metric)
    return trajectory_reward_op(pred, target, median_depth, k_t, k_r, metric, backend)
