"""Schemas, fake kernels and autograd of the SE(3) family.

The torch reference is differentiable as it stands, so a call on it that needs gradients goes to it directly. The
compiled kernels are opaque to autograd: each has a backward op beside the forward one, which recomputes and stores
nothing beyond its inputs.
"""

from typing import Any

import torch
from torch import Tensor

from worldr1_kernels import _native
from worldr1_kernels._dispatch import Probe, always_available
from worldr1_kernels._library import define_op, needs_grad
from worldr1_kernels.se3 import native_impl, reference

PROBES: dict[str, Probe] = {"native": _native.unavailable, "reference": always_available}
_IMPLEMENTATIONS: dict[str, Any] = {"native": native_impl, "reference": reference}


def _geodesic_impl(R_a: Tensor, R_b: Tensor, backend: str) -> Tensor:
    return _IMPLEMENTATIONS[backend].geodesic_distance(R_a, R_b)


def _geodesic_fake(R_a: Tensor, R_b: Tensor, backend: str) -> Tensor:
    return R_a.new_empty(R_a.shape[:-2])


def _error_impl(
    pred: Tensor, target: Tensor, median_depth: Tensor | None, relative_to: str, scale_mode: str, backend: str
) -> tuple[Tensor, ...]:
    return tuple(_IMPLEMENTATIONS[backend].trajectory_error(pred, target, median_depth, relative_to, scale_mode))


def _error_fake(pred: Tensor, target: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    num, frames = pred.shape[:2]
    return (pred.new_empty(num, frames), pred.new_empty(num, frames), *(pred.new_empty(num) for _ in range(6)))


def _reward_impl(
    pred: Tensor, target: Tensor, median_depth: Tensor, k_t: float, k_r: float, metric: bool, backend: str
) -> Tensor:
    return _IMPLEMENTATIONS[backend].trajectory_reward(pred, target, median_depth, k_t, k_r, metric)


def _reward_fake(pred: Tensor, *rest: Any) -> Tensor:
    return pred.new_empty(pred.shape[0])


def _geodesic_backward_impl(grad: Tensor, R_a: Tensor, R_b: Tensor) -> tuple[Tensor, Tensor]:
    return native_impl.geodesic_distance_backward(grad, R_a, R_b)


def _error_backward_impl(*args: Any) -> tuple[Tensor, Tensor]:
    return native_impl.trajectory_error_backward(args[:8], *args[8:])


def _reward_backward_impl(*args: Any) -> tuple[Tensor, Tensor]:
    return native_impl.trajectory_reward_backward(*args)


def _contiguous_like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _geodesic_backward_fake(grad: Tensor, R_a: Tensor, R_b: Tensor) -> tuple[Tensor, Tensor]:
    return _contiguous_like(R_a), _contiguous_like(R_b)


def _error_backward_fake(*args: Any) -> tuple[Tensor, Tensor]:
    return _contiguous_like(args[8]), _contiguous_like(args[9])


def _reward_backward_fake(grad: Tensor, pred: Tensor, target: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _contiguous_like(pred), _contiguous_like(target)


geodesic_op = define_op(
    "geodesic_distance(Tensor R_a, Tensor R_b, str backend) -> Tensor", _geodesic_impl, _geodesic_fake
)
geodesic_backward_op = define_op(
    "geodesic_distance_backward(Tensor grad, Tensor R_a, Tensor R_b) -> (Tensor, Tensor)",
    _geodesic_backward_impl,
    _geodesic_backward_fake,
)
trajectory_error_op = define_op(
    "trajectory_error(Tensor pred, Tensor target, Tensor? median_depth, str relative_to, str scale_mode, str backend) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _error_impl,
    _error_fake,
)
trajectory_error_backward_op = define_op(
    f"trajectory_error_backward({''.join(f'Tensor? grad_{name}, ' for name in reference.Errors._fields)}"
    "Tensor pred, Tensor target, Tensor? median_depth, str relative_to, str scale_mode) -> (Tensor, Tensor)",
    _error_backward_impl,
    _error_backward_fake,
)
trajectory_reward_op = define_op(
    "trajectory_reward(Tensor pred, Tensor target, Tensor median_depth, float k_t, float k_r, bool metric, "
    "str backend) -> Tensor",
    _reward_impl,
    _reward_fake,
)
trajectory_reward_backward_op = define_op(
    "trajectory_reward_backward(Tensor grad, Tensor pred, Tensor target, Tensor median_depth, float k_t, float k_r, "
    "bool metric) -> (Tensor, Tensor)",
    _reward_backward_impl,
    _reward_backward_fake,
)


class _Geodesic(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, R_a: Tensor, R_b: Tensor) -> Tensor:
        ctx.save_for_backward(R_a, R_b)
        return geodesic_op(R_a, R_b, "native")

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return geodesic_backward_op(grad, *ctx.saved_tensors)


class _Error(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, pred: Tensor, target: Tensor, median_depth: Tensor | None, relative_to: str, scale_mode: str
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(pred, target, median_depth)
        ctx.modes = (relative_to, scale_mode)
        fields = trajectory_error_op(pred, target, median_depth, relative_to, scale_mode, "native")
        if scale_mode in ("none", "sim3"):  # constants
            ctx.mark_non_differentiable(fields[2])
        return fields

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        pred, target, median_depth = ctx.saved_tensors
        grad_pred, grad_target = trajectory_error_backward_op(*grads, pred, target, median_depth, *ctx.modes)
        return grad_pred, grad_target, None, None, None


class _Reward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, pred: Tensor, target: Tensor, median_depth: Tensor, k_t: float, k_r: float, metric: bool
    ) -> Tensor:
        ctx.save_for_backward(pred, target, median_depth)
        ctx.scalars = (k_t, k_r, metric)
        return trajectory_reward_op(pred, target, median_depth, k_t, k_r, metric, "native")

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        pred, target, median_depth = ctx.saved_tensors
        grad_pred, grad_target = trajectory_reward_backward_op(grad, pred, target, median_depth, *ctx.scalars)
        return grad_pred, grad_target, None, None, None, None


def run_geodesic(R_a: Tensor, R_b: Tensor, backend: str) -> Tensor:
    """Angles [...], with a gradient where one is wanted."""
    if not needs_grad((R_a, R_b)):
        return geodesic_op(R_a, R_b, backend)
    return _Geodesic.apply(R_a, R_b) if backend == "native" else reference.geodesic_distance(R_a, R_b)


def _in_one_dtype(pred: Tensor, target: Tensor, depth: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The compiled kernels take one dtype: float64 where the two differ, so that nothing is rounded."""
    if pred.dtype == target.dtype:
        return pred, target, depth
    return pred.double(), target.double(), None if depth is None else depth.double()


def run_error(
    pred: Tensor, target: Tensor, median_depth: Tensor | None, relative_to: str, scale_mode: str, backend: str
) -> tuple[Tensor, ...]:
    """Fields of TrajectoryError in the dtype of pred, with a gradient where one is wanted."""
    wants_grad = needs_grad((pred, target))
    if backend == "reference" and wants_grad:
        return reference.trajectory_error(pred, target, median_depth, relative_to, scale_mode)
    if backend == "reference":
        return trajectory_error_op(pred, target, median_depth, relative_to, scale_mode, backend)
    same = _in_one_dtype(pred, target, median_depth)
    if wants_grad:
        fields = _Error.apply(*same, relative_to, scale_mode)
    else:
        fields = trajectory_error_op(*same, relative_to, scale_mode, backend)
    return tuple(field.to(pred.dtype) for field in fields)


def run_reward(
    pred: Tensor, target: Tensor, median_depth: Tensor, k_t: float, k_r: float, metric: bool, backend: str
) -> Tensor:
    """Rewards [N] in the dtype of pred, with a gradient where one is wanted."""
    wants_grad = needs_grad((pred, target))
    if backend == "reference" and wants_grad:
        return reference.trajectory_reward(pred, target, median_depth, k_t, k_r, metric)
    if backend == "reference":
        return trajectory_reward_op(pred, target, median_depth, k_t, k_r, metric, backend)
    same = _in_one_dtype(pred, target, median_depth)
    if wants_grad:
        return _Reward.apply(*same, k_t, k_r, metric).to(pred.dtype)
    return trajectory_reward_op(*same, k_t, k_r, metric, backend).to(pred.dtype)
