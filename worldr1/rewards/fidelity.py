"""S_recon: do the Gaussians, rendered where the video's own cameras stand, look like the video?

It is safe only beside S_traj: the recovered cameras of a frozen video are trivially consistent, so that S_recon alone
pays freezing.
"""

from __future__ import annotations

from torch import Tensor

from worldr1.rewards.base import PerceptualDistance


def fidelity_term(renders: Tensor, video: Tensor, perceptual: PerceptualDistance) -> Tensor:
    """S_recon = clip(1 - mean_t D(render_t, frame_t), 0, 1), frame t against frame t.

    Args:
      renders: Gaussians seen from the recovered cameras, shape [N, F, 3, H, W] in [0, 1].
      video: What they were made from, shape [N, F, 3, H, W] in [0, 1].
      perceptual: Distance of two images.
    Returns:
      [N] in [0, 1].
    """
    num, frames = video.shape[:2]
    distance = perceptual.distance(renders.flatten(0, 1), video.flatten(0, 1)).float()  # [N F]
    return (1.0 - distance.reshape(num, frames).mean(dim=1)).clamp(0.0, 1.0)
