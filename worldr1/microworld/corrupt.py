"""3D scenes broken in graded ways, seen from the critic's camera: what MicroCritic learns to grade."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from worldr1.datatypes import GaussianScene
from worldr1.microworld.networks import pixel_gaussians, poses_to_viewmats
from worldr1.rewards.meta_view import draw_offset, meta_camera
from worldr1.rewards.reconstruct import render

KINDS = ("floaters", "holes", "billboard", "stretch", "jitter", "rough", "blur", "faint", "incoherent")
"""What `corrupt` can do."""


def corrupt(
    video: Tensor,
    depth: Tensor,
    confidence: Tensor,
    *,
    viewmats: Tensor,
    K: Tensor,
    kind: Tensor,
    severity: Tensor,
    generator: torch.Generator,
    splat_px: float,
    half_opacity_confidence: float,
) -> GaussianScene:
    """Lift clips to Gaussians as MicroGeo does, and break every scene in its own way.

    floaters: Gaussians pulled towards the camera along their rays. holes: balls of the scene taken out. billboard: depth
    flattened to its median. stretch: smooth errors of depth, other ones in each frame. jitter: cameras displaced against
    each other. rough: white noise on depth. blur: Gaussians too large. faint: too transparent. incoherent: frames that show
    another scene.

    Args:
      video: Frames that become Gaussians, shape [N, F, 3, H, W] in [0, 1].
      depth: z-depth, shape [N, F, H, W], scene units.
      confidence: Shape [N, F, H, W].
      viewmats: World-to-camera, shape [N, F, 4, 4].
      K: Intrinsics, shape [3, 3], pixels.
      kind: Index in KINDS, shape [N].
      severity: Shape [N] in [0, 1]; 0 breaks nothing.
      generator: Draws everything.
      splat_px: See `pixel_gaussians`.
      half_opacity_confidence: See `pixel_gaussians`.
    Returns:
      GaussianScene of N scenes with F H W Gaussians each.
    """
    num, frames = video.shape[:2]

    def much(name: str, *shape: int) -> Tensor:
        """severity where a scene has this kind, else 0; [N, 1, ...] with len(shape) further axes."""
        return (severity * (kind == KINDS.index(name))).view(num, *shape)

    log_depth = depth.log()
    middle = log_depth.flatten(1).median(1).values[:, None, None, None]
    log_depth = torch.lerp(log_depth, middle.expand_as(log_depth), much("billboard", 1, 1, 1))
    smooth = torch.nn.functional.interpolate(
        torch.randn(num, frames, 4, 4, generator=generator), size=depth.shape[-2:], mode="bilinear"
    )
    log_depth = log_depth + 0.6 * much("stretch", 1, 1, 1) * smooth
    log_depth = log_depth + 0.4 * much("rough", 1, 1, 1) * torch.randn(depth.shape, generator=generator)
    pulled = torch.rand(depth.shape, generator=generator) < 0.15 * much("floaters", 1, 1, 1)
    log_depth = torch.where(pulled, log_depth - 0.4 - torch.rand(depth.shape, generator=generator), log_depth)
    foreign = torch.rand(num, frames, 1, 1, 1, generator=generator) < much("incoherent", 1, 1, 1, 1)
    frames_seen = torch.where(foreign, video.roll(1, 0), video)
    shake = torch.randn(num, frames, 6, generator=generator) * torch.tensor([0.1] * 3 + [0.5] * 3)
    viewmats = poses_to_viewmats(shake * much("jitter", 1, 1))[:, 1:] @ viewmats
    scene = pixel_gaussians(
        frames_seen,
        log_depth.exp(),
        confidence,
        viewmats=viewmats,
        K=K,
        splat_px=splat_px,
        half_opacity_confidence=half_opacity_confidence,
    )
    scales = scene.scales * (1.0 + 4.0 * much("blur", 1, 1) + pulled.reshape(num, -1, 1))
    opacities = scene.opacities * (1.0 - 0.9 * much("faint", 1))
    centres = scene.means[:, torch.randint(scene.means.shape[1], (5,), generator=generator)]  # [N, 5, 3]
    radius = 0.35 * much("holes", 1, 1) * torch.linalg.inv(viewmats)[:, 0, :3, 3].sub(centres[:, 0]).norm(dim=-1).view(-1, 1, 1)
    gone = (torch.cdist(scene.means, centres) < radius).any(-1)  # [N, M]
    return replace(scene, scales=scales, opacities=torch.where(gone, torch.zeros_like(opacities), opacities))


def novel_views(scene: GaussianScene, viewmats: Tensor, depth: Tensor, *, K: Tensor, keys: range) -> Tensor:
    """Render every scene from the camera from which the critic looks at it.

    Args:
      scene: N scenes.
      viewmats: Path of the video's camera, shape [N, F, 4, 4].
      depth: z-depth of the video, shape [N, F, H, W].
      K: Intrinsics, shape [3, 3], pixels.
      keys: N integers that draw the offsets of the cameras.
    Returns:
      Images [N, 3, H, W] in [0, 1].
    """
    offsets = torch.tensor([draw_offset(0, key) for key in keys])
    median = depth.flatten(1).median(1).values
    cameras = meta_camera(viewmats, median_depth=median, azimuth=offsets[:, 0], elevation=offsets[:, 1])
    height, width = depth.shape[-2:]
    return render(scene, cameras[:, None], K.expand(len(depth), 1, 3, 3), height=height, width=width)[:, 0]
