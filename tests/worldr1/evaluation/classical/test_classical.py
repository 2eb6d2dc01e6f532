"""The classical reconstructor on clips whose cameras are known, and on what nobody can judge."""

import sys

import numpy as np
import pytest
import torch

pytest.importorskip("cv2")

from worldr1.evaluation.classical import Classical
from worldr1.evaluation.classical.reconstructor import solve
from worldr1.evaluation.classical.start import _two_views
from worldr1.evaluation.classical.tracks import Tracks, follow
from worldr1.evaluation.reconstructors import load_reconstructor
from worldr1.evaluation.recovered import STATES, recover
from worldr1.microworld.measure_classical import MeasureConfig, by_motion, judge, noisy, render, zoomed
from worldr1_kernels import trajectory_error

K = np.array([[51.2, 0.0, 32.0], [0.0, 51.2, 32.0], [0.0, 0.0, 1.0]])


@pytest.fixture(scope="module")
def clips():
    """fixed, push_in, pull_out, move_left, move_right, pan_left, pan_right, orbit_left, orbit_right."""
    return render(9, height=64, width=64, frames=9, detail=0.1)


@pytest.fixture(scope="module")
def found(clips):
    """fixed, move_left with a hole, pan_left, black, orbit_left."""
    video = clips.video[[0, 3, 5, 7, 7]].clone()
    video[1, 3, 0, 5, 5] = torch.nan
    video[3] = 0.0
    return recover(Classical(), video)


def test_each_clip_of_a_batch_is_judged_by_itself(clips, found) -> None:
    assert found.state == ("still", "failed", "turning", "failed", "moving")
    assert [bool(r) for r in found.reasons] == [True, True, True, True, False]
    assert "not finite" in found.reasons[1] and "no texture" in found.reasons[3]
    assert set(found.state) <= set(STATES)
    alone = recover(Classical(), clips.video[[7]])
    assert torch.equal(alone.reconstruction.viewmats[0], found.reconstruction.viewmats[4])  # the same bits, too
    assert torch.equal(alone.reconstruction.depth[0], found.reconstruction.depth[4])


def test_frames_that_are_too_small_are_refused(clips) -> None:
    small = torch.nn.functional.avg_pool2d(clips.video[7], 2)[None]
    found = Classical().recover(small)
    assert found.state == ("failed",) and found.reasons == ("frames must be 48 pixels or more on either side",)
    assert torch.equal(found.reconstruction.viewmats[0], torch.eye(4).expand(9, 4, 4))


def test_cameras_and_depth_are_right(clips, found) -> None:
    error = trajectory_error(found.reconstruction.viewmats, clips.viewmats[[0, 3, 5, 7, 7]], scale="max_norm")
    degrees = torch.rad2deg(error.rotation[:, 1:].mean(1))
    assert degrees[0] == 0 and float(degrees[[2, 4]].max()) < 1.1
    assert float(error.translation.mean(1)[4]) < 0.054
    depth, truth = found.reconstruction.depth[4], clips.depth[7]
    depth = depth * (truth / depth).median()
    assert float(((depth - truth).abs() / truth).median()) < 0.06


def test_what_failed_or_has_no_depth_holds_placeholders(found) -> None:
    scene = found.reconstruction
    for i in (0, 1, 3):
        assert torch.equal(scene.viewmats[i], torch.eye(4).expand(9, 4, 4))
    for i in (0, 1, 2, 3):
        assert (scene.depth[i] == 1).all()
    assert not scene.viewmats[2, :, :3, 3].any()  # a turn has no path
    for field in (scene.depth, scene.confidence, scene.viewmats, scene.Ks, scene.gaussians.means):
        assert bool(field.isfinite().all())
    assert scene.depth.shape == scene.confidence.shape == (5, 9, 64, 64)


def test_against_evo(clips, found) -> None:
    """Absolute and relative pose errors of the orbit by evo, after its own alignment with scale."""
    metrics, trajectory = pytest.importorskip("evo.core.metrics"), pytest.importorskip("evo.core.trajectory")
    ours, truth = (
        trajectory.PosePath3D(poses_se3=list(np.linalg.inv(v.double().numpy())))
        for v in (found.reconstruction.viewmats[4], clips.viewmats[7])
    )
    length = float(np.linalg.norm(truth.positions_xyz, axis=1).max())
    ours.align(truth, correct_scale=True)
    ape = metrics.APE(metrics.PoseRelation.translation_part)
    ape.process_data((truth, ours))
    assert ape.get_statistic(metrics.StatisticsType.mean) < 0.054 * length
    rpe = metrics.RPE(metrics.PoseRelation.rotation_angle_deg, delta=1, delta_unit=metrics.Unit.frames)
    rpe.process_data((truth, ours))
    assert rpe.get_statistic(metrics.StatisticsType.mean) < 1.1


def test_agrees_with_the_essential_matrix_of_opencv() -> None:
    """Exact points of two views: OpenCV's pose, and the adjusted one of the middle and the last camera."""
    rng = np.random.default_rng(0)
    points = np.stack([rng.uniform(-2, 2, 80), rng.uniform(-2, 2, 80), rng.uniform(4, 8, 80)], 1)
    angle = 0.1
    turn = np.array([[np.cos(angle), 0, -np.sin(angle)], [0, 1, 0], [np.sin(angle), 0, np.cos(angle)]])
    move = np.array([0.5, 0.1, -0.1])
    at = []
    for share in (0.0, 0.5, 1.0):
        a = share * angle
        R = np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])
        q = points @ R.T + share * move
        at.append(q[:, :2] / q[:, 2:] * 51.2 + 32.0)
    seen = np.ones((80, 3), bool)
    tracks = Tracks(np.stack(at, 1), seen, np.zeros(80, np.int64), np.ones(2))
    rotation, translation = _two_views(at[0], at[2], K, width=0.16)
    np.testing.assert_allclose(rotation, turn, atol=1e-4)
    np.testing.assert_allclose(translation, move / np.linalg.norm(move), atol=1e-3)
    solved, state, _ = solve(tracks, K, width=64)
    assert state == "moving"
    np.testing.assert_allclose(solved.scene.rotation[2], rotation, atol=1e-4)
    ours = solved.scene.translation[2]
    np.testing.assert_allclose(ours / np.linalg.norm(ours), translation, atol=1e-3)


def test_what_cannot_be_judged_is_refused(clips) -> None:
    generator = torch.Generator().manual_seed(0)
    cut = clips.video[7].clone()
    cut[5:] = clips.video[2, 5:]
    zoom = zoomed(clips.video[[8], :1].expand(1, 9, 3, 64, 64), 1.6)[0]
    ramp = torch.linspace(0, 1, 64).expand(9, 3, 64, 64)
    noise = torch.rand(9, 3, 64, 64, generator=generator)
    got = Classical().recover(torch.stack([cut, zoom, ramp, noise, torch.full_like(noise, 0.5)]))
    assert got.state == ("failed",) * 5
    for reason, word in zip(got.reasons, ("cut", "zoom", "texture", "", "texture"), strict=True):
        assert reason and word in reason


def test_a_frozen_clip_and_one_with_noise_are_still(clips) -> None:
    frozen = clips.video[7:8, :1].expand(1, 9, 3, 64, 64)
    shaken = noisy(clips.video[:1], 0.05, torch.Generator().manual_seed(0))
    assert Classical().recover(torch.cat([frozen, shaken])).state == ("still", "still")


def test_shuffled_frames_are_the_shuffled_path(clips) -> None:
    """A rigid scene shown out of order has a camera that jumps: that is what is recovered, not the smooth path."""
    order = [0, 2, 1, 4, 3, 6, 5, 8, 7]
    got = judge(Classical(), clips.video[[4]][:, order], clips.viewmats[[4]][:, order])[0]
    assert got.state == "moving" and got.rotation_deg < 1.1 and got.translation < 0.054


def test_tracks_follow_a_shift_to_a_fiftieth_of_a_pixel() -> None:
    v, u = np.meshgrid(np.arange(64), np.arange(64), indexing="ij")
    rng = np.random.default_rng(0)
    waves = [(rng.normal(0, 0.35, 2), rng.uniform(0, 6.28)) for _ in range(12)]

    def frame(dx: float, dy: float) -> np.ndarray:
        value = sum(np.sin(k[0] * (u - dx) + k[1] * (v - dy) + p) for k, p in waves)
        return np.repeat(np.clip(127 + 25 * value, 0, 255).round().astype(np.uint8)[..., None], 3, -1)

    tracks = follow(np.stack([frame(0.7 * f, -0.3 * f) for f in range(4)]))
    both = tracks.seen[:, 0] & tracks.seen[:, 3]
    assert both.sum() > 50
    shift = np.median(tracks.at[both, 3] - tracks.at[both, 0], axis=0)
    np.testing.assert_allclose(shift, [2.1, -0.9], atol=0.02)


def test_pixel_centres_are_at_half_integers() -> None:
    """The corners of a square around the centre of the frame lie around (32, 32), however the frame was enlarged."""
    frame = np.full((64, 64, 3), 40, np.uint8)
    frame[20:44, 20:44] = 220
    tracks = follow(np.stack([frame] * 3))
    corners = tracks.at[tracks.anchor == 0, 0]
    low, high = corners.min(0), corners.max(0)
    np.testing.assert_allclose((low + high) / 2, 32.0, atol=0.1)
    np.testing.assert_allclose(high - low, 24.0, atol=3.0)  # a detector favours the outside


@pytest.mark.parametrize("shape", [(1, 2, 3, 64, 64), (9, 3, 64, 64), (1, 9, 1, 64, 64)])
def test_wrong_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must have shape"):
        Classical().recover(torch.zeros(shape))


def test_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    assert load_reconstructor("classical").focal_ratio == 0.8
    assert load_reconstructor("classical", focal_ratio=1.2).focal_ratio == 1.2
    assert isinstance(load_reconstructor("worldr1.evaluation.classical:Classical"), Classical)
    with pytest.raises(ValueError, match="focal_ratio"):
        load_reconstructor("classical", focal_ratio=0.0)
    with pytest.raises(ValueError, match="no such folder"):
        load_reconstructor(str(tmp_path / "none"))
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match=r"pip install 'worldr1\[evaluate\]'"):
        load_reconstructor("classical")


def test_any_reconstructor_can_be_asked() -> None:
    """One without states: finite clips move, the others have failed and do not reach it."""

    class Plain:
        def infer(self, video):
            assert bool(video.isfinite().all())
            scene = Classical().infer(torch.zeros_like(video))
            scene.viewmats[1] = torch.nan
            return scene

    video = torch.rand(3, 3, 3, 32, 32)
    video[2, 0, 0, 0, 0] = torch.inf
    got = recover(Plain(), video)
    assert got.state == ("moving", "failed", "failed")
    assert got.reasons[0] == "" and "cameras or depth" in got.reasons[1] and "not finite" in got.reasons[2]


@pytest.mark.slow
def test_the_limits_of_36_clips() -> None:
    """Rotation <= 1.1 deg and translation <= 5.4 % of the path in the mean; every state right."""
    table = by_motion(MeasureConfig(clips=36))
    cells = [c.strip() for c in table.splitlines()[-1].split("|")[1:-1]]
    assert cells[:5] == ["all", "36", "36", "0", "0"]
    assert float(cells[5].split()[0]) <= 1.1 and float(cells[6].split()[0]) <= 5.4


@pytest.mark.slow
def test_longer_and_larger() -> None:
    table = by_motion(MeasureConfig(height=240, width=416, frames=21, clips=9))
    cells = [c.strip() for c in table.splitlines()[-1].split("|")[1:-1]]
    assert cells[:5] == ["all", "9", "9", "0", "0"]
    assert float(cells[5].split()[0]) <= 1.1 and float(cells[6].split()[0]) <= 5.4
