"""What the page's script draws in space: camera paths, and reconstructions as small clouds of Gaussians."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from worldr1.report.sheets import spread

MAX_SPLATS = 16_000
"""Gaussians of one reconstruction: 160 kB in the page, sorted in a few milliseconds."""
_SPLAT_FRAMES = 3
_MAX_POSES = 33
_FARTHEST = (
    10.0  # times the median depth; what lies beyond would take the whole of the box that positions are packed in
)


def path(cam_c2w: np.ndarray, *, unit: bool) -> dict[str, Any]:
    """One camera path for the script: centres and directions of view, relative to the first camera.

    Args:
      cam_c2w: Camera-to-world, OpenCV axes, [F, 4, 4].
      unit: Divide the path by its own largest distance from its beginning: recovered lengths have no unit.
    Returns:
      centres and looks, lists of [x, y, z], at most 33 of them; None in place of a path that is not finite.
    """
    poses = np.asarray(cam_c2w, dtype=float)
    poses = np.linalg.inv(poses[0]) @ poses[spread(len(poses), _MAX_POSES)]
    centres, looks = poses[:, :3, 3], poses[:, :3, 2]
    longest = float(np.linalg.norm(centres, axis=1).max())
    if unit and longest > 1e-6:
        centres = centres / longest
    if not np.isfinite(poses).all():
        raise ValueError("a camera path that is not finite")
    return {"centres": np.round(centres, 4).tolist(), "looks": np.round(looks, 3).tolist()}


def splats(frames: np.ndarray, depth: np.ndarray, cam_c2w: np.ndarray, K: np.ndarray) -> dict[str, Any]:
    """Gaussians of a clip: pixels of its first, middle and last frame, where the recovered depth and camera put them.

    Args:
      frames: uint8 [n, 3, H, W], spread evenly over the clip's F frames.
      depth: [F, h, w], > 0, along the optical axis.
      cam_c2w: Camera-to-world, OpenCV axes, [F, 4, 4].
      K: Intrinsics of a frame of h x w pixels, [3, 3].
    Returns:
      num, data (base64 of num x 3 positions uint16, num x 3 colours uint8, num radii uint8), low and size of the box
      of the positions, radius of 255, distance (median depth of the first frame), focal (over the frame's height) and
      aspect (width over height), in the first camera's coordinates.
    Raises:
      ValueError: no pixel with a depth.
    """
    depth, cam_c2w = np.asarray(depth, dtype=float), np.asarray(cam_c2w, dtype=float)
    num, h, w = depth.shape
    chosen = spread(num, _SPLAT_FRAMES)
    step = max(1, int(np.ceil(np.sqrt(len(chosen) * h * w / MAX_SPLATS))))
    v, u = (x.ravel() for x in np.meshgrid(np.arange(step // 2, h, step), np.arange(step // 2, w, step), indexing="ij"))
    rays = np.linalg.solve(K, np.stack([u + 0.5, v + 0.5, np.ones_like(u)]).astype(float)).T  # [n, 3], z = 1
    middle = float(np.median(depth[0][np.isfinite(depth[0])]))
    first = np.linalg.inv(cam_c2w[0])
    points, colours, radii = [], [], []
    for f in chosen:
        z = depth[f][v, u]
        good = np.isfinite(z) & (z > 0) & (z < _FARTHEST * middle)
        pose = first @ cam_c2w[f]
        points.append((rays[good] * z[good, None]) @ pose[:3, :3].T + pose[:3, 3])
        frame = frames[round(f * (len(frames) - 1) / max(1, num - 1))]  # [3, H, W]
        rows, columns = (v * frame.shape[1]) // h, (u * frame.shape[2]) // w
        colours.append(frame[:, rows, columns].T[good])
        radii.append(0.7 * step * z[good] / K[0, 0])
    place, colour, radius = np.concatenate(points), np.concatenate(colours), np.concatenate(radii)
    if not len(place) or not np.isfinite(place).all():
        raise ValueError("a reconstruction without a point")
    low, size = place.min(0), np.maximum(np.ptp(place, axis=0), 1e-6)
    packed = np.round((place - low) / size * 65535).astype("<u2").tobytes() + colour.astype(np.uint8).tobytes()
    packed += np.maximum(1, np.round(radius / radius.max() * 255)).astype(np.uint8).tobytes()
    return {
        "num": len(place),
        "data": base64.b64encode(packed).decode("ascii"),
        "low": _rounded(low),
        "size": _rounded(size),
        "radius": float(f"{radius.max():.5g}"),
        "distance": float(f"{middle:.5g}"),
        "focal": float(f"{K[1, 1] / h:.5g}"),
        "aspect": round(w / h, 4),
    }


def _rounded(values: Sequence[float] | np.ndarray) -> list[float]:
    return [float(f"{x:.6g}") for x in values]
