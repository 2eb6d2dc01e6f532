"""SE(3) trajectory functions against scipy, roma, hand-worked values and the invariances they promise."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from worldr1_kernels.se3 import (
    align_scale,
    geodesic_distance,
    path_length,
    relative_poses,
    trajectory_error,
    trajectory_reward,
)
from worldr1_kernels.se3 import ops as se3_ops
from worldr1_kernels.testing import check_compiles, check_op, generator, noncontiguous, normal

roma = pytest.importorskip("roma")

F64 = torch.float64
DEPTH = 4.0


@pytest.fixture(params=["reference", "native"], autouse=True)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test here holds for both implementations."""
    reason = se3_ops.PROBES[request.param](torch.device("cpu"))
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.setenv("WORLDR1_BACKEND", request.param)
    return request.param


def rotvec(vectors: torch.Tensor) -> torch.Tensor:
    return roma.rotvec_to_rotmat(vectors.to(F64))


def random_rotations(num: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(Rotation.random(num, random_state=seed).as_matrix())


def viewmats(centers: torch.Tensor, camera_to_world: torch.Tensor) -> torch.Tensor:
    """[..., F, 4, 4] world-to-camera from centres [..., F, 3] and camera-to-world rotations [..., F, 3, 3]."""
    out = torch.eye(4, dtype=F64).expand(*centers.shape[:-1], 4, 4).clone()
    rotation = camera_to_world.transpose(-1, -2)
    out[..., :3, :3] = rotation
    out[..., :3, 3] = -(rotation @ centers[..., None])[..., 0]
    return out


def random_trajectories(num: int, frames: int, seed: int) -> torch.Tensor:
    return viewmats(normal((num, frames, 3), seed, dtype=F64), rotvec(0.5 * normal((num, frames, 3), seed + 1)))


def _move(x: float, y: float, z: float) -> Callable[[torch.Tensor], torch.Tensor]:
    direction, straight = torch.tensor([x, y, z], dtype=F64), torch.eye(3, dtype=F64)
    return lambda s: viewmats(s[:, None] * direction, straight.expand(len(s), 3, 3))


def _turn(axis: tuple[float, float, float], degrees: float) -> Callable[[torch.Tensor], torch.Tensor]:
    vector = torch.tensor(axis, dtype=F64) * math.radians(degrees)
    return lambda s: viewmats(torch.zeros(len(s), 3, dtype=F64), rotvec(s[:, None] * vector))


def _orbit(degrees: float, radius: float = 4.0) -> Callable[[torch.Tensor], torch.Tensor]:
    def path(s: torch.Tensor) -> torch.Tensor:
        a = s * math.radians(degrees)
        centers = torch.stack([-radius * a.sin(), torch.zeros_like(a), radius * (1 - a.cos())], -1)
        return viewmats(centers, rotvec(torch.stack([torch.zeros_like(a), a, torch.zeros_like(a)], -1)))

    return path


def _pull(side: float, degrees: float) -> Callable[[torch.Tensor], torch.Tensor]:
    vector = torch.tensor([0.0, math.radians(degrees), 0.0], dtype=F64)
    direction = torch.tensor([side, 0.0, -1.2], dtype=F64)
    return lambda s: viewmats(s[:, None] * direction, rotvec(s[:, None] * vector))


# Camera at share s of the motion; extents of the embedded world.
MOTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "push_in": _move(0, 0, 2.0),
    "pull_out": _move(0, 0, -2.0),
    "move_left": _move(-2.0, 0, 0),
    "move_up": _move(0, -2.0, 0),
    "pan_left": _turn((0, 1, 0), -28.0),
    "pan_right": _turn((0, 1, 0), 28.0),
    "tilt_up": _turn((1, 0, 0), 14.0),
    "roll_left": _turn((0, 0, 1), 10.0),
    "orbit_left": _orbit(60.0),
    "orbit_right": _orbit(-60.0),
    "pull_left": _pull(-0.8, -14.0),
}


def share(frames: int) -> torch.Tensor:
    return torch.arange(frames, dtype=F64) / (frames - 1)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["fp32", "fp64"])
def test_geodesic_equals_scipy_and_roma(dtype: torch.dtype) -> None:
    a, b = random_rotations(100_000, 0), random_rotations(100_000, 1)
    got = geodesic_distance(a.to(dtype), b.to(dtype)).double()
    expected = torch.from_numpy((Rotation.from_matrix(a.numpy()).inv() * Rotation.from_matrix(b.numpy())).magnitude())
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    assert float((got - expected).abs().max()) < tolerance
    # roma takes twice the arcsine of half the difference, which loses half the digits near pi.
    assert float((got - roma.rotmat_geodesic_distance(a, b)).abs().max()) < max(tolerance, 1e-7)


@pytest.mark.parametrize("degenerate", [1e-8, 1e-6, 1e-3, 1.0, math.pi - 1e-3, math.pi - 1e-6, math.pi - 1e-8])
def test_geodesic_is_exact_at_both_ends(degenerate: float) -> None:
    axis = torch.nn.functional.normalize(normal((1000, 3), 2, dtype=F64), dim=-1)
    base = random_rotations(1000, 3)
    other = base @ rotvec(axis * degenerate)
    got = geodesic_distance(base, other)
    assert float((got - degenerate).abs().max()) < 5e-15
    narrow = geodesic_distance(base.float(), other.float()).double()
    assert float((narrow - degenerate).abs().max()) < 1e-6


@pytest.mark.parametrize("angle", [0.0, 1e-8, 1e-4, 1.0, math.pi - 1e-4, math.pi])
def test_geodesic_gradient_is_finite_and_of_unit_length(angle: float) -> None:
    base = random_rotations(50, 4)
    axis = torch.nn.functional.normalize(normal((50, 3), 5, dtype=F64), dim=-1)
    a, b = base.clone().requires_grad_(), (base @ rotvec(axis * angle)).requires_grad_()
    grads = torch.autograd.grad(geodesic_distance(a, b).sum(), (a, b))
    assert all(bool(torch.isfinite(g).all()) for g in grads)
    # Turning b further about the axis increases the angle at rate 1.
    tangent = b.detach() @ _hat(axis)
    if 0.0 < angle < math.pi:
        rate = (grads[1] * tangent).sum((-1, -2))
        assert float((rate - 1).abs().max()) < 1e-6


def _hat(v: torch.Tensor) -> torch.Tensor:
    zero = torch.zeros_like(v[..., 0])
    rows = [zero, -v[..., 2], v[..., 1], v[..., 2], zero, -v[..., 0], -v[..., 1], v[..., 0], zero]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def test_relative_poses_equal_matrix_inverse_and_path_is_hand_worked() -> None:
    poses = random_trajectories(3, 5, 6)
    relative = relative_poses(poses)
    torch.testing.assert_close(relative, poses @ torch.linalg.inv(poses[:, :1]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(relative[:, 0], torch.eye(4, dtype=F64).expand(3, 4, 4), rtol=0, atol=1e-12)
    corners = torch.tensor([[[0, 0, 0], [3, 4, 0], [3, 4, 12], [3, 4, 12]]], dtype=F64)
    assert float(path_length(viewmats(corners, rotvec(normal((1, 4, 3), 7))))) == pytest.approx(17.0, abs=1e-12)


def test_trajectory_error_equals_numpy_loops() -> None:
    pred, target = random_trajectories(4, 6, 8), random_trajectories(4, 6, 10)
    for relative_to in ("first", "world"):
        for scale in ("least_squares", "max_norm", "none"):
            got = trajectory_error(pred, target, relative_to=relative_to, scale=scale)
            for n in range(4):
                p, t = pred[n].numpy(), target[n].numpy()
                if relative_to == "first":
                    p, t = (m @ np.linalg.inv(m[0]) for m in (p, t))
                cam_p, cam_t = np.linalg.inv(p), np.linalg.inv(t)
                c_p, c_t = cam_p[:, :3, 3].copy(), cam_t[:, :3, 3].copy()
                s = 1.0
                if scale == "least_squares":
                    s = max(0.0, (c_p * c_t).sum()) / (c_p * c_p).sum()
                if scale == "max_norm":
                    largest = [np.linalg.norm(c, axis=1).max() for c in (c_p, c_t)]
                    s, c_t, c_p = largest[1] / largest[0], c_t / largest[1], c_p / largest[0]
                else:
                    c_p = s * c_p
                assert float(got.scale[n]) == pytest.approx(s, rel=1e-10, abs=1e-14)
                trans = np.linalg.norm(c_p - c_t, axis=1)
                turns = [Rotation.from_matrix(c[:, :3, :3]) for c in (cam_p, cam_t)]
                rot = (turns[0].inv() * turns[1]).magnitude()
                pose = np.concatenate([cam_p[:, :3, :3] - cam_t[:, :3, :3], (c_p - c_t)[..., None]], -1)
                np.testing.assert_allclose(got.translation[n], trans, atol=1e-12)
                np.testing.assert_allclose(got.rotation[n], rot, atol=1e-12)
                assert float(got.trans_err[n]) == pytest.approx(trans.sum(), rel=1e-12)
                assert float(got.rot_err[n]) == pytest.approx(rot.sum(), rel=1e-12)
                assert float(got.cam_mc[n]) == pytest.approx(np.linalg.norm(pose, axis=(1, 2)).sum(), rel=1e-12)
                assert float(got.path_pred[n]) == pytest.approx(float(path_length(pred[n : n + 1])), rel=1e-12)
                assert float(got.path_target[n]) == pytest.approx(float(path_length(target[n : n + 1])), rel=1e-12)


def test_sim3_undoes_a_similarity_and_survives_a_straight_path() -> None:
    target = random_trajectories(3, 7, 12)
    centers = torch.linalg.inv(target)[..., :3, 3]
    turn = rotvec(torch.tensor([0.3, -1.0, 0.4]))
    moved = viewmats(
        (centers @ turn.T) / 2.5 + torch.tensor([1.0, 2, 3], dtype=F64),
        turn @ torch.linalg.inv(target)[..., :3, :3],
    )
    got = trajectory_error(moved, target, relative_to="world", scale="sim3")
    torch.testing.assert_close(got.scale, torch.full((3,), 2.5, dtype=F64), rtol=1e-10, atol=0)
    assert float(got.translation.max()) < 1e-10
    straight = MOTIONS["push_in"](share(9))[None].clone().requires_grad_()
    out = trajectory_error(straight, MOTIONS["move_left"](share(9))[None], scale="sim3")
    assert float(out.translation.detach().max()) < 1e-9  # any rotation that maps one line on the other will do
    (grad,) = torch.autograd.grad(out.cam_mc.sum(), straight)
    assert bool(torch.isfinite(grad).all())


def test_published_metric_of_a_static_clip() -> None:
    """A static 81-frame clip: what a reconstructor recovers is jitter, and the metric blows it up to norm 1. Against
    push_in, white jitter gives a TransErr of 59 and jitter uniform in a ball 65; 62.9 is published. A camera exactly at
    rest gives sum i / 80 = 40.5."""
    target = MOTIONS["push_in"](share(81))[None]
    white = normal((800, 81, 3), 14, dtype=F64)
    radius = torch.rand(800, 81, 1, generator=generator(15), dtype=F64) ** (1 / 3)
    expected = {59.0: white, 65.1: torch.nn.functional.normalize(white, dim=-1) * radius}
    for mean, jitter in expected.items():
        pred = viewmats(1e-3 * jitter, torch.eye(3, dtype=F64).expand(800, 81, 3, 3))
        got = trajectory_error(pred, target.expand(800, -1, -1, -1), scale="max_norm").trans_err
        assert float(got.mean()) == pytest.approx(mean, abs=4.5 * 12 / math.sqrt(800))
    at_rest = trajectory_error(torch.eye(4, dtype=F64).expand(1, 81, 4, 4), target, scale="max_norm")
    assert float(at_rest.trans_err) == pytest.approx(40.5, abs=1e-9)
    assert float(at_rest.scale) == 0.0


@pytest.mark.parametrize("frames", [9, 81])
@pytest.mark.parametrize("kind", MOTIONS)
def test_reward_orders_every_motion(kind: str, frames: int) -> None:
    motion, s = MOTIONS[kind], share(frames)
    target = motion(s)
    wobble = 0.005 * normal((frames, 6), 15, dtype=F64)
    wobble[0] = 0.0
    jitter = viewmats(
        torch.linalg.inv(target)[..., :3, 3] + 2.0 * wobble[:, :3],
        torch.linalg.inv(target)[..., :3, :3] @ rotvec(wobble[:, 3:]),
    )
    cases = [target, jitter, motion(s.clamp(max=0.5)), motion(0 * s), motion(-s)]
    reward = trajectory_reward(torch.stack(cases), torch.stack([target] * 5), median_depth=DEPTH)
    perfect, jittered, half_way, static, opposite = reward.tolist()
    assert perfect == pytest.approx(1.0, abs=1e-6)
    assert perfect > jittered > half_way > static > opposite
    assert jittered > 0.8 and 0.43 < half_way < 0.8 and 0.04 < static < 0.38 and opposite < 0.14
    # The same path at any size is the same path, unless the world is metric.
    scaled = target.clone()
    scaled[:, :3, 3] *= 3.0
    free = trajectory_reward(scaled[None], target[None], median_depth=3 * DEPTH)
    assert float(free) == pytest.approx(1.0, abs=1e-6)
    in_metres = trajectory_reward(scaled[None], target[None], median_depth=DEPTH, metric=True)
    moves = float(path_length(target[None])) > 0
    assert float(in_metres) == pytest.approx(1 / 3 if moves else 1.0, rel=1e-6)


def test_reward_of_a_fixed_request_by_hand() -> None:
    fixed = torch.eye(4, dtype=F64).expand(1, 9, 4, 4)
    drift = MOTIONS["push_in"](0.1 * share(9))[None]  # mean distance 0.1
    got = trajectory_reward(drift, fixed, median_depth=DEPTH)
    assert float(got) == pytest.approx(math.exp(-4 * 0.1 / (0.05 * DEPTH) * 0.25), rel=1e-12)
    assert float(trajectory_reward(fixed, fixed, median_depth=DEPTH)) == 1.0
    # A requested pan has no path either, even when float32 rounding gives it one of 1e-6.
    pan = MOTIONS["pan_left"](share(9))
    offset = pan.clone()
    offset[:, :3, 3] -= (pan[:, :3, :3] @ torch.tensor([5.0, 7, -6], dtype=F64)[:, None])[..., 0]
    narrow = offset.float()[None]
    assert float(path_length(narrow)) > 0
    assert float(trajectory_reward(narrow, narrow, median_depth=DEPTH, metric=True)) == pytest.approx(1.0, abs=1e-4)


def test_reward_by_hand_on_one_push() -> None:
    """Recovered: stops at 3/4; s = <p^, p> / <p^, p^> and the deviations worked out in numpy."""
    s = share(9)
    pred, target = MOTIONS["push_in"](s.clamp(max=0.75)), MOTIONS["push_in"](s)
    p_hat, p = 2 * np.minimum(s.numpy(), 0.75), 2 * s.numpy()
    scale = (p_hat * p).sum() / (p_hat**2).sum()
    expected = math.exp(-4 * np.abs(scale * p_hat - p).mean() / 2)
    assert float(trajectory_reward(pred[None], target[None], median_depth=DEPTH)) == pytest.approx(expected, rel=1e-12)
    centers = [torch.linalg.inv(m)[None, :, :3, 3] for m in (pred, target)]
    assert float(align_scale(centers[0], centers[1])) == pytest.approx(scale, rel=1e-12)
    assert float(align_scale(-centers[0], centers[1])) == 0.0
    assert float(align_scale(centers[0], centers[1], median_depth=151.0)) == 0.0


def test_invariance_to_a_common_rigid_motion_and_to_scale() -> None:
    pred, target = random_trajectories(5, 6, 16), random_trajectories(5, 6, 18)
    world = torch.linalg.inv(viewmats(normal((5, 1, 3), 20, dtype=F64), rotvec(normal((5, 1, 3), 21))))
    base = trajectory_error(pred, target)
    for moved in (trajectory_error(pred @ world, target), trajectory_error(pred, target @ world)):
        for got, expected in zip(moved, base, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11)
    larger = pred.clone()
    larger[..., :3, 3] *= 7.0
    scaled = trajectory_error(larger, target)
    for name in ("rotation", "translation", "trans_err", "cam_mc"):
        torch.testing.assert_close(getattr(scaled, name), getattr(base, name), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(scaled.scale * 7, base.scale, rtol=1e-9, atol=1e-12)
    cases = ((pred @ world, 1.0), (larger, 7.0), (pred, 1.0))
    rewards = [trajectory_reward(p, target, median_depth=d) for p, d in cases]
    torch.testing.assert_close(rewards[0], rewards[2], rtol=1e-9, atol=0)
    torch.testing.assert_close(rewards[1], rewards[2], rtol=1e-9, atol=0)


def _from_parameters(x: torch.Tensor) -> torch.Tensor:
    """Viewmats [N, F, 4, 4] from [N, F, 6], so that finite differences stay on SE(3)."""
    rotation = torch.matrix_exp(_hat(x[..., 3:]))
    top = torch.cat([rotation, x[..., :3, None]], -1)
    bottom = torch.tensor([0.0, 0, 0, 1], dtype=x.dtype).expand(*x.shape[:-1], 1, 4)
    return torch.cat([top, bottom], -2)


@pytest.mark.parametrize("scale", ["least_squares", "max_norm", "none"])
def test_gradients_of_trajectory_error(scale: Any) -> None:
    a, b = normal((2, 3, 6), 22, dtype=F64), normal((2, 3, 6), 23, dtype=F64)

    def function(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(trajectory_error(_from_parameters(x), _from_parameters(y), scale=scale))

    leaves = (a.requires_grad_(), b.requires_grad_())
    torch.autograd.gradcheck(function, leaves, atol=1e-6, check_batched_grad=False)


@pytest.mark.parametrize("metric", [False, True], ids=["free", "metric"])
@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["along", "against"])
def test_gradients_of_trajectory_reward(metric: bool, sign: float) -> None:
    b = 0.3 * normal((2, 3, 6), 25, dtype=F64)
    a = torch.cat([sign * b[..., :3], b[..., 3:]], -1) + 0.05 * normal((2, 3, 6), 24, dtype=F64)

    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return trajectory_reward(_from_parameters(x), _from_parameters(y), median_depth=DEPTH, metric=metric)

    torch.autograd.gradcheck(function, (a.requires_grad_(), b.requires_grad_()), atol=1e-6)


def test_gradients_are_finite_at_the_kinks() -> None:
    target = torch.stack([motion(share(9)) for motion in MOTIONS.values()])
    rest = torch.eye(4, dtype=F64).expand_as(target)
    for pred in (target, rest):
        x, y = pred.clone().requires_grad_(), target.clone().requires_grad_()
        error = trajectory_error(x, y, scale="max_norm")
        total = sum(field.sum() for field in error) + trajectory_reward(x, y, median_depth=DEPTH, metric=True).sum()
        grads = torch.autograd.grad(total, (x, y))
        assert all(bool(torch.isfinite(g).all()) for g in grads)


def test_a_step_up_the_gradient_raises_the_reward() -> None:
    target = MOTIONS["orbit_left"](share(9))[None]
    x = torch.zeros(1, 9, 6, dtype=F64) + 0.02 * normal((1, 9, 6), 26, dtype=F64)
    x.requires_grad_()
    before = trajectory_reward(_from_parameters(x), target, median_depth=DEPTH)
    (grad,) = torch.autograd.grad(before.sum(), x)
    after = trajectory_reward(_from_parameters(x.detach() + 0.1 * grad), target, median_depth=DEPTH)
    assert float(after) > float(before.detach()) + 1e-4


def test_float32_noncontiguous_and_empty_batches() -> None:
    pred, target = random_trajectories(3, 5, 27), random_trajectories(3, 5, 29)
    wide = trajectory_error(pred, target)
    narrow = trajectory_error(noncontiguous(pred.float()), noncontiguous(target.float()))
    for got, expected in zip(narrow, wide, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, rtol=3e-6, atol=3e-6)
    empty = trajectory_error(pred[:0], target[:0])
    assert empty.rotation.shape == (0, 5) and empty.cam_mc.shape == (0,)
    assert trajectory_reward(pred[:0], target[:0], median_depth=1.0).shape == (0,)
    assert geodesic_distance(pred[:0, :, :3, :3], target[:0, :, :3, :3]).shape == (0, 5)


def test_bad_input() -> None:
    good = random_trajectories(2, 4, 31)
    nan, sheared, mirrored, unbottomed = (good.clone() for _ in range(4))
    nan[0, 1, 0, 0] = float("nan")
    sheared[0, 1, :3, :3] *= 1.01
    mirrored[1, 2, 0, :3] *= -1
    unbottomed[0, 0, 3, 0] = 0.5
    cases: list[tuple[torch.Tensor, str]] = [
        (nan, "viewmats_pred must be finite"),
        (sheared, "viewmats_pred must hold rotations .* got an error of"),
        (mirrored, ".*got a reflection"),
        (unbottomed, r"must have the last row \[0, 0, 0, 1\]"),
        (good[:, :1], "must have at least 2 frames, got 1"),
        (good[:1], r"viewmats_target must have shape \[N, F, 4, 4\] with N = 1, got \[2, 4, 4, 4\]"),
        (good[0], r"must have shape \[N, F, 4, 4\], got \[4, 4, 4\]"),
        (good[..., :3, :], r"must have shape \[N, F, 4, 4\], got \[2, 4, 3, 4\]"),
    ]
    for bad, message in cases:
        with pytest.raises(ValueError, match="^trajectory_error: .*" + message):
            trajectory_error(bad, good)
        with pytest.raises(ValueError, match="^trajectory_reward: .*" + message):
            trajectory_reward(bad, good, median_depth=1.0)
    with pytest.raises(TypeError, match="must have dtype float32, float64, got bfloat16"):
        trajectory_error(good.bfloat16(), good)
    with pytest.raises(ValueError, match="median_depth must be finite and > 0, got 0.0"):
        trajectory_reward(good, good, median_depth=0.0)
    with pytest.raises(ValueError, match=r"median_depth must have shape \[N\] with N = 2, got \[3\]"):
        trajectory_reward(good, good, median_depth=torch.ones(3))
    with pytest.raises(ValueError, match="median_depth must be > 0, got -1.0"):
        trajectory_reward(good, good, median_depth=torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="k_t must be finite and >= 0"):
        trajectory_reward(good, good, median_depth=1.0, k_t=-1.0)
    with pytest.raises(ValueError, match="did you mean 'max_norm'"):
        trajectory_error(good, good, scale="maxnorm")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="median_depth must be left out"):
        trajectory_error(good, good, scale="none", median_depth=1.0)
    with pytest.raises(ValueError, match=r"R_b must have the shape and dtype of R_a"):
        geodesic_distance(good[0, :, :3, :3], good[0, :2, :3, :3])
    rotations = good[..., :3, :3]
    for bad, message in (
        (nan, "must be finite"),
        (sheared, "must hold rotations .* got an error of"),
        (mirrored, ".*got a reflection"),
    ):
        with pytest.raises(ValueError, match=f"^geodesic_distance: R_a {message}"):
            geodesic_distance(bad[..., :3, :3], rotations)
        with pytest.raises(ValueError, match=f"^geodesic_distance: R_b {message}"):
            geodesic_distance(rotations, bad[..., :3, :3])
        for function in (relative_poses, path_length):
            with pytest.raises(ValueError, match=f"viewmats {message}"):
                function(bad)
    for function in (relative_poses, path_length):
        with pytest.raises(ValueError, match="must have at least 2 frames, got 1"):
            function(good[:, :1])
    with pytest.raises(ValueError, match=r"viewmats_target must have shape .* got \[2, 3, 4, 4\]"):
        trajectory_error(good, good[:, :3])
    with pytest.raises(RuntimeError, match="backend 'triton' has no implementation"):
        trajectory_error(good, good, backend="triton")


def test_zero_length_paths_are_handled_as_documented() -> None:
    rest, push = torch.eye(4, dtype=F64).expand(1, 9, 4, 4), MOTIONS["push_in"](share(9))[None]
    error = trajectory_error(rest, push)
    assert float(error.scale) == 0.0 and float(error.path_pred) == 0.0
    assert float(error.path_target) == pytest.approx(2.0)
    assert float(error.trans_err) == pytest.approx(9.0)  # sum of 2 i / 8
    assert float(trajectory_error(push, rest).scale) == 0.0
    assert float(trajectory_reward(rest, push, median_depth=DEPTH)) == pytest.approx(math.exp(-2.0))


def test_ops_pass_opcheck_and_compile(backend: str) -> None:
    pred, target, depth = random_trajectories(2, 3, 33), random_trajectories(2, 3, 35), torch.ones(2, dtype=F64)
    R_a, R_b = pred[..., :3, :3].contiguous(), target[..., :3, :3].contiguous()
    check_op(se3_ops.geodesic_op, (R_a, R_b, backend))
    modes = (depth, "first", "least_squares", backend)
    check_op(se3_ops.trajectory_error_op, (pred, target, *modes))
    check_op(se3_ops.trajectory_error_op, (pred.float(), target.float(), None, "world", "max_norm", backend))
    check_op(se3_ops.trajectory_reward_op, (pred, target, depth, 4.0, 2.0, False, backend))

    def reward(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return trajectory_reward(a, b, median_depth=2.0)

    check_compiles(lambda a, b: (reward(a, b), trajectory_error(a, b).cam_mc), (pred, target))
    pred.requires_grad_()
    compiled = torch.compile(reward, fullgraph=True, backend="aot_eager")
    got, expected = (torch.autograd.grad(f(pred, target).sum(), pred)[0] for f in (compiled, reward))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)
