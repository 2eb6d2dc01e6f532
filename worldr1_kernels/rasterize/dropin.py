"""`rasterization`: the rasterizer under gsplat's name, positional order and defaults."""

from collections.abc import Sequence

from torch import Tensor

from worldr1_kernels.rasterize.api import RasterizeOutput, rasterize
from worldr1_kernels.rasterize.arguments import PAIRS_PER_GAUSSIAN


def rasterization(
    means: Tensor | Sequence[Tensor],
    quats: Tensor | Sequence[Tensor] | None,
    scales: Tensor | Sequence[Tensor] | None,
    opacities: Tensor | Sequence[Tensor],
    colors: Tensor | Sequence[Tensor] | None,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    packed: bool = True,
    tile_size: int = 16,
    backgrounds: Tensor | None = None,
    render_mode: str = "RGB",
    sparse_grad: bool = False,
    absgrad: bool = False,
    rasterize_mode: str = "classic",
    channel_chunk: int = 32,
    distributed: bool = False,
    camera_model: str = "pinhole",
    segmented: bool = False,
    covars: Tensor | Sequence[Tensor] | None = None,
    with_ut: bool = False,
    with_eval3d: bool = False,
    radial_coeffs: Tensor | None = None,
    tangential_coeffs: Tensor | None = None,
    thin_prism_coeffs: Tensor | None = None,
    ftheta_coeffs: object | None = None,
    rolling_shutter: object | None = None,
    viewmats_rs: Tensor | None = None,
    *,
    compat: str = "gsplat-1.6",
    meta: str = "full",
    pairs_per_gaussian: float = PAIRS_PER_GAUSSIAN,
    backend: str = "auto",
) -> RasterizeOutput:
    """`rasterize` under gsplat's name and positional order, so that code written for gsplat runs unchanged.

    tile_size, channel_chunk and segmented choose how gsplat computes, not what: they are accepted and have no effect.
    packed chooses how meta is laid out, as in gsplat: lists of the Gaussians that are seen, or [..., C, N, ...]. `meta`
    is "full" here because gsplat's users read it, and its means2d receives the gradient that their densification needs;
    "minimal" is faster and packed then has no effect. gsplat's lists of tiles are not in it. See `rasterize`.

    Returns:
      RasterizeOutput, which unpacks into gsplat's (render_colors, render_alphas, meta).
    Raises:
      NotImplementedError: sparse_grad, absgrad, distributed, with_ut, with_eval3d, a camera that is no pinhole, lens
      distortion or a rolling shutter. As `rasterize` otherwise.
    """
    del tile_size, channel_chunk, segmented
    refused = {
        "sparse_grad": sparse_grad,
        "absgrad": absgrad,
        "distributed": distributed,
        "camera_model": camera_model != "pinhole",
        "with_ut": with_ut,
        "with_eval3d": with_eval3d,
        "radial_coeffs": radial_coeffs is not None,
        "tangential_coeffs": tangential_coeffs is not None,
        "thin_prism_coeffs": thin_prism_coeffs is not None,
        "ftheta_coeffs": ftheta_coeffs is not None,
        # gsplat's default is the member GLOBAL of an enumeration.
        "rolling_shutter": rolling_shutter is not None and getattr(rolling_shutter, "name", "") != "GLOBAL",
        "viewmats_rs": viewmats_rs is not None,
    }
    for name, is_asked_for in refused.items():
        if is_asked_for:
            raise NotImplementedError(f"rasterization: {name} is not offered, leave it at its default")
    return rasterize(
        means,
        quats,
        scales,
        opacities,
        colors,
        viewmats,
        Ks,
        width,
        height,
        covars=covars,
        near_plane=near_plane,
        far_plane=far_plane,
        radius_clip=radius_clip,
        eps2d=eps2d,
        sh_degree=sh_degree,
        backgrounds=backgrounds,
        render_mode=render_mode,
        rasterize_mode=rasterize_mode,
        compat=compat,
        meta="packed" if packed and meta == "full" else meta,
        pairs_per_gaussian=pairs_per_gaussian,
        backend=backend,
    )
