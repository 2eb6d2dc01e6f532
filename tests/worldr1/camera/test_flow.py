"""The flow of a plane against projecting its points one by one, and against the taxonomy's closed forms."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import Tensor

from worldr1.camera.flow import CameraFlow, camera_flow
from worldr1.camera.trajectory import MOTIONS, build_trajectory, intrinsics
from worldr1.config import MICRO_CAMERA, CameraConfig
from worldr1.datatypes import MotionToken

CAMERA = replace(CameraConfig(), ease=0.0)


@pytest.mark.parametrize("kind", sorted(MOTIONS))
@pytest.mark.parametrize("camera", [CAMERA, MICRO_CAMERA], ids=["release", "micro"])
def test_flow_is_the_difference_of_two_projections(kind: str, camera: CameraConfig) -> None:
    height, width, frames = 13, 22, 9
    K = intrinsics(height, width, camera)
    viewmats = build_trajectory([MotionToken(kind)], frames, camera)
    flow = camera_flow(viewmats, K, depth=camera.depth, height=height, width=width)
    assert flow.shape == (frames - 1, 2, height, width) and flow.dtype == torch.float64
    for t, y, x in [(0, 0, 0), (3, 12, 21), (7, 5, 9)]:
        pixel = torch.tensor([x + 0.5, y + 0.5, 1.0], dtype=torch.float64)
        point = torch.cat([torch.linalg.inv(K) @ pixel * camera.depth, torch.ones(1, dtype=torch.float64)])
        seen = (viewmats[t + 1] @ torch.linalg.inv(viewmats[t]) @ point)[:3]
        projected = K @ (seen / seen[2])
        assert (flow[t, :, y, x] - (projected - pixel)[:2]).abs().max() < 1e-10


def projected(viewmats: Tensor, K: Tensor, depth: float, height: int, width: int) -> Tensor:
    """The plane's points in the world, one for each pixel of frame t, seen by cameras t and t + 1: the difference."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = torch.stack([x, y, torch.ones_like(x)], dim=-1).double()  # [H, W, 3]
    flows = []
    for old, new in zip(viewmats[:-1], viewmats[1:], strict=True):
        points = torch.linalg.solve(K, pixels[..., None])[..., 0] * depth  # in the axes of camera t
        world = (points - old[:3, 3]) @ old[:3, :3]  # R^T (p - t)
        seen = world @ new[:3, :3].T + new[:3, 3]
        image = seen @ K.T
        flows.append((image[..., :2] / image[..., 2:] - pixels[..., :2]).permute(2, 0, 1))
    return torch.stack(flows)


@settings(max_examples=80, deadline=None)
@given(
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    lens=st.tuples(st.floats(0.4, 4.0), st.floats(0.4, 4.0), st.floats(-0.2, 0.2), st.floats(0, 1), st.floats(0, 1)),
    angles=st.lists(st.tuples(*[st.floats(-0.15, 0.15)] * 3), min_size=2, max_size=5),
    depth=st.floats(0.5, 2000.0),
    seed=st.integers(0, 2**31),
)
def test_flow_is_exact_for_the_plane_at_any_resolution_and_lens(
    size: tuple[int, int], lens: tuple[float, ...], angles: list[tuple[float, ...]], depth: float, seed: int
) -> None:
    height, width = size
    fx, fy, skew, cx, cy = lens
    K = torch.tensor([[fx * width, skew * width, cx * width], [0, fy * width, cy * height], [0, 0, 1]]).double()
    viewmats = torch.eye(4, dtype=torch.float64).repeat(len(angles), 1, 1)
    viewmats[:, :3, :3] = torch.from_numpy(Rotation.from_euler("xyz", angles).as_matrix())
    viewmats[:, :3, 3] = (torch.rand(len(angles), 3, generator=torch.Generator().manual_seed(seed)) - 0.5) * 0.2 * depth
    expected = projected(viewmats, K, depth, height, width)
    try:
        flow = camera_flow(viewmats, K, depth=depth, height=height, width=width)
    except ValueError as error:  # a wide lens and a large turn: part of the plane is behind the next camera
        assert "passes the plane" in str(error) and max(height / fy, width / fx) / width > 1.0
        return
    assert (flow - expected).abs().max() < 1e-9 * (1 + expected.abs().max())


def test_a_frame_is_the_same_in_any_part_of_the_path() -> None:
    """A fixed order of operations: the bits of a step do not depend on what else is computed."""
    viewmats = build_trajectory([MotionToken("orbit_left"), MotionToken("push_in")], 41, MICRO_CAMERA)
    K = intrinsics(33, 47, MICRO_CAMERA)
    whole = camera_flow(viewmats, K, depth=4.0, height=33, width=47)
    for t in (0, 17, 39):
        assert torch.equal(camera_flow(viewmats[t : t + 2], K, depth=4.0, height=33, width=47)[0], whole[t])
    # Row and column of a larger image with the same lens: the same pixels.
    assert torch.equal(camera_flow(viewmats, K, depth=4.0, height=20, width=47), whole[:, :, :20])


def test_fields_asked_for_one_by_one_are_those_of_the_whole() -> None:
    viewmats = build_trajectory([MotionToken("pull_left"), MotionToken("roll_right")], 9, CAMERA)
    arguments = {"depth": 1000.0, "height": 21, "width": 38}
    K = intrinsics(21, 38, CAMERA)
    fields = CameraFlow(viewmats, K, **arguments)
    whole = camera_flow(viewmats, K, **arguments)
    assert len(fields) == 8 and all(torch.equal(fields[i], whole[i]) for i in range(8))
    assert torch.equal(torch.stack(list(fields)), whole)  # it ends with an IndexError, as a list does
    first = fields[0]
    fields[1]
    assert torch.equal(first, whole[0])  # a field is the caller's own


@settings(max_examples=100, deadline=None)
@given(st.floats(-1.5, 1.5), st.floats(-1.5, 1.5), st.floats(-1.0, 1.0), st.integers(1, 9), st.integers(1, 9))
def test_a_plane_behind_the_camera_is_found_from_the_corners(
    pan: float, tilt: float, step: float, height: int, width: int
) -> None:
    viewmats = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    viewmats[1, :3, :3] = torch.from_numpy(Rotation.from_euler("xy", [tilt, pan]).as_matrix())
    viewmats[1, 2, 3] = step
    K = intrinsics(height, width, MICRO_CAMERA)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    points = torch.linalg.solve(K, torch.stack([x, y, torch.ones_like(x)], -1).double()[..., None])  # depth 1
    z = (viewmats[1, :3, :3] @ points)[..., 2, 0] + step
    if float(z.min()) < 1e-5:
        with pytest.raises(ValueError, match="passes the plane"):
            CameraFlow(viewmats, K, depth=1.0, height=height, width=width)
    else:
        assert len(CameraFlow(viewmats, K, depth=1.0, height=height, width=width)) == 1


# Centre flow in pixels a frame at 960x1664 over 81 frames, from the closed forms of a plane at depth 1000.
_F, _S = 1.2 * 1664, 80
CENTRE = {
    "fixed": 0.0,
    "move_left": _F * 220 / _S / 1000,
    "move_right": -_F * 220 / _S / 1000,
    "pan_left": _F * math.tan(math.radians(14) / _S),
    "pan_right": -_F * math.tan(math.radians(14) / _S),
}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_fields_are_the_same_bits_on_every_device(device: str) -> None:
    viewmats = build_trajectory([MotionToken("orbit_left")], 9, CAMERA)
    here = CameraFlow(viewmats, intrinsics(30, 52, CAMERA), depth=1000.0, height=30, width=52)
    there = here.to(device)
    assert len(there) == 8 and there[0].device.type == device and here[0].device.type == "cpu"
    for index in range(8):
        assert torch.equal(there[index].cpu(), here[index])


@pytest.mark.parametrize("kind", sorted(CENTRE))
def test_centre_flow_has_the_size_and_sign_of_the_taxonomy(kind: str) -> None:
    viewmats = build_trajectory([MotionToken(kind)], 81, CAMERA)
    flow = camera_flow(viewmats, intrinsics(61, 105, CAMERA), depth=1000.0, height=61, width=105)
    centre = flow[:, :, 30, 52] * (1664 / 105)
    assert (centre[:, 0] - CENTRE[kind]).abs().max() < 1e-9
    assert centre[:, 1].abs().max() < 1e-9
    if kind != "fixed":
        assert 5.4 < abs(CENTRE[kind]) < 6.2


def test_pushing_in_spreads_the_image_and_pulling_out_gathers_it() -> None:
    for kind, sign in (("push_in", 1.0), ("pull_out", -1.0)):
        viewmats = build_trajectory([MotionToken(kind)], 9, CAMERA)
        flow = camera_flow(viewmats, intrinsics(20, 30, CAMERA), depth=1000.0, height=20, width=30)
        y, x = torch.meshgrid(torch.arange(20) + 0.5 - 10, torch.arange(30) + 0.5 - 15, indexing="ij")
        step = sign * 600 / 8
        expected = torch.stack([x, y]).double() * (1000 / (1000 - step) - 1)
        assert (flow - expected).abs().max() < 1e-9


def test_flow_scales_with_the_grid() -> None:
    viewmats = build_trajectory([MotionToken("orbit_left")], 9, CAMERA)
    coarse = camera_flow(viewmats, intrinsics(9, 15, CAMERA), depth=1000.0, height=9, width=15)
    fine = camera_flow(viewmats, intrinsics(27, 45, CAMERA), depth=1000.0, height=27, width=45)
    # Pixel centres of the coarse grid are centres of the middle pixels of 3x3 blocks of the fine one.
    assert (fine[:, :, 1::3, 1::3] - 3 * coarse).abs().max() < 1e-10


@pytest.mark.parametrize(
    "change, match",
    [
        ({"depth": 0.0}, "depth"),
        ({"depth": math.nan}, "depth"),
        ({"K": torch.eye(4)}, "K must have"),
        ({"viewmats": torch.eye(4)[None]}, "viewmats must have"),
        ({"depth": 60.0}, "passes the plane"),
        ({"depth": math.inf}, "depth"),
        ({"K": torch.zeros(3, 3)}, "K must be finite and invertible"),
        ({"K": torch.full((3, 3), math.nan)}, "K must be finite and invertible"),
        ({"K": torch.eye(3, device="meta")}, "K must be on cpu like viewmats, got meta"),
        ({"viewmats": torch.full((3, 4, 4), math.nan)}, "viewmats must be finite"),
        ({"viewmats": torch.eye(4).repeat(3, 1, 1).index_fill(2, torch.tensor([3]), 2.0)}, "last row of viewmats"),
        ({"height": 0}, "height and width must be >= 1, got 0 x 8"),
    ],
)
def test_bad_input_is_named(change: dict, match: str) -> None:
    arguments = {
        "viewmats": build_trajectory([MotionToken("push_in")], 9, CAMERA), "K": intrinsics(8, 8, CAMERA),
        "depth": 1000.0, "height": 8, "width": 8, **change,
    }  # fmt: skip
    viewmats, K = arguments.pop("viewmats"), arguments.pop("K")
    with pytest.raises(ValueError, match=f"camera_flow.*{match}"):
        camera_flow(viewmats, K, **arguments)
