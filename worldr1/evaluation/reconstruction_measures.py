"""How well the frames of a clip agree as views of one 3D scene: hold-out and self reconstruction, and MVCS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from worldr1.datatypes import GaussianScene
from worldr1_kernels import rasterize

MAX_PSNR_DB = 60.0
PIXELS_PER_CALL = 1 << 20
"""Pixels that are rendered at a time."""
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5


class _Splat(NamedTuple):
    """How wide a lifted pixel is, and what shows through it."""

    px: float  # standard deviation in pixels of the frame that it comes from
    blur_px2: float  # variance added on the screen; the evaluation's own: what a run sets for its rewards is another
    opacity: float = 0.95


_TOGETHER = _Splat(0.25, 0.1)  # the study's, unchanged since its figures were published
_LAYER = _Splat(0.3, 0.03)
_BEHIND = 0.1  # of the depth: a layer that lies so far behind the first counts 1/e
_SEEN = 0.5  # alpha from which a layer is there


def views(
    video: Tensor, depth: Tensor, viewmats: Tensor, Ks: Tensor, *, sources: Sequence[int], targets: Sequence[int]
) -> Tensor:
    """What some frames of a clip, lifted to 3D, show from the places of others.

        view = sum_s w_s c_s / sum_s w_s,   w_s = alpha_s exp(-((z_s - min_s z_s) / (.1 min_s z_s))^2)

    Each frame s is a layer of Gaussians of its own, rendered alone to colour c_s, depth z_s and alpha_s; the layers are
    then merged, those behind the nearest fading out. Splatted together instead, frames that disagree in depth score up
    to 3 dB above the truth: the nearest hides the rest, where true layers blur each other.

    Args:
      video: Shape [F, 3, H, W] in [0, 1].
      depth: z-depth, shape [F, H, W], scene units, > 0.
      viewmats: World-to-camera, shape [F, 4, 4]: where the frames are placed, and where the render looks from.
      Ks: Shape [F, 3, 3], pixels.
      sources: Indices of the S frames that are lifted.
      targets: Indices of the C frames in whose places the render stands.
    Returns:
      [C, 3, H, W] in [0, 1]. Where no layer is, the mean colour of the sources.
    Raises:
      RuntimeError: the rasterizer had no room for all Gaussians of a view, which is NaN then.
    """
    height, width = video.shape[-2:]
    sources = list(sources)
    frames, z, poses, lenses = (x[sources][:, None] for x in (video, depth, viewmats, Ks))
    scene = _lift(frames, z, poses, lenses, _LAYER)  # S scenes of one frame
    backdrop = video[sources].mean(dim=(0, 2, 3))  # [3]
    few = max(1, PIXELS_PER_CALL // (len(sources) * height * width))
    parts = []
    for start in range(0, len(targets), few):
        rows = list(targets[start : start + few])
        to_views, to_pixels = (x[rows].expand(len(sources), *x[rows].shape) for x in (viewmats, Ks))
        rendered, alpha = _render(scene, to_views, to_pixels, height=height, width=width, splat=_LAYER, mode="RGB+ED")
        color, z = rendered[..., :3] / alpha.clamp_min(1e-6), rendered[..., 3:]  # [S, c, H, W, 3 or 1]
        seen = alpha > _SEEN
        first = torch.where(seen, z, torch.inf).amin(0)  # [c, H, W, 1]
        behind = ((z - first) / (_BEHIND * first)).clamp_min(0.0)
        weight = torch.where(seen, alpha * torch.exp(-behind.square()), 0.0)
        merged = (weight * color).sum(0) / weight.sum(0).clamp_min(1e-6)
        parts.append(torch.where(seen.any(0), merged, backdrop).movedim(-1, 1).clamp(0.0, 1.0))  # [c, 3, H, W]
    return torch.cat(parts)


def held_out_psnr(video: Tensor, depth: Tensor, viewmats: Tensor, Ks: Tensor) -> Tensor:
    """How well the even frames, lifted to 3D at given poses and splatted together, predict the odd frames: the study's.

    The depth may come from a network that has seen all frames; the colours of the odd frames are only compared with.

    Args:
      video: Shape [N, F, 3, H, W] in [0, 1], F >= 3.
      depth: z-depth, shape [N, F, H, W], scene units.
      viewmats: World-to-camera, shape [N, F, 4, 4].
      Ks: Shape [N, F, 3, 3], pixels.
    Returns:
      [N] dB: PSNR of each odd frame over all its pixels, averaged over frames, at most MAX_PSNR_DB. Where there is no
      Gaussian, the render shows the mean colour of the even frames.
    Raises:
      RuntimeError: as `views`.
    """
    height, width = video.shape[-2:]
    scene = _lift(video[:, ::2], depth[:, ::2], viewmats[:, ::2], Ks[:, ::2], _TOGETHER)
    colors, alphas = _render(scene, viewmats[:, 1::2], Ks[:, 1::2], height=height, width=width, splat=_TOGETHER)
    backdrop = video[:, ::2].mean(dim=(1, 3, 4))[:, None, None, None]  # [N, 1, 1, 1, 3]
    render = (colors + (1.0 - alphas) * backdrop).movedim(-1, 2)  # [N, C, 3, H, W]
    return psnr(render.clamp(0.0, 1.0), video[:, 1::2]).mean(dim=1)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """-10 log10 of the mean squared difference of images [..., 3, H, W] in [0, 1]: [...] dB, at most MAX_PSNR_DB."""
    mse = (a - b).square().flatten(-3).mean(-1)
    return -10.0 * torch.log10(mse.clamp_min(10.0 ** (-MAX_PSNR_DB / 10.0)))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of images.

        SSIM = mean (2 m_a m_b + c1) (2 s_ab + c2) / ((m_a^2 + m_b^2 + c1) (s_a^2 + s_b^2 + c2)),  c = (.01^2, .03^2)

    Means and variances under a Gaussian window (11 x 11, sigma 1.5), of each colour, at every pixel; images are
    mirrored at their edges, as torchmetrics does.

    Args:
      a: Shape [N, 3, H, W] in [0, 1].
      b: Same shape.
    Returns:
      [N], at most 1. NaN for images of less than 6 px, which cannot be mirrored.
    Source: Wang et al., 2004, https://doi.org/10.1109/TIP.2003.819861.
    """
    margin = SSIM_WINDOW // 2
    if min(a.shape[-2:]) <= margin:
        return a.new_full((len(a),), torch.nan)
    a, b = (functional.pad(image, (margin,) * 4, mode="reflect") for image in (a, b))
    x = torch.arange(SSIM_WINDOW).to(a) - margin
    line = torch.exp(-0.5 * (x / SSIM_SIGMA).square())
    line = (line / line.sum()).expand(3, 1, 1, -1)

    def local_mean(image: Tensor) -> Tensor:
        return functional.conv2d(functional.conv2d(image, line, groups=3), line.mT, groups=3)

    mean_a, mean_b = local_mean(a), local_mean(b)
    square_a, square_b, product = local_mean(a * a), local_mean(b * b), local_mean(a * b)
    var_a, var_b, cov = square_a - mean_a**2, square_b - mean_b**2, product - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    similarity = similarity / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return similarity.flatten(1).mean(1)


def mvcs(depth: Tensor, viewmats: Tensor, Ks: Tensor) -> float:
    """Multi-view consistency of a clip's depth, over consecutive frames.

        MVCS = mean over pairs of exp(-mean over pixels of ((z - d_j) / m)^2)

    Every pixel of frame i is lifted by its depth, moved by E_j E_i^-1 and projected with K_j: z is its depth there, d_j
    the depth of frame j sampled bilinearly at that place. Pixels count that are in front of camera j and between the
    centres of its pixels; m is the median depth of the clip, so that scene units do not matter. What is hidden in j
    counts too: true depth with occlusions stays a little below 1.

    Args:
      depth: z-depth, shape [F, H, W], > 0.
      viewmats: World-to-camera, shape [F, 4, 4].
      Ks: Shape [F, 3, 3], pixels; pixel centres at .5.
    Returns:
      In (0, 1], 1 for consistent depth; NaN where no pixel of a frame is seen in the next, of all pairs.
    """
    frames, height, width = depth.shape
    scale = float(depth.median())
    v, u = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixel = torch.stack([u, v, torch.ones_like(u)]).flatten(1).to(depth)  # [3, P]
    scores = []
    for i in range(frames - 1):
        motion = viewmats[i + 1] @ torch.linalg.inv(viewmats[i])
        points = torch.linalg.inv(Ks[i]) @ pixel * depth[i].flatten()  # [3, P]
        points = motion[:3, :3] @ points + motion[:3, 3:]
        z = points[2]
        x, y = ((Ks[i + 1] @ points)[:2] / z.clamp_min(1e-6 * scale)).unbind(0)
        seen = (z > 0) & (x >= 0.5) & (x <= width - 0.5) & (y >= 0.5) & (y <= height - 0.5)
        if not bool(seen.any()):
            continue
        place = torch.stack([2.0 * x[seen] / width - 1.0, 2.0 * y[seen] / height - 1.0], dim=-1)
        there = functional.grid_sample(depth[None, None, i + 1], place[None, None], align_corners=False)[0, 0, 0]
        scores.append(math.exp(-float(((z[seen] - there) / scale).square().mean())))
    return sum(scores) / len(scores) if scores else math.nan


def _render(
    scene: GaussianScene, viewmats: Tensor, Ks: Tensor, *, height: int, width: int, splat: _Splat, mode: str = "RGB"
) -> tuple[Tensor, Tensor]:
    """Colours [N, C, H, W, X] and alphas [N, C, H, W, 1]; RuntimeError where a view had no room."""
    colors, alphas, meta = rasterize(
        scene.means,
        scene.quats,
        scene.scales,
        scene.opacities,
        scene.colors,
        viewmats,
        Ks,
        width,
        height,
        eps2d=splat.blur_px2,
        render_mode=mode,
    )
    if bool((meta["num_overflow"] > 0).any()):  # a NaN would be taken for a figure that the prompt does not define
        raise RuntimeError(
            "evaluation: the rasterizer must have room for the (tile, Gaussian) pairs of every view, had none for "
            "some; judge fewer or smaller frames"
        )
    return colors, alphas


def _lift(video: Tensor, depth: Tensor, viewmats: Tensor, Ks: Tensor, splat: _Splat) -> GaussianScene:
    """One round Gaussian a pixel, splat.px wide as seen from its own camera. Arguments as in `held_out_psnr`."""
    num, frames, _, height, width = video.shape
    v, u = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixel = torch.stack([u, v, torch.ones_like(u)]).flatten(1).to(video)  # [3, P]
    z = depth.flatten(2)[:, :, None]  # [N, F, 1, P]
    points = torch.linalg.inv(Ks) @ pixel * z  # [N, F, 3, P]
    to_world = torch.linalg.inv(viewmats)
    points = to_world[..., :3, :3] @ points + to_world[..., :3, 3:]
    scale = splat.px * z.movedim(2, 3) / Ks[..., 0, 0][..., None, None]  # [N, F, P, 1]
    total = frames * height * width
    means = points.movedim(2, 3).reshape(num, total, 3)
    quats = torch.zeros(num, total, 4).to(means)
    quats[..., 0] = 1.0
    return GaussianScene(
        means=means,
        quats=quats,
        scales=scale.reshape(num, total, 1).expand(num, total, 3).contiguous(),
        opacities=torch.full_like(means[..., 0], splat.opacity),
        colors=video.flatten(3).movedim(2, 3).reshape(num, total, 3),
    )
