"""Camera paths against closed forms and rigid-motion identities."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from worldr1.camera.__main__ import main
from worldr1.camera.trajectory import (
    MOTIONS,
    build_trajectory,
    intrinsics,
    load_trajectory,
    plot_trajectory,
    save_trajectory,
)
from worldr1.config import MICRO_CAMERA, CameraConfig
from worldr1.datatypes import MotionToken
from worldr1.microworld.captions import MOTIONS as MICRO_MOTIONS

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
def test_composites_are_their_parts_in_order(kinds: tuple[str, ...]) -> None:
    n = len(kinds)
    viewmats = path(*kinds, frames=60 * n + 1)
    for k, kind in enumerate(kinds):  # each is the motion alone with magnitude 1 / n, seen from where it began
        part = viewmats[60 * k : 60 * k + 61] @ torch.linalg.inv(viewmats[60 * k])
        assert (part - path(kind, frames=61, magnitude=1 / n)).abs().max() < 1e-9


def derivatives(kind: str, camera: CameraConfig) -> tuple[float, float, float, float]:
    """By share of the extent: first and second derivative of the camera's centre, the same of its rotation matrix."""
    arc, turn = math.radians(camera.orbit_deg), math.sqrt(2)  # |dR| / |d angle|, Frobenius
    length, bend, degrees = {
        "fixed": (0.0, 0.0, 0.0),
        "push": (camera.push, 0.0, 0.0),
        "move_x": (camera.move, 0.0, 0.0),
        "move_y": (camera.move, 0.0, 0.0),
        "pan": (0.0, 0.0, camera.pan_deg),
        "tilt": (0.0, 0.0, camera.pan_deg),
        "roll": (0.0, 0.0, camera.roll_deg),
        "orbit": (camera.orbit_radius * arc, camera.orbit_radius * arc**2, camera.orbit_deg),
        "pull": (math.hypot(camera.pull_back, camera.pull_side), 0.0, camera.pull_deg),
    }[MOTIONS[kind][0]]
    return length, bend, turn * math.radians(degrees), turn * math.radians(degrees) ** 2


def second_differences(viewmats: Tensor) -> tuple[float, float]:
    """Largest second difference of the camera's centre, scene units, and of its rotation matrix, Frobenius."""
    poses = torch.linalg.inv(viewmats)
    bend = poses[2:] - 2 * poses[1:-1] + poses[:-2]
    return float(bend[:, :3, 3].norm(dim=1).max()), float(bend[:, :3, :3].flatten(1).norm(dim=1).max())


def bounds(tokens: list[MotionToken], frames: int, camera: CameraConfig) -> tuple[float, float]:
    """What the docstring promises for both, with the curvature of an arc at cruising speed added."""
    n, e = len(tokens), max(camera.ease, 0.15)
    duration = (frames - 1) / n
    speed, change = 1 / (n * duration * (1 - e)), 1 / (n * duration**2 * e * (1 - e))
    centre, rotation = 0.0, 0.0
    for kind, m in tokens:
        length, bend, turn, curl = derivatives(kind, camera)
        centre = max(centre, m * length * change + m**2 * bend * speed**2)
        rotation = max(rotation, m * turn * change + m**2 * curl * speed**2)
    return centre, rotation


TOKENS = st.builds(MotionToken, st.sampled_from(sorted(MOTIONS)), st.sampled_from([0.5, 1.0, 1.5]))


@settings(max_examples=100, deadline=None)
@given(st.lists(TOKENS, min_size=2, max_size=5), st.integers(5, 121), st.sampled_from([CAMERA, LINEAR, MICRO_CAMERA]))
def test_no_composite_jumps_at_any_length(tokens: list[MotionToken], frames: int, camera: CameraConfig) -> None:
    viewmats = build_trajectory(tokens, frames, camera)
    rotation = viewmats[:, :3, :3]
    assert (rotation @ rotation.mT - torch.eye(3)).abs().max() < 1e-12
    assert torch.equal(viewmats[0], torch.eye(4, dtype=torch.float64))
    end = torch.eye(4, dtype=torch.float64)
    for kind, magnitude in tokens:
        end = path(kind, magnitude=magnitude / len(tokens), camera=camera)[-1] @ end
    assert (viewmats[-1] - end).abs().max() < 1e-9
    # Constant speed at the outer ends (ease 0) is no jump of the path: frames 0 and F - 1 have no second difference.
    for found, bound in zip(second_differences(viewmats), bounds(tokens, frames, camera), strict=True):
        assert found <= bound * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("frames", [41, 81, 121])
@pytest.mark.parametrize("kinds", [("push_in", "pull_out"), ("pan_left", "tilt_up"), ("move_up", "orbit_right")])
def test_the_bound_tells_an_eased_joint_from_a_bare_chain(kinds: tuple[str, str], frames: int) -> None:
    tokens = [MotionToken(k) for k in kinds]
    bound = bounds(tokens, frames, CAMERA)
    eased = second_differences(build_trajectory(tokens, frames, CAMERA))
    half = frames // 2
    first, second = (path(k, frames=half + 1, magnitude=0.5, camera=LINEAR) for k in kinds)
    chain = second_differences(torch.cat([first, second[1:] @ first[-1]]))
    assert all(e <= b * (1 + 1e-9) + 1e-12 for e, b in zip(eased, bound, strict=True))
    assert any(c > 1.1 * b for c, b in zip(chain, bound, strict=True))


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


@pytest.mark.parametrize("kinds", [("push_in",), ("orbit_left", "roll_right"), ()])
def test_a_saved_path_comes_back_bit_for_bit(kinds: tuple[str, ...], tmp_path: Path) -> None:
    tokens = [MotionToken(k, 0.5) for k in kinds]
    viewmats = build_trajectory(tokens, 9, MICRO_CAMERA)
    file = tmp_path / "path.json"
    save_trajectory(file, viewmats, tokens=tokens, camera=MICRO_CAMERA)
    saved = load_trajectory(file)
    assert torch.equal(saved.viewmats, viewmats) and saved.viewmats.dtype == torch.float64
    assert saved.tokens == tuple(tokens) and saved.camera == MICRO_CAMERA
    # The documented schema, read without this module.
    content = json.loads(file.read_text(encoding="utf-8"))
    assert sorted(content) == ["camera", "convention", "format", "tokens", "viewmats"]
    assert content["viewmats"][8] == viewmats[8].tolist() and content["camera"]["focal_ratio"] == 0.8


@pytest.mark.parametrize(
    "change, match",
    [
        ({"format": "other"}, "format must be 'worldr1-trajectory-1', got 'other'"),
        ({"viewmats": [[1.0, 2.0]]}, "shape"),
        ({"viewmats": [[["a"]]]}, "must be a saved trajectory"),
        ({"viewmats": (2 * torch.eye(4).expand(3, 4, 4)).tolist()}, "rigid"),
        ({"tokens": [["push_in"]]}, "must be a saved trajectory"),
        ({"camera": {"lens": 3}}, "lens"),
        ({"camera": None}, "must be a saved trajectory"),
        (None, "must be a saved trajectory"),
    ],
)
def test_what_is_no_saved_path_is_refused(change: dict | None, match: str, tmp_path: Path) -> None:
    file = tmp_path / "path.json"
    save_trajectory(file, path("pan_left", frames=5), tokens=[MotionToken("pan_left")], camera=CAMERA)
    content = json.loads(file.read_text(encoding="utf-8"))
    file.write_text("no json" if change is None else json.dumps(content | change), encoding="utf-8")
    with pytest.raises(
        ValueError, match=f"path.json must be a saved trajectory, got .*{match}" if "must be a" not in match else match
    ):
        load_trajectory(file)


@pytest.mark.parametrize(
    "viewmats", [torch.eye(4), torch.eye(4)[None], torch.full((3, 4, 4), math.nan), path("move_left", frames=3).mT]
)
def test_only_rigid_motions_are_saved(viewmats: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="save_trajectory: viewmats must"):
        save_trajectory(tmp_path / "path.json", viewmats, tokens=[], camera=CAMERA)
    assert not (tmp_path / "path.json").exists()


def test_the_plot_shows_the_path_from_above_and_from_the_right() -> None:
    viewmats = path("move_up", "push_in", frames=41)
    figure = plot_trajectory(viewmats, title="a path")
    above, side = figure.axes
    centre = centres(viewmats)
    assert above.lines[0].get_xydata().tolist() == centre[:, [0, 2]].tolist()
    assert side.lines[0].get_xydata().tolist() == centre[:, [2, 1]].tolist()
    assert side.yaxis_inverted() and not above.yaxis_inverted()
    assert len(above.texts) == 18  # nine optical axes and nine up vectors


def test_the_command_tells_how_a_prompt_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, picture = tmp_path / "path.json", tmp_path / "path.png"
    assert (
        main(["The camera swoops, then pushes in slowly", "--frames", "9", "--save", str(file), "--plot", str(picture)])
        == 0
    )
    said = capsys.readouterr().out
    assert "push_in x0.5" in said and "not understood: swoops" in said and "travels 300 units to (0, 0, 300)" in said
    assert load_trajectory(file).tokens == (MotionToken("push_in", 0.5),)
    assert picture.read_bytes().startswith(b"\x89PNG")


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


@pytest.mark.parametrize("tokens, frames", [(["push_in"], 9), ([("push_in", 1.0)], 9), ([], 9.0), ([], True)])
def test_bad_types_are_named(tokens: list, frames: int) -> None:
    with pytest.raises(TypeError, match="build_trajectory: (tokens|num_frames) must be"):
        build_trajectory(tokens, frames, CAMERA)
