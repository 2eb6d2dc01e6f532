"""The compiled SE(3) kernels against the torch reference in float64; gradients by autograd; what float32 promises."""

import itertools
import math

import pytest
import torch
from scipy.spatial.transform import Rotation

from worldr1_kernels import _native
from worldr1_kernels.se3 import geodesic_distance, native_impl, ops, reference, trajectory_error, trajectory_reward
from worldr1_kernels.testing import check_op, generator, noncontiguous, normal, poison_empty

roma = pytest.importorskip("roma")

F64 = torch.float64
CPU = torch.device("cpu")
LEVELS = ("x86-64-v2", "x86-64-v3", "x86-64-v4")
ERROR_CASES = [("least_squares", None), ("least_squares", 1.5), ("max_norm", None), ("none", None), ("sim3", None)]

pytestmark = pytest.mark.skipif(
    _native.unavailable(CPU) is not None, reason=_native.unavailable(CPU) or "the C++ module is there"
)


def random_trajectories(num: int, frames: int, seed: int) -> torch.Tensor:
    """World-to-camera [N, F, 4, 4], float64."""
    out = torch.eye(4, dtype=F64).repeat(num, frames, 1, 1)
    out[..., :3, :3] = roma.rotvec_to_rotmat(0.6 * normal((num, frames, 3), seed, dtype=F64))
    out[..., :3, 3] = normal((num, frames, 3), seed + 1, dtype=F64)
    return out


def pairs(frames: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Seven pairs, most of them at an edge: equal, at rest, fixed request, mirrored path, pan in place."""
    pred, target = random_trajectories(7, frames, seed), random_trajectories(7, frames, seed + 7)
    pred[1] = target[1]
    pred[2] = torch.eye(4, dtype=F64)
    target[3] = torch.eye(4, dtype=F64)
    pred[4] = target[4]
    pred[4, :, :3, 3] *= -1
    target[5, :, :3, 3] = 0
    return pred, target


@pytest.mark.parametrize("frames", [2, 3, 9, 81])
@pytest.mark.parametrize("scale, depth", ERROR_CASES, ids=lambda v: str(v))
@pytest.mark.parametrize("relative_to", ["first", "world"])
def test_error_and_gradients_equal_the_reference(
    relative_to: str, scale: str, depth: float | None, frames: int
) -> None:
    pred, target = pairs(frames, 100 + frames)
    if scale == "sim3":  # where the path has three dimensions: else any rotation about it is as good
        if frames < 4:
            return
        pred, target = pred[[0, 1, 4, 6]], target[[0, 1, 4, 6]]
    depths = None if depth is None else torch.full((len(pred),), depth, dtype=F64)
    if depths is not None:
        depths[6] = 1e3  # the last predicted camera counts as at rest
    x, y = pred.clone().requires_grad_(), target.clone().requires_grad_()
    expected = reference.trajectory_error(x, y, depths, relative_to, scale)
    with poison_empty():
        got = native_impl.trajectory_error(pred, target, depths, relative_to, scale)
    for name, a, b in zip(expected._fields, got, expected, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-13, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    weights = [normal(field.shape, 200 + k, dtype=F64) for k, field in enumerate(expected)]
    given = [w if field.requires_grad else None for w, field in zip(weights, expected, strict=True)]
    total = sum((w * f).sum() for w, f in zip(weights, expected, strict=True) if f.requires_grad)
    wanted = torch.autograd.grad(total, (x, y))
    with poison_empty():
        grads = native_impl.trajectory_error_backward(given, pred, target, depths, relative_to, scale)
    for a, b in zip(grads, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("frames", [2, 3, 9, 81])
@pytest.mark.parametrize("metric", [False, True], ids=["free", "metric"])
def test_reward_and_gradients_equal_the_reference(metric: bool, frames: int) -> None:
    pred, target = pairs(frames, 300 + frames)
    depths = torch.full((7,), 1.5, dtype=F64)
    depths[6] = 1e3
    x, y = pred.clone().requires_grad_(), target.clone().requires_grad_()
    expected = reference.trajectory_reward(x, y, depths, 0.4, 0.2, metric)
    with poison_empty():
        got = native_impl.trajectory_reward(pred, target, depths, 0.4, 0.2, metric)
    torch.testing.assert_close(got, expected.detach(), rtol=1e-12, atol=1e-15)
    weights = normal((7,), 400, dtype=F64)
    wanted = torch.autograd.grad((weights * expected).sum(), (x, y))
    with poison_empty():
        grads = native_impl.trajectory_reward_backward(weights, pred, target, depths, 0.4, 0.2, metric)
    for a, b in zip(grads, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert float(wanted[0].abs().max()) > 1e-3


def test_geodesic_and_gradients_equal_the_reference() -> None:
    a = torch.from_numpy(Rotation.random(1001, random_state=0).as_matrix()).requires_grad_()
    b = torch.from_numpy(Rotation.random(1001, random_state=1).as_matrix()).requires_grad_()
    expected = reference.geodesic_distance(a, b)
    weights = normal((1001,), 1, dtype=F64)
    wanted = torch.autograd.grad((weights * expected).sum(), (a, b))
    with poison_empty():
        got = native_impl.geodesic_distance(a.detach(), b.detach())
        grads = native_impl.geodesic_distance_backward(weights, a.detach(), b.detach())
    torch.testing.assert_close(got, expected.detach(), rtol=1e-15, atol=1e-15)
    # The axis is known to within rounding over the sine: less well towards pi.
    for g, w in zip(grads, wanted, strict=True):
        assert float(((g - w).abs().amax((-1, -2)) * expected.detach().sin()).max()) < 1e-14


def degenerate_pairs(num: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rotation pairs whose angle is known: a third near 0, a third near pi, a third anywhere, 1e-8 and pi - 1e-8 among
    them; (R_a, R_b, angle)."""
    g = generator(2)
    third = num // 3
    small = 10 ** (-8 + 8 * torch.rand(third, generator=g, dtype=F64))
    small[:1000] = 1e-8
    angle = torch.cat([small, math.pi - small, math.pi * torch.rand(num - 2 * third, generator=g, dtype=F64)])
    axis = torch.nn.functional.normalize(normal((num, 3), 3, dtype=F64), dim=-1)
    a = torch.from_numpy(Rotation.random(num, random_state=4).as_matrix())
    return a, a @ roma.rotvec_to_rotmat(axis * angle[:, None]), angle


def test_a_hundred_thousand_pairs_in_float64_and_float32() -> None:
    a, b, angle = degenerate_pairs(100_000)
    wide = geodesic_distance(a, b, backend="native")
    assert float((wide - angle).abs().max()) < 5e-15
    scipy = torch.from_numpy((Rotation.from_matrix(a.numpy()).inv() * Rotation.from_matrix(b.numpy())).magnitude())
    assert float((wide - scipy).abs().max()) < 1e-12  # 5e-13 here: scipy makes the matrices orthogonal first
    # roma's arcsine of half the difference has a square-root singularity at pi.
    difference = (wide - roma.rotmat_geodesic_distance(a, b)).abs()
    assert float(difference.max()) < 1e-7 and float(difference[angle < math.pi - 0.01].max()) < 1e-12
    # float32 in: the same matrices in float64 give the same angle, rounded once.
    narrow = geodesic_distance(a.float(), b.float(), backend="native")
    same = reference.geodesic_distance(a.float().double(), b.float().double())
    assert float(((narrow.double() - same).abs() - same * 2.0**-24).max()) < 1e-15
    # And rounding the matrices themselves to float32 moves the angle by less than 1e-6.
    assert 1e-8 < float((narrow.double() - angle).abs().max()) < 3e-7


@pytest.mark.parametrize("angle", [0.0, 1e-8, 1.0, math.pi - 1e-8, math.pi])
def test_float32_gradients_are_finite_at_both_ends(angle: float) -> None:
    a = torch.from_numpy(Rotation.random(200, random_state=5).as_matrix())
    axis = torch.nn.functional.normalize(normal((200, 3), 6, dtype=F64), dim=-1)
    x, y = a.float().requires_grad_(), (a @ roma.rotvec_to_rotmat(axis * angle)).float().requires_grad_()
    grads = torch.autograd.grad(geodesic_distance(x, y, backend="native").sum(), (x, y))
    for g in grads:
        assert bool(torch.isfinite(g).all()) and float(g.abs().max()) < 2.0
    if angle == 0.0:  # equal to the bit: the kink, where the gradient is 0
        assert float(grads[0].abs().max()) == 0.0


def test_equal_trajectories_have_no_gradient_in_translation_and_rotation() -> None:
    """The errors have a minimum with a kink there; a gradient of length one along rounding would be noise."""
    target = random_trajectories(5, 9, 500)
    world = random_trajectories(5, 1, 510)  # a common rigid motion makes "equal" equal to rounding only
    x = (target @ world).requires_grad_()
    for scale in ("least_squares", "max_norm", "none", "sim3"):
        error = trajectory_error(x, target, scale=scale, backend="native")
        (grad,) = torch.autograd.grad((error.trans_err + error.rot_err + error.cam_mc).sum(), x)
        assert float(grad.abs().max()) < 1e-12
    reward = trajectory_reward(x, target, median_depth=2.0, backend="native")
    (grad,) = torch.autograd.grad(reward.sum(), x)
    assert float(grad.abs().max()) < 1e-12
    assert reward.tolist() == pytest.approx([1.0] * 5, abs=1e-12)


def test_float32_is_the_float64_result_rounded_once() -> None:
    pred, target = (random_trajectories(40, 33, seed).float() for seed in (600, 610))
    depth = torch.full((40,), 3.0)
    wide = native_impl.trajectory_error(pred.double(), target.double(), depth.double(), "first", "least_squares")
    narrow = native_impl.trajectory_error(pred, target, depth, "first", "least_squares")
    for a, b in zip(narrow, wide, strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b.float())
    grads = [normal(f.shape, 620 + k).to(torch.float32) for k, f in enumerate(narrow)]
    widened = [g.double() for g in grads]
    few = native_impl.trajectory_error_backward(grads, pred, target, depth, "first", "least_squares")
    many = native_impl.trajectory_error_backward(
        widened, pred.double(), target.double(), depth.double(), "first", "least_squares"
    )
    for a, b in zip(few, many, strict=True):
        assert torch.equal(a, b.float())
    # A float64 request beside float32 poses is not rounded on the way.
    mixed = trajectory_error(pred, random_trajectories(40, 33, 610), backend="native")
    exact = reference.trajectory_error(pred.double(), random_trajectories(40, 33, 610), None, "first", "least_squares")
    assert mixed.rot_err.dtype == torch.float32
    torch.testing.assert_close(mixed.rot_err, exact.rot_err.float(), rtol=1.2e-7, atol=0)


def test_threads_and_instruction_sets() -> None:
    pred, target = random_trajectories(300, 41, 700), random_trajectories(300, 41, 710)
    depth = torch.full((300,), 2.0, dtype=F64)
    args = (pred, target, depth, 4.0, 2.0, True)
    ones = torch.ones(300, dtype=F64)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append((native_impl.trajectory_reward(*args), *native_impl.trajectory_reward_backward(ones, *args)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    tried = 0
    for level in LEVELS:
        if not _native.cpu().has_instruction_set(level):
            continue
        tried += 1
        torch.testing.assert_close(native_impl.trajectory_reward(*args, level=level), results[0][0], rtol=1e-11, atol=0)
        grads = native_impl.trajectory_reward_backward(ones, *args, level=level)
        for a, b in zip(grads, results[0][1:], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)
        x, y = pred[..., :3, :3].contiguous(), target[..., :3, :3].contiguous()
        torch.testing.assert_close(
            native_impl.geodesic_distance(x, y, level=level), reference.geodesic_distance(x, y), rtol=1e-14, atol=1e-14
        )
        error = native_impl.trajectory_error(pred, target, None, "world", "sim3", level=level)
        expected = reference.trajectory_error(pred, target, None, "world", "sim3")
        for a, b in zip(error, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert tried >= 1


def test_layouts_and_empty_batches() -> None:
    pred, target = random_trajectories(3, 5, 800), random_trajectories(3, 5, 810)
    plain = trajectory_error(pred, target, backend="native")
    spread = trajectory_error(
        noncontiguous(pred), target.transpose(0, 1).contiguous().transpose(0, 1), backend="native"
    )
    for a, b in zip(spread, plain, strict=True):
        assert torch.equal(a, b)
    for num, frames in ((0, 5), (1, 2)):
        x, y = pred[:num, :frames].clone().requires_grad_(), target[:num, :frames].clone().requires_grad_()
        error = trajectory_error(x, y, backend="native")
        reward = trajectory_reward(x, y, median_depth=2.0, backend="native")
        grads = torch.autograd.grad(error.cam_mc.sum() + reward.sum(), (x, y))
        assert error.rotation.shape == (num, frames) and reward.shape == (num,)
        assert all(g.shape == (num, frames, 4, 4) and bool(torch.isfinite(g).all()) for g in grads)
    assert geodesic_distance(pred[:0, 0, :3, :3], target[:0, 0, :3, :3], backend="native").shape == (0,)


def test_the_fast_check_finds_every_fault() -> None:
    """all_rigid must not pass what the public functions promise to refuse, in any lane, float32 and float64."""
    good = random_trajectories(3, 5, 900)
    assert native_impl.all_rigid(good, tolerance=1e-3) and native_impl.all_rigid(good.float(), tolerance=1e-3)
    assert native_impl.all_rigid(good[..., :3, :3], tolerance=1e-3)
    for flat, place in itertools.product(range(15), ("nan", "inf", "shear", "mirror", "bottom", "t_nan", "t_inf")):
        bad = good.clone()
        pose = bad.view(15, 4, 4)[flat]
        if place in ("nan", "inf"):
            pose[1, 2] = float(place)
        elif place == "shear":
            pose[:3, 0] *= 1.0006  # R^T R - I reaches .0012
        elif place == "mirror":
            pose[2, :3] *= -1
        elif place == "bottom":
            pose[3, 3] = 1.002
        else:
            pose[1, 3] = float(place.removeprefix("t_"))
        assert not native_impl.all_rigid(bad, tolerance=1e-3), (flat, place)
        assert not native_impl.all_rigid(bad.float(), tolerance=1e-3), (flat, place)
        rotations = bad[..., :3, :3]
        assert native_impl.all_rigid(rotations, tolerance=1e-3) == (place in ("bottom", "t_nan", "t_inf"))


def test_backward_ops_pass_opcheck() -> None:
    pred, target, depth = random_trajectories(2, 3, 33), random_trajectories(2, 3, 35), torch.ones(2, dtype=F64)
    fields = native_impl.trajectory_error(pred, target, depth, "first", "least_squares")
    grads = [torch.ones_like(f) for f in fields[:7]]
    check_op(ops.trajectory_error_backward_op, (*grads, None, pred, target, depth, "first", "least_squares"))
    check_op(ops.trajectory_reward_backward_op, (torch.ones(2, dtype=F64), pred, target, depth, 4.0, 2.0, True))
    R_a, R_b = pred[..., :3, :3].contiguous(), target[..., :3, :3].contiguous()
    check_op(ops.geodesic_backward_op, (torch.ones(2, 3, dtype=F64), R_a, R_b))
