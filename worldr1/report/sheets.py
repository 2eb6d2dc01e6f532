"""Contact sheets: videos as images inside the page, an animation and a strip of frames for each."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

MAX_BYTES = 2_600_000
"""Encoded size of all clips together; rows beyond it are left out, so that the page stays under 4 MB."""
MAX_VIDEO_BYTES = 900_000
"""A validation's grid above this size is linked, not embedded."""
_MAX_FRAMES = 17  # of an animation
_STRIP_FRAMES = 9
_MAX_WIDTH = 208  # pixels of one frame in the page's file
_LOSSLESS_PIXELS = 64 * 64  # small frames are kept exact: their pixels are what a reader judges


@dataclass(frozen=True)
class Clip:
    """One video in the page: data URIs, and the size of one frame of the animation in pixels."""

    animation: str
    strip: str
    width: int
    height: int
    num_strip: int


def encode_pairs(
    before: np.ndarray, after: np.ndarray, *, fps: float, max_bytes: int = MAX_BYTES
) -> Iterator[tuple[Clip, Clip]]:
    """Encode paired videos row by row until the budget is spent.

    Args:
      before: Videos of the base model. Shape [n, F, 3, H, W], uint8.
      after: Videos of the trained model at the same seeds. Shape [n, F, 3, H, W], uint8.
      fps: Frame rate of the animations.
      max_bytes: Stop before the row that would pass this size (the first row is always given).
    Returns:
      Iterator over (before, after) clips, at most n.
    Raises:
      ValueError: shapes differ or are not [n, F, 3, H, W].
    """
    if before.shape != after.shape or before.ndim != 5 or before.shape[2] != 3:
        raise ValueError(
            f"encode_pairs: before and after must be [n, F, 3, H, W], got {before.shape} and {after.shape}"
        )
    spent = 0
    for row in range(before.shape[0]):
        pair = encode_clip(before[row], fps=fps), encode_clip(after[row], fps=fps)
        spent += sum(len(clip.animation) + len(clip.strip) for clip in pair)
        if row and spent > max_bytes:
            return
        yield pair


def encode_clip(frames: np.ndarray, *, fps: float) -> Clip:
    """One video as an animated WebP and a strip of frames, both data URIs.

    Args:
      frames: Shape [F, 3, H, W], uint8.
      fps: Frame rate; thinned videos keep their duration.
    Returns:
      Clip; exact where a frame has at most 64 x 64 pixels, else scaled down and compressed.
    """
    total = frames.shape[0]
    kept = _spread(total, _MAX_FRAMES)
    images = [_shrink(frames[i]) for i in kept]
    lossless = frames.shape[2] * frames.shape[3] <= _LOSSLESS_PIXELS
    step = 1000.0 / max(fps, 1.0) * total / len(images)
    durations = [max(20, round(step))] * len(images)
    durations[-1] += 700  # rest on the last frame, so that the end of the camera path can be seen
    animation = _webp(images[0], lossless, save_all=True, append_images=images[1:], duration=durations, loop=0)
    shown = [_shrink(frames[i]) for i in _spread(total, _STRIP_FRAMES)]
    width, height = shown[0].size
    strip = Image.new("RGB", (len(shown) * width, height))
    for i, image in enumerate(shown):
        strip.paste(image, (i * width, 0))
    return Clip(animation, _webp(strip, lossless), width, height, len(shown))


def video_uri(path: Path) -> str:
    """An .mp4 file as a data URI."""
    return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _spread(total: int, most: int) -> list[int]:
    return sorted({round(i) for i in np.linspace(0, total - 1, min(total, most))})


def _shrink(frame: np.ndarray) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(frame.transpose(1, 2, 0)))  # [H, W, 3]
    if image.width <= _MAX_WIDTH:
        return image
    return image.resize((_MAX_WIDTH, max(1, round(image.height * _MAX_WIDTH / image.width))), Image.Resampling.BOX)


def _webp(image: Image.Image, lossless: bool, **options: object) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", lossless=lossless, quality=72, method=2, **options)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
