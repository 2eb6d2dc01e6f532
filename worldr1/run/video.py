"""Clips side by side, and clips as files that are whole or not there."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from worldr1.run.files import reading, whole

SMALLEST_SIDE = 256
"""Videos below this height are enlarged by a whole factor, so that players show pixels and not a blur."""
MAX_PIXELS = 1 << 28
"""Pixels of all frames of a video that is read: 672 frames of 480x832, .8 GB as bytes."""
_GAP_PX = 4


def to_bytes(video: Tensor) -> Tensor:
    """Video in [0, 1] -> uint8 on the CPU, same shape; NaN becomes mid-grey. A uint8 video is moved only."""
    if video.dtype == torch.uint8:
        return video.cpu()
    return (torch.nan_to_num(video.float(), nan=0.5).clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def beside(videos: Sequence[Tensor]) -> Tensor:
    """Videos [F, 3, H, W] of one size next to each other, a white line between them: [F, 3, H, sum of W + gaps]."""
    return _joined(videos, dim=-1)


def grid(videos: Sequence[Tensor], *, columns: int) -> Tensor:
    """Videos [F, 3, H, W] of one size in rows of `columns`, white lines between them; the last row is filled up with
    white: [F, 3, rows H + gaps, columns W + gaps]."""
    blank = torch.full_like(videos[0], _white(videos[0]))
    cells = [*videos, *[blank] * (-len(videos) % columns)]
    return _joined([beside(cells[k : k + columns]) for k in range(0, len(cells), columns)], dim=-2)


def shrunk(video: Tensor, *, max_width: int) -> Tensor:
    """A uint8 video [F, 3, H, W] reduced by the smallest whole factor that makes it no wider than max_width (pixels):
    [F, 3, H // factor, W // factor], means over squares."""
    factor = -(-video.shape[-1] // max_width)
    if factor == 1:
        return video
    return torch.stack([torch.nn.functional.avg_pool2d(f.float(), factor).round().to(torch.uint8) for f in video])


def write_video(video: Tensor, path: Path, *, fps: int, upscale: int = 0) -> None:
    """Write a video file, first under another name: a file that cannot be written whole is not left behind.

    Args:
      video: [F, 3, H, W] in [0, 1], or uint8.
      path: .mp4 (H.264) or .gif.
      fps: Frames per second.
      upscale: Whole factor of enlargement, nearest pixel; 0: the smallest that gives SMALLEST_SIDE rows.
    Raises:
      ValueError: another shape, suffix or fps < 1.
      OSError: the file cannot be written, or does not hold all frames: the encoder says nothing of a full disk.
    """
    if video.ndim != 4 or video.shape[1] != 3:
        raise ValueError(f"write_video: video must have shape [F, 3, H, W], got {list(video.shape)}")
    if fps < 1:
        raise ValueError(f"write_video: fps must be >= 1, got {fps}")
    suffix = path.suffix.lower()
    if suffix not in (".gif", ".mp4"):
        raise ValueError(f"write_video: path must end in .mp4 or .gif, got {path}")
    factor = upscale or max(1, -(-SMALLEST_SIDE // video.shape[2]))
    with whole(path) as unfinished:
        try:
            (_write_gif if suffix == ".gif" else _write_mp4)(to_bytes(video), unfinished, fps=fps, factor=factor)
        except Exception as error:  # an encoder that died raises what its pipe, or its format, makes of it
            if isinstance(error, OSError) and error.errno not in (None, errno.EPIPE):
                raise
            raise OSError(f"{path} cannot be written ({_last_line(error)}); is the disk full?") from error
        _check_whole(unfinished, num_frames=len(video))


def _write_gif(video: Tensor, path: Path, *, fps: int, factor: int) -> None:
    import imageio.v2 as imageio

    frames = [_enlarged(frame, factor) for frame in video]
    imageio.mimwrite(str(path), frames, format="GIF", duration=1000 / fps, loop=0)  # type: ignore[call-overload]


def _write_mp4(video: Tensor, path: Path, *, fps: int, factor: int) -> None:
    import imageio.v2 as imageio

    writer = imageio.get_writer(str(path), format="FFMPEG", fps=fps, codec="libx264", quality=9, macro_block_size=1)
    with writer:
        for frame in video:  # one at a time: an enlarged copy of all is large
            pixels = _enlarged(frame, factor)
            height, width = (n - n % 2 for n in pixels.shape[:2])  # subsampled colour takes even sizes only
            writer.append_data(pixels[:height, :width].copy())


def _enlarged(frame: Tensor, factor: int):
    """[3, H, W] uint8 -> array [factor H, factor W, 3]."""
    return frame.permute(1, 2, 0).repeat_interleave(factor, 0).repeat_interleave(factor, 1).numpy()


def read_video(path: Path) -> tuple[Tensor, float]:
    """The frames of an .mp4 file and how many come a second.

    Returns:
      uint8 [F, 3, H, W]; fps.
    Raises:
      ValueError: it cannot be decoded, holds no frame, or more than MAX_PIXELS of them.
      OSError: it cannot be read.
    """
    import imageio.v2 as imageio

    with reading(path, "a video file"):
        with open(path, "rb"):
            pass
        frames: list[Tensor] = []
        with imageio.get_reader(str(path), format="FFMPEG") as reader:  # type: ignore[arg-type]
            fps = float(reader.get_meta_data()["fps"])  # type: ignore[attr-defined]
            for frame in reader:  # type: ignore[attr-defined]
                frames.append(torch.from_numpy(frame[..., :3].copy()).movedim(-1, 0))
                if len(frames) * frames[0][0].numel() > MAX_PIXELS:
                    raise ValueError(f"more than {MAX_PIXELS} pixels; cut or reduce it")
        if not frames:
            raise ValueError("no frame")
        return torch.stack(frames), fps if fps > 0 else 1.0


def num_frames_of(path: Path) -> int:
    """Frames of an .mp4 file, as its decoder counts them.

    Raises:
      ValueError: it cannot be decoded.
      OSError: it cannot be read.
    """
    import imageio.v2 as imageio

    with reading(path, "a video file"):
        with open(path, "rb"):
            pass
        with imageio.get_reader(str(path), format="FFMPEG") as reader:  # type: ignore[arg-type]
            return reader.count_frames()  # type: ignore[attr-defined]


def _last_line(error: Exception) -> str:
    """The encoder's last words: its log comes with the exception, a screen of it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _check_whole(path: Path, *, num_frames: int) -> None:
    """OSError unless the file holds so many frames. A GIF merges equal frames, so there its end mark is looked for."""
    size = path.stat().st_size if path.exists() else 0
    found = 0
    if path.suffix.lower() == ".gif":
        found = num_frames if size and path.read_bytes()[-1:] == b";" else 0
    elif size:
        try:
            found = num_frames_of(path)
        except ValueError as error:
            raise OSError(f"{error}; is the disk full?") from error
    if found != num_frames:
        raise OSError(f"{path} must hold {num_frames} frames, got {found} ({size} bytes); is the disk full?")


def _joined(videos: Sequence[Tensor], *, dim: int) -> Tensor:
    parts = [videos[0]]
    for video in videos[1:]:
        parts += [torch.full_like(video.narrow(dim, 0, 1), _white(video)).repeat_interleave(_GAP_PX, dim), video]
    return torch.cat(parts, dim=dim)


def _white(video: Tensor) -> int:
    return 255 if video.dtype == torch.uint8 else 1
