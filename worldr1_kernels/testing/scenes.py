"""Synthetic Gaussian scenes for tests and benchmarks."""

from typing import NamedTuple

import torch
from torch import Tensor

from worldr1_kernels.testing.inputs import generator


class GaussianScene(NamedTuple):
    """Positional arguments of `rasterize` up to Ks."""

    means: Tensor  # [N, 3]
    quats: Tensor  # [N, 4]
    scales: Tensor  # [N, 3]
    opacities: Tensor  # [N]
    colors: Tensor  # [N, D], or harmonics [N, K, 3]
    viewmats: Tensor  # [C, 4, 4]
    Ks: Tensor  # [C, 3, 3]


def gaussian_scene(
    num_gaussians: int,
    width: int,
    height: int,
    *,
    num_views: int = 1,
    num_channels: int = 3,
    sigma_px: tuple[float, float] = (0.5, 3.0),
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> GaussianScene:
    """Gaussians spread over the view frustum (10 % beyond its sides), depth 2 to 6, random orientation.

    Args:
      num_gaussians: N.
      width: Image width in pixels; the focal length is as long.
      height: Image height in pixels.
      num_views: Cameras on a short horizontal baseline, looking along +z.
      num_channels: D, features in [0, 1].
      sigma_px: Range of the three standard deviations, log-uniform, in pixels at the Gaussian's depth.
      seed: Seed.
      dtype: The values are float32 ones whatever the dtype, so that a float64 reference sees the same scene.
    Returns:
      GaussianScene.
    """
    g = generator(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g, dtype=torch.float64)

    focal = float(width)
    depth = 2 + 4 * uniform(num_gaussians)
    x = (uniform(num_gaussians) - 0.5) * 1.1 * width / focal * depth
    y = (uniform(num_gaussians) - 0.5) * 1.1 * height / focal * depth
    low, high = sigma_px
    sigma = low * (high / low) ** uniform(num_gaussians, 3)
    quats = torch.randn(num_gaussians, 4, generator=g, dtype=torch.float64)
    viewmats = torch.eye(4, dtype=torch.float64).repeat(num_views, 1, 1)
    viewmats[:, 0, 3] = torch.linspace(-0.1, 0.1, num_views) if num_views > 1 else 0.0
    intrinsics = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float64)
    tensors = (
        torch.stack([x, y, depth], -1),
        quats,
        sigma * (depth / focal)[:, None],
        0.05 + 0.9 * uniform(num_gaussians),
        uniform(num_gaussians, num_channels),
        viewmats,
        intrinsics.repeat(num_views, 1, 1),
    )
    return GaussianScene(*(t.float().to(dtype) for t in tensors))


def pixel_aligned_scene(
    num_frames: int,
    width: int,
    height: int,
    *,
    num_views: int = 1,
    sh_degree: int = 2,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> GaussianScene:
    """What a model that predicts one Gaussian a pixel gives: frames of a bumpy surface, small splats, harmonics.

    Every frame's surface is the same relief before its own camera, with 1 % of noise in depth. The cameras stand side
    by side, so the surfaces cross each other within the relief, as those of a real model's frames do.

    Args:
      num_frames: Frames that are lifted; N = num_frames x width x height.
      width: Pixels of a frame, and of the views; the focal length is as long.
      height: Pixels.
      num_views: Cameras along the same baseline, each turned a little.
      sh_degree: Degree of the colours, [N, (sh_degree + 1)^2, 3] in place of [N, D].
      seed: Seed.
      device: Where the tensors are made; the values depend on it.
    Returns:
      GaussianScene in float32.
    """
    g = torch.Generator(device).manual_seed(seed)
    num, focal = num_frames * width * height, float(width)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g, device=device)

    y, x = torch.meshgrid(
        torch.arange(height, device=device) + 0.5, torch.arange(width, device=device) + 0.5, indexing="ij"
    )
    ray = torch.stack([(x - width / 2) / focal, (y - height / 2) / focal, torch.ones_like(x)], -1).reshape(1, -1, 3)
    bumps = (
        4.0 + 0.8 * torch.sin(9.0 * ray[..., 0]) * torch.cos(7.0 * ray[..., 1]) + 0.3 * torch.sin(31.0 * ray[..., 0])
    )
    depth = bumps * (0.99 + 0.02 * uniform(num_frames, width * height))  # [F, P]
    stand = torch.linspace(-0.2, 0.2, num_frames, device=device) if num_frames > 1 else torch.zeros(1, device=device)
    means = ray * depth[..., None]
    means[..., 0] += stand[:, None]
    sigma = 0.3 * 3.0 ** uniform(num, 3)  # pixels, .3 to .9
    colors = 0.1 * torch.randn(num, (sh_degree + 1) ** 2, 3, generator=g, device=device)
    colors[:, 0] += 3.0 * (uniform(num, 3) - 0.5)

    along = torch.linspace(-1.0, 1.0, num_views, device=device) if num_views > 1 else torch.zeros(1, device=device)
    turn = 0.1 * along
    viewmats = torch.eye(4, device=device).repeat(num_views, 1, 1)
    viewmats[:, 0, 0] = viewmats[:, 2, 2] = turn.cos()
    viewmats[:, 0, 2], viewmats[:, 2, 0] = turn.sin(), -turn.sin()
    viewmats[:, 0, 3] = -0.3 * along
    Ks = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], device=device)
    return GaussianScene(
        means=means.reshape(num, 3).contiguous(),
        quats=torch.randn(num, 4, generator=g, device=device),
        scales=sigma * (depth.reshape(num, 1) / focal),
        opacities=0.3 + 0.69 * uniform(num),
        colors=colors,
        viewmats=viewmats,
        Ks=Ks.repeat(num_views, 1, 1),
    )
