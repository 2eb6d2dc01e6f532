"""3D scenes broken in graded ways, seen from the critic's camera: what MicroCritic learns to grade."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from worldr1.config import RewardConfig
from worldr1.datatypes import GaussianScene
from worldr1.microworld.judge_data import JudgeClips, wear
from worldr1.rewards.judges.micro_geo import MicroGeo, pinhole, pixel_gaussians, poses_to_viewmats
from worldr1.rewards.meta_view import draw_offset, meta_camera
from worldr1.rewards.reconstruct import render

KINDS = ("floaters", "holes", "billboard", "stretch", "jitter", "rough", "blur", "faint", "incoherent")
"""What `corrupt` can do."""

_CHUNK = 50


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

    floaters: Gaussians pulled towards the camera along their rays. holes: balls of the scene taken out. billboard:
    depth flattened to its median. stretch: smooth errors of depth, other ones in each frame. jitter: cameras displaced
    against each other. rough: white noise on depth. blur: Gaussians too large. faint: too transparent. incoherent:
    frames that show another scene.

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
    size = middle.exp().view(-1, 1, 1)  # the balls are as large as the scene is deep
    radius = 0.35 * much("holes", 1, 1) * size
    gone = (torch.cdist(scene.means, centres) < radius).any(-1)  # [N, M]
    return replace(scene, scales=scales, opacities=torch.where(gone, torch.zeros_like(opacities), opacities))


def critic_views(
    pool: JudgeClips, geo: MicroGeo, *, num_rounds: int, seed: int, share_whole: float = 0.25
) -> tuple[Tensor, Tensor]:
    """Novel views of broken scenes, with their grades.

    Args:
      pool: N clips.
      geo: Recovers depth and poses of every second clip, worn; the others keep the true ones.
      num_rounds: R, versions of every clip.
      seed: Draws everything.
      share_whole: Share of the views with nothing broken.
    Returns:
      images [R N, 3, H, W] in [0, 1]; grades [R N], 9 (whole) ... 0.
    """
    generator = torch.Generator().manual_seed(seed)
    images, grades = [], []
    for start in range(0, num_rounds * len(pool), _CHUNK):
        rows = torch.arange(start, min(start + _CHUNK, num_rounds * len(pool)))
        kind = torch.randint(len(KINDS), rows.shape, generator=generator)
        severity = 0.05 + 0.95 * torch.rand(rows.shape, generator=generator)
        severity = torch.where(torch.rand(rows.shape, generator=generator) < share_whole, 0.0, severity)
        clips = pool.batch(rows % len(pool))
        images.append(broken_views(clips, geo, kind=kind, severity=severity, generator=generator, first_key=start))
        grades.append(9.0 * (1.0 - severity))
    return torch.cat(images), torch.cat(grades)


@torch.no_grad()
def broken_views(
    clips: JudgeClips, geo: MicroGeo, *, kind: Tensor, severity: Tensor, generator: torch.Generator, first_key: int = 0
) -> Tensor:
    """Break N scenes and render each from the camera from which the critic looks at it.

    Args:
      clips: N clips; those of odd index are worn, and have depth and poses recovered by `geo`.
      geo: The reconstructor; its settings make the Gaussians.
      kind: Index in KINDS, shape [N].
      severity: Shape [N] in [0, 1].
      generator: Draws everything but the cameras.
      first_key: The cameras are those of groups first_key, first_key + 1, ...
    Returns:
      Images [N, 3, H, W] in [0, 1].
    """
    num, keys = len(clips), geo.key_frames
    recovered = (torch.arange(num) % 2 == 1).view(-1, 1, 1, 1)
    video = torch.where(recovered[..., None], wear(clips.video, generator, strength=0.5), clips.video)
    found = geo.infer(video)
    depth = torch.where(recovered, found.depth, clips.depth)
    viewmats = torch.where(recovered, found.viewmats, clips.viewmats)
    K = pinhole(geo.size, geo.focal_ratio)
    scene = corrupt(
        video[:, keys],
        depth[:, keys],
        found.confidence[:, keys],
        viewmats=viewmats[:, keys],
        K=K,
        kind=kind,
        severity=severity,
        generator=generator,
        splat_px=geo.splat_px,
        half_opacity_confidence=geo.half_opacity_confidence,
    )
    offsets = torch.tensor([draw_offset(0, first_key + i) for i in range(num)])
    median = depth.flatten(1).median(1).values
    cameras = meta_camera(viewmats, median_depth=median, azimuth=offsets[:, 0], elevation=offsets[:, 1])
    Ks = K.expand(num, 1, 3, 3)
    return render(scene, cameras[:, None], Ks, height=geo.size, width=geo.size, eps2d=RewardConfig().screen_blur)[:, 0]
