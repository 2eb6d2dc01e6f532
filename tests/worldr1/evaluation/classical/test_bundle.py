"""Bundle adjustment against finite differences, exact tracks, its own symmetries, and OpenCV's two views."""

import cv2
import numpy as np
import pytest

from worldr1.evaluation.classical.bundle import (
    Scene,
    adjust,
    anchor_rays,
    exp_so3,
    jacobians,
    normalise,
    residuals,
)
from worldr1.evaluation.classical.start import nearest_depths, starts, turning
from worldr1.evaluation.classical.tracks import Tracks

K = np.array([[51.2, 0.0, 32.0], [0.0, 51.2, 32.0], [0.0, 0.0, 1.0]])


def made(
    num: int = 60, frames: int = 6, *, seed: int = 0, path: float = 1.0, turn: float = 0.3
) -> tuple[Scene, Tracks]:
    """A scene of random points 3 to 6 units away, anchored in three frames, and its exact tracks."""
    rng = np.random.default_rng(seed)
    progress = np.linspace(0.0, 1.0, frames)[:, None]
    rotation = exp_so3(progress * np.array([0.2, 1.0, -0.1]) * turn)
    centre = progress * np.array([1.0, 0.2, 0.6]) * path
    scene = Scene(rotation, -np.einsum("fij,fj->fi", rotation, centre), 1.0 / rng.uniform(3.0, 6.0, num))
    anchor = rng.choice([0, frames // 2, frames - 1], num)
    at = np.zeros((num, frames, 2))
    at[np.arange(num), anchor] = rng.uniform(12.0, 52.0, (num, 2))
    tracks = Tracks(at, np.ones((num, frames), bool), anchor, np.ones(frames - 1))
    at += residuals(scene, tracks, K)  # what is predicted; the anchors' own residuals are 0
    return scene, tracks


def disturbed(scene: Scene, *, size: float, seed: int = 1) -> Scene:
    rng = np.random.default_rng(seed)
    out = scene.copy()
    out.rotation = exp_so3(size * rng.standard_normal((len(scene.rotation), 3))) @ scene.rotation
    out.translation = scene.translation + size * rng.standard_normal(scene.translation.shape)
    out.rotation[0], out.translation[0] = np.eye(3), 0.0
    out.inverse_depth = scene.inverse_depth * np.exp(size * rng.standard_normal(len(scene.inverse_depth)))
    return out


def errors_of(scene: Scene, truth: Scene) -> tuple[float, float]:
    """(largest angle in degrees, largest distance of centres over the longest way) at the scale that fits."""
    turn = scene.rotation @ np.swapaxes(truth.rotation, 1, 2)
    angle = np.degrees(np.arccos(np.clip((np.trace(turn, axis1=1, axis2=2) - 1) / 2, -1, 1))).max()
    ours, theirs = (-np.einsum("fji,fj->fi", s.rotation, s.translation) for s in (scene, truth))
    scale = (ours * theirs).sum() / max((ours * ours).sum(), 1e-12)
    apart, longest = (np.linalg.norm(way, axis=1).max() for way in (scale * ours - theirs, theirs))
    return float(angle), float(apart / max(longest, 1e-12))


def test_derivatives_are_those_of_finite_differences():
    scene, tracks = made()
    scene = disturbed(scene, size=0.05)
    rays, step = anchor_rays(tracks, K), 1e-6
    for f in (1, 4):
        image, by_frame, by_anchor, by_depth = jacobians(scene, rays, tracks.anchor, f, K)
        for k in range(6):
            move = np.zeros(6)
            move[k] = step
            for moved_frame, expected in ((f, by_frame), (3, by_anchor)):
                other = scene.copy()
                other.rotation[moved_frame] = exp_so3(move[:3]) @ scene.rotation[moved_frame]
                other.translation[moved_frame] = scene.translation[moved_frame] + move[3:]
                difference = (jacobians(other, rays, tracks.anchor, f, K)[0] - image) / step
                rows = tracks.anchor == 3 if moved_frame == 3 else tracks.anchor != f
                np.testing.assert_allclose(expected[rows, :, k], difference[rows], rtol=2e-4, atol=2e-3)
        other = scene.copy()
        other.inverse_depth = scene.inverse_depth + step
        difference = (jacobians(other, rays, tracks.anchor, f, K)[0] - image) / step
        np.testing.assert_allclose(by_depth, difference, rtol=2e-4, atol=2e-3)


def test_exact_tracks_are_explained_exactly():
    truth, tracks = made()
    scene = disturbed(truth, size=0.03)
    assert np.abs(residuals(scene, tracks, K)).max() > 1.0
    cost = adjust(scene, tracks, K, num_steps=60)
    assert cost < 1e-12 and np.abs(residuals(scene, tracks, K)).max() < 1e-4
    assert max(errors_of(scene, truth)) < 1e-4


def test_a_tenth_of_wrong_tracks_does_not_move_the_cameras():
    truth, tracks = made(num=120)
    rng = np.random.default_rng(3)
    wrong = rng.choice(120, 12, replace=False)
    tracks.at[wrong, 1:] += rng.uniform(-8.0, 8.0, (12, 5, 2))
    scene = disturbed(truth, size=0.02)
    adjust(scene, tracks, K, width=0.2, num_steps=60)
    angle, way = errors_of(scene, truth)
    assert angle < 0.3 and way < 0.02


def test_the_image_knows_neither_scale_nor_sign_and_normalise_fixes_both():
    truth, tracks = made()
    for factor in (3.0, -1.0, -0.2):
        other = Scene(truth.rotation, factor * truth.translation, truth.inverse_depth / factor)
        np.testing.assert_allclose(residuals(other, tracks, K)[tracks.seen], 0.0, atol=1e-9)
        normalise(other, tracks)
        assert np.median(other.inverse_depth) == pytest.approx(1.0)
        assert errors_of(other, truth)[1] < 1e-9


def test_only_what_may_move_moves():
    truth, tracks = made()
    start = disturbed(truth, size=0.03)
    scene = start.copy()
    one = np.array([False, False, True, False, False, False])
    adjust(scene, tracks, K, frames=one, points=False)
    assert np.array_equal(scene.inverse_depth, start.inverse_depth)
    assert np.array_equal(scene.translation[~one], start.translation[~one])
    assert not np.allclose(scene.translation[2], start.translation[2])
    turned = start.copy()
    adjust(turned, tracks, K, translations=False)
    assert np.array_equal(turned.translation, start.translation)
    assert np.array_equal(turned.rotation[0], np.eye(3))


def test_a_turn_is_found_exactly_and_a_path_costs_it_dearly():
    truth, tracks = made(path=0.0, turn=0.6)
    scene, cost = turning(tracks, K, width=0.2)
    assert cost < 1e-12 and errors_of(scene, truth)[0] < 1e-4
    _, tracks = made(path=1.0)
    assert turning(tracks, K, width=0.2)[1] > 0.5


def test_every_start_is_led_to_the_truth():
    """Of exact tracks each start must end there, and the two views must be those of OpenCV's own pose."""
    truth, tracks = made(num=150, frames=9)
    turned, _ = turning(tracks, K, width=0.16)
    found = [scene for scene in starts(tracks, K, turned, width=0.16)]
    assert len(found) == 4
    ends = []
    for scene in found:
        adjust(scene, tracks, K, width=0.32, num_steps=80)
        ends.append(max(errors_of(scene, truth)))
    assert min(ends) < 1e-3 and sum(end < 0.05 for end in ends) >= 3
    both = tracks.anchor == 0
    a, b = tracks.at[both, 0], tracks.at[both, 8]
    essential, _ = cv2.findEssentialMat(a, b, K, method=cv2.RANSAC, threshold=0.1)
    _, rotation, translation, _ = cv2.recoverPose(essential, a, b, K)
    np.testing.assert_allclose(rotation, truth.rotation[8], atol=1e-3)
    direction = truth.translation[8] / np.linalg.norm(truth.translation[8])
    np.testing.assert_allclose(translation[:, 0], direction, atol=2e-3)


def test_depths_are_taken_from_the_nearest_of_the_table():
    truth, tracks = made()
    found = nearest_depths(truth, tracks, K, width=0.2)
    assert np.abs(np.log(found / truth.inverse_depth)).max() < 0.2  # the table's steps are 1.27
