"""Camera-control metrics: hand-worked paths, a search over scales, and where they are undefined."""

import math

import numpy as np
import pytest
import torch
from oracle_world import path_of

from worldr1.evaluation.camera_metrics import camera_control, least_distance_scale

F64 = torch.float64


def straight(end: float, frames: int = 9) -> torch.Tensor:
    """Cameras [1, F, 4, 4] moving along z by `end`, without turning."""
    out = torch.eye(4, dtype=F64).repeat(1, frames, 1, 1)
    out[0, :, 2, 3] = -torch.linspace(0, end, frames, dtype=F64)
    return out


def turned(degrees: float, viewmats: torch.Tensor) -> torch.Tensor:
    """The same centres, frame t turned about y by t / (F - 1) of the angle."""
    angles = torch.linspace(0, math.radians(degrees), viewmats.shape[1], dtype=F64)
    out = viewmats.clone()
    for t, a in enumerate(angles.tolist()):
        c, s = math.cos(a), math.sin(a)
        turn = torch.tensor([[c, 0, -s], [0, 1, 0], [s, 0, c]], dtype=F64)
        out[0, t, :3] = turn @ viewmats[0, t, :3]
    return out


def test_by_hand_on_straight_paths() -> None:
    target = straight(2.0)
    pred = turned(16.0, straight(0.5))
    got = camera_control(pred, target)
    steps = np.radians(16.0) * np.arange(9) / 8
    assert float(got.rot_err) == pytest.approx(steps.sum(), rel=1e-12)
    assert float(got.rotation_deg) == pytest.approx(8.0, rel=1e-12)
    assert float(got.trans_err) == pytest.approx(0.0, abs=1e-12)  # each path over its own largest |centre|
    # |R_a - R_b|_F of two rotations an angle apart is 2 sqrt(2) sin(angle / 2).
    assert float(got.cam_mc) == pytest.approx((2 * math.sqrt(2) * np.sin(steps / 2)).sum(), rel=1e-12)
    assert float(got.translation) == pytest.approx(0.0, abs=1e-12) and float(got.camera_error) < 1e-5


def test_worldscore_by_hand_and_its_weakness() -> None:
    target = straight(2.0)
    sideways = turned(16.0, target)
    sideways[0, :, 0, 3] += torch.tensor([0.0, 0, 0, 0, 0, 0, 0, 0, 0.9], dtype=F64)
    # The outlier of one frame leaves the scale alone: least distances, where least squares would shrink the path.
    got = camera_control(sideways, target)
    assert float(got.translation) == pytest.approx(0.9 / 9, rel=1e-6)
    assert float(got.camera_error) == pytest.approx(math.sqrt(8.0 * 0.1), rel=1e-6)
    backwards = camera_control(turned(16.0, straight(-2.0)), target)
    assert float(backwards.camera_error) < 1e-5  # the scale may be negative
    assert float(backwards.trans_err) == pytest.approx(9.0, rel=1e-12)  # sum of 2 t / 8


def test_scale_equals_a_search() -> None:
    generator = torch.Generator().manual_seed(0)
    pred, target = (torch.randn(6, 12, 3, generator=generator, dtype=F64) for _ in range(2))
    pred[4], pred[5] = 0.0, -target[5]
    pred[:, 0] = target[:, 0] = 0.0
    got = least_distance_scale(pred, target)
    grid = torch.linspace(-2, 2, 40_001, dtype=F64)
    for n in range(6):
        cost = (grid[:, None, None] * pred[n] - target[n]).norm(dim=-1).sum(1)
        mine = (got[n] * pred[n] - target[n]).norm(dim=-1).sum()
        assert float(mine) <= float(cost.min()) + 1e-9
    assert float(got[4]) == 0.0 and float(got[5]) == pytest.approx(-1.0, abs=1e-12)


def test_undefined_where_nothing_is_to_travel() -> None:
    paths = torch.stack([path_of(m) for m in ("fixed", "pan_left", "push_in")])
    got = camera_control(paths.roll(1, 0), paths, min_path=torch.full((3,), 4e-3))
    for name in ("trans_err", "cam_mc", "translation", "camera_error"):
        assert getattr(got, name).isnan().tolist() == [True, True, False]
    assert bool(got.rot_err.isfinite().all()) and bool(got.rotation_deg.isfinite().all())
    assert float(got.rot_err[1]) > 1.0


def test_scale_and_common_motion_do_not_matter() -> None:
    pred, target = turned(10.0, straight(1.3)), turned(-4.0, straight(2.0))
    pred[0, :, 0, 3] += 0.1 * torch.arange(9, dtype=F64).sqrt()
    base = camera_control(pred, target)
    larger = pred.clone()
    larger[..., :3, 3] *= 5
    world = turned(70.0, straight(3.0))[:, -1:]
    for other in (camera_control(larger, target), camera_control(pred @ world, target)):
        for a, b in zip(other, base, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_bad_input_is_refused() -> None:
    good = straight(1.0)
    with pytest.raises(ValueError, match="must have at least 2 frames"):
        camera_control(good[:, :1], good[:, :1])
    mirrored = good.clone()
    mirrored[0, 3, 0, :3] *= -1
    with pytest.raises(ValueError, match="got a reflection"):
        camera_control(mirrored, good)
