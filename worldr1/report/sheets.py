"""Videos inside the page: all frames of a clip as one image, which the page's script plays, and a strip of frames."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from worldr1.run.files import reading

MAX_BYTES = 4_500_000
"""Encoded size of all clips together; rows beyond it are left out, so that the page stays well under 10 MB."""
MAX_VIDEO_BYTES = 900_000
"""A validation's grid above this size is linked, not embedded."""
_MAX_FRAMES = 25  # of a film
_STRIP_FRAMES = 9
_MAX_WIDTH = 256  # pixels of one frame in the page's file
_MAX_STRIP_WIDTH = 160
_LOSSLESS_PIXELS = 64 * 64  # small frames are kept exact: their pixels are what a reader judges


@dataclass(frozen=True)
class Clip:
    """One video in the page: data URIs, and the size of one frame in pixels."""

    film: str  # all frames kept, in rows of `columns`
    columns: int
    num_frames: int
    seconds: float  # of the whole clip
    width: int
    height: int
    strip: str
    num_strip: int

    def __len__(self) -> int:
        """Characters in the page."""
        return len(self.film) + len(self.strip)


def encode_rows(
    rows: Iterator[Sequence[np.ndarray]], *, fps: float, max_bytes: int = MAX_BYTES
) -> Iterator[tuple[Clip, ...]]:
    """Encode rows of clips until the budget is spent.

    Args:
      rows: Each some clips [F, 3, H, W], uint8, that are shown side by side; asked for one at a time.
      fps: Frame rate.
      max_bytes: Stop before the row that would pass this size (the first row is always given).
    """
    spent = 0
    for k, row in enumerate(rows):
        clips = tuple(encode_clip(frames, fps=fps) for frames in row)
        spent += sum(map(len, clips))
        if k and spent > max_bytes:
            return
        yield clips


def encode_clip(frames: np.ndarray, *, fps: float, num_frames: int = 0) -> Clip:
    """One video as a film and a strip, both WebP data URIs.

    Args:
      frames: Shape [F, 3, H, W], uint8.
      fps: Frame rate; thinned videos keep their duration.
      num_frames: Of the whole clip, where `frames` are some of it; 0: all are there.
    Returns:
      Clip; exact where a frame has at most 64 x 64 pixels, else scaled down and compressed.
    Raises:
      ValueError: another shape or type.
    """
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
        raise ValueError(f"encode_clip: frames must be uint8 [F, 3, H, W], got {frames.dtype} {list(frames.shape)}")
    lossless = frames.shape[2] * frames.shape[3] <= _LOSSLESS_PIXELS
    shown = [_shrink(frames[i], _MAX_WIDTH) for i in spread(len(frames), _MAX_FRAMES)]
    columns = min(5, len(shown))
    strip = [_shrink(frames[i], _MAX_STRIP_WIDTH) for i in spread(len(frames), _STRIP_FRAMES)]
    return Clip(
        film=_webp(_sheet(shown, columns), lossless),
        columns=columns,
        num_frames=len(shown),
        seconds=max(num_frames, len(frames)) / max(fps, 1.0),
        width=shown[0].width,
        height=shown[0].height,
        strip=_webp(_sheet(strip, len(strip)), lossless),
        num_strip=len(strip),
    )


def read_frames(path: Path, *, width: int = 0) -> np.ndarray:
    """Frames of a video file, at most 25 spread evenly over it, reduced as the page shows them.

    Args:
      path: .mp4.
      width: Of the clip in pixels, where known: a file that shows it larger by a whole factor is reduced to it.
    Returns:
      uint8 [n, 3, h, w], w <= 256.
    Raises:
      ValueError: it cannot be decoded. OSError: it cannot be read.
    """
    import imageio.v2 as imageio

    kept: list[np.ndarray] = []
    stride = 1
    with reading(path, "a video file"):
        with open(path, "rb"):  # what the system has to say of it
            pass
        with imageio.get_reader(str(path), format="FFMPEG") as reader:  # type: ignore[arg-type]
            decoded: Iterable[np.ndarray] = reader  # type: ignore[assignment]
            for k, frame in enumerate(decoded):
                if k % stride:
                    continue
                factor = frame.shape[1] // width if width > 0 and frame.shape[1] % width == 0 else 1
                pixels = frame[factor // 2 :: factor, factor // 2 :: factor, :3].transpose(2, 0, 1)
                kept.append(np.asarray(_shrink(pixels, _MAX_WIDTH)).transpose(2, 0, 1))
                if len(kept) > 8 * _MAX_FRAMES:  # a long one: every second is enough
                    kept, stride = kept[::2], 2 * stride
        if not kept:
            raise ValueError("no frame")
    return np.stack([kept[i] for i in spread(len(kept), _MAX_FRAMES)])


def spread(total: int, most: int) -> list[int]:
    """At most so many indices of `total`, evenly, the first and the last among them."""
    return sorted({round(i) for i in np.linspace(0, total - 1, min(total, most))})


def video_uri(path: Path) -> str:
    """An .mp4 file as a data URI."""
    return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _sheet(images: list[Image.Image], columns: int) -> Image.Image:
    width, height = images[0].size
    sheet = Image.new("RGB", (columns * width, -(-len(images) // columns) * height))
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * width, i // columns * height))
    return sheet


def _shrink(frame: np.ndarray, max_width: int) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(frame.transpose(1, 2, 0)))  # [H, W, 3]
    if image.width <= max_width:
        return image
    return image.resize((max_width, max(1, round(image.height * max_width / image.width))), Image.Resampling.BOX)


def _webp(image: Image.Image, lossless: bool) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", lossless=lossless, quality=72, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
