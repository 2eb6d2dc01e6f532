"""Everything that is measured of one clip, whatever made it; docs/evaluation.md has definitions and sources."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from worldr1.datatypes import Reconstruction
from worldr1.evaluation.camera_metrics import camera_control
from worldr1.evaluation.motion_measures import contrasts, has_flow, motion, return_score, returns
from worldr1.evaluation.reconstruction_measures import mvcs, psnr, ssim, views
from worldr1.evaluation.recovered import Recovered, recover
from worldr1.rewards.base import FAILURES, evenly
from worldr1.run.files import told
from worldr1_kernels import relative_poses, trajectory_error
from worldr1_kernels.se3 import check

MIN_FRAMES = 3
MAX_FRAMES_LIFTED = 16
"""So many frames of a clip are lifted to 3D, and as many are rendered: all of a short clip, else evenly over it."""
FLAT = 1.0 / 255.0
"""Contrast below which a frame shows nothing; a clip of such frames is not judged."""
SHORTEST_PATH = 1e-3
"""A requested path that is not longer than this share of the scene's depth does not travel; a path from a file, whose
unit is unknown, that is not longer than 1e-6 of its own."""


class Measure(NamedTuple):
    """A column of the evaluation."""

    unit: str
    better: str  # "up", "down" or "same": neither
    definition: str


_HELD_OUT = "the even frames, lifted to 3D by the reconstructor's depth and poses, seen from the odd frames' poses, "
_ALL = "the same with all frames lifted and compared, as the article does; a frozen clip scores high"
MEASURES: dict[str, Measure] = {
    "psnr": Measure("dB", "up", f"{_HELD_OUT}against the odd frames: PSNR, at most 60 dB"),
    "ssim": Measure("", "up", f"{_HELD_OUT}against the odd frames: SSIM"),
    "lpips": Measure("", "down", f"{_HELD_OUT}against the odd frames: LPIPS"),
    "psnr_self": Measure("dB", "up", f"psnr, {_ALL}"),
    "ssim_self": Measure("", "up", f"ssim, {_ALL}"),
    "lpips_self": Measure("", "down", f"lpips, {_ALL}"),
    "mvcs": Measure(
        "", "up", "depth of each frame carried into the next: exp(-mean squared error over the median depth)"
    ),
    "rot_err": Measure("rad", "down", "RotErr: sum over frames of the angle between recovered and requested pose"),
    "trans_err": Measure(
        "", "down", "TransErr: sum over frames of the distance of the centres, each path over its largest |centre|"
    ),
    "cam_mc": Measure("", "down", "CamMC: sum over frames of the Frobenius norm of the difference of [R | centre]"),
    "rotation_deg": Measure("deg", "down", "mean over frames of the angle between recovered and requested pose"),
    "camera_error": Measure(
        "", "down", "WorldScore's: sqrt of rotation_deg times the mean distance of the centres at the best scale, in "
        "the request's unit"
    ),
    "path_ratio": Measure(
        "", "same", "recovered path in median depths of the scene, over the requested one in the depth that the "
        "request assumes; lengths have no unit here, so compare clips and arms, not with 1"
    ),
    "motion_magnitude": Measure("%", "same", "mean optical flow (DIS), % of the frame's diagonal a frame"),
    "dynamic_degree": Measure("", "same", "1 where VBench's rule, on the flow of DIS in place of RAFT, finds motion"),
    "return_score": Measure(
        "dB", "up", "there-and-back paths: PSNR between frames of equal requested pose; a frozen clip scores high"
    ),
    "contrast": Measure("", "same", "standard deviation of the luma of a frame, averaged over frames"),
}  # fmt: skip
CAMERA_COLUMNS = ("rot_err", "trans_err", "cam_mc", "rotation_deg", "camera_error", "path_ratio")
FLOW_COLUMNS = ("motion_magnitude", "dynamic_degree")
LPIPS_COLUMNS = ("lpips", "lpips_self")


class Request(NamedTuple):
    """The camera path that a clip was asked for."""

    viewmats: Tensor  # [F, 4, 4] world-to-camera
    depth: float | None  # distance of the scene that its lengths go with; None: not known


@dataclass(frozen=True)
class Measured:
    """What was found of one clip."""

    state: str  # of recovered.STATES
    reason: str  # "" where nothing is missing that could be there
    measures: dict[str, float]  # every name of MEASURES; NaN where it is not defined or cannot be judged
    cameras: dict[str, Tensor] = field(default_factory=dict)  # recovered_cam_c2w [F, 4, 4], K [3, 3], depth [F, h, w]


def unjudged(reason: str) -> Measured:
    """Of a clip that cannot be looked at."""
    return Measured("failed", reason, dict.fromkeys(MEASURES, math.nan))


class ClipMeasurer:
    """Measures clips of any size, one at a time.

    Args:
      reconstructor: See `recovered.recover`; one that no reward has asked.
      perceptual: LPIPS, or None: its columns stay empty.
      device: Where the reconstructor and `perceptual` are.
      side: Shorter side in pixels: larger clips are reduced to it, by area, for all but flow and contrast; 0: never.
    """

    def __init__(self, reconstructor: Any, *, perceptual: Any = None, device: torch.device, side: int = 256) -> None:
        self.reconstructor, self.perceptual, self.device, self.side = reconstructor, perceptual, device, side

    @torch.no_grad()
    def measure(self, video: Tensor, *, request: Request | None, fps: float) -> Measured:
        """All measures of a clip.

        Args:
          video: uint8, shape [F, 3, H, W].
          request: None where no camera was asked for: the columns of the camera are then NaN.
          fps: Frames per second.
        Raises:
          ValueError: the request has another number of frames.
        """
        if len(video) < MIN_FRAMES:
            return unjudged(f"the clip must have {MIN_FRAMES} frames or more, got {len(video)}")
        if request is not None and len(request.viewmats) != len(video):
            raise ValueError(
                f"evaluate: a requested path must have a pose a frame, got {len(request.viewmats)} for a clip of "
                f"{len(video)} frames"
            )
        out = dict.fromkeys(MEASURES, math.nan)
        contrast = contrasts(video)
        out["contrast"] = float(contrast.mean())
        if float(contrast.max()) < FLAT:
            return Measured("failed", "the clip shows nothing: every frame is of one colour", out)
        if has_flow():
            out["motion_magnitude"], out["dynamic_degree"] = motion(video, fps=fps)
        small = self._reduced(video)
        if request is not None:
            out["return_score"] = return_score(small, returns(request.viewmats))
        try:
            recovered = recover(self.reconstructor, small[None])
            fault = "" if recovered.state[0] == "failed" else unusable(recovered.reconstruction)
        except torch.OutOfMemoryError:
            raise  # of the machine, not of the clip
        except FAILURES as error:
            return Measured("failed", f"reconstructor: {told(error)}", out)
        state, reason = recovered.state[0], recovered.reasons[0]
        if fault or state == "failed":
            return Measured("failed", fault or reason or "the reconstructor gave no reason", out)
        out |= self._geometry(small, recovered, request)
        scene = recovered.reconstruction
        cameras = {
            "recovered_cam_c2w": torch.linalg.inv(scene.viewmats[0].double()).cpu(),
            "K": scene.Ks[0, 0].double().cpu(),
            "depth": scene.depth[0].clamp_max(65504.0).half().cpu(),
        }
        return Measured(state, reason, out, cameras)

    def _reduced(self, video: Tensor) -> Tensor:
        """[F, 3, h, w] in [0, 1] on the device, a frame at a time."""
        height, width = video.shape[-2:]
        times = self.side / min(height, width) if self.side else 1.0
        if times >= 1.0:
            return video.to(self.device).float() / 255.0
        size = (round(times * height), round(times * width))
        frames = [functional.interpolate(f[None].to(self.device).float(), size=size, mode="area") for f in video]
        return torch.cat(frames) / 255.0

    def _geometry(self, video: Tensor, recovered: Recovered, request: Request | None) -> dict[str, float]:
        scene, state = recovered.reconstruction, recovered.state[0]
        depth, viewmats, Ks = (x.to(video) for x in (scene.depth, scene.viewmats, scene.Ks))
        out: dict[str, float] = {}
        if request is not None:
            out |= camera_measures(viewmats[0], request, depth=float(depth.median()), state=state)
        if state == "moving":
            out["mvcs"] = mvcs(depth[0], viewmats[0], Ks[0])
        else:  # without parallax the views do not depend on depth
            depth = torch.ones_like(depth)
        return out | reconstruction_measures(video, depth[0], viewmats[0], Ks[0], perceptual=self.perceptual)


def unusable(scene: Reconstruction) -> str:
    """Why nothing can be measured by what a reconstructor returned; "" where it can.

    Raises:
      ValueError: poses that are no rigid motions.
    """
    relative_poses(scene.viewmats)
    if not bool(scene.depth.isfinite().all()) or not bool((scene.depth > 0).all()):
        return "reconstructor: depth must be finite and > 0"
    return "" if bool(scene.Ks.isfinite().all()) else "reconstructor: intrinsics must be finite"


def camera_measures(viewmats: Tensor, request: Request, *, depth: float, state: str) -> dict[str, float]:
    """How well one clip's recovered cameras follow the requested ones.

    Args:
      viewmats: Recovered world-to-camera, shape [F, 4, 4].
      request: The path that was asked for.
      depth: Median depth of the recovered scene, in its own unit.
      state: "moving", "turning" (what is measured of translation is NaN) or "still".
    Returns:
      CAMERA_COLUMNS. Where the request does not travel, those of translation are NaN; path_ratio also where the depth
      that the request goes with is not known.
    """
    pred, target = viewmats[None], request.viewmats[None].to(viewmats)
    shortest = 1e-6 if request.depth is None else SHORTEST_PATH * request.depth
    control = camera_control(pred, target, min_path=shortest)
    error = trajectory_error(pred, target, scale="max_norm")
    check(viewmats.device)  # what the kernels found wrong with these poses, before they are believed
    out = {name: float(getattr(control, name)[0]) for name in CAMERA_COLUMNS[:-1]}
    out["path_ratio"] = math.nan
    length = float(error.path_target[0])
    if request.depth is not None and length > shortest:
        out["path_ratio"] = 0.0 if state == "still" else float(error.path_pred[0]) / depth / (length / request.depth)
    if state == "turning":
        out |= dict.fromkeys(("trans_err", "cam_mc", "camera_error", "path_ratio"), math.nan)
    return out


def reconstruction_measures(
    video: Tensor, depth: Tensor, viewmats: Tensor, Ks: Tensor, *, perceptual: Any = None
) -> dict[str, float]:
    """PSNR, SSIM and LPIPS of one clip, held out and of itself: each a mean over frames.

    Args:
      video: Shape [F, 3, H, W] in [0, 1], F >= 3; the rest as for `views`.
      perceptual: `distance(a, b)` of images [n, 3, H, W]; None: NaN.
    """
    frames = range(len(video))
    even, odd, every = (_spread(frames[start::step]) for start, step in ((0, 2), (1, 2), (0, 1)))
    out: dict[str, float] = {}
    for suffix, sources, targets in (("", even, odd), ("_self", every, every)):
        render, truth = views(video, depth, viewmats, Ks, sources=sources, targets=targets), video[targets]
        distance = math.nan if perceptual is None else float(perceptual.distance(render, truth).mean())
        figures = {"psnr": psnr(render, truth), "ssim": ssim(render, truth)}
        out |= {name + suffix: float(values.mean()) for name, values in figures.items()}
        out["lpips" + suffix] = distance
    return out


def _spread(frames: Sequence[int]) -> list[int]:
    return [frames[i] for i in evenly(len(frames), MAX_FRAMES_LIFTED)]
