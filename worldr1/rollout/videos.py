"""Latents -> videos: decoded a few at a time, in bytes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from worldr1.models.base import VideoPolicy

CELLS_PER_DECODE = 1 << 14
"""Latent cells (f h w) that go through the decoder in one call, and never less than one video: 85 of 9x32x32 pixels,
one of 81x480x832. Wan's decoder takes about 65 kB a cell: 1.1 GB for small videos together, 8.2 GB for that one."""


def videos_per_call(latent_shape: Sequence[int]) -> int:
    """How many latents (C, f, h, w) are decoded at a time."""
    return max(1, CELLS_PER_DECODE // max(1, math.prod(latent_shape[1:])))


def decoded(policy: VideoPolicy, latents: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of `latents` [N, C, f, h, w] and their videos [rows, F, 3, H, W], float32, part by part."""
    size = videos_per_call(latents.shape[1:])
    for start in range(0, len(latents), size):
        rows = slice(start, min(start + size, len(latents)))
        yield rows, policy.decode(latents[rows])


def byte_videos(policy: VideoPolicy, latents: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """As `decoded`, in bytes: rows, their videos round(255 x) as uint8, and [rows] bool: the video was finite.

    A byte cannot say so, hence the third; another one holds zeros where it was not. All on the policy's device.
    """
    for rows, part in decoded(policy, latents):
        finite = torch.isfinite(part).flatten(1).all(1)
        part = torch.nan_to_num_(255.0 * part, nan=0.0).round_().clamp_(0, 255)
        yield rows, part.to(torch.uint8), finite


class ByteVideos:
    """The videos of a rank in one buffer of bytes: a quarter of float32, and no copy at the end.

    Where the policy is on a GPU the buffer is the host's, pinned: 97 MB a video of 81x480x832. It is made when the
    first video shows its size.

    Args:
      num: Of videos, N.
    """

    def __init__(self, num: int) -> None:
        self._num = num
        self._video: Tensor | None = None

    @property
    def video(self) -> Tensor:
        """[N, F, 3, H, W], uint8."""
        assert self._video is not None, "ByteVideos: nothing was kept"
        return self._video

    def keep(self, rows: slice, videos: Tensor, finite: Tensor | None = None) -> None:
        """Put videos [rows, F, 3, H, W], uint8, in their place; `finite` is for others who take videos."""
        if self._video is None:
            pinned = videos.device.type == "cuda"
            self._video = torch.empty(self._num, *videos.shape[1:], dtype=torch.uint8, pin_memory=pinned)
        self._video[rows] = videos
