"""Points followed through a clip: corners of a few frames, tracked both ways by the pyramidal Lucas-Kanade method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

MIN_SIDE = 384
"""Frames are enlarged to this at least: windows of a tracker are made for such sizes."""
_CORNERS, _QUALITY, _APART = 200, 0.003, 0.016  # of a key frame; share of the best corner; of the width
_WINDOW, _LEVELS = 21, 4
_RETURN = 0.004  # of the width: how far a point may miss itself on its way back


@dataclass(frozen=True)
class Tracks:
    """T points in F frames.

    Fields:
      at: Image points in pixels of the clip, pixel centres at half integers, shape [T, F, 2], float64.
      seen: Shape [T, F], bool.
      anchor: The frame in which each was found, where it is seen by definition, shape [T], int64.
      survived: Share of the points of frame f that are found in frame f + 1, shape [F - 1].
    """

    at: np.ndarray
    seen: np.ndarray
    anchor: np.ndarray
    survived: np.ndarray


def key_frames(num_frames: int) -> tuple[int, ...]:
    """Where corners are looked for: the first, the middle and the last frame, and every 30th of a long clip."""
    return tuple(sorted({0, num_frames // 2, num_frames - 1} | set(range(0, num_frames, 30))))


def follow(frames: np.ndarray) -> Tracks:
    """Find corners in the key frames and follow each through the whole clip, both ways.

    Args:
      frames: Shape [F, H, W, 3], uint8.
    Returns:
      Tracks; none in a clip without corners.
    Source: Shi and Tomasi 1994 (corners); Bouguet 2001 (pyramidal tracker); Kalal et al. 2010 (the way back); OpenCV.
    """
    import cv2

    num_frames, height, width = frames.shape[:3]
    scale = max(1, -(-MIN_SIDE // min(height, width)))
    size = (width * scale, height * scale)
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    if scale > 1:
        grey = [cv2.resize(g, size, interpolation=cv2.INTER_CUBIC) for g in grey]
    at, seen, anchor = [], [], []
    lost, kept = np.zeros(num_frames - 1), np.zeros(num_frames - 1)
    for key in key_frames(num_frames):
        corners = cv2.goodFeaturesToTrack(grey[key], _CORNERS, _QUALITY, _APART * size[0])
        if corners is None:
            continue
        path = np.full((len(corners), num_frames, 2), np.nan)
        path[:, key] = corners[:, 0]
        for step in (1, -1):
            alive = np.arange(len(corners))
            for f in range(key, num_frames - 1 if step == 1 else 0, step):
                if not len(alive):
                    break
                found = _step(grey[f], grey[f + step], path[alive, f])
                ok = np.isfinite(found[:, 0])
                pair = min(f, f + step)
                kept[pair] += ok.sum()
                lost[pair] += (~ok).sum()
                alive = alive[ok]
                path[alive, f + step] = found[ok]
        at.append(path)
        anchor.append(np.full(len(corners), key))
    if not at:
        return Tracks(
            np.zeros((0, num_frames, 2)), np.zeros((0, num_frames), bool), np.zeros(0, np.int64),
            np.zeros(num_frames - 1),
        )  # fmt: skip
    path = np.concatenate(at)
    # Pixel centres of the enlarged frame are at integers; those of the clip at half integers.
    path = (path + 0.5) / scale
    seen = np.isfinite(path[..., 0])
    return Tracks(np.nan_to_num(path), seen, np.concatenate(anchor), kept / np.maximum(kept + lost, 1))


def _step(before: np.ndarray, after: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points [n, 2] of one frame in the next; NaN where one is lost, leaves the frame or does not come back."""
    import cv2

    options: Any = {"winSize": (_WINDOW, _WINDOW), "maxLevel": _LEVELS, "minEigThreshold": 1e-4}
    start: Any = points.astype(np.float32)[:, None]
    there, ok_there, _ = cv2.calcOpticalFlowPyrLK(before, after, start, start.copy(), **options)
    back, ok_back, _ = cv2.calcOpticalFlowPyrLK(after, before, there, there.copy(), **options)
    height, width = after.shape
    edge = 0.5 * _WINDOW / 4
    place = there[:, 0]
    inside = (place > edge).all(1) & (place[:, 0] < width - 1 - edge) & (place[:, 1] < height - 1 - edge)
    miss = np.linalg.norm(back[:, 0] - start[:, 0], axis=1)
    good = (ok_there[:, 0] == 1) & (ok_back[:, 0] == 1) & inside & (miss < _RETURN * width)
    return np.where(good[:, None], place, np.nan)
