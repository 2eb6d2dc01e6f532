"""RotErr, TransErr and CamMC against evo's relative pose error and against the published definition, written out."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from worldr1_kernels.se3 import trajectory_error
from worldr1_kernels.testing import normal

roma = pytest.importorskip("roma")

F64 = torch.float64
FRAMES = 81


def random_trajectories(num: int, frames: int, seed: int) -> torch.Tensor:
    """World-to-camera [N, F, 4, 4], float64, a random walk."""
    out = torch.eye(4, dtype=F64).repeat(num, frames, 1, 1)
    out[..., :3, :3] = roma.rotvec_to_rotmat(0.2 * normal((num, frames, 3), seed, dtype=F64).cumsum(1))
    out[..., :3, 3] = 0.1 * normal((num, frames, 3), seed + 1, dtype=F64).cumsum(1)
    return out


def straight(direction: torch.Tensor) -> torch.Tensor:
    """Cameras [N, F, 4, 4] that move by `direction` [N, 3] at constant speed without turning."""
    out = torch.eye(4, dtype=F64).repeat(len(direction), FRAMES, 1, 1)
    share = torch.arange(FRAMES, dtype=F64) / (FRAMES - 1)
    out[..., :3, 3] = -share[:, None] * direction[:, None]
    return out


def test_relative_pose_errors_equal_evo() -> None:
    """evo's RPE of the pairs (i, i + delta): with delta = 1 the errors of all two-frame pieces; the pairs (0, t) are
    the whole trajectory relative to the first camera. evo takes camera-to-world poses."""
    metrics = pytest.importorskip("evo.core.metrics", reason="pip install --no-deps evo")
    from evo.core.trajectory import PosePath3D

    frames = 12
    pred, target = random_trajectories(1, frames, 1), random_trajectories(1, frames, 7)
    paths = tuple(PosePath3D(poses_se3=list(np.linalg.inv(m[0].numpy()))) for m in (target, pred))

    def rpe(relation: object, delta: int) -> np.ndarray:
        metric = metrics.RPE(relation, delta, metrics.Unit.frames, all_pairs=True)
        metric.process_data(paths)
        return metric.error

    angle, shift = metrics.PoseRelation.rotation_angle_rad, metrics.PoseRelation.translation_part
    pieces = [torch.stack([m[0, :-1], m[0, 1:]], 1) for m in (pred, target)]  # [F-1, 2, 4, 4]
    steps = trajectory_error(*pieces, scale="none")
    np.testing.assert_allclose(steps.rotation[:, 1], rpe(angle, 1), atol=1e-8)  # evo takes the arccosine
    np.testing.assert_allclose(steps.translation[:, 1], rpe(shift, 1), atol=1e-12)
    whole = trajectory_error(pred, target, scale="none")
    for t in range(1, frames):
        assert float(whole.rotation[0, t]) == pytest.approx(rpe(angle, t)[0], abs=1e-8)
        assert float(whole.translation[0, t]) == pytest.approx(rpe(shift, t)[0], abs=1e-12)


def test_sums_equal_the_published_definition() -> None:
    """Camera-to-world poses relative to the first camera, each path over its own largest |t|, sums over the frames."""
    pred, target = random_trajectories(3, 20, 20), random_trajectories(3, 20, 30)
    got = trajectory_error(pred, target, scale="max_norm")
    for n in range(3):
        poses = []
        for viewmats in (pred[n].numpy(), target[n].numpy()):
            to_world = np.linalg.inv(viewmats)
            relative = np.linalg.inv(to_world[0]) @ to_world
            relative[:, :3, 3] /= np.linalg.norm(relative[:, :3, 3], axis=1).max()
            poses.append(relative[:, :3])
        R_a, R_b = (Rotation.from_matrix(p[:, :, :3]) for p in poses)
        assert float(got.rot_err[n]) == pytest.approx((R_a.inv() * R_b).magnitude().sum(), rel=1e-12)
        difference = poses[0] - poses[1]
        assert float(got.trans_err[n]) == pytest.approx(np.linalg.norm(difference[:, :, 3], axis=1).sum(), rel=1e-12)
        assert float(got.cam_mc[n]) == pytest.approx(np.sqrt((difference**2).sum((1, 2))).sum(), rel=1e-12)


def test_what_a_trans_err_of_62_can_mean() -> None:
    """Against a push-in of 81 frames: 0 for the same path, 40.5 for a camera exactly at rest, 54 on average for a
    straight path in any other direction (the mean distance of two random unit vectors is 4/3), 81 for the opposite one;
    jitter at rest, blown up to norm 1, lies between 59 and 65 (test_se3.py). So 62 says that a path has nothing to do
    with the request; it does not say that the camera stands still."""
    forward = torch.tensor([[0.0, 0.0, 2.0]], dtype=F64)
    target = straight(forward)

    def trans_err(pred: torch.Tensor) -> torch.Tensor:
        return trajectory_error(pred, target.expand(len(pred), -1, -1, -1), scale="max_norm").trans_err

    assert float(trans_err(target)) == pytest.approx(0.0, abs=1e-12)
    assert float(trans_err(straight(0 * forward))) == pytest.approx(40.5, abs=1e-9)
    assert float(trans_err(straight(-forward))) == pytest.approx(81.0, abs=1e-9)
    anywhere = trans_err(straight(normal((4000, 3), 40, dtype=F64)))
    assert float(anywhere.mean()) == pytest.approx(54.0, abs=4 * float(anywhere.std()) / math.sqrt(4000))
    assert float(trans_err(straight(0.3 * forward))) == pytest.approx(0.0, abs=1e-12)  # any length of the right path
