"""Where bundle adjustment begins: rotations alone, or two views and their essential matrix."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from worldr1.evaluation.classical.bundle import (
    Scene,
    adjust,
    anchor_rays,
    directions,
    exp_so3,
    rays_of,
)
from worldr1.evaluation.classical.tracks import Tracks

MIN_POINTS = 15
"""Points that two frames must share for a start from them."""
_DEPTHS = np.concatenate([[0.0], np.geomspace(0.02, 6.0, 25)])  # inverse, in units of the first baseline
_SEED = 20250


def turning(tracks: Tracks, K: np.ndarray, *, width: float) -> tuple[Scene, float]:
    """The best cameras that only turn, all points at infinity, and their cost (see `bundle.adjust`)."""
    num, frames = tracks.seen.shape
    rotation = np.tile(np.eye(3), (frames, 1, 1))
    rays = rays_of(tracks.at, K)
    rays = rays / np.linalg.norm(rays, axis=-1, keepdims=True)
    for f in range(1, frames):
        both = tracks.seen[:, f] & tracks.seen[:, f - 1]
        step = _rotation_between(rays[both, f - 1], rays[both, f], scale=width / K[0, 0])
        rotation[f] = step @ rotation[f - 1]
    scene = Scene(rotation, np.zeros((frames, 3)), np.zeros(num))
    cost = adjust(scene, tracks, K, width=width, num_steps=15, points=False, translations=False)
    return scene, cost


def _rotation_between(a: np.ndarray, b: np.ndarray, *, scale: float) -> np.ndarray:
    """R with R a = b for unit rays [n, 3], by reweighted least squares with Cauchy weights (Kabsch 1976)."""
    rotation = np.eye(3)
    if len(a) < 3:
        return rotation
    weight = np.ones(len(a))
    for _ in range(8):
        u, _, vt = np.linalg.svd((b * weight[:, None]).T @ a)
        rotation = u @ np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))]) @ vt
        weight = 1.0 / (1.0 + ((b - a @ rotation.T) ** 2).sum(1) / scale**2)
    return rotation


def starts(tracks: Tracks, K: np.ndarray, turned: Scene, *, width: float) -> Iterator[Scene]:
    """Scenes with a path, each a place to begin from: of two views with frame 0, and of points all equally far away.

    Args:
      turned: Of `turning`.
      width: Scale of the Cauchy cost, pixels.
    """
    frames = tracks.seen.shape[1]
    for k in sorted({frames - 1, frames // 2, (3 * frames) // 4}, reverse=True):
        both = tracks.seen[:, 0] & tracks.seen[:, k]
        if k and both.sum() >= MIN_POINTS:
            pose = _two_views(tracks.at[both, 0], tracks.at[both, k], K, width=width)
            if pose is not None:
                scene = _along(*pose, k, frames)
                scene.inverse_depth = nearest_depths(scene, tracks, K, frames=(0, k), width=width)
                _place_others(scene, tracks, K, width=width)
                yield scene
    flat = turned.copy()
    flat.inverse_depth = np.ones(len(tracks.anchor))
    adjust(flat, tracks, K, width=4.0 * width, num_steps=8)
    yield flat


def _two_views(a: np.ndarray, b: np.ndarray, K: np.ndarray, *, width: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Rotation and unit translation of the second camera from points [n, 2] of two frames (Nister 2004, RANSAC)."""
    import cv2

    cv2.setRNGSeed(_SEED)
    essential, inliers = cv2.findEssentialMat(a, b, K, method=cv2.RANSAC, prob=0.9999, threshold=width)
    if essential is None or essential.shape != (3, 3):
        return None
    count, rotation, translation, _ = cv2.recoverPose(essential, a, b, K, mask=inliers.copy())
    return (rotation, translation[:, 0]) if count >= MIN_POINTS // 2 else None


def _along(rotation: np.ndarray, translation: np.ndarray, k: int, frames: int) -> Scene:
    """Cameras of even speed through the pose of frame k."""
    import cv2

    vector, centre = cv2.Rodrigues(rotation)[0][:, 0], -rotation.T @ translation
    progress = np.arange(frames)[:, None] / k
    turned = exp_so3(vector * progress)
    return Scene(turned, -np.einsum("fij,fj->fi", turned, centre * progress), np.zeros(0))


def nearest_depths(
    scene: Scene, tracks: Tracks, K: np.ndarray, *, frames: tuple[int, ...] | None = None, width: float
) -> np.ndarray:
    """The inverse depth of each point among _DEPTHS that fits best in the given frames, all by default: [T]."""
    rays = anchor_rays(tracks, K)
    focal, centre = np.array([K[0, 0], K[1, 1]]), K[:2, 2]
    frames = tuple(range(tracks.seen.shape[1])) if frames is None else frames
    cost = np.zeros((len(_DEPTHS), len(rays)))
    for i, rho in enumerate(_DEPTHS):
        trial = Scene(scene.rotation, scene.translation, np.full(len(rays), rho))
        for f in frames:
            q = directions(trial, rays, tracks.anchor, f)
            ahead = q[:, 2] > 1e-6
            image = q[:, :2] / np.where(ahead, q[:, 2], 1.0)[:, None] * focal + centre
            square = np.where(ahead, ((image - tracks.at[:, f]) ** 2).sum(1), 1e12)
            cost[i] += np.where(tracks.seen[:, f], np.log1p(square / width**2), 0.0)
    return _DEPTHS[cost.argmin(0)]


def _place_others(scene: Scene, tracks: Tracks, K: np.ndarray, *, width: float) -> None:
    """Cameras of all frames from the points of frame 0, one after the other, then every point from all cameras."""
    first = tracks.anchor == 0
    part = Tracks(tracks.at[first], tracks.seen[first], tracks.anchor[first], tracks.survived)
    known = Scene(scene.rotation, scene.translation, scene.inverse_depth[first])
    for f in range(1, tracks.seen.shape[1]):
        if part.seen[:, f].sum() >= MIN_POINTS // 2:
            one = np.zeros(tracks.seen.shape[1], bool)
            one[f] = True
            adjust(known, part, K, frames=one, width=2.0 * width, num_steps=8, points=False)
    scene.rotation, scene.translation = known.rotation, known.translation
    scene.inverse_depth = nearest_depths(scene, tracks, K, width=width)
