"""The CUDA trajectory kernels against the torch reference in float64. They need a device."""

import pytest
import torch

from worldr1_kernels.se3 import check, geodesic_distance, native_impl, reference, trajectory_error, trajectory_reward
from worldr1_kernels.testing import check_compiles, noncontiguous, normal

F64 = torch.float64
pytestmark = pytest.mark.gpu


def trajectories(num: int, frames: int, seed: int, dtype: torch.dtype = F64) -> torch.Tensor:
    out = torch.eye(4, dtype=F64).repeat(num, frames, 1, 1)
    skew = 0.5 * normal((num, frames, 3, 3), seed, dtype=F64).tril(-1)
    out[..., :3, :3] = torch.linalg.matrix_exp(skew - skew.mT)
    out[..., :3, 3] = normal((num, frames, 3), seed + 1, dtype=F64)
    return out.to(device="cuda", dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("num, frames", [(1, 2), (3, 9), (5, 32), (7, 33), (384, 81)], ids=lambda v: str(v))
@pytest.mark.parametrize("scale", ["least_squares", "max_norm", "none", "sim3"])
def test_error_and_gradients(scale: str, num: int, frames: int, dtype: torch.dtype) -> None:
    if scale == "sim3" and frames < 4:
        return
    pred, target = trajectories(num, frames, 1, dtype), trajectories(num, frames, 5, dtype)
    for relative_to in ("first", "world"):
        x, y = pred.double().requires_grad_(), target.double().requires_grad_()
        expected = reference.trajectory_error(x, y, None, relative_to, scale)
        got = native_impl.trajectory_error(pred, target, None, relative_to, scale)
        rtol = 1e-10 if dtype == F64 else 2e-7
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a.double(), b.detach(), rtol=rtol, atol=1e-11)
        given = [
            normal(f.shape, k, device="cuda").to(dtype) if f.requires_grad else None for k, f in enumerate(expected)
        ]
        total = sum((g.double() * f).sum() for g, f in zip(given, expected, strict=True) if g is not None)
        wanted = torch.autograd.grad(total, (x, y))
        grads = native_impl.trajectory_error_backward(given, pred, target, None, relative_to, scale)
        for a, b in zip(grads, wanted, strict=True):
            torch.testing.assert_close(a.double(), b, rtol=1e-9 if dtype == F64 else 1e-6, atol=1e-9)


@pytest.mark.parametrize("metric", [False, True], ids=["free", "metric"])
@pytest.mark.parametrize("frames", [2, 9, 81])
def test_reward_and_gradients(frames: int, metric: bool) -> None:
    pred, target = trajectories(9, frames, 11), trajectories(9, frames, 15)
    pred[1], target[2], pred[3] = target[1], torch.eye(4, dtype=F64), torch.eye(4, dtype=F64)
    depth = torch.full((9,), 1.5, dtype=F64, device="cuda")
    x, y = pred.clone().requires_grad_(), target.clone().requires_grad_()
    expected = reference.trajectory_reward(x, y, depth, 0.4, 0.2, metric)
    torch.testing.assert_close(
        native_impl.trajectory_reward(pred, target, depth, 0.4, 0.2, metric), expected.detach(), rtol=1e-11, atol=1e-14
    )
    ones = torch.ones_like(expected)
    wanted = torch.autograd.grad(expected.sum(), (x, y))
    for a, b in zip(
        native_impl.trajectory_reward_backward(ones, pred, target, depth, 0.4, 0.2, metric), wanted, strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_geodesic_and_gradients() -> None:
    a, b = (trajectories(1000, 3, seed)[..., :3, :3].contiguous().requires_grad_() for seed in (21, 25))
    expected = reference.geodesic_distance(a, b)
    got = geodesic_distance(a, b, backend="native")
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-14)
    for g, w in zip(torch.autograd.grad(got.sum(), (a, b)), torch.autograd.grad(expected.sum(), (a, b)), strict=True):
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-10)


def test_auto_takes_the_device_kernel_and_checks_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLDR1_BACKEND", "fastest")
    pred, target = trajectories(4, 9, 31), trajectories(4, 9, 35)
    auto = trajectory_error(pred, noncontiguous(target))
    native = trajectory_error(pred, target, backend="native")
    assert all(torch.equal(a, b) for a, b in zip(auto, native, strict=True))
    depth = torch.ones(4, dtype=F64, device="cuda")
    for change, message in ((float("nan"), "must be finite"), (1.5, "must hold rotations")):
        bad = pred.clone()
        bad[2, 7, 1, 1] = change
        torch.cuda.set_sync_debug_mode("error")
        try:
            reward = trajectory_reward(bad, target, median_depth=depth)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert reward.isnan().tolist() == [False, False, True, False]
        with pytest.raises(ValueError, match=message):
            check()
        check()
    assert trajectory_reward(pred[:0], target[:0], median_depth=1.0).shape == (0,)


def test_two_runs_give_the_same_bits_and_a_side_stream_is_used() -> None:
    pred, target = trajectories(384, 81, 41), trajectories(384, 81, 45)
    depth = torch.full((384,), 2.0, dtype=F64, device="cuda")
    ones = torch.ones(384, dtype=F64, device="cuda")
    args = (pred, target, depth, 4.0, 2.0, True)
    first = (native_impl.trajectory_reward(*args), *native_impl.trajectory_reward_backward(ones, *args))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        second = (native_impl.trajectory_reward(*args), *native_impl.trajectory_reward_backward(ones, *args))
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.pool
def test_a_graph_is_captured_and_its_faults_are_found() -> None:
    pred, target = trajectories(3, 9, 31), trajectories(3, 9, 35)
    depth = torch.ones(3, dtype=F64, device="cuda")
    expected = trajectory_reward(pred, target, median_depth=depth, backend="native")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        reward = trajectory_reward(pred, target, median_depth=depth, backend="native")
    graph.replay()
    assert torch.equal(reward, expected)
    check()
    target[1, 5, 0, 0] = float("nan")
    graph.replay()
    with pytest.raises(ValueError, match="viewmats_target must be finite.*item 1"):
        check()
    assert reward.isnan().tolist() == [False, True, False]


def test_compiles() -> None:
    pred, target = trajectories(2, 5, 51), trajectories(2, 5, 55)
    check_compiles(lambda a, b: trajectory_reward(a, b, median_depth=2.0, backend="native"), (pred, target))
