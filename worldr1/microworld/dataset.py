"""The clips that the autoencoder and the base model learn from, rendered once and kept as bytes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worldr1.microworld.captions import Caption, all_captions
from worldr1.microworld.scene import HELD_OUT_SEEDS, TRAIN_SEEDS, render_clips

_CHUNK = 96


@dataclass(frozen=True)
class CaptionedClips:
    """Clips as bytes with their captions.

    Fields: video [N, F, 3, H, W] uint8; captions, N of them.
    """

    video: Tensor
    captions: Sequence[Caption]

    def batch(self, index: Tensor) -> Tensor:
        """The clips at `index` [M] as the autoencoder takes them: [M, 3, F, H, W], float32 in [-1, 1]."""
        return self.video[index].transpose(1, 2).to(torch.float32) / 127.5 - 1.0


def draw_captions(num: int, *, seed: int, dynamic_share: float) -> list[Caption]:
    """Draw captions uniformly, a share of them from the dynamic subset."""
    static, dynamic, rng = all_captions(), all_captions(dynamic=True), np.random.default_rng(seed)
    return [
        dynamic[rng.integers(len(dynamic))] if rng.random() < dynamic_share else static[rng.integers(len(static))]
        for _ in range(num)
    ]


def training_clips(
    cache: Path, num: int, *, seed: int = 0, dynamic_share: float = 0.15, log: Callable[[str], None] = print
) -> CaptionedClips:
    """Render the training set, or read it where an earlier run left it.

    Args:
      cache: File (.npy) that keeps the rendered bytes; written through a temporary file.
      num: Number of clips; scene i has seed TRAIN_SEEDS[i].
      seed: Of the captions drawn.
      dynamic_share: Share of clips with an event.
      log: Takes progress lines.
    Returns:
      CaptionedClips.
    """
    captions = draw_captions(num, seed=seed, dynamic_share=dynamic_share)
    if cache.is_file():
        video = np.load(cache)
        if len(video) == num:
            return CaptionedClips(torch.from_numpy(video), captions)
        log(f"{cache} holds {len(video)} clips, {num} are wanted: rendering again")
    parts = []
    for start in range(0, num, _CHUNK):
        part = captions[start : start + _CHUNK]
        parts.append(_bytes(render_clips(part, [TRAIN_SEEDS[start + i] for i in range(len(part))]).video))
        if start % (20 * _CHUNK) == 0:
            log(f"rendered {start + len(part)} of {num} clips")
    video = torch.cat(parts)
    temporary = cache.with_suffix(".partial.npy")
    np.save(temporary, video.numpy())
    os.replace(temporary, cache)
    return CaptionedClips(video, captions)


def held_out_clips(num: int, *, seed: int = 1, dynamic_share: float = 0.15) -> CaptionedClips:
    """Clips of scenes that nothing is trained on, for the figures of a build."""
    captions = draw_captions(num, seed=seed, dynamic_share=dynamic_share)
    return CaptionedClips(_bytes(render_clips(captions, list(HELD_OUT_SEEDS[:num])).video), captions)


def _bytes(video: Tensor) -> Tensor:
    return (video * 255.0).round().to(torch.uint8)
