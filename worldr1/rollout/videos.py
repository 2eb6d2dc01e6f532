"""Latents -> videos: decoded a few at a time, kept as bytes."""

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


class ByteVideos:
    """The videos of a rank as bytes, round(255 x), in one buffer: a quarter of float32, and no copy at the end.

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
        assert self._video is not None, "ByteVideos: nothing was decoded"
        return self._video

    def decode(self, policy: VideoPolicy, latents: Tensor, *, first: int) -> Tensor:
        """Decode `latents` [n, C, f, h, w] into rows first .. first + n - 1.

        Returns:
          [n] bool on the policy's device: the video was finite, for a byte cannot say so. Another one holds zeros where
          it was not.
        """
        finite = torch.ones(len(latents), dtype=torch.bool, device=policy.device)
        for rows, part in decoded(policy, latents):
            if self._video is None:
                pinned = part.device.type == "cuda"
                self._video = torch.empty(self._num, *part.shape[1:], dtype=torch.uint8, pin_memory=pinned)
            finite[rows] = torch.isfinite(part).flatten(1).all(1)
            part = torch.nan_to_num_(255.0 * part, nan=0.0).round_().clamp_(0, 255)
            self._video[first + rows.start : first + rows.stop] = part.to(torch.uint8)
        return finite
