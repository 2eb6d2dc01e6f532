"""S_recon: do the Gaussians, rendered where the video's own cameras stand, look like the video?

It is safe only beside S_traj: the recovered cameras of a frozen video are trivially consistent, so that S_recon alone
pays freezing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldr1.rewards.base import PerceptualDistance

PIXELS_PER_DISTANCE = 1 << 21
"""Pixels of frames that go through the perceptual distance in one call: 5 frames of 480x832, every clip of the micro
world. A network like LPIPS keeps some hundred numbers of each pixel: all 81 frames at once would take tens of GB."""


def fidelity_term(renders: Tensor, video: Tensor, perceptual: PerceptualDistance) -> Tensor:
    """S_recon = clip(1 - mean_t D(render_t, frame_t), 0, 1), frame t against frame t.

    Args:
      renders: Gaussians seen from the recovered cameras, shape [N, F, 3, H, W] in [0, 1].
      video: What they were made from, shape [N, F, 3, H, W] in [0, 1].
      perceptual: Distance of two images.
    Returns:
      [N] in [0, 1].
    """
    num, frames, _, height, width = video.shape
    size = max(1, PIXELS_PER_DISTANCE // (height * width))
    pairs = zip(renders.flatten(0, 1).split(size), video.flatten(0, 1).split(size), strict=True)
    distance = torch.cat([perceptual.distance(a, b).float() for a, b in pairs])  # [N F]
    return (1.0 - distance.reshape(num, frames).mean(dim=1)).clamp(0.0, 1.0)
