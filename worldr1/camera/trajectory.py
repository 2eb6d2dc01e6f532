"""Motion tokens -> camera trajectory: smooth world-to-camera matrices in OpenCV axes (x right, y down, z forward)."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from worldr1.config import CameraConfig
from worldr1.datatypes import MotionToken
from worldr1.run.files import read_json, reading, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_JOINT_EASE = 0.15
"""Least share of a motion spent slowing down before a joint and speeding up after it, also where `ease` is less."""
_FORMAT = "worldr1-trajectory-1"


def build_trajectory(tokens: Sequence[MotionToken], num_frames: int, camera: CameraConfig) -> Tensor:
    """The camera path of a sequence of motions, each starting where the one before it ended.

    n motions share the time equally and each covers magnitude / n of its configured extent, so that the speed, and with
    it the optical flow, does not depend on n. Extents at magnitude 1 are those of `camera`, in scene units and degrees;
    for the default: push and pull 600, move 220, pan and tilt 14 deg, roll 10 deg, orbit 24 deg about a point 600 in
    front of the camera, pull left or right 150 back, 80 aside and 8 deg. The plane of the flow is at 1000.

    Frame 0 is the identity. The speed of a motion is a trapezoid with ramps of a share e = `ease` of its time, which is
    T = (F - 1) / n frames, and the camera rests at every joint (ramps there take >= .15 even where `ease` is less):
    along a motion of extent E the second difference is <= E / (n T^2 e (1 - e)); a bare chain jumps by up to E / (n T).

    Args:
      tokens: Motions in order; none means a camera at rest.
      num_frames: F >= 2.
      camera: Extents in scene units and degrees, and `ease`, the share of a motion spent speeding up or slowing down.
    Returns:
      viewmats [F, 4, 4], world-to-camera, float64.
    Raises:
      ValueError: num_frames < 2, an unknown kind, a magnitude that is not finite and positive.
      TypeError: num_frames is not an int, a token is not a MotionToken.
    """
    if isinstance(num_frames, bool) or not isinstance(num_frames, int):
        raise TypeError(f"build_trajectory: num_frames must be an int, got {type(num_frames).__name__}")
    if num_frames < 2:
        raise ValueError(f"build_trajectory: num_frames must be >= 2, got {num_frames}")
    tokens = list(tokens) or [MotionToken("fixed")]
    for token in tokens:
        if not isinstance(token, MotionToken):
            raise TypeError(
                f"build_trajectory: tokens must be MotionToken, got {type(token).__name__}: use parse_motion"
            )
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
        first = max(camera.ease, _JOINT_EASE if k > 0 else 0.0)
        last = max(camera.ease, _JOINT_EASE if k < n - 1 else 0.0)
        poses.append(starts[k] @ _camera_to_world(tokens[k], _eased(u - k, first, last) / n, camera))
    return torch.linalg.inv(torch.stack(poses))  # [F, 4, 4]


def intrinsics(height: int, width: int, camera: CameraConfig) -> Tensor:
    """Pinhole K [3, 3] in pixels, float64: square pixels, principal point at the centre of the image."""
    f = camera.focal_ratio * width
    return torch.tensor([[f, 0.0, width / 2], [0.0, f, height / 2], [0.0, 0.0, 1.0]], dtype=torch.float64)


def _eased(s: float, first: float, last: float) -> float:
    """Distance covered at time s in [0, 1] with trapezoidal speed: ramps of length `first` and `last`, at most 1/2."""
    first, last = min(first, 0.5), min(last, 0.5)
    top = 1.0 / (1.0 - 0.5 * (first + last))  # cruising speed that covers 1 in total
    if s < first:
        return 0.5 * top * s * s / first
    if s > 1.0 - last:
        return 1.0 - 0.5 * top * (1.0 - s) ** 2 / last
    return top * (s - 0.5 * first)


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


class SavedTrajectory(NamedTuple):
    """What `save_trajectory` writes."""

    viewmats: Tensor  # [F, 4, 4] world-to-camera, float64
    tokens: tuple[MotionToken, ...]
    camera: CameraConfig


def save_trajectory(path: Path, viewmats: Tensor, *, tokens: Sequence[MotionToken], camera: CameraConfig) -> None:
    """Writes a camera path as JSON; the schema is in docs/camera.md. Numbers keep all their bits.

    Args:
      path: File to write; it is replaced whole.
      viewmats: World-to-camera, [F >= 2, 4, 4], rigid; saved as float64.
      tokens: The motions that it was made from; may be empty.
      camera: Extents, lens and depth that belong to it.
    Raises:
      ValueError: viewmats of another shape, not finite or not rigid.
      OSError: the file cannot be written.
    """
    check_rigid("save_trajectory", viewmats)
    content = {
        "format": _FORMAT,
        "convention": "world-to-camera, OpenCV axes (x right, y down, z forward)",
        "camera": dataclasses.asdict(camera),
        "tokens": [[token.kind, token.magnitude] for token in tokens],
        "viewmats": viewmats.detach().cpu().double().tolist(),
    }
    text = json.dumps(content, indent=None, allow_nan=False).replace("]], [[", "]],\n  [[")
    write_text(path, text + "\n")


def load_trajectory(path: Path) -> SavedTrajectory:
    """Reads what `save_trajectory` wrote, bit for bit.

    Raises:
      ValueError: not such a file: what is wrong with it.
      OSError: the file cannot be read.
    """
    with reading(path, "a saved trajectory"):
        content = read_json(path, "a saved trajectory")
        if content["format"] != _FORMAT:
            raise ValueError(f"format must be {_FORMAT!r}, got {content['format']!r}")
        viewmats = torch.tensor(content["viewmats"], dtype=torch.float64)
        tokens = tuple(MotionToken(str(kind), float(magnitude)) for kind, magnitude in content["tokens"])
        camera = CameraConfig(**{name: float(value) for name, value in content["camera"].items()})
        check_rigid("load_trajectory", viewmats)
    return SavedTrajectory(viewmats, tokens, camera)


def check_rigid(op: str, viewmats: Tensor) -> None:
    """ValueError unless viewmats are [F >= 2, 4, 4], finite, and rigid motions to 1e-4."""
    if viewmats.ndim != 3 or viewmats.shape[1:] != (4, 4) or len(viewmats) < 2:
        raise ValueError(f"{op}: viewmats must have shape [F >= 2, 4, 4], got {list(viewmats.shape)}")
    matrices = viewmats.detach().cpu().double()
    rotation = matrices[:, :3, :3]
    error = (rotation @ rotation.mT - torch.eye(3)).abs().max() + (torch.linalg.det(rotation) - 1).abs().max()
    error = error + (matrices[:, 3] - torch.tensor([0.0, 0.0, 0.0, 1.0])).abs().max()
    if not (matrices.isfinite().all() and error < 1e-4):
        raise ValueError(f"{op}: viewmats must be finite rigid motions [R t; 0 1], got an error of {float(error):.2g}")


def plot_trajectory(viewmats: Tensor, *, title: str = "") -> Figure:
    """The path from above and from the right side, with the way the camera looks; to be saved with `savefig`.

    Args:
      viewmats: World-to-camera, [F >= 2, 4, 4].
      title: Above the figure.
    Returns:
      matplotlib Figure, 6 x 3 inches.
    Raises:
      ValueError: as `save_trajectory`.
    """
    from matplotlib.figure import Figure  # not pyplot: no global state

    check_rigid("plot_trajectory", viewmats)
    poses = torch.linalg.inv(viewmats.detach().cpu().double())  # camera-to-world
    centre, look, up = poses[:, :3, 3].numpy(), poses[:, :3, 2].numpy(), -poses[:, :3, 1].numpy()
    size = max(float(abs(centre - centre[0]).max()), 1e-9)
    figure = Figure(figsize=(6, 3), layout="constrained")
    figure.suptitle(title, fontsize=9)
    axes = figure.subplots(1, 2)
    for ax, (h, v), name in zip(axes, ((0, 2), (2, 1)), ("from above: x, z", "from the right: z, y"), strict=True):
        ax.plot(centre[:, h], centre[:, v], color="0.6", linewidth=1)
        for i in torch.linspace(0, len(poses) - 1, 9).round().long().tolist():
            # The optical axis; from above a roll would not show, so the up vector is drawn too.
            for vector, colour in ((look, "C0"), (up, "C1")):
                ax.annotate(
                    "", centre[i, [h, v]] + 0.3 * size * vector[i, [h, v]], centre[i, [h, v]],
                    arrowprops={"arrowstyle": "->", "color": colour, "alpha": 0.3 + 0.7 * i / (len(poses) - 1)},
                )  # fmt: skip
        ax.set_title(name, fontsize=8)
        ax.tick_params(labelsize=7)
        low, high = centre.min(0) - 0.4 * size, centre.max(0) + 0.4 * size
        ax.set(xlim=(low[h], high[h]), ylim=(low[v], high[v]), aspect="equal")
    axes[1].invert_yaxis()  # y points down
    return figure
