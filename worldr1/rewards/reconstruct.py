"""Video -> 3D Gaussians, and Gaussians -> pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from worldr1.datatypes import GaussianScene
from worldr1.rewards.base import evenly
from worldr1_kernels import rasterize

MAX_GAUSSIANS_PER_PIXEL = 5.0
"""A scene keeps at most this many Gaussians for each pixel of one frame; of more, whole frames are left out."""


def thin(scene: GaussianScene, *, max_gaussians: int, num_frames: int) -> GaussianScene:
    """At most `max_gaussians` of a scene's Gaussians, the same ones whatever the batch.

    Their scales stay: Gaussians grown to cover for the others pay for softness (docs/rewards.md has the figures).

    Args:
      scene: N scenes of M Gaussians.
      max_gaussians: K >= 1.
      num_frames: F, of the video that they come from.
    Returns:
      `scene` itself where M <= K. Where M is a multiple of F they are taken as M / F for each frame, frame by frame:
      all those of as many frames as K allows, evenly over the clip. Else, or where K allows no frame, one at a
      pseudo-random place of each of K equal stretches.
    """
    num = scene.means.shape[1]
    if num <= max_gaussians:
        return scene
    device = scene.means.device
    per_frame = num // num_frames
    if num % num_frames == 0 and per_frame <= max_gaussians:
        frames = torch.tensor(evenly(num_frames, max_gaussians // per_frame), device=device)
        keep = (frames[:, None] * per_frame + torch.arange(per_frame, device=device)).flatten()
    else:
        keep = _one_of_each_stretch(num, max_gaussians, device=device)
    return GaussianScene(
        means=scene.means[:, keep],
        quats=scene.quats[:, keep],
        scales=scene.scales[:, keep],
        opacities=scene.opacities[:, keep],
        colors=scene.colors[:, keep],
    )


def _one_of_each_stretch(num: int, k: int, *, device: torch.device) -> Tensor:
    """K rising indices below M > K, each at a hashed place of its stretch [i M / K, (i + 1) M / K).

    Hashed and not at the start of each: a fixed stride beats against the pixel rows that Gaussians come from. Counted
    and not permuted: no draw of M numbers, and the same on every device.
    """
    i = torch.arange(k, device=device)  # int64: (i + 1) M stays below 2^63
    start, end = i * num // k, (i + 1) * num // k
    x = i * 2654435761 & 0xFFFFFFFF
    for _ in range(2):  # a 32-bit finalizer: every bit of i moves every bit of x
        x = ((x ^ (x >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return start + (x ^ (x >> 16)) % (end - start)


def render(scene: GaussianScene, viewmats: Tensor, Ks: Tensor, *, height: int, width: int, eps2d: float) -> Tensor:
    """Pictures of N scenes from C cameras each, in one call of the rasterizer.

    Args:
      scene: N scenes.
      viewmats: World-to-camera, shape [N, C, 4, 4].
      Ks: Intrinsics in pixels, shape [N, C, 3, 3].
      height: H in pixels.
      width: W in pixels.
      eps2d: Variance added to a Gaussian on the screen, pixels^2 (RewardConfig.screen_blur). The usual 0.3 blurs
        pixel-sized Gaussians so much that a soft frame may score above a sharp one: in the micro world the truth,
        rendered from its own depth, loses 5 to 7 dB.
    Returns:
      [N, C, 3, H, W] in [0, 1], black where nothing is.
    Raises:
      RuntimeError: the rasterizer had no room for all Gaussians of a view, which is NaN then.
    """
    colors, _, meta = rasterize(
        scene.means,
        scene.quats,
        scene.scales,
        scene.opacities,
        scene.colors,
        viewmats,
        Ks,
        width,
        height,
        eps2d=eps2d,
    )  # [N, C, H, W, 3]
    # Without numbers in it: the samples of a run that fail alike are to be counted as one reason.
    if bool((meta["num_overflow"] > 0).any()):
        raise RuntimeError(
            "render: the rasterizer must have room for the (tile, Gaussian) pairs of every view, had no room for some; "
            "the Gaussians are too wide or too many"
        )
    return colors.movedim(-1, 2).clamp(0.0, 1.0)
