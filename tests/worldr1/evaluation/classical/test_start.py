"""Every place to begin from, of exact tracks; two views against OpenCV's own pose."""

import cv2
import numpy as np

from worldr1.evaluation.classical.bundle import Scene, adjust, exp_so3, residuals
from worldr1.evaluation.classical.start import starts, turning
from worldr1.evaluation.classical.tracks import Tracks

K = np.array([[51.2, 0.0, 32.0], [0.0, 51.2, 32.0], [0.0, 0.0, 1.0]])


def made(num: int, frames: int) -> tuple[Scene, Tracks]:
    """A scene of random points 3 to 6 units away, anchored in three frames, and its exact tracks."""
    rng = np.random.default_rng(0)
    progress = np.linspace(0.0, 1.0, frames)[:, None]
    rotation = exp_so3(progress * np.array([0.2, 1.0, -0.1]) * 0.3)
    centre = progress * np.array([1.0, 0.2, 0.6])
    scene = Scene(rotation, -np.einsum("fij,fj->fi", rotation, centre), 1.0 / rng.uniform(3.0, 6.0, num))
    anchor = rng.choice([0, frames // 2, frames - 1], num)
    at = np.zeros((num, frames, 2))
    at[np.arange(num), anchor] = rng.uniform(12.0, 52.0, (num, 2))
    tracks = Tracks(at, np.ones((num, frames), bool), anchor, np.ones(frames - 1))
    at += residuals(scene, tracks, K)  # what is predicted; the anchors' own residuals are 0
    return scene, tracks


def errors_of(scene: Scene, truth: Scene) -> tuple[float, float]:
    """(largest angle in degrees, largest distance of centres over the longest way) at the scale that fits."""
    turn = scene.rotation @ np.swapaxes(truth.rotation, 1, 2)
    angle = np.degrees(np.arccos(np.clip((np.trace(turn, axis1=1, axis2=2) - 1) / 2, -1, 1))).max()
    ours, theirs = (-np.einsum("fji,fj->fi", s.rotation, s.translation) for s in (scene, truth))
    scale = (ours * theirs).sum() / max((ours * ours).sum(), 1e-12)
    apart, longest = (np.linalg.norm(way, axis=1).max() for way in (scale * ours - theirs, theirs))
    return float(angle), float(apart / longest)


def test_every_start_is_led_to_the_truth():
    """Three pairs of frames and points all equally far: three of the four end at the truth of exact tracks."""
    truth, tracks = made(num=150, frames=9)
    turned, _ = turning(tracks, K, width=0.16)
    found = list(starts(tracks, K, turned, width=0.16))
    assert len(found) == 4
    ends = []
    for scene in found:
        adjust(scene, tracks, K, width=0.32, num_steps=80)
        ends.append(max(errors_of(scene, truth)))
    assert min(ends) < 1e-3 and sum(end < 0.05 for end in ends) >= 3


def test_exact_tracks_are_those_of_opencv_s_two_views():
    truth, tracks = made(num=150, frames=9)
    both = tracks.anchor == 0
    a, b = tracks.at[both, 0], tracks.at[both, 8]
    essential, _ = cv2.findEssentialMat(a, b, K, method=cv2.RANSAC, threshold=0.1)
    _, rotation, translation, _ = cv2.recoverPose(essential, a, b, K)
    np.testing.assert_allclose(rotation, truth.rotation[8], atol=1e-3)
    direction = truth.translation[8] / np.linalg.norm(truth.translation[8])
    np.testing.assert_allclose(translation[:, 0], direction, atol=2e-3)
