"""Camera paths against closed forms and rigid-motion identities."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from worldr1.config import MICRO_CAMERA, CameraConfig
from worldr1.datatypes import MotionToken
from worldr1.microworld.captions import MOTIONS as MICRO_MOTIONS
from worldr1.trajectory import MOTIONS, build_trajectory, intrinsics

CAMERA = CameraConfig()
LINEAR = replace(CAMERA, ease=0.0)


def path(*kinds: str, frames: int = 81, camera: CameraConfig = CAMERA, magnitude: float = 1.0) -> Tensor:
    return build_trajectory([MotionToken(k, magnitude) for k in kinds], frames, camera)


def centres(viewmats: Tensor) -> Tensor:
    return torch.linalg.inv(viewmats)[:, :3, 3]


def turns(viewmats: Tensor) -> Tensor:
    """Angle to frame 0 [F], radians, by scipy."""
    from scipy.spatial.transform import Rotation

    return torch.from_numpy(Rotation.from_matrix(viewmats[:, :3, :3].numpy()).magnitude())


@pytest.mark.parametrize("kind", sorted(MOTIONS))
@pytest.mark.parametrize("camera", [CAMERA, LINEAR, MICRO_CAMERA], ids=["eased", "linear", "micro"])
def test_frames_are_rigid_and_start_at_the_identity(kind: str, camera: CameraConfig) -> None:
    viewmats = path(kind, camera=camera)
    rotation = viewmats[:, :3, :3]
    assert viewmats.shape == (81, 4, 4) and viewmats.dtype == torch.float64
    assert (rotation @ rotation.mT - torch.eye(3)).abs().max() < 1e-12
    assert (torch.linalg.det(rotation) - 1).abs().max() < 1e-12
    assert (viewmats[:, 3] - torch.tensor([0.0, 0, 0, 1])).abs().max() < 1e-12
    assert (viewmats[0] - torch.eye(4)).abs().max() < 1e-12


def rotation_about(axis: str, angle: float) -> Tensor:
    c, s = math.cos(angle), math.sin(angle)
    rows = {"y": [[c, 0, s], [0, 1, 0], [-s, 0, c]], "-": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}[axis]
    return torch.tensor(rows, dtype=torch.float64)


def trained_path(kind: str) -> Tensor:
    """The nine paths of the micro world as they were when its networks were trained: [9, 4, 4], operation by operation.

    This copy is frozen. The embedded networks know these very numbers, so the code under test may change only where
    the result keeps its bits.
    """
    kind, _, side = kind.partition("_")
    sign = -1.0 if side in ("out", "left") else 1.0
    poses = []
    for i in range(9):
        s, axis, angle, centre = i / 8, "-", 0.0, (0.0, 0.0, 0.0)
        if kind in ("push", "pull"):
            centre = (0.0, 0.0, sign * 2.0 * s)
        elif kind == "move":
            centre = (sign * 2.0 * s, 0.0, 0.0)
        elif kind == "pan":
            axis, angle = "y", sign * math.radians(28.0) * s
        elif kind == "orbit":
            a = sign * math.radians(60.0) * s
            centre, axis, angle = (4.0 * math.sin(a), 0.0, 4.0 - 4.0 * math.cos(a)), "y", -a
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3, :3], pose[:3, 3] = rotation_about(axis, angle), torch.tensor(centre, dtype=torch.float64)
        poses.append(pose)
    return torch.linalg.inv(torch.stack(poses))


@pytest.mark.parametrize("kind", MICRO_MOTIONS)
def test_the_micro_worlds_paths_keep_their_bits(kind: str) -> None:
    assert torch.equal(path(kind, frames=9, camera=MICRO_CAMERA), trained_path(kind))


# The camera's centre at the end, in the axes of frame 0 (x right, y down, z forward), and its turn in degrees.
_ARC, _R = math.radians(24.0), 600.0
ENDS = {
    "fixed": ((0, 0, 0), 0.0),
    "push_in": ((0, 0, 600), 0.0),
    "pull_out": ((0, 0, -600), 0.0),
    "move_left": ((-220, 0, 0), 0.0),
    "move_right": ((220, 0, 0), 0.0),
    "move_up": ((0, -220, 0), 0.0),
    "move_down": ((0, 220, 0), 0.0),
    "pan_left": ((0, 0, 0), 14.0),
    "pan_right": ((0, 0, 0), 14.0),
    "tilt_up": ((0, 0, 0), 14.0),
    "tilt_down": ((0, 0, 0), 14.0),
    "roll_left": ((0, 0, 0), 10.0),
    "roll_right": ((0, 0, 0), 10.0),
    "orbit_left": ((-_R * math.sin(_ARC), 0, _R - _R * math.cos(_ARC)), 24.0),
    "orbit_right": ((_R * math.sin(_ARC), 0, _R - _R * math.cos(_ARC)), 24.0),
    "pull_left": ((-80, 0, -150), 8.0),
    "pull_right": ((80, 0, -150), 8.0),
}


@pytest.mark.parametrize("kind", sorted(MOTIONS))
@pytest.mark.parametrize("magnitude", [1.0, 0.5])
def test_the_whole_extent_is_covered(kind: str, magnitude: float) -> None:
    viewmats = path(kind, magnitude=magnitude)
    centre, degrees = ENDS[kind]
    expected = torch.tensor(centre, dtype=torch.float64) * magnitude
    if kind.startswith("orbit"):
        sign, arc = (-1 if kind.endswith("left") else 1), _ARC * magnitude
        expected = torch.tensor([sign * _R * math.sin(arc), 0, _R - _R * math.cos(arc)], dtype=torch.float64)
    assert (centres(viewmats)[-1] - expected).abs().max() < 1e-9
    assert math.isclose(float(turns(viewmats)[-1]), math.radians(degrees) * magnitude, abs_tol=1e-9)


# Where a point 10 in front of the first camera appears at the end: (x, y) of the point in camera axes, as signs.
SEEN = {
    "pan_left": (1, 0), "pan_right": (-1, 0), "tilt_up": (0, 1), "tilt_down": (0, -1),
    "move_left": (1, 0), "move_right": (-1, 0), "move_up": (0, 1), "move_down": (0, -1),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(SEEN))
def test_directions_mean_what_a_viewer_sees(kind: str) -> None:
    """The scene moves against the camera: after a pan to the left, what was in the centre is on the right."""
    point = torch.tensor([0.0, 0.0, 1000.0, 1.0], dtype=torch.float64)
    x, y, z = (path(kind)[-1] @ point)[:3].tolist()
    sx, sy = SEEN[kind]
    assert z > 0
    assert (sx == 0 and abs(x) < 1e-9) or x * sx > 10
    assert (sy == 0 and abs(y) < 1e-9) or y * sy > 10


def test_roll_right_turns_the_camera_clockwise() -> None:
    """The camera's up leans to the right, so a point above it is seen on the left."""
    above = torch.tensor([0.0, -100.0, 1000.0, 1.0], dtype=torch.float64)
    assert float((path("roll_right")[-1] @ above)[0]) < -10
    assert float((path("roll_left")[-1] @ above)[0]) > 10


@pytest.mark.parametrize("kind", ["orbit_left", "orbit_right"])
def test_an_orbit_keeps_its_centre_in_the_middle_at_the_same_distance(kind: str) -> None:
    centre = torch.tensor([0.0, 0.0, CAMERA.orbit_radius, 1.0], dtype=torch.float64)
    seen = path(kind) @ centre  # [81, 4]
    assert (seen - centre).abs().max() < 1e-9


@pytest.mark.parametrize("kinds", [("push_in", "pan_left"), ("orbit_left", "move_right", "pull_out")])
@pytest.mark.parametrize("camera", [CAMERA, LINEAR], ids=["eased", "linear"])
def test_composites_are_continuous_and_cover_their_share(kinds: tuple[str, ...], camera: CameraConfig) -> None:
    n, frames = len(kinds), 60 * len(kinds) + 1
    viewmats = path(*kinds, frames=frames, camera=camera)
    step = viewmats[1:] @ torch.linalg.inv(viewmats[:-1])
    single = torch.cat(
        [
            path(k, frames=frames, camera=camera)[1:] @ path(k, frames=frames, camera=camera)[:-1].inverse()
            for k in kinds
        ]
    )
    # No jump at a joint: no step is larger than those of the motions run alone.
    assert step[:, :3, 3].norm(dim=1).max() <= single[:, :3, 3].norm(dim=1).max() * 1.05 + 1e-9
    # Each part is the motion alone with magnitude 1 / n, seen from where the part began.
    for k, kind in enumerate(kinds):
        part = viewmats[60 * k : 60 * k + 61] @ torch.linalg.inv(viewmats[60 * k])
        assert (part - path(kind, frames=61, camera=camera, magnitude=1 / n)).abs().max() < 1e-9


def test_easing_starts_and_ends_at_rest_and_is_symmetric() -> None:
    z = centres(path("push_in", frames=201))[:, 2] / CAMERA.push
    speed = z.diff() * 200
    cruise = 1 / (1 - CAMERA.ease)
    assert float(speed[0]) < 0.05 and float(speed[-1]) < 0.05
    assert abs(float(speed[100]) - cruise) < 1e-9 and float(speed.max()) <= cruise + 1e-9
    assert (z + z.flip(0) - 1).abs().max() < 1e-12
    assert (centres(path("push_in", frames=201, camera=LINEAR))[:, 2].diff() - 3.0).abs().max() < 1e-9


def test_no_motion_is_a_camera_at_rest() -> None:
    assert torch.equal(build_trajectory([], 9, CAMERA), torch.eye(4, dtype=torch.float64).expand(9, 4, 4))


def test_intrinsics_are_square_pixels_about_the_centre_at_any_scale() -> None:
    K = intrinsics(480, 832, CAMERA)
    assert K.tolist() == [[1.2 * 832, 0, 416], [0, 1.2 * 832, 240], [0, 0, 1]]
    assert torch.equal(intrinsics(960, 1664, CAMERA)[:2], 2 * K[:2])


@pytest.mark.parametrize(
    "tokens, frames, match",
    [
        ([MotionToken("push_in")], 1, "num_frames"),
        ([MotionToken("zoom")], 9, "kind must be one of"),
        ([MotionToken("push_in", 0.0)], 9, "magnitude"),
        ([MotionToken("push_in", math.nan)], 9, "magnitude"),
    ],
)
def test_bad_input_is_named(tokens: list[MotionToken], frames: int, match: str) -> None:
    with pytest.raises(ValueError, match=f"build_trajectory: {match}"):
        build_trajectory(tokens, frames, CAMERA)
