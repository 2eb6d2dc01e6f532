"""The flow of a plane against projecting its points one by one, and against the taxonomy's closed forms."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from worldr1.config import MICRO_CAMERA, CameraConfig
from worldr1.datatypes import MotionToken
from worldr1.flow import camera_flow
from worldr1.trajectory import MOTIONS, build_trajectory, intrinsics

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


# Centre flow in pixels a frame at 960x1664 over 81 frames, from the closed forms of a plane at depth 1000.
_F, _S = 1.2 * 1664, 80
CENTRE = {
    "fixed": 0.0,
    "move_left": _F * 220 / _S / 1000,
    "move_right": -_F * 220 / _S / 1000,
    "pan_left": _F * math.tan(math.radians(14) / _S),
    "pan_right": -_F * math.tan(math.radians(14) / _S),
}


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
    ],
)
def test_bad_input_is_named(change: dict, match: str) -> None:
    arguments = {
        "viewmats": build_trajectory([MotionToken("push_in")], 9, CAMERA), "K": intrinsics(8, 8, CAMERA),
        "depth": 1000.0, **change,
    }  # fmt: skip
    with pytest.raises(ValueError, match=f"camera_flow.*{match}"):
        camera_flow(arguments["viewmats"], arguments["K"], depth=arguments["depth"], height=8, width=8)
