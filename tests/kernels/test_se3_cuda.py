"""The CUDA trajectory kernels without a GPU: their own source under the interpreter of csrc/common/simt_host.h, and the
public functions on top of them as they go on a device: without waiting, with faults said late."""

import functools
import math
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from worldr1_kernels import _native
from worldr1_kernels.se3 import (
    api,
    check,
    faults,
    geodesic_distance,
    native_impl,
    ops,
    path_length,
    reference,
    relative_poses,
    trajectory_error,
    trajectory_reward,
)
from worldr1_kernels.testing import normal, poison_empty

F64 = torch.float64
CPU = torch.device("cpu")
FUNCTIONS = [name for name in vars(native_impl) if name.startswith(("geodesic", "trajectory", "watch"))]


def trajectories(num: int, frames: int, seed: int, dtype: torch.dtype = F64) -> Tensor:
    out = torch.eye(4, dtype=F64).repeat(num, frames, 1, 1)
    skew = 0.5 * normal((num, frames, 3, 3), seed, dtype=F64).tril(-1)
    out[..., :3, :3] = torch.linalg.matrix_exp(skew - skew.mT)
    out[..., :3, 3] = normal((num, frames, 3), seed + 1, dtype=F64)
    return out.to(dtype)


class Counting:
    """The module of the emulated kernels; counts launches."""

    def __init__(self) -> None:
        self.launches: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.launches.append(name)
        return getattr(_native.cpu().se3_emulated, name)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    """CPU tensors are taken for those of a device from here on."""
    counting = Counting()
    kernels = types.SimpleNamespace(
        **{name: functools.partial(getattr(native_impl, name), emulated=2) for name in FUNCTIONS}
    )
    monkeypatch.setattr(native_impl, "_module", lambda tensor, emulated: counting)
    monkeypatch.setattr(api, "_on_device", lambda tensor: True)
    monkeypatch.setattr(api, "native_impl", kernels)
    monkeypatch.setattr(ops, "native_impl", kernels)
    monkeypatch.setitem(ops._IMPLEMENTATIONS, "native", kernels)
    faults.record(CPU).zero_()
    yield counting
    faults.record(CPU).zero_()


@pytest.mark.parametrize("num, frames", [(1, 2), (3, 41)], ids=str)
@pytest.mark.parametrize("scale", ["least_squares", "max_norm", "none", "sim3"])
def test_error_and_gradients(scale: str, num: int, frames: int) -> None:
    if scale == "sim3" and frames < 4:
        return
    pred, target = trajectories(num, frames, 1), trajectories(num, frames, 5)
    depth = torch.full((num,), 2.0, dtype=F64) if scale == "least_squares" else None
    for relative_to in ("first", "world"):
        x, y = pred.clone().requires_grad_(), target.clone().requires_grad_()
        expected = reference.trajectory_error(x, y, depth, relative_to, scale)
        given = [normal(f.shape, k, dtype=F64) if f.requires_grad else None for k, f in enumerate(expected)]
        total = sum((g * f).sum() for g, f in zip(given, expected, strict=True) if g is not None)
        wanted = torch.autograd.grad(total, (x, y))
        for seed in (0, 1, 2):
            with poison_empty():
                got = native_impl.trajectory_error(pred, target, depth, relative_to, scale, emulated=seed)
                grads = native_impl.trajectory_error_backward(
                    given, pred, target, depth, relative_to, scale, emulated=seed
                )
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a, b.detach(), rtol=1e-10, atol=1e-11)
            for a, b in zip(grads, wanted, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
            if seed == 0:
                first = [*got, *grads]
            assert all(torch.equal(a, b) for a, b in zip([*got, *grads], first, strict=True)), seed
    assert not faults.record(CPU).any()


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("metric", [False, True], ids=["free", "metric"])
def test_reward_and_gradients(metric: bool, dtype: torch.dtype) -> None:
    """A perfect path, a fixed camera asked for, a camera at rest among the others."""
    pred, target = trajectories(5, 37, 11, dtype), trajectories(5, 37, 15, dtype)
    pred[1], target[2], pred[3] = target[1], torch.eye(4), torch.eye(4)
    depth, ones = torch.full((5,), 1.5, dtype=dtype), torch.ones(5, dtype=dtype)
    x, y = pred.double().requires_grad_(), target.double().requires_grad_()
    expected = reference.trajectory_reward(x, y, depth.double(), 0.4, 0.2, metric)
    wanted = torch.autograd.grad(expected.sum(), (x, y))
    rtol, atol = (1e-9, 1e-11) if dtype == F64 else (1e-6, 1e-7)
    for seed in (0, 3):
        with poison_empty():
            got = native_impl.trajectory_reward(pred, target, depth, 0.4, 0.2, metric, emulated=seed)
            grads = native_impl.trajectory_reward_backward(ones, pred, target, depth, 0.4, 0.2, metric, emulated=seed)
        for a, b in zip((got, *grads), (expected.detach(), *wanted), strict=True):
            torch.testing.assert_close(a.double(), b, rtol=rtol, atol=atol)


@pytest.mark.parametrize("num", [0, 1, 65, 130])
def test_geodesic_and_gradients(num: int) -> None:
    a, b = (trajectories(num, 2, seed)[:, 1, :3, :3].contiguous().requires_grad_() for seed in (21, 25))
    expected = reference.geodesic_distance(a, b)
    wanted = torch.autograd.grad(expected.sum(), (a, b))
    a, b = a.detach(), b.detach()
    torch.testing.assert_close(
        native_impl.geodesic_distance(a, b, emulated=2), expected.detach(), rtol=1e-13, atol=1e-13
    )
    for g, w in zip(
        native_impl.geodesic_distance_backward(torch.ones(num, dtype=F64), a, b, emulated=2), wanted, strict=True
    ):
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-10)


def test_public_calls_are_one_launch_and_never_wait(device: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    """No value is read and nothing is synchronised, whatever kind of median depth is given."""
    pred, target = trajectories(3, 9, 31), trajectories(3, 9, 35)
    depth = torch.full((3,), 2.0, dtype=F64)
    expected = reference.trajectory_reward(pred, target, depth, 4.0, 2.0, False)
    calls: list[tuple[str, Any]] = [
        ("se3_reward", lambda: trajectory_reward(pred, target, median_depth=depth, backend="native")),
        ("se3_reward", lambda: trajectory_reward(pred, target, median_depth=2.0, backend="native")),
        ("se3_error", lambda: trajectory_error(pred, target, median_depth=depth, backend="native").scale),
        ("se3_rotation", lambda: geodesic_distance(pred[:, 0, :3, :3], target[:, 0, :3, :3], backend="native")),
        ("se3_rigid", lambda: relative_poses(pred)),
        ("se3_rigid", lambda: path_length(pred)),
    ]

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a call waits for the device")

    results = []
    with monkeypatch.context() as strict:
        for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero"):
            strict.setattr(torch.Tensor, name, refuse)
        strict.setattr(torch.cuda, "synchronize", refuse)
        # The record is memory of the host: reading it is not waiting.
        strict.setattr(faults, "raise_found", lambda device: None)
        for name, call in calls:
            device.launches.clear()
            results.append(call())
            assert device.launches == [name]
    for got in results[:2]:
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


ROTATIONS = r"must hold rotations \(R\^T R = I to 0.001\), got an error of "
WRONG = {  # place in [4, 4], value, what is said of it
    "nan": ((1, 1), math.nan, "must be finite, got NaN or infinity"),
    "inf": ((0, 3), math.inf, "must be finite, got NaN or infinity"),
    "bottom nan": ((3, 1), math.nan, "must be finite, got NaN or infinity"),
    "stretched": ((slice(0, 3), slice(0, 3)), 2.0 * torch.eye(3, dtype=F64), ROTATIONS + "3"),
    "reflected": (
        (slice(0, 3), slice(0, 3)), torch.diag(torch.tensor([1.0, 1.0, -1.0], dtype=F64)),
        r"must hold rotations with determinant \+1, got a reflection",
    ),
    "bottom": ((3, 0), 0.25, r"must have the last row \[0, 0, 0, 1\], got an error of 0.25"),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("kind", WRONG)
def test_a_fault_is_nan_now_and_an_error_at_the_next_call(
    device: Counting, kind: str, side: int, dtype: torch.dtype
) -> None:
    place, value, text = WRONG[kind]
    sound = [trajectories(4, 40, seed, dtype) for seed in (41, 45)]
    paths = [t.clone() for t in sound]
    paths[side][2, 37][place] = value
    name = ("viewmats_pred", "viewmats_target")[side]
    others = torch.tensor([0, 1, 3])

    def reward(tensors: list[Tensor]) -> Tensor:
        return trajectory_reward(*tensors, median_depth=2.0, backend="native")

    def errors(tensors: list[Tensor]) -> tuple[Tensor, ...]:
        return trajectory_error(*tensors, backend="native")

    expected_reward, expected_errors = reward(sound), errors(sound)
    got = reward(paths)
    assert got[2].isnan() and torch.equal(got[others], expected_reward[others])
    late = rf"{name} {text}.* in item 2 \(found on cpu by an earlier call"
    with pytest.raises(ValueError, match="^trajectory_reward: " + late):
        errors(sound)
    assert torch.equal(reward(sound), expected_reward)  # said once

    for field, expected in zip(errors(paths), expected_errors, strict=True):
        assert field[2].isnan().all() and torch.equal(field[others], expected[others])
    with pytest.raises(ValueError, match="^trajectory_error: " + late):
        path_length(sound[0])


def test_faults_of_the_other_functions(device: Counting) -> None:
    pred, target = trajectories(3, 9, 31), trajectories(3, 9, 35)
    for bad, text in ((0.0, "must be > 0, got 0 "), (-1.5, "must be > 0, got -1.5 "), (math.nan, "must be finite")):
        depth = torch.tensor([2.0, bad, 2.0], dtype=F64)
        assert trajectory_reward(pred, target, median_depth=depth, backend="native").isnan().tolist() == [
            False,
            True,
            False,
        ]
        with pytest.raises(ValueError, match=f"trajectory_reward: median_depth {text}.*item 1"):
            trajectory_error(pred, target, median_depth=2.0, backend="native")

    turned = pred[:, 0, :3, :3].clone()
    turned[1] *= 1.1
    angles = geodesic_distance(target[:, 0, :3, :3], turned, backend="native")
    assert angles.isnan().tolist() == [False, True, False]
    with pytest.raises(ValueError, match=f"geodesic_distance: R_b {ROTATIONS}0.21 in item 1"):
        geodesic_distance(turned, turned, backend="native")

    pred[2, 4, 0, 0] = math.nan
    for function in (relative_poses, path_length):
        function(pred)
        with pytest.raises(ValueError, match=f"{function.__name__}: viewmats must be finite.*item 22"):
            function(target)


def test_several_faults_are_said_one_at_a_time_and_all_forgotten(device: Counting) -> None:
    pred, target = trajectories(3, 9, 31), trajectories(3, 9, 35)
    good = pred.clone()
    pred[0, 3, 0, 0], target[1, 4, 2, 2] = math.inf, 7.0
    assert trajectory_reward(pred, target, median_depth=2.0, backend="native").isnan().sum() == 2
    with pytest.raises(ValueError, match="viewmats_pred must be finite"):
        faults.raise_found(CPU)
    faults.raise_found(CPU)
    assert not trajectory_reward(good, good, median_depth=2.0, backend="native").isnan().any()
    faults.record(CPU)[0] = 1  # a flag without a word: another thread has said it
    faults.raise_found(CPU)


def test_check_waits_and_a_first_call_under_capture_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="one call on cuda:7 must precede the capture of a graph"):
        faults.record(torch.device("cuda", 7))
    words = faults.record(CPU).clone()
    monkeypatch.setattr(faults, "record", lambda device: words)
    check("cpu")
    assert not waited
    check()
    assert waited == [torch.device("cuda", 3)]
    words[0], words[1] = 1, (5 << 32)
    with pytest.raises(ValueError, match="trajectory_error: viewmats_pred must be finite.*item 4.*on cuda:1"):
        check("cuda:1")
    assert not words.any()
