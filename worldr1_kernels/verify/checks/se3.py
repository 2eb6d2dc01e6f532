"""Camera trajectories: errors, reward and distances with their gradients, and inputs that must be refused."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from worldr1_kernels.rasterize.reference import rotation_matrices
from worldr1_kernels.se3 import TrajectoryError, check
from worldr1_kernels.testing import normal
from worldr1_kernels.verify.target import Check
from worldr1_kernels.verify.trial import Rule, Trial, same_bits, two_errors

DTYPES = (torch.float32, torch.float64)
SIZES = ((1, 2), (3, 9), (5, 32), (7, 33), (131, 81))  # trajectories and frames: around a warp, and many blocks
SCALES = ("least_squares", "max_norm", "none", "sim3")


def rule(dtype: torch.dtype) -> Rule:
    """Arithmetic is float64 whatever the type; there, sines and roots of two libraries differ in their last bits, which
    a gradient near a kink magnifies."""
    return two_errors(floor=1e-9) if dtype == torch.float64 else two_errors()


def rotations(shape: Sequence[int], seed: int) -> Tensor:
    """Random rotations, float64 [..., 3, 3]."""
    return rotation_matrices(normal((*shape, 4), seed, dtype=torch.float64))


def trajectories(num: int, frames: int, seed: int) -> Tensor:
    out = torch.eye(4, dtype=torch.float64).repeat(num, frames, 1, 1)
    out[..., :3, :3] = rotations((num, frames), seed)
    out[..., :3, 3] = normal((num, frames, 3), seed + 1, dtype=torch.float64)
    return out


def gradients(values: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
    """Of a weighted sum of all that has a gradient; no two weights are alike."""
    total = torch.zeros((), dtype=torch.float64, device=leaves[0].device)
    for k, value in enumerate(values):
        if value.requires_grad:
            weight = torch.cos(torch.arange(value.numel(), dtype=torch.float64) + k).reshape(value.shape)
            total = total + (weight.to(value.device) * value).sum()
    return list(torch.autograd.grad(total, leaves))


def leaves_of(*tensors: Tensor) -> list[Tensor]:
    """Themselves: what lies between guard bands is what the kernel reads."""
    return [t.requires_grad_() for t in tensors]


def errors(trial: Trial) -> None:
    for scale, relative_to, (num, frames) in itertools.product(SCALES, ("first", "world"), SIZES):
        if scale == "sim3" and frames < 4:
            continue  # too few points for an alignment
        dtype = DTYPES[(num + frames) % 2]
        pred, target = (trajectories(num, frames, seed).to(dtype) for seed in (1, 5))

        def body(function, pred, target) -> list[Tensor]:  # type: ignore[no-untyped-def]
            given = leaves_of(pred, target)
            fields = function(*given, relative_to=relative_to, scale=scale)  # noqa: B023
            return [*fields, *gradients(fields, given)]

        label = f"N{num}-F{frames} {dtype} {scale}, {relative_to}"
        names = [*TrajectoryError._fields, "gradient of pred", "gradient of target"]
        trial.compare(label, "trajectory_error", body, pred, target, names=names, rules=[rule(dtype)])


def rewards(trial: Trial) -> None:
    for dtype, metric, frames in itertools.product(DTYPES, (False, True), (2, 9, 81)):
        pred, target = (trajectories(37, frames, seed).to(dtype) for seed in (11, 15))
        pred[1], target[2], pred[3] = target[1], torch.eye(4), torch.eye(4)  # perfect; asked to stand; stands

        def body(function, pred, target, depth) -> list[Tensor]:  # type: ignore[no-untyped-def]
            given = leaves_of(pred, target)
            reward = function(*given, median_depth=depth, k_t=0.4, k_r=0.2, metric=metric)  # noqa: B023
            return [reward, *gradients([reward], given)]

        depth = torch.linspace(0.5, 3.0, 37).to(dtype)
        label, names = f"N37-F{frames} {dtype} metric {metric}", ["reward", "gradient of pred", "gradient of target"]
        trial.compare(label, "trajectory_reward", body, pred, target, depth, names=names, rules=[rule(dtype)])


def distances(trial: Trial) -> None:
    for dtype, num in itertools.product(DTYPES, (1, 257, 3001)):
        a, b = (rotations((num,), seed).to(dtype) for seed in (21, 25))

        def body(function, a, b) -> list[Tensor]:  # type: ignore[no-untyped-def]
            given = leaves_of(a, b)
            angle = function(*given)
            return [angle, *gradients([angle], given)]

        names = ["angle", "gradient of R_a", "gradient of R_b"]
        trial.compare(f"{num} {dtype}", "geodesic_distance", body, a, b, names=names, rules=[rule(dtype)])


def refused(trial: Trial) -> None:
    """A fault in the last matrix of many is seen, and no fault is seen where there is none."""
    good = rotations((1031,), 31)
    reflection, hole, bent = good.clone(), good.clone(), good.clone()
    reflection[-1, 0] *= -1
    hole[-1, 2, 2] = float("nan")
    bent[-1, 0, 0] += 0.1

    def body(function, good, reflection, hole, bent) -> list[Tensor]:  # type: ignore[no-untyped-def]
        said = []
        for matrices in (good, reflection, hole, bent):
            try:
                function(good, matrices)
                check(good.device)  # a device says it late
                said.append(0)
            except ValueError:
                said.append(1)
        return [torch.tensor(said)]

    given = (good, reflection, hole, bent)
    trial.compare("1031 matrices", "geodesic_distance", body, *given, names=["refused"], rules=[same_bits])


def empty(trial: Trial) -> None:
    pred, target = (trajectories(2, 5, seed)[:0] for seed in (1, 5))

    def error(function, pred, target) -> list[Tensor]:  # type: ignore[no-untyped-def]
        given = leaves_of(pred, target)
        fields = function(*given)
        return [fields.rotation, fields.cam_mc, *gradients(fields, given)]

    def reward(function, pred, target) -> list[Tensor]:  # type: ignore[no-untyped-def]
        given = leaves_of(pred, target)
        out = function(*given, median_depth=1.0)
        return [out, *gradients([out], given)]

    names = ["rotation", "cam_mc", "gradient of pred", "gradient of target"]
    trial.compare("N0", "trajectory_error", error, pred, target, names=names, rules=[same_bits])
    trial.compare("N0", "trajectory_reward", reward, pred, target, names=["reward", *names[2:]], rules=[same_bits])


CHECKS = (
    Check("errors", errors),
    Check("rewards", rewards),
    Check("distances", distances),
    Check("refused", refused),
    Check("no trajectory", empty, is_empty=True),
)
