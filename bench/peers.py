"""gsplat's torch reference on a CPU: the rasterizer is compared with it, for speed here and for values in the tests."""

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

ALPHA_THRESHOLD = 1.0 / 255.0
TRANSMITTANCE_STOP = 1e-4
MAX_ALPHA = 0.999


def _indices_in_range(
    first: int,
    last: int,
    transmittances: Tensor,
    means2d: Tensor,
    conics: Tensor,
    opacities: Tensor,
    width: int,
    height: int,
    tile_size: int,
    isect_offsets: Tensor,
    flatten_ids: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """(gaussian, pixel, image) of every pair that blends, by pixel, then front to back: gsplat's CUDA kernel, tile by
    tile in plain torch."""
    assert first == 0 and float(transmittances.min()) == 1.0, "all of a list in one step: see batch_per_iter"
    n = means2d.shape[-2]
    num_images, tiles_y, tiles_x = means2d.shape[:-2].numel(), *isect_offsets.shape[-2:]
    means2d, conics, opacities = means2d.reshape(-1, 2), conics.reshape(-1, 3), opacities.reshape(-1)
    bounds = [*isect_offsets.flatten().tolist(), len(flatten_ids)]
    gaussians, pixels = [], []
    for tile, (begin, end) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        image, y0, x0 = tile // (tiles_y * tiles_x), tile // tiles_x % tiles_y * tile_size, tile % tiles_x * tile_size
        y, x = torch.arange(y0, min(y0 + tile_size, height)), torch.arange(x0, min(x0 + tile_size, width))
        xy = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 1, 2)
        ids = flatten_ids[begin:end].long()
        d, c = xy + 0.5 - means2d[ids], conics[ids]  # [P, n, 2]
        sigma = 0.5 * (c[:, 0] * d[..., 0] ** 2 + c[:, 2] * d[..., 1] ** 2) + c[:, 1] * d[..., 0] * d[..., 1]
        alpha = (opacities[ids] * torch.exp(-sigma)).clamp_max(MAX_ALPHA)
        used = (sigma >= 0) & (alpha >= ALPHA_THRESHOLD)
        used &= torch.cumprod(torch.where(used, 1 - alpha, 1.0), 1) > TRANSMITTANCE_STOP
        pixel, position = used.nonzero().unbind(1)
        gaussians.append(ids[position])
        pixels.append(image * width * height + (xy[:, 0, 1] * width + xy[:, 0, 0])[pixel])
    gaussian, pixel = torch.cat(gaussians), torch.cat(pixels)
    order = torch.sort(pixel, stable=True).indices
    assert num_images * n >= len(opacities)
    return gaussian[order] % n, pixel[order] % (width * height), pixel[order] // (width * height)


def _render_weight_from_alpha(alphas: Tensor, *, ray_indices: Tensor, n_rays: int) -> tuple[Tensor, Tensor]:
    """nerfacc's function: alpha_i prod_{j < i} (1 - alpha_j) within each ray, by logarithms (alpha <= .999)."""
    logs = torch.log1p(-alphas.double())
    total = torch.cat([logs.new_zeros(1), logs.cumsum(0)])
    starts = torch.searchsorted(ray_indices, torch.arange(n_rays))
    transmittance = torch.exp(total[:-1] - total[starts[ray_indices]]).to(alphas.dtype)
    return alphas * transmittance, transmittance


def _accumulate_along_rays(weights: Tensor, values: Tensor | None, *, ray_indices: Tensor, n_rays: int) -> Tensor:
    values = weights[:, None] if values is None else weights[:, None] * values
    return values.new_zeros(n_rays, values.shape[-1]).index_add(0, ray_indices, values)


@contextlib.contextmanager
def _without_cuda(rendering: ModuleType, torch_impl: ModuleType, wrapper: ModuleType) -> Iterator[None]:
    """Puts gsplat's own torch functions where its torch reference calls CUDA; three remain that it has only there."""

    def tiles(means2d: Tensor, radii: Tensor, depths: Tensor, *sizes: int, **_: object) -> Any:
        return torch_impl._isect_tiles(means2d.detach(), radii, depths.detach(), *sizes)

    def harmonics(degree: int, directions: Tensor, coefficients: Tensor, masks: Tensor) -> Tensor:
        del masks
        return torch_impl._spherical_harmonics(degree, directions, coefficients)

    nerfacc = SimpleNamespace(
        render_weight_from_alpha=_render_weight_from_alpha, accumulate_along_rays=_accumulate_along_rays
    )
    with (
        mock.patch.object(rendering, "isect_tiles", tiles),
        mock.patch.object(rendering, "isect_offset_encode", torch_impl._isect_offset_encode),
        mock.patch.object(rendering, "spherical_harmonics", harmonics),
        mock.patch.object(wrapper, "rasterize_to_indices_in_range", torch.no_grad()(_indices_in_range)),
        mock.patch.dict(sys.modules, {"nerfacc": nerfacc}),
    ):
        yield


def gsplat_torch(*tensors: Tensor, width: int, height: int, **options: Any) -> tuple[Tensor, Tensor]:
    """gsplat 1.5.3's own torch reference `_rasterization`, differentiable: (render_colors, render_alphas).

    Only what it has for CUDA alone is replaced by plain torch: the list of pairs, and nerfacc's two sums.

    Args:
      tensors: means, quats, scales, opacities, colors, viewmats, Ks, as gsplat takes them.
      width: Pixels.
      height: Pixels.
      options: sh_degree, backgrounds, render_mode, rasterize_mode, eps2d, near_plane, far_plane.
    Raises:
      ImportError: gsplat is not installed.
    """
    import gsplat.cuda._torch_impl as torch_impl
    import gsplat.cuda._wrapper as wrapper
    import gsplat.rendering as rendering

    with _without_cuda(rendering, torch_impl, wrapper):
        colors, alphas, _ = rendering._rasterization(*tensors, width, height, batch_per_iter=1 << 20, **options)
    return colors, alphas
