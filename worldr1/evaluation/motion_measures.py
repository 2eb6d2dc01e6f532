"""What moves in a clip, how much there is to see, and whether a camera that comes back finds what it left.

None of it asks a reconstructor. Videos are uint8 [F, 3, H, W], a frame at a time as floats.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldr1.evaluation.reconstruction_measures import psnr

FLOW_SIDES = (128, 256)
"""Shorter side, in pixels, of the frames between which flow is sought: smaller ones are enlarged, larger ones reduced.
On rendered clips of 32 to 256 px the mean is then within 13 % of the true flow (docs/evaluation.md)."""
DYNAMIC_FPS, DYNAMIC_SHARE, DYNAMIC_PX, DYNAMIC_PAIRS = 8.0, 0.05, 6.0 / 256.0, 4.0 / 16.0
NO_FLOW = "the package opencv-python-headless is not installed"
HOW_FLOW = 'pip install -e ".[evaluate]"'

_COINCIDES, _AWAY = 0.02, 0.5
_LUMA = (0.299, 0.587, 0.114)


class Motion(NamedTuple):
    """What moves in a clip."""

    magnitude: float  # mean optical flow, % of the frame's diagonal a frame
    dynamic: float  # 1 where VBench's rule calls it dynamic, else 0


def has_flow() -> bool:
    """Whether optical flow can be computed here."""
    return importlib.util.find_spec("cv2") is not None


def opencv_version() -> str | None:
    """Of the package that computes the flow; None where it is missing."""
    if not has_flow():
        return None
    import cv2

    return cv2.__version__


def motion(video: Tensor, *, fps: float) -> Motion:
    """Optical flow of a clip, by OpenCV's DIS (Kroeger et al., 2016, arXiv:1603.03590), preset medium.

    `dynamic` follows VBench's rule: of frames at about 8 a second, the flow of a pair is the mean of the 5 % fastest
    pixels; a pair moves above 6 px at 256 px of height (or width, the shorter), more for clips slower than 8 fps; a
    clip is dynamic where a quarter of its frames, rounded, are pairs that move. VBench takes RAFT's flow at full size.

    Args:
      video: uint8, shape [F, 3, H, W], F >= 2.
      fps: Frames per second, > 0.
    Returns:
      Motion.
    Raises:
      RuntimeError: the package is missing (`has_flow`).
    Source: Huang et al., 2023, arXiv:2311.17982 (VBench), vbench/dynamic_degree.py.
    """
    if not has_flow():
        raise RuntimeError(f"motion: {NO_FLOW}; {HOW_FLOW}")
    height, width = video.shape[-2:]
    step = max(1, round(fps / DYNAMIC_FPS))
    with _one_thread():
        speeds = [speed.mean() for speed in _speeds(video, 1)]
        fast = [_fastest(speed) for speed in _speeds(video, step)] if step > 1 else None
        fast = [_fastest(speed) for speed in _speeds(video, 1)] if fast is None else fast
    threshold = max(1.0, DYNAMIC_FPS / fps) * DYNAMIC_PX * min(height, width)
    needed = round(DYNAMIC_PAIRS * len(video[::step]))
    moving = sum(speed > threshold for speed in fast)
    return Motion(100.0 * float(np.mean(speeds)) / math.hypot(height, width), float(moving >= max(1, needed)))


def _fastest(speed: np.ndarray) -> float:
    count = max(1, int(DYNAMIC_SHARE * speed.size))
    return float(np.partition(speed.ravel(), -count)[-count:].mean())


def _speeds(video: Tensor, step: int) -> Iterator[np.ndarray]:
    """Length of the flow between frames `step` apart, pixels of the clip."""
    import cv2

    height, width = video.shape[-2:]
    low, high = FLOW_SIDES
    times = min(max(1.0, low / min(height, width)), high / min(height, width))
    size = (max(1, round(times * width)), max(1, round(times * height)))
    interpolation = cv2.INTER_AREA if times < 1 else cv2.INTER_LINEAR
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)  # type: ignore[attr-defined]
    before: np.ndarray | None = None
    for frame in video[::step]:
        grey = cv2.cvtColor(frame.permute(1, 2, 0).contiguous().numpy(), cv2.COLOR_RGB2GRAY)
        now = cv2.resize(grey, size, interpolation=interpolation)
        if before is not None:
            flow = dis.calc(before, now, None)  # [h, w, 2]
            yield np.hypot(flow[..., 0] * (width / size[0]), flow[..., 1] * (height / size[1]))
        before = now


@contextmanager
def _one_thread() -> Iterator[None]:
    """DIS searches in one stripe of the image a thread: on one thread its flow is the same on every machine."""
    import cv2

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def contrasts(video: Tensor) -> Tensor:
    """Standard deviation of the luma of each frame, [F], of a uint8 clip [F, 3, H, W] whose values count as [0, 1]."""
    weights = torch.tensor(_LUMA)[:, None, None]
    return torch.stack([(frame.float() * weights).sum(0).std() / 255.0 for frame in video])


def returns(viewmats: Tensor) -> list[tuple[int, int]]:
    """Frames at which a requested path stands where it stood before, having been away.

    Frames i < j coincide where their camera centres are within 2 % of the path's extent and their orientations within
    2 % of its largest turn; in between the camera must have been half of one of the two away. Each j is paired with the
    nearest such i, the earliest among equals.

    Args:
      viewmats: Requested world-to-camera, shape [F, 4, 4].
    Returns:
      Pairs (i, j), in the order of j; none for a path that does not come back.
    """
    poses = torch.linalg.inv(viewmats.double())
    centres = poses[:, :3, 3]
    distance = torch.cdist(centres, centres)
    trace = torch.einsum("iab,jab->ij", poses[:, :3, :3], poses[:, :3, :3])
    angle = torch.acos(((trace - 1.0) / 2.0).clamp(-1.0, 1.0))
    extent, turn = float(distance.max()), float(angle.max())
    # How far apart two frames are, as a share of what the path does; what it does not do does not count.
    parts = [x / size for x, size, least in ((distance, extent, 1e-9), (angle, turn, 1e-3)) if size > least]
    if not parts:
        return []
    apart = torch.stack(parts).amax(0)  # [F, F]
    out = []
    for j in range(2, len(viewmats)):
        candidates = [i for i in range(j - 1) if apart[i, j] <= _COINCIDES and apart[i, i : j + 1].max() >= _AWAY]
        if candidates:
            out.append((min(candidates, key=lambda i: float(apart[i, j])), j))
    return out


def return_score(video: Tensor, pairs: list[tuple[int, int]]) -> float:
    """PSNR between the frames of equal requested pose, averaged over pairs, dB; NaN without pairs.

    A frozen clip scores highest: read it beside the motion.

    Args:
      video: Shape [F, 3, H, W] in [0, 1].
      pairs: Of `returns`.
    """
    if not pairs:
        return math.nan
    first, second = ([pair[side] for pair in pairs] for side in (0, 1))
    return float(psnr(video[first], video[second]).mean())
