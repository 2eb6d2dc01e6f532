"""Bundle adjustment: derivatives by finite differences, exact tracks, what the gauge and the scale may not change."""

import numpy as np
import pytest

from worldr1.evaluation.classical.bundle import (
    Scene,
    adjust,
    anchor_rays,
    directions,
    exp_so3,
    jacobians,
    normalise,
    residuals,
)
from worldr1.evaluation.classical.start import starts, turning
from worldr1.evaluation.classical.tracks import Tracks

K = np.array([[51.2, 0.0, 32.0], [0.0, 48.0, 30.0], [0.0, 0.0, 1.0]])
SIZE = 64.0


def synthetic(seed: int = 0, num: int = 80, frames: int = 6, *, speed: float = 0.15) -> tuple[Scene, Tracks]:
    """Points at depths of 2 to 6 before cameras that move and turn, and their exact image points."""
    rng = np.random.default_rng(seed)
    time = np.arange(frames)[:, None]
    rotation = exp_so3(time * rng.normal(0, 0.02, 3))
    centre = time * speed * (rng.normal(size=3) * [1, 1, 0.5] + [0.3, 0, 0])
    translation = -np.einsum("fij,fj->fi", rotation, centre)
    anchor = rng.integers(0, frames, num)
    scene = Scene(rotation, translation, 1.0 / rng.uniform(2, 6, num))
    start = rng.uniform(8, SIZE - 8, (num, 2))
    at = np.repeat(start[:, None], frames, 1)
    rays = anchor_rays(Tracks(at, np.ones((num, frames), bool), anchor, np.ones(frames - 1)), K)
    seen = np.ones((num, frames), bool)
    for f in range(frames):
        q = directions(scene, rays, anchor, f)
        image = q[:, :2] / q[:, 2:] * [K[0, 0], K[1, 1]] + K[:2, 2]
        at[:, f] = np.where((anchor == f)[:, None], start, image)
        seen[:, f] = (q[:, 2] > 0) & (np.abs(image - SIZE / 2) < SIZE).all(1)
    return scene, Tracks(at, seen, anchor, np.ones(frames - 1))


def shaken(scene: Scene, seed: int = 1, size: float = 0.02) -> Scene:
    rng = np.random.default_rng(seed)
    out = scene.copy()
    out.rotation[1:] = exp_so3(rng.normal(0, size, (len(out.rotation) - 1, 3))) @ out.rotation[1:]
    out.translation[1:] += rng.normal(0, size, out.translation[1:].shape)
    out.inverse_depth *= 1.0 + rng.normal(0, 5 * size, len(out.inverse_depth))
    return out


@pytest.mark.parametrize("frame", [0, 2, 5])
def test_jacobians_are_those_of_finite_differences(frame: int) -> None:
    scene, tracks = synthetic()
    scene, rays, eps = shaken(scene), anchor_rays(tracks, K), 1e-6
    other = tracks.anchor != frame  # the anchor's own pose counts once
    _, by_frame, by_anchor, by_depth = jacobians(scene, rays, tracks.anchor, frame, K)

    def image(trial: Scene) -> np.ndarray:
        return jacobians(trial, rays, tracks.anchor, frame, K)[0]

    def moved(which: int, axis: int, step: float) -> Scene:
        trial, vector = scene.copy(), np.zeros(3)
        vector[axis % 3] = step
        if axis < 3:
            trial.rotation[which] = exp_so3(vector) @ trial.rotation[which]
        else:
            trial.translation[which] += vector
        return trial

    for axis in range(6):
        got = (image(moved(frame, axis, eps)) - image(moved(frame, axis, -eps))) / (2 * eps)
        np.testing.assert_allclose(by_frame[other, :, axis], got[other], rtol=1e-6, atol=1e-5)
        for a in range(6):
            rows = other & (tracks.anchor == a)
            got = (image(moved(a, axis, eps)) - image(moved(a, axis, -eps))) / (2 * eps)
            np.testing.assert_allclose(by_anchor[rows, :, axis], got[rows], rtol=1e-6, atol=1e-5)
    plus, minus = scene.copy(), scene.copy()
    plus.inverse_depth, minus.inverse_depth = scene.inverse_depth + eps, scene.inverse_depth - eps
    np.testing.assert_allclose(by_depth, (image(plus) - image(minus)) / (2 * eps), rtol=1e-6, atol=1e-5)


def test_residuals_of_exact_tracks_are_zero_and_are_found_again() -> None:
    scene, tracks = synthetic()
    assert np.abs(residuals(scene, tracks, K)).max() < 1e-10
    trial = shaken(scene)
    assert np.abs(residuals(trial, tracks, K)).max() > 1.0
    cost = adjust(trial, tracks, K, num_steps=60)
    assert cost < 1e-12 and np.abs(residuals(trial, tracks, K)).max() < 1e-4
    normalise(trial, tracks)
    normalise(scene, tracks)
    np.testing.assert_allclose(trial.rotation, scene.rotation, atol=1e-6)
    np.testing.assert_allclose(trial.translation, scene.translation, atol=1e-5)
    np.testing.assert_allclose(trial.inverse_depth, scene.inverse_depth, rtol=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_starts_need_no_hint(seed: int) -> None:
    scene, tracks = synthetic(seed, num=120)
    turned, _ = turning(tracks, K, width=0.16)
    found = list(starts(tracks, K, turned, width=0.16))
    costs = [adjust(s, tracks, K, width=0.16, num_steps=60) for s in found]
    best = found[int(np.argmin(costs))]
    assert min(costs) < 1e-6
    normalise(best, tracks)
    normalise(scene, tracks)
    np.testing.assert_allclose(best.rotation, scene.rotation, atol=1e-4)
    np.testing.assert_allclose(best.translation, scene.translation, atol=1e-3)


def test_turning_is_found_exactly() -> None:
    scene, tracks = synthetic(2, speed=0.0)
    turned, cost = turning(tracks, K, width=0.16)
    assert cost < 1e-10
    np.testing.assert_allclose(turned.rotation, scene.rotation, atol=1e-6)
    assert not turned.translation.any()


@pytest.mark.parametrize("scale", [0.01, 7.0])
def test_scale_changes_nothing_that_is_seen(scale: float) -> None:
    scene, tracks = synthetic(3)
    scene = shaken(scene)
    other = scene.copy()
    other.translation *= scale
    other.inverse_depth /= scale
    np.testing.assert_allclose(residuals(other, tracks, K), residuals(scene, tracks, K), atol=1e-9)
    normalise(other, tracks)
    normalise(scene, tracks)
    np.testing.assert_allclose(other.translation, scene.translation, atol=1e-12)
    assert np.median(other.inverse_depth) == pytest.approx(1.0)


def test_a_scene_behind_the_cameras_is_turned_round() -> None:
    scene, tracks = synthetic(3)
    behind = Scene(scene.rotation, -scene.translation, -scene.inverse_depth)
    np.testing.assert_allclose(residuals(behind, tracks, K), 0.0, atol=1e-9)  # no image tells them apart
    normalise(behind, tracks)
    assert np.median(behind.inverse_depth) == pytest.approx(1.0)


def test_frame_0_and_frames_that_do_not_count_stay() -> None:
    scene, tracks = synthetic(4)
    trial = shaken(scene)
    trial.rotation[0] = exp_so3(np.array([0.1, 0.2, 0.0]))  # wherever it is
    before = trial.copy()
    frames = np.array([True, True, True, False, True, True])
    adjust(trial, tracks, K, frames=frames, num_steps=5)
    np.testing.assert_array_equal(trial.rotation[[0, 3]], before.rotation[[0, 3]])
    np.testing.assert_array_equal(trial.translation[[0, 3]], before.translation[[0, 3]])
    assert np.abs(trial.translation[1] - before.translation[1]).max() > 1e-3


def test_outliers_do_not_decide() -> None:
    scene, tracks = synthetic(5, num=120)
    at = tracks.at.copy()
    rng = np.random.default_rng(0)
    bad = rng.random(len(at)) < 0.15
    at[bad, 3] += rng.uniform(5, 20, (int(bad.sum()), 2))
    spoiled = Tracks(at, tracks.seen, np.where(tracks.anchor == 3, 0, tracks.anchor), tracks.survived)
    clean = spoiled.anchor == tracks.anchor  # anchors of frame 3 have other depths
    spoiled = Tracks(at[clean], tracks.seen[clean], tracks.anchor[clean], tracks.survived)
    truth = Scene(scene.rotation, scene.translation, scene.inverse_depth[clean])
    trial = shaken(truth, size=0.01)
    adjust(trial, spoiled, K, num_steps=60)
    normalise(trial, spoiled)
    normalise(truth, spoiled)
    np.testing.assert_allclose(trial.rotation, truth.rotation, atol=2e-3)
    np.testing.assert_allclose(trial.translation, truth.translation, atol=2e-2)
