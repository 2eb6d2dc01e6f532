"""Motion tokens -> camera trajectory: smooth world-to-camera matrices in OpenCV axes (x right, y down, z forward)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from worldr1.config import CameraConfig
from worldr1.datatypes import MotionToken


def build_trajectory(tokens: Sequence[MotionToken], num_frames: int, camera: CameraConfig) -> Tensor:
    """The camera path of a sequence of motions, each starting where the one before it ended.

    n motions share the time equally and each covers magnitude / n of its configured extent, so that the speed, and with
    it the optical flow, does not depend on n. Frame 0 is the identity; the path is continuous at every joint.

    Args:
      tokens: Motions in order; none means a camera at rest.
      num_frames: F >= 2.
      camera: Extents in scene units and degrees, and `ease`, the share of a motion spent speeding up or slowing down.
    Returns:
      viewmats [F, 4, 4], world-to-camera, float64.
    Raises:
      ValueError: num_frames < 2, an unknown kind, a magnitude that is not finite and positive.
    """
    if num_frames < 2:
        raise ValueError(f"build_trajectory: num_frames must be >= 2, got {num_frames}")
    tokens = list(tokens) or [MotionToken("fixed")]
    for token in tokens:
        if token.kind not in MOTIONS:
            raise ValueError(f"build_trajectory: kind must be one of {sorted(MOTIONS)}, got {token.kind!r}")
        if not (math.isfinite(token.magnitude) and token.magnitude > 0):
            raise ValueError(f"build_trajectory: magnitude must be finite and > 0, got {token.magnitude}")
    n = len(tokens)
    starts = [torch.eye(4, dtype=torch.float64)]  # camera-to-world at the start of each motion
    for token in tokens:
        starts.append(starts[-1] @ _camera_to_world(token, 1.0 / n, camera))
    poses = []
    for i in range(num_frames):
        u = i / (num_frames - 1) * n
        k = min(int(u), n - 1)
        poses.append(starts[k] @ _camera_to_world(tokens[k], _eased(u - k, camera.ease) / n, camera))
    return torch.linalg.inv(torch.stack(poses))  # [F, 4, 4]


def intrinsics(height: int, width: int, camera: CameraConfig) -> Tensor:
    """Pinhole K [3, 3] in pixels, float64: square pixels, principal point at the centre of the image."""
    f = camera.focal_ratio * width
    return torch.tensor([[f, 0.0, width / 2], [0.0, f, height / 2], [0.0, 0.0, 1.0]], dtype=torch.float64)


def _eased(s: float, ease: float) -> float:
    """Distance covered at time s in [0, 1] with trapezoidal speed: ramps of length `ease` at both ends."""
    ease = min(max(ease, 0.0), 0.5)
    if ease == 0.0:
        return s
    top = 1.0 / (1.0 - ease)  # cruising speed that covers 1 in total
    if s < ease:
        return 0.5 * top * s * s / ease
    if s > 1.0 - ease:
        return 1.0 - 0.5 * top * (1.0 - s) ** 2 / ease
    return top * (s - 0.5 * ease)


def _rotation(axis: str, angle: float) -> Tensor:
    c, s = math.cos(angle), math.sin(angle)
    rows = {
        "x": [[1, 0, 0], [0, c, -s], [0, s, c]],
        "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]],
        "z": [[c, -s, 0], [s, c, 0], [0, 0, 1]],
    }[axis]
    return torch.tensor(rows, dtype=torch.float64)


def _camera_to_world(token: MotionToken, share: float, camera: CameraConfig) -> Tensor:
    """Pose relative to the start of the motion after `share` of its extent, camera-to-world [4, 4]."""
    s = share * token.magnitude
    kind, sign = MOTIONS[token.kind]
    centre, rotation = (0.0, 0.0, 0.0), torch.eye(3, dtype=torch.float64)
    if kind == "push":
        centre = (0.0, 0.0, sign * camera.push * s)
    elif kind == "move_x":
        centre = (sign * camera.move * s, 0.0, 0.0)
    elif kind == "move_y":
        centre = (0.0, sign * camera.move * s, 0.0)
    elif kind == "pan":
        rotation = _rotation("y", sign * math.radians(camera.pan_deg) * s)
    elif kind == "tilt":
        rotation = _rotation("x", sign * math.radians(camera.pan_deg) * s)
    elif kind == "roll":
        rotation = _rotation("z", sign * math.radians(camera.roll_deg) * s)
    elif kind == "orbit":  # about a point in front of the camera, which stays in the centre of the image
        a, r = sign * math.radians(camera.orbit_deg) * s, camera.orbit_radius
        centre, rotation = (r * math.sin(a), 0.0, r - r * math.cos(a)), _rotation("y", -a)
    elif kind == "pull":
        centre = (sign * camera.pull_side * s, 0.0, -camera.pull_back * s)
        rotation = _rotation("y", sign * math.radians(camera.pull_deg) * s)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3], pose[:3, 3] = rotation, torch.tensor(centre, dtype=torch.float64)
    return pose


MOTIONS: dict[str, tuple[str, float]] = {
    "fixed": ("fixed", 0.0),
    "push_in": ("push", 1.0),
    "pull_out": ("push", -1.0),
    "move_left": ("move_x", -1.0),
    "move_right": ("move_x", 1.0),
    "move_up": ("move_y", -1.0),
    "move_down": ("move_y", 1.0),
    "pan_left": ("pan", -1.0),
    "pan_right": ("pan", 1.0),
    "tilt_up": ("tilt", 1.0),
    "tilt_down": ("tilt", -1.0),
    "roll_left": ("roll", -1.0),
    "roll_right": ("roll", 1.0),
    "orbit_left": ("orbit", -1.0),
    "orbit_right": ("orbit", 1.0),
    "pull_left": ("pull", -1.0),
    "pull_right": ("pull", 1.0),
}
"""Kind of the taxonomy -> (family, sign). The first eleven of the release, and tilt, pedestal and roll."""
