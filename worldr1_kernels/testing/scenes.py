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
    colors: Tensor  # [N, D]
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
