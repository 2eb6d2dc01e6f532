"""Launcher of csrc/{cpu,cuda}/se3*: contiguous float32 or float64 in, one call for the whole batch.

`level` names the CPU's instruction set, "" is the best. `emulated` is for tests: the CUDA kernels themselves, run by an
interpreter on CPU tensors, its value the seed of the order in which threads run. On a device, and emulated, the forward
kernels look at their inputs themselves and tell `faults` what is wrong.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from worldr1_kernels import _native
from worldr1_kernels._native import address
from worldr1_kernels.se3 import faults

SCALE_MODES = {"least_squares": 0, "max_norm": 1, "none": 2, "sim3": 3}
SCRATCH_ROWS, ROW_PAD = 10, 8  # csrc/common/se3_args.h
WORK_PER_THREAD = 4096
"""Frames below which a second CPU thread costs more to wake than it saves."""


def _module(tensor: Tensor, emulated: int | None) -> Any:
    if emulated is not None:
        return _native.cpu().se3_emulated
    return _native.cuda() if tensor.is_cuda else _native.cpu()


def _place(tensor: Tensor, work: int, level: str, emulated: int | None) -> dict[str, Any]:
    """Where and in which type a call on `tensor` runs; `work` counts frames or matrices."""
    stream = torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else emulated or 0
    threads = max(1, min(torch.get_num_threads(), work // WORK_PER_THREAD))
    is_double = tensor.dtype == torch.float64
    return {"is_double": is_double, "num_threads": threads, "level": level, "stream": stream}


def _sink(op: str, tensor: Tensor, emulated: int | None) -> dict[str, Any]:
    """Whom a kernel tells what is wrong with the inputs of `op`; on a CPU nobody, they have been looked at."""
    return {"faults": faults.sink(op, tensor.device)} if tensor.is_cuda or emulated is not None else {}


def _scratch(pred: Tensor, emulated: int | None) -> Tensor | None:
    """Device memory for rows of intermediate values; on a CPU the module has its own."""
    if not pred.is_cuda and emulated is None:
        return None
    num, frames = pred.shape[:2]
    row = (frames + 7) // 8 * 8 + 2 * ROW_PAD
    return torch.empty(num, SCRATCH_ROWS, row, dtype=torch.float64, device=pred.device)


def _trajectories(
    pred: Tensor, target: Tensor, depth: Tensor | None, level: str, emulated: int | None
) -> tuple[dict[str, Any], list[Any]]:
    """Arguments that all trajectory calls share, and the tensors that must live until the call returns."""
    pred, target = pred.contiguous(), target.contiguous()
    depth = None if depth is None else depth.contiguous()
    scratch = _scratch(pred, emulated)
    num, frames = pred.shape[:2]
    arguments = {
        "pred": address(pred),
        "target": address(target),
        "depth": address(depth),
        "num": num,
        "frames": frames,
        "scratch": address(scratch),
        **_place(pred, num * frames, level, emulated),
    }
    return arguments, [pred, target, depth, scratch]


def geodesic_distance(R_a: Tensor, R_b: Tensor, *, level: str = "", emulated: int | None = None) -> Tensor:
    """Angles [...] of R_a^T R_b, shapes [..., 3, 3]."""
    a, b = R_a.contiguous(), R_b.contiguous()
    angle = a.new_empty(a.shape[:-2])
    with torch.cuda.device_of(a):
        _module(a, emulated).se3_rotation(
            backward=False, a=address(a), b=address(b), num=angle.numel(), angle=address(angle), grad_a=0, grad_b=0,
            **_place(a, angle.numel(), level, emulated), **_sink("geodesic_distance", a, emulated),
        )  # fmt: skip
    return angle


def geodesic_distance_backward(
    grad: Tensor, R_a: Tensor, R_b: Tensor, *, level: str = "", emulated: int | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients in R_a and R_b of the angles' [...]."""
    a, b, grad = R_a.contiguous(), R_b.contiguous(), grad.contiguous()
    grad_a, grad_b = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (a, b))
    with torch.cuda.device_of(a):
        _module(a, emulated).se3_rotation(
            backward=True, a=address(a), b=address(b), num=grad.numel(), angle=address(grad),
            grad_a=address(grad_a), grad_b=address(grad_b), **_place(a, grad.numel(), level, emulated),
        )  # fmt: skip
    return grad_a, grad_b


def trajectory_error(
    pred: Tensor,
    target: Tensor,
    median_depth: Tensor | None,
    relative_to: str,
    scale_mode: str,
    *,
    level: str = "",
    emulated: int | None = None,
) -> tuple[Tensor, ...]:
    """The eight fields of TrajectoryError; all tensors share dtype and device."""
    num, frames = pred.shape[:2]
    arguments, held = _trajectories(pred, target, median_depth, level, emulated)
    fields = [pred.new_empty(num, frames) for _ in range(2)] + [pred.new_empty(num) for _ in range(6)]
    with torch.cuda.device_of(pred):
        _module(pred, emulated).se3_error(
            backward=False, relative=relative_to == "first", mode=SCALE_MODES[scale_mode],
            fields=[address(f) for f in fields], grad_pred=0, grad_target=0, **arguments,
            **_sink("trajectory_error", pred, emulated),
        )  # fmt: skip
    del held
    return tuple(fields)


def trajectory_error_backward(
    grads: Sequence[Tensor | None],
    pred: Tensor,
    target: Tensor,
    median_depth: Tensor | None,
    relative_to: str,
    scale_mode: str,
    *,
    level: str = "",
    emulated: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients in pred and target of the eight fields'; None is zero."""
    arguments, held = _trajectories(pred, target, median_depth, level, emulated)
    given = [None if g is None else g.contiguous() for g in grads]
    grad_pred, grad_target = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (pred, target))
    with torch.cuda.device_of(pred):
        _module(pred, emulated).se3_error(
            backward=True, relative=relative_to == "first", mode=SCALE_MODES[scale_mode],
            fields=[address(g) for g in given], grad_pred=address(grad_pred), grad_target=address(grad_target),
            **arguments,
        )  # fmt: skip
    del held
    return grad_pred, grad_target


def trajectory_reward(
    pred: Tensor,
    target: Tensor,
    median_depth: Tensor,
    k_t: float,
    k_r: float,
    metric: bool,
    *,
    level: str = "",
    emulated: int | None = None,
) -> Tensor:
    """Rewards [N]; all tensors share dtype and device."""
    arguments, held = _trajectories(pred, target, median_depth, level, emulated)
    reward = pred.new_empty(pred.shape[0])
    with torch.cuda.device_of(pred):
        _module(pred, emulated).se3_reward(
            backward=False, k_t=k_t, k_r=k_r, metric=metric, reward=address(reward), grad_pred=0, grad_target=0,
            **arguments, **_sink("trajectory_reward", pred, emulated),
        )  # fmt: skip
    del held
    return reward


def trajectory_reward_backward(
    grad: Tensor,
    pred: Tensor,
    target: Tensor,
    median_depth: Tensor,
    k_t: float,
    k_r: float,
    metric: bool,
    *,
    level: str = "",
    emulated: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients in pred and target of the rewards' [N]."""
    arguments, held = _trajectories(pred, target, median_depth, level, emulated)
    grad = grad.contiguous()
    grad_pred, grad_target = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (pred, target))
    with torch.cuda.device_of(pred):
        _module(pred, emulated).se3_reward(
            backward=True, k_t=k_t, k_r=k_r, metric=metric, reward=address(grad), grad_pred=address(grad_pred),
            grad_target=address(grad_target), **arguments,
        )  # fmt: skip
    del held
    return grad_pred, grad_target


def all_rigid(matrices: Tensor, *, tolerance: float) -> bool:
    """Whether all of [..., 3, 3] or [..., 4, 4], on a CPU, are finite and rigid: R^T R = I to `tolerance`, determinant
    not negative, last row [0, 0, 0, 1]. One pass."""
    bad = torch.zeros(1, dtype=torch.int32)
    _look(matrices, None, tolerance=tolerance, bad=address(bad))
    return not bool(bad.item())


def watch_rigid(op: str, matrices: Tensor, *, emulated: int | None = None) -> None:
    """The same on a device, without waiting for the answer: a fault is told as one of `op`'s first input."""
    _look(matrices, emulated, tolerance=0.0, bad=0, **_sink(op, matrices, emulated))


def _look(matrices: Tensor, emulated: int | None, **arguments: Any) -> None:
    flat = matrices.detach().contiguous()
    size = flat.shape[-1]
    num = flat.numel() // (size * size)
    with torch.cuda.device_of(flat):
        _module(flat, emulated).se3_rigid(
            matrices=address(flat), num=num, size=size, **arguments, **_place(flat, num, "", emulated)
        )
