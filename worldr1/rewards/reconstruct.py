"""Video -> 3D Gaussians, and Gaussians -> pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from worldr1.datatypes import GaussianScene
from worldr1_kernels import rasterize

EPS2D_PX2 = 0.1
"""Variance added to a Gaussian on the screen. The usual 0.3 blurs pixel-sized Gaussians so much that a soft frame may
score above a sharp one: in the micro world the truth, rendered from its own depth, loses 5 to 7 dB."""

MAX_GAUSSIANS_PER_PIXEL = 5.0
"""A scene keeps at most this many Gaussians for each pixel of one frame; more are thinned at random positions."""


def thin(scene: GaussianScene, *, max_gaussians: int) -> GaussianScene:
    """At most `max_gaussians` of a scene's Gaussians, the same ones whatever the batch, grown to cover for the others.

    Args:
      scene: N scenes of M Gaussians.
      max_gaussians: K >= 1.
    Returns:
      `scene` itself where M <= K; else K Gaussians drawn once for this M, with scales times sqrt(M / K).
    """
    num = scene.means.shape[1]
    if num <= max_gaussians:
        return scene
    # Random and not every k-th: a stride beats against the pixel rows that the Gaussians come from.
    generator = torch.Generator().manual_seed(num)
    keep = torch.randperm(num, generator=generator)[:max_gaussians].sort().values.to(scene.means.device)
    growth = (num / max_gaussians) ** 0.5
    return GaussianScene(
        means=scene.means[:, keep],
        quats=scene.quats[:, keep],
        scales=scene.scales[:, keep] * growth,
        opacities=scene.opacities[:, keep],
        colors=scene.colors[:, keep],
    )


def render(scene: GaussianScene, viewmats: Tensor, Ks: Tensor, *, height: int, width: int) -> Tensor:
    """Pictures of N scenes from C cameras each, in one call of the rasterizer.

    Args:
      scene: N scenes.
      viewmats: World-to-camera, shape [N, C, 4, 4].
      Ks: Intrinsics in pixels, shape [N, C, 3, 3].
      height: H in pixels.
      width: W in pixels.
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
        eps2d=EPS2D_PX2,
    )  # [N, C, H, W, 3]
    # Without numbers in it: the samples of a run that fail alike are to be counted as one reason.
    if bool((meta["num_overflow"] > 0).any()):
        raise RuntimeError(
            "render: the rasterizer must have room for the (tile, Gaussian) pairs of every view, had no room for some; "
            "the Gaussians are too wide or too many"
        )
    return colors.movedim(-1, 2).clamp(0.0, 1.0)
