"""One clip that every judge can be tried on: does it answer at all, with what it promised, and how fast?

The clip is drawn by formula: a camera that moves to the right past two textured planes. What a judge makes of it is
shown and compared with nothing, for judges differ; what must hold is the form of the answer.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from worldr1.rewards.base import evenly

PROMPT = "A wall of coloured tiles behind a round table. The camera moves right."


class Trial(NamedTuple):
    """What one judge did with the golden clip."""

    seconds: float
    answer: str  # in words
    peak_gb: float  # of the device beyond what was there before; NaN on a CPU


def golden_clip(*, num_frames: int, height: int, width: int) -> Tensor:
    """The clip, [F, 3, H, W] float32 in [0, 1]."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width) * width / height, indexing="ij")
    phases = torch.tensor([0.0, 2.1, 4.2])[:, None, None]
    frames = []
    for t in torch.linspace(0.0, 1.0, num_frames).tolist():
        far, near = x + 0.3 * t, x + 0.6 * t
        tiles = 0.5 + 0.3 * torch.sin(9.0 * far + phases) * torch.sin(7.0 * y + phases)
        disc = 0.6 + 0.3 * torch.cos(25.0 * near + phases) * torch.cos(21.0 * y)
        inside = (near - 0.2).square() + (y - 0.3).square() < 0.2
        frames.append(torch.where(inside, disc, tiles))
    return torch.stack(frames).clamp(0.0, 1.0)


@torch.no_grad()
def try_judge(judge: Any, role: str, clip: Tensor, *, num_aesthetic_frames: int = 8) -> Trial:
    """Ask a judge of `role` what it would be asked in training.

    Args:
      judge: As load_judge returns it.
      role: "reconstructor", "critic", "aesthetic" or "perceptual".
      clip: Of `golden_clip`, on the judge's device.
      num_aesthetic_frames: K.
    Raises:
      ValueError: an answer of another form than its protocol's, or one that is not finite.
      What the judge raises.
    """
    device = clip.device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    start = time.perf_counter()
    answer = {"reconstructor": _lift, "critic": _grade, "perceptual": _compare}.get(role, _rate)(
        judge, clip, num_aesthetic_frames
    )
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    peak = (torch.cuda.max_memory_allocated(device) - before) / 1e9 if device.type == "cuda" else float("nan")
    return Trial(seconds, answer, peak)


def _lift(judge: Any, clip: Tensor, _: int) -> str:
    frames, _, height, width = clip.shape
    scene = judge.infer(clip[None])
    shapes = {"depth": (frames, height, width), "confidence": (frames, height, width), "viewmats": (frames, 4, 4),
              "Ks": (frames, 3, 3)}  # fmt: skip
    for name, shape in shapes.items():
        _must(f"{name} of shape {[1, *shape]}", tuple(getattr(scene, name).shape) == (1, *shape))
        _must(f"{name} without NaN", bool(getattr(scene, name).isfinite().all()))
    g = scene.gaussians
    for name in ("means", "quats", "scales", "opacities", "colors"):
        _must(f"Gaussians' {name} without NaN", bool(getattr(g, name).isfinite().all()))
    start = (scene.viewmats[0, 0] - torch.eye(4).to(scene.viewmats)).abs().max()
    _must("viewmats that start at the identity", float(start) < 1e-3)
    centre = torch.linalg.inv(scene.viewmats[0].double())[-1, :3, 3]
    side = "right" if float(centre[0]) > 0 else "left"
    return f"{g.means.shape[1]:,} Gaussians; median depth {float(scene.depth.median()):.3g}, camera to the {side}"


def _grade(judge: Any, clip: Tensor, _: int) -> str:
    probs = judge.digit_probs(clip[len(clip) // 2][None], [PROMPT]).float()
    _must("probabilities of shape [1, 10]", tuple(probs.shape) == (1, 10))
    mass = float(probs.sum())
    _must("probabilities in [0, 1] that sum to at most 1", bool((probs >= 0).all()) and mass <= 1 + 1e-3)
    _must("half of its probability on the digits", mass >= 0.5)
    grade = float((probs[0] * torch.arange(10, device=probs.device)).sum()) / mass
    return f"grade {grade:.2f} of 9, {mass:.0%} of its answer on digits"


def _rate(judge: Any, clip: Tensor, num_frames: int) -> str:
    frames = clip[evenly(len(clip), num_frames)]
    scores = judge.score(frames[None], [PROMPT]).float()
    _must(f"scores of shape [1, {len(frames)}]", tuple(scores.shape) == (1, len(frames)))
    _must("scores without NaN", bool(scores.isfinite().all()))
    return f"{float(scores.mean()):.2f} over {len(frames)} frames"


def _compare(judge: Any, clip: Tensor, _: int) -> str:
    distance = judge.distance(clip[[0, 0]], clip[[0, -1]]).float()
    _must("distances of shape [2]", tuple(distance.shape) == (2,))
    _must("distances >= 0 without NaN", bool((distance >= -1e-6).all()))
    _must("distance 0 of equal images", float(distance[0]) < 1e-3)
    return f"first to last frame {float(distance[1]):.3f}"


def _must(what: str, holds: bool) -> None:
    if not holds:
        raise ValueError(f"golden clip: the judge must answer with {what}, got something else")
