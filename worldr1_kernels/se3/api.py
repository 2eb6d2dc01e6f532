"""Public functions on camera trajectories: distances, alignment, errors and the trajectory reward.

Data are checked at once, but for the native backend on a CUDA device: its kernels look at their inputs themselves, give
NaN for an item that is at fault, and the ValueError comes from the next call on that device or from `check`.
"""

from typing import Literal, NamedTuple

import torch

from worldr1_kernels._checks import (
    check_choice,
    check_dtype,
    check_finite,
    check_positive,
    check_same_device,
    check_shape,
)
from worldr1_kernels._dispatch import resolve_backend
from worldr1_kernels.se3 import faults, native_impl, reference
from worldr1_kernels.se3.ops import PROBES, run_error, run_geodesic, run_reward

Backend = Literal["auto", "reference", "triton", "native"]
_FLOATS = (torch.float32, torch.float64)
_ORTHOGONAL = faults.ORTHOGONAL
_SCALES = ("least_squares", "max_norm", "none", "sim3")


class TrajectoryError(NamedTuple):
    """Errors of a recovered against a requested trajectory; dtype of the predicted viewmats."""

    rotation: torch.Tensor
    """[N, F] geodesic distance per frame, radians."""
    translation: torch.Tensor
    """[N, F] distance of the aligned camera centres, in the target's units (`max_norm`: in its largest |centre|)."""
    scale: torch.Tensor
    """[N] factor from predicted to target units."""
    rot_err: torch.Tensor
    """[N] RotErr: sum of `rotation` over frames, radians."""
    trans_err: torch.Tensor
    """[N] TransErr: sum of `translation` over frames."""
    cam_mc: torch.Tensor
    """[N] CamMC: sum over frames of the Frobenius norm of the difference of [R | centre]."""
    path_pred: torch.Tensor
    """[N] length of the predicted path, its own units (not scaled)."""
    path_target: torch.Tensor
    """[N] length of the requested path, its own units."""


def _on_device(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda


def _known_rigid(op: str, matrices: torch.Tensor, backend: str) -> bool:
    """True when the compiled module, where it is the choice, has looked at every matrix and found no fault (it does not
    say which), or on a device will look: then the call does not wait, and faults.py says late what was found."""
    if resolve_backend(op, backend, matrices.device, PROBES) != "native":
        return False
    if not _on_device(matrices):
        return native_impl.all_rigid(matrices, tolerance=_ORTHOGONAL)
    faults.raise_found(matrices.device)
    if op in ("relative_poses", "path_length"):  # the kernels of the others look themselves
        native_impl.watch_rigid(op, matrices)
    return True


def _check_rotations(op: str, name: str, rotation: torch.Tensor, backend: str) -> None:
    """Finite, orthonormal to 1e-3, determinant +1. Reads the data: skipped under torch.compile."""
    if torch.compiler.is_compiling() or rotation.numel() == 0 or _known_rigid(op, rotation, backend):
        return
    check_finite(op, name, rotation)
    wide = rotation.detach().double()
    identity = torch.eye(3, dtype=torch.float64, device=rotation.device)
    error = float((wide.transpose(-1, -2) @ wide - identity).abs().max())
    if error > _ORTHOGONAL:
        raise ValueError(f"{op}: {name} must hold rotations (R^T R = I to {_ORTHOGONAL}), got an error of {error:.3g}")
    if float(torch.linalg.det(wide).min()) < 0:
        raise ValueError(f"{op}: {name} must hold rotations with determinant +1, got a reflection")


def _check_viewmats(
    op: str, name: str, viewmats: torch.Tensor, sizes: dict[str, int] | None = None, backend: str = "auto"
) -> dict[str, int]:
    bound = check_shape(op, name, viewmats, ("N", "F", 4, 4), sizes=sizes)
    check_dtype(op, name, viewmats, _FLOATS)
    if bound["F"] < 2:
        raise ValueError(f"{op}: {name} must have at least 2 frames, got {bound['F']}")
    if torch.compiler.is_compiling() or viewmats.numel() == 0 or _known_rigid(op, viewmats, backend):
        return bound
    check_finite(op, name, viewmats)
    _check_rotations(op, name, viewmats[..., :3, :3], "reference")
    error = float((viewmats.detach()[..., 3, :] - viewmats.new_tensor([0.0, 0.0, 0.0, 1.0])).abs().max())
    if error > _ORTHOGONAL:
        raise ValueError(f"{op}: {name} must have the last row [0, 0, 0, 1], got an error of {error:.3g}")
    return bound


def _check_pair(op: str, viewmats_pred: torch.Tensor, viewmats_target: torch.Tensor, backend: str) -> None:
    sizes = _check_viewmats(op, "viewmats_pred", viewmats_pred, backend=backend)
    _check_viewmats(op, "viewmats_target", viewmats_target, sizes, backend)
    check_same_device(op, {"viewmats_pred": viewmats_pred, "viewmats_target": viewmats_target})


def _depth_tensor(
    op: str, median_depth: float | torch.Tensor, like: torch.Tensor, backend: str = "reference"
) -> torch.Tensor:
    """[N] in the dtype and on the device of `like`, constant. A device's native kernel looks at the values itself."""
    if not isinstance(median_depth, torch.Tensor):
        check_positive(op, "median_depth", median_depth)
        return like.new_full((like.shape[0],), float(median_depth))
    check_shape(op, "median_depth", median_depth, ("N",), sizes={"N": like.shape[0]})
    is_looked_at = backend == "native" and _on_device(like)
    if not torch.compiler.is_compiling() and median_depth.numel() > 0 and not is_looked_at:
        check_finite(op, "median_depth", median_depth)
        if float(median_depth.min()) <= 0:
            raise ValueError(f"{op}: median_depth must be > 0, got {float(median_depth.min())}")
    return median_depth.detach().to(like)


def geodesic_distance(R_a: torch.Tensor, R_b: torch.Tensor, *, backend: Backend = "auto") -> torch.Tensor:
    """Angle of the rotation between two rotations, accurate from 1e-8 to pi.

        theta = atan2(|vee(R - R^T)|, trace(R) - 1),   R = R_a^T R_b

    Args:
      R_a: Rotations, shape [..., 3, 3], float32 or float64.
      R_b: Rotations, same shape and dtype.
      backend: Implementation; only "auto" may pick another.
    Returns:
      [...] radians in [0, pi], computed in float64. Differentiable in both (once, unless the backend is the reference);
      the subgradient is 0 within rounding of 0 and of pi, where there is a kink.
    Raises:
      ValueError: shapes or devices differ; not finite; not rotations (orthonormal to 1e-3, determinant +1).
      TypeError: dtype.
      RuntimeError: the backend chosen by name is not available.
    """
    op = "geodesic_distance"
    for name, tensor in (("R_a", R_a), ("R_b", R_b)):
        check_shape(op, name, tensor, (3, 3), leading=True)
        check_dtype(op, name, tensor, _FLOATS)
    if R_a.shape != R_b.shape or R_a.dtype != R_b.dtype:
        raise ValueError(
            f"{op}: R_b must have the shape and dtype of R_a, {list(R_a.shape)} {R_a.dtype}, "
            f"got {list(R_b.shape)} {R_b.dtype}"
        )
    device = check_same_device(op, {"R_a": R_a, "R_b": R_b})
    _check_rotations(op, "R_a", R_a, backend)
    _check_rotations(op, "R_b", R_b, backend)
    chosen = resolve_backend(op, backend, device, PROBES)
    return run_geodesic(R_a, R_b, chosen)


def relative_poses(viewmats: torch.Tensor) -> torch.Tensor:
    """Poses with the first camera as the world: E_t E_0^-1, so that the first is the identity.

    Args:
      viewmats: World-to-camera, shape [N, F, 4, 4], float32 or float64, F >= 2.
    Returns:
      World-to-camera [N, F, 4, 4]. Differentiable. A common rigid motion of all cameras leaves it unchanged.
    Raises:
      ValueError: shape, F < 2, not finite, not rigid.
      TypeError: dtype.
    """
    _check_viewmats("relative_poses", "viewmats", viewmats)
    return reference.relative_poses(viewmats.double()).to(viewmats.dtype)


def path_length(viewmats: torch.Tensor) -> torch.Tensor:
    """Length of the path of the camera centre: sum_t |c_t+1 - c_t|, c = -R^T t.

    Args:
      viewmats: World-to-camera, shape [N, F, 4, 4], float32 or float64, F >= 2.
    Returns:
      [N], scene units. Differentiable; subgradient 0 where a camera stands still.
    Raises:
      ValueError: shape, F < 2, not finite, not rigid.
      TypeError: dtype.
    """
    _check_viewmats("path_length", "viewmats", viewmats)
    return reference.path_length(reference.centers(viewmats.double())).to(viewmats.dtype)


def align_scale(
    pred: torch.Tensor, target: torch.Tensor, *, median_depth: float | torch.Tensor | None = None
) -> torch.Tensor:
    """Least-squares factor that brings a recovered path to the size of the requested one; never negative.

        scale = max(0, <pred, target>) / <pred, pred>;   0 where max |pred| < 1 % of median_depth, or pred = 0

    Args:
      pred: Camera centres relative to the first frame, shape [N, F, 3], float32 or float64.
      target: Same shape and dtype.
      median_depth: Of the recovered scene, in pred's units, > 0: a number or [N]. A constant.
    Returns:
      [N]. Differentiable in pred and target.
    Raises:
      ValueError: shapes or devices differ; not finite; median_depth not > 0.
      TypeError: dtype.
    """
    op = "align_scale"
    sizes = check_shape(op, "pred", pred, ("N", "F", 3))
    check_shape(op, "target", target, ("N", "F", 3), sizes=sizes)
    for name, tensor in (("pred", pred), ("target", target)):
        check_dtype(op, name, tensor, _FLOATS)
        if not torch.compiler.is_compiling():
            check_finite(op, name, tensor)
    check_same_device(op, {"pred": pred, "target": target})
    depth = None if median_depth is None else _depth_tensor(op, median_depth, pred).double()
    return reference.least_squares_scale(pred.double(), target.double(), depth).to(pred.dtype)


def trajectory_error(
    viewmats_pred: torch.Tensor,
    viewmats_target: torch.Tensor,
    *,
    relative_to: Literal["first", "world"] = "first",
    scale: Literal["least_squares", "max_norm", "none", "sim3"] = "least_squares",
    median_depth: float | torch.Tensor | None = None,
    backend: Backend = "auto",
) -> TrajectoryError:
    """Rotation and translation errors of recovered camera trajectories, per frame and summed as the literature does.

        RotErr = sum_t angle(R_pred^T R_target);   TransErr = sum_t |s c_pred - c_target|
        CamMC = sum_t |[R | s c]_pred - [R | c]_target|_F;   c = camera centre

    Args:
      viewmats_pred: World-to-camera, shape [N, F, 4, 4], float32 or float64, F >= 2.
      viewmats_target: Same shape.
      relative_to: `first` measures both relative to their first camera; `world` as given.
      scale: `least_squares` (see `align_scale`), `max_norm` (each path divided by its own largest |centre|, a path at
        the origin stays there: the published metric), `none`, or `sim3` (Umeyama alignment of the centres, a constant
        for the gradient; it does not touch the rotations, which a straight path would leave undetermined).
      median_depth: Of the recovered scene, > 0, a number or [N]: for `least_squares` only, a predicted path within 1 %
        of it is at rest and gets scale 0.
      backend: Implementation; only "auto" may pick another.
    Returns:
      TrajectoryError, dtype of viewmats_pred. All fields are differentiable in both trajectories (once, unless the
      backend is the reference), `scale` of `none` and `sim3` excepted.
    Raises:
      ValueError: shapes or devices differ; F < 2; not finite; not rigid (reflections too); median_depth not > 0, or
        given with another scale than `least_squares`.
      TypeError: dtype.
      RuntimeError: the backend chosen by name is not available.
    Source: CameraCtrl, arXiv 2404.02101 (RotErr, TransErr); MotionCtrl, arXiv 2312.03641 (CamMC); Umeyama 1991.
    """
    op = "trajectory_error"
    check_choice(op, "relative_to", relative_to, ("first", "world"))
    check_choice(op, "scale", scale, _SCALES)
    _check_pair(op, viewmats_pred, viewmats_target, backend)
    if median_depth is not None and scale != "least_squares":
        raise ValueError(f"{op}: median_depth must be left out unless scale is 'least_squares', got scale {scale!r}")
    chosen = resolve_backend(op, backend, viewmats_pred.device, PROBES)
    depth = None if median_depth is None else _depth_tensor(op, median_depth, viewmats_pred, chosen)
    return TrajectoryError(*run_error(viewmats_pred, viewmats_target, depth, relative_to, scale, chosen))


def trajectory_reward(
    viewmats_pred: torch.Tensor,
    viewmats_target: torch.Tensor,
    *,
    median_depth: float | torch.Tensor,
    k_t: float = 4.0,
    k_r: float = 2.0,
    metric: bool = False,
    backend: Backend = "auto",
) -> torch.Tensor:
    """Scale-free score of a recovered camera trajectory against the requested one, poses relative to the first.

        S = exp(-(k_t e_t + k_r e_r))
        e_t = mean_t |s c_pred - c_target| / L (1 + max(0, -cos)),   s as in `align_scale`, L = requested path length
        e_r = mean_t angle / max(largest requested angle, 10 deg)

    cos is the cosine between the two paths as vectors [F x 3]; it is 0 for a predicted path within 1 % of the median
    depth. Where a fixed camera is requested (L = 0), e_t = mean_t |c_pred| / (0.05 median_depth) * 0.25.

    Args:
      viewmats_pred: Recovered world-to-camera, shape [N, F, 4, 4], float32 or float64, F >= 2.
      viewmats_target: Requested, same shape.
      median_depth: Of the recovered scene, in its units, > 0: a number or [N]. A constant.
      k_t: Weight of the translation error, >= 0.
      k_r: Weight of the rotation error, >= 0.
      metric: The two share one unit: where L > 0, add |ln max(recovered length / L, 0.01)| + ln(100) max(0, -cos) to
        the exponent.
      backend: Implementation; only "auto" may pick another.
    Returns:
      [N] in [0, 1], dtype of viewmats_pred; 1 is perfect. Differentiable in both trajectories (once, unless the backend
      is the reference).
    Raises:
      ValueError: shapes or devices differ; F < 2; not finite; not rigid (reflections too); median_depth not > 0; a
        weight < 0 or not finite.
      TypeError: dtype.
      RuntimeError: the backend chosen by name is not available.
    """
    op = "trajectory_reward"
    _check_pair(op, viewmats_pred, viewmats_target, backend)
    for name, weight in (("k_t", k_t), ("k_r", k_r)):
        if not 0.0 <= weight < float("inf"):
            raise ValueError(f"{op}: {name} must be finite and >= 0, got {weight}")
    chosen = resolve_backend(op, backend, viewmats_pred.device, PROBES)
    depth = _depth_tensor(op, median_depth, viewmats_pred, chosen)
    return run_reward(viewmats_pred, viewmats_target, depth, float(k_t), float(k_r), metric, chosen)
