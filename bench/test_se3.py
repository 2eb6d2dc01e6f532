"""Speed of the trajectory functions: `python -m pytest bench/ -k se3 -s [--record]`; one CPU core, or a CUDA device
where torch sees one.

Peers compute the same eight fields in the same dtype: roma for the angle with batched torch for the rest, scipy for the
angle with numpy for the rest (CPU, forward), and this package's torch reference. gsplat 1.5.3 has no peer: of poses its
Python knows the rotation of a quaternion. Values are compared first. Ours checks its input (finite, rigid,
right-handed) inside the time that is shown; roma and scipy do not.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from bench.report import Case, print_table, record
from bench.timing import measure
from worldr1_kernels import trajectory_error, trajectory_reward
from worldr1_kernels.testing import normal

roma = pytest.importorskip("roma")

SIZES = {"target": (384, 81), "train": (32, 9)}
DEPTH = 2.0


def _trajectories(num: int, frames: int, seed: int, device: str) -> Tensor:
    out = torch.eye(4, dtype=torch.float64).repeat(num, frames, 1, 1)
    out[..., :3, :3] = roma.rotvec_to_rotmat(0.3 * normal((num, frames, 3), seed, dtype=torch.float64))
    out[..., :3, 3] = normal((num, frames, 3), seed + 1, dtype=torch.float64)
    return out.to(device=device, dtype=torch.float32)


def _relative(viewmats: Tensor) -> tuple[Tensor, Tensor]:
    """Rotations and camera centres relative to the first camera."""
    R, t = viewmats[..., :3, :3], viewmats[..., :3, 3:]
    R_rel = R @ R[:, :1].transpose(-1, -2)
    t_rel = t - R_rel @ t[:, :1]
    return R_rel, -(R_rel.transpose(-1, -2) @ t_rel)[..., 0]


def roma_error(pred: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    """The fields of trajectory_error, least-squares scale, as one would write them with roma."""
    (R_p, p), (R_q, q) = _relative(pred), _relative(target)
    rotation = roma.rotmat_geodesic_distance(R_p, R_q)
    scale = (p * q).sum((-1, -2)).clamp(min=0) / (p * p).sum((-1, -2))
    deviation = scale[:, None, None] * p - q
    translation = deviation.norm(dim=-1)
    pose = ((R_p - R_q).square().sum((-1, -2)) + deviation.square().sum(-1)).sqrt()
    path_p, path_q = ((c[:, 1:] - c[:, :-1]).norm(dim=-1).sum(-1) for c in (p, q))
    return rotation, translation, scale, rotation.sum(-1), translation.sum(-1), pose.sum(-1), path_p, path_q


def scipy_error(pred: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, ...]:
    """The same with scipy's Rotation and numpy."""
    from scipy.spatial.transform import Rotation

    turned, centers = [], []
    for viewmats in (pred, target):
        R, t = viewmats[..., :3, :3], viewmats[..., :3, 3:]
        R_rel = R @ R[:, :1].swapaxes(-1, -2)
        turned.append(R_rel)
        centers.append(-(R_rel.swapaxes(-1, -2) @ (t - R_rel @ t[:, :1]))[..., 0])
    a, b = (Rotation.from_matrix(R.reshape(-1, 3, 3)) for R in turned)
    rotation = (a.inv() * b).magnitude().reshape(pred.shape[:2])
    p, q = centers
    scale = np.maximum((p * q).sum((-1, -2)), 0) / (p * p).sum((-1, -2))
    deviation = scale[:, None, None] * p - q
    translation = np.linalg.norm(deviation, axis=-1)
    pose = np.sqrt(((turned[0] - turned[1]) ** 2).sum((-1, -2)) + translation**2)
    paths = [np.linalg.norm(np.diff(c, axis=1), axis=-1).sum(-1) for c in (p, q)]
    return rotation, translation, scale, rotation.sum(-1), translation.sum(-1), pose.sum(-1), *paths


def _with_gradient(
    function: Callable[[Tensor, Tensor], Tensor], pred: Tensor, target: Tensor
) -> Callable[[], tuple[Tensor, ...]]:
    def run() -> tuple[Tensor, ...]:
        x, y = pred.detach().requires_grad_(), target.detach().requires_grad_()
        return torch.autograd.grad(function(x, y).sum(), (x, y))

    return run


def _total(fields: tuple[Tensor, ...]) -> Tensor:
    return fields[3] + fields[4] + fields[5]


def _differences(pred: Tensor, target: Tensor) -> dict[str, float]:
    """Of everything that is timed from the reference in float64, in units of what is allowed: at most 1."""
    ours = trajectory_error(pred, target, backend="native")
    exact = trajectory_error(pred.double(), target.double(), backend="reference")
    theirs = roma_error(pred.double(), target.double())
    in_numpy = scipy_error(pred.double().cpu().numpy(), target.double().cpu().numpy())

    def worst(got: Tensor, expected: Tensor, rtol: float, atol: float) -> float:
        return float(((got - expected).abs() / (atol + rtol * expected.abs()).clamp(min=1e-38)).max())

    out = {"error": 0.0, "roma": 0.0, "scipy": 0.0}
    for a, b, c, d in zip(ours, exact, theirs, in_numpy, strict=True):
        out["error"] = max(out["error"], worst(a, b.float(), 3e-7, 0.0))
        # Beyond the reach of a float32 matrix: peers differ where R^T R is not quite I.
        out["roma"] = max(out["roma"], worst(c, b, 1e-5, 1e-6))
        out["scipy"] = max(out["scipy"], worst(torch.from_numpy(d).to(b), b, 1e-5, 1e-6))

    def reward(a: Tensor, b: Tensor, backend: str) -> Tensor:
        return trajectory_reward(a, b, median_depth=DEPTH, backend=backend)  # type: ignore[arg-type]

    wide = (pred.double(), target.double())
    out["reward"] = worst(reward(pred, target, "native"), reward(*wide, "reference").float(), 1e-6, 1e-7)
    forms: dict[str, Callable[[Tensor, Tensor, str], Tensor]] = {
        "error f+b": lambda a, b, backend: _total(trajectory_error(a, b, backend=backend)),  # type: ignore[arg-type]
        "reward f+b": reward,
    }
    for name, form in forms.items():
        got = _with_gradient(lambda a, b, f=form: f(a, b, "native"), pred, target)()  # type: ignore[misc]
        expected = _with_gradient(lambda a, b, f=form: f(a, b, "reference"), *wide)()  # type: ignore[misc]
        errors = (float((g.double() - e).norm() / e.norm()) for g, e in zip(got, expected, strict=True))
        out[name] = max(errors) / 1e-5
    return out


def _cases(pred: Tensor, target: Tensor) -> list[Case]:
    shape, device = f"N{pred.shape[0]}-F{pred.shape[1]}", pred.device.type

    def error(backend: str) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
        return lambda a, b: trajectory_error(a, b, backend=backend)  # type: ignore[arg-type]

    def reward(backend: str) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda a, b: trajectory_reward(a, b, median_depth=DEPTH, backend=backend)  # type: ignore[arg-type]

    peers: dict[str, Callable[[], object]] = {
        "native": lambda: error("native")(pred, target),
        "roma + torch": lambda: roma_error(pred, target),
        "torch reference": lambda: error("reference")(pred, target),
    }
    if device == "cpu":
        pred_numpy, target_numpy = pred.numpy(), target.numpy()
        peers["scipy + numpy"] = lambda: scipy_error(pred_numpy, target_numpy)
    works: dict[str, dict[str, Callable[[], object]]] = {
        "error": peers,
        "error f+b": {
            "native": _with_gradient(lambda a, b: _total(error("native")(a, b)), pred, target),
            "roma + torch": _with_gradient(lambda a, b: _total(roma_error(a, b)), pred, target),
            "torch reference": _with_gradient(lambda a, b: _total(error("reference")(a, b)), pred, target),
        },
        "reward": {
            "native": lambda: reward("native")(pred, target),
            "torch reference": lambda: reward("reference")(pred, target),
        },
        "reward f+b": {
            "native": _with_gradient(reward("native"), pred, target),
            "torch reference": _with_gradient(reward("reference"), pred, target),
        },
    }
    cases = []
    for work, variants in works.items():
        timings = measure(variants, rounds=3, device=device)
        ours = timings.pop("native")
        num_bytes = pred.nbytes * (4 if "f+b" in work else 2)  # both paths, and both gradients
        notes = "ours includes the input checks"
        cases.append(Case(work, shape, "float32", "native", ours, timings, notes, num_bytes=num_bytes))
    return cases


@pytest.mark.parametrize("name", SIZES)
def test_se3(name: str, record_figures: bool, device: str) -> None:
    num, frames = SIZES[name]
    pred, target = (_trajectories(num, frames, seed, device) for seed in (0, 10))
    differences = _differences(pred, target)
    assert max(differences.values()) <= 1.0, differences
    cases = _cases(pred, target)
    print()
    print_table(cases)
    if record_figures:
        print(f"recorded in {record(cases, 'se3')}")
