"""The peers that the rasterizer is compared with, for speed here and for values in the tests."""

from types import ModuleType

import torch
from torch import Tensor

ALPHA_THRESHOLD = 1.0 / 255.0
TRANSMITTANCE_STOP = 1e-4
PIXELS_AT_ONCE = 4096


def _indices_in_range(
    means2d: Tensor, conics: Tensor, opacities: Tensor, width: int, height: int, order: Tensor, max_alpha: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(gaussian, pixel, alpha) of every pair that blends, by pixel, then front to back. Dense, in blocks of pixels."""
    ys, xs = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = torch.stack([xs, ys], -1).reshape(-1, 1, 2).to(means2d.dtype)
    parts = []
    for first in range(0, len(pixels), PIXELS_AT_ONCE):
        d = pixels[first : first + PIXELS_AT_ONCE] - means2d[order]  # [P, n, 2]
        c = conics[order]
        sigma = 0.5 * (c[:, 0] * d[..., 0] ** 2 + c[:, 2] * d[..., 1] ** 2) + c[:, 1] * d[..., 0] * d[..., 1]
        alpha = (opacities[order] * torch.exp(-sigma)).clamp_max(max_alpha)
        used = (sigma >= 0) & (alpha >= ALPHA_THRESHOLD)
        used &= torch.cumprod(torch.where(used, 1 - alpha, 1.0), 1) > TRANSMITTANCE_STOP
        pixel, position = used.nonzero().unbind(1)
        parts.append((order[position], pixel + first, alpha[pixel, position]))
    gaussian, pixel, alpha = (torch.cat(part) for part in zip(*parts, strict=True))
    return gaussian, pixel, alpha


def gsplat_torch(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    colors: Tensor,  # [N, D] or [N, K, 3]
    viewmat: Tensor,  # [4, 4]
    K: Tensor,  # [3, 3]
    width: int,
    height: int,
    *,
    sh_degree: int | None = None,
    antialiased: bool = False,
    max_alpha: float = 0.999,
) -> tuple[Tensor, Tensor]:
    """gsplat 1.5.3's own torch reference, one view: (colours and depth [H, W, D + 1], alphas [H, W, 1]).

    Projection, covariances and spherical harmonics are gsplat's functions, untouched. Its raster step calls CUDA for
    the list of pairs and the package nerfacc for the weights; both are done here in plain torch.

    Raises:
      ImportError: gsplat is not installed.
    """
    torch_impl: ModuleType = __import__("gsplat.cuda._torch_impl", fromlist=["_torch_impl"])
    covars, _ = torch_impl._quat_scale_to_covar_preci(quats, scales, compute_preci=False)
    radii, means2d, depths, conics, compensations = torch_impl._fully_fused_projection(
        means, covars, viewmat[None], K[None], width, height, calc_compensations=antialiased
    )
    if sh_degree is not None:
        position = torch.linalg.inv(viewmat)[:3, 3]
        shaded = torch_impl._spherical_harmonics(sh_degree, means - position, colors)
        colors = (shaded + 0.5).clamp_min(0.0)
    if antialiased:
        opacities = opacities * compensations[0]
    features = torch.cat([colors, depths[0, :, None]], -1)
    seen = (radii[0] > 0).all(-1).nonzero()[:, 0]
    order = seen[torch.sort(depths[0, seen], stable=True).indices]
    gaussian, pixel, alpha = _indices_in_range(means2d[0], conics[0], opacities, width, height, order, max_alpha)
    # Exclusive product of (1 - alpha) within each pixel, by logarithms (alpha <= .999).
    logs = torch.log1p(-alpha.double())
    total = torch.cat([logs.new_zeros(1), logs.cumsum(0)])
    starts = torch.searchsorted(pixel, torch.arange(width * height))
    weight = alpha * torch.exp(total[:-1] - total[starts[pixel]]).to(alpha.dtype)
    image = features.new_zeros(width * height, features.shape[-1])
    image = image.index_add(0, pixel, weight[:, None] * features[gaussian])
    alphas = features.new_zeros(width * height).index_add(0, pixel, weight)
    return image.reshape(height, width, -1), alphas.reshape(height, width, 1)
