"""Public functions of the rasterizer: `rasterize`, and `rasterization` under gsplat's name and positional order."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from worldr1_kernels._checks import check_choice, check_dtype, check_same_device, check_shape
from worldr1_kernels._dispatch import always_available, native_unavailable, requested_backend, resolve_backend
from worldr1_kernels._library import needs_grad
from worldr1_kernels.rasterize.arguments import Inputs, Settings
from worldr1_kernels.rasterize.ops import rasterize_op
from worldr1_kernels.rasterize.reference import rasterize_reference

RENDER_MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")
RASTERIZE_MODES = ("classic", "antialiased")
META_LEVELS = ("minimal", "full")
MAX_SIZE = 1 << 20  # pixels; beyond it float32 cannot tell pixel centres apart
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class _Preset(NamedTuple):
    max_alpha: float
    compensation_floor: float


# Where gsplat's versions differ.
COMPAT = {"gsplat-1.6": _Preset(0.99, 0.005), "gsplat-1.5": _Preset(0.999, 0.0)}


class RasterizeOutput(NamedTuple):
    """Rendered images; unpacks like gsplat's tuple."""

    render_colors: Tensor  # [..., C, H, W, X]
    render_alphas: Tensor  # [..., C, H, W, 1]
    meta: dict[str, Any]


def _check_settings(op: str, s: Settings) -> None:
    for name, size in (("width", s.width), ("height", s.height)):
        if isinstance(size, float) or not 1 <= size <= MAX_SIZE:
            raise ValueError(f"{op}: {name} must be an integer from 1 to {MAX_SIZE} pixels, got {size}")
    if not 0.0 <= s.near_plane < s.far_plane:
        raise ValueError(f"{op}: 0 <= near_plane < far_plane must hold, got {s.near_plane} and {s.far_plane}")
    for name, value in (("radius_clip", s.radius_clip), ("eps2d", s.eps2d)):
        if not 0.0 <= value < math.inf:
            raise ValueError(f"{op}: {name} must be finite and >= 0, got {value}")
    if s.sh_degree not in range(-1, 5):
        raise ValueError(f"{op}: sh_degree must be None or 0 to 4, got {s.sh_degree}")


def _flatten_colors(op: str, colors: Tensor, sizes: dict[str, int], batch: tuple[int, ...], sh_degree: int) -> Tensor:
    """[..., (C,) N, D] or [..., (C,) N, K, 3] -> [B, 1 or C, N, D] or [B, 1 or C, N, K, 3]."""
    tail = ("D",) if sh_degree < 0 else ("K", 3)
    per_view = colors.dim() == len(batch) + 2 + len(tail)
    spec = (*batch, *(("C",) if per_view else ()), "N", *tail)
    bound = check_shape(op, "colors", colors, spec, sizes=sizes)
    if sh_degree >= 0 and bound["K"] < (sh_degree + 1) ** 2:
        needed = (sh_degree + 1) ** 2
        raise ValueError(f"{op}: colors must have K >= {needed} for sh_degree {sh_degree}, got {bound['K']}")
    if sh_degree < 0 and bound["D"] < 1:
        raise ValueError(f"{op}: colors must have D >= 1 channels, got 0; use render_mode='D' for depth alone")
    views = bound["C"] if per_view else 1
    return colors.reshape(math.prod(batch), views, *colors.shape[-1 - len(tail) :])


def _prepare(
    op: str,
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor | None,
    viewmats: Tensor,
    Ks: Tensor,
    backgrounds: Tensor | None,
    settings: Settings,
) -> Inputs:
    sizes = check_shape(op, "means", means, ("N", 3), leading=True)
    batch = tuple(means.shape[:-2])
    check_shape(op, "quats", quats, (*batch, "N", 4), sizes=sizes)
    check_shape(op, "scales", scales, (*batch, "N", 3), sizes=sizes)
    check_shape(op, "opacities", opacities, (*batch, "N"), sizes=sizes)
    sizes = check_shape(op, "viewmats", viewmats, (*batch, "C", 4, 4), sizes=sizes)
    check_shape(op, "Ks", Ks, (*batch, "C", 3, 3), sizes=sizes)
    tensors = {
        "means": means, "quats": quats, "scales": scales, "opacities": opacities, "colors": colors,
        "viewmats": viewmats, "Ks": Ks, "backgrounds": backgrounds,
    }  # fmt: skip
    for name, tensor in tensors.items():
        if tensor is not None:
            check_dtype(op, name, tensor, DTYPES)
    check_same_device(op, tensors)
    num_scenes = math.prod(batch)
    is_double = any(t is not None and t.dtype == torch.float64 for t in tensors.values())
    dtype = torch.float64 if is_double else torch.float32
    flat_colors = None if colors is None else _flatten_colors(op, colors, sizes, batch, settings.sh_degree).to(dtype)
    flat_backgrounds = None
    if backgrounds is not None and flat_colors is not None:
        channels = 3 if settings.sh_degree >= 0 else flat_colors.shape[-1]
        check_shape(op, "backgrounds", backgrounds, (*batch, "C", channels), sizes=sizes)
        flat_backgrounds = backgrounds.to(dtype).reshape(num_scenes, sizes["C"], channels)
        if settings.depth_mode:  # nothing is behind the scene for depth
            flat_backgrounds = torch.nn.functional.pad(flat_backgrounds, (0, 1))
    def flat(tensor: Tensor, *tail: int) -> Tensor:
        return tensor.to(dtype).reshape(num_scenes, *tail)

    n, c = sizes["N"], sizes["C"]
    return Inputs(
        flat(means, n, 3),
        flat(quats, n, 4),
        flat(scales, n, 3),
        flat(opacities, n),
        flat_colors,
        flat(viewmats, c, 4, 4),
        flat(Ks, c, 3, 3),
        flat_backgrounds,
    )


def _choose_backend(op: str, backend: str, inputs: Inputs) -> str:
    """Native computes float32 without gradients; "auto" takes the reference where that is not enough."""
    device, dtype = inputs.means.device, inputs.means.dtype
    wanted = requested_backend(op, backend)
    grad = needs_grad(inputs)
    if wanted == "native" and native_unavailable(device) is None:
        if grad:
            raise NotImplementedError(
                f"{op}: backend 'native' has no backward yet, got inputs that require grad; use backend='reference'"
            )
        if dtype != torch.float32:
            raise TypeError(f"{op}: backend 'native' computes in float32, got float64; use backend='reference'")

    def native_probe(device: torch.device) -> str | None:
        if wanted == "auto" and (grad or dtype != torch.float32):
            return "no gradients and no float64"
        return native_unavailable(device)

    return resolve_backend(op, backend, device, {"native": native_probe, "reference": always_available})


def _run(
    inputs: Inputs, settings: Settings, backend: str, views: tuple[int, ...], *, with_projection: bool
) -> RasterizeOutput:
    """Renders with `backend`; `views` is [..., C]."""
    reference = None
    if with_projection or (backend == "reference" and needs_grad(inputs)):
        # Not through the op: autograd records plain torch operations.
        reference = rasterize_reference(inputs, settings)
    if reference is not None and backend == "reference":
        render_colors, render_alphas, num_invalid = reference[:3]
    else:
        render_colors, render_alphas, num_invalid = rasterize_op(*inputs, *settings, backend)
    info: dict[str, Any] = {
        "width": settings.width,
        "height": settings.height,
        "num_invalid": num_invalid.reshape(views),
    }
    if reference is not None and with_projection:
        for name in ("means2d", "conics", "depths", "radii", "opacities"):
            value = getattr(reference.projection, name)
            info[name] = value.reshape(*views, *value.shape[2:])
    image = (*views, settings.height, settings.width)
    return RasterizeOutput(
        render_colors.reshape(*image, render_colors.shape[-1]), render_alphas.reshape(*image, 1), info
    )


def rasterize(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor | None,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    *,
    near_plane: float = 0.01,
    far_plane: float = 1e10,
    radius_clip: float = 0.0,
    eps2d: float = 0.3,
    sh_degree: int | None = None,
    backgrounds: Tensor | None = None,
    render_mode: str = "RGB",
    rasterize_mode: str = "classic",
    compat: str = "gsplat-1.6",
    meta: str = "minimal",
    backend: str = "auto",
) -> RasterizeOutput:
    """Renders 3D Gaussians into pinhole cameras by EWA splatting and front-to-back blending.

        alpha_i = min(max_alpha, opacity_i exp(-d^T Sigma_i^-1 d / 2)),   Sigma_i = J R S R^T J^T + eps2d I
        color = sum_i c_i alpha_i T_i,   T_i = prod_{j before i} (1 - alpha_j),   alpha = 1 - T_end

    "..." is any number of batch dimensions, one scene each. Input dtypes may be mixed; arithmetic is float32, or
    float64 when an input is float64.

    Args:
      means: Centres in the world. Shape [..., N, 3]. Unit: scene units.
      quats: Rotations wxyz, of any non-zero length. Shape [..., N, 4].
      scales: Standard deviations along the rotated axes. Shape [..., N, 3]. Unit: scene units.
      opacities: Shape [..., N], in [0, 1].
      colors: Features [..., N, D] or, with one set per camera, [..., C, N, D]; with `sh_degree`, spherical harmonics
        coefficients [..., N, K, 3] or [..., C, N, K, 3]. Ignored, and may be None, for render_mode "D" and "ED".
      viewmats: World-to-camera, OpenCV axes, rigid. Shape [..., C, 4, 4].
      Ks: Intrinsics; skew is ignored. Shape [..., C, 3, 3]. Unit: pixels.
      width: Image width in pixels.
      height: Image height in pixels.
      near_plane: Gaussians whose centre has camera z <= this are dropped.
      far_plane: And those with z >= this.
      radius_clip: Drop splats whose radius is at most this on both axes. Unit: pixels.
      eps2d: Added to the diagonal of the 2D covariance. Unit: pixels^2.
      sh_degree: Degree 0 to 4 of the spherical harmonics to use; None: `colors` are the features themselves.
      backgrounds: Shown through what alpha leaves. Shape [..., C, D].
      render_mode: "RGB" the features; "D" the weighted sum of camera z; "ED" that divided by max(alpha, 1e-10);
        "RGB+D" and "RGB+ED" both, depth last.
      rasterize_mode: "classic", or "antialiased": opacity is scaled by what the blur eps2d adds to the splat's area.
      compat: Constants of a gsplat version: "gsplat-1.6" (max_alpha .99, compensation >= .005) or "gsplat-1.5"
        (.999, 0).
      meta: "minimal": width, height, num_invalid [..., C] (Gaussians dropped in each view for NaN, infinity or a zero
        quaternion). "full" adds means2d, conics, depths, radii, opacities, each [..., C, N, ...], by the reference.
      backend: "auto", "native" (C++, CPU, float32, no gradients yet) or "reference" (torch).
    Returns:
      RasterizeOutput(render_colors [..., C, H, W, X], render_alphas [..., C, H, W, 1], meta dict). X is D, 3 with
      spherical harmonics, plus 1 with depth. With the reference all tensors are differentiable inputs.
    Raises:
      ValueError: a shape, size or name is wrong.
      TypeError: an argument is no floating-point tensor; backend "native" with float64.
      RuntimeError: the backend asked for by name cannot run here.
      NotImplementedError: backend "native" by name and an input requires grad.
    Source: Kerbl et al., 3D Gaussian Splatting, 2023, https://arxiv.org/abs/2308.04079; Zwicker et al., EWA splatting,
      2002; constants and interface of gsplat, https://github.com/nerfstudio-project/gsplat.
    """
    op = "rasterize"
    check_choice(op, "render_mode", render_mode, RENDER_MODES)
    check_choice(op, "rasterize_mode", rasterize_mode, RASTERIZE_MODES)
    check_choice(op, "compat", compat, tuple(COMPAT))
    check_choice(op, "meta", meta, META_LEVELS)
    if render_mode in ("D", "ED"):
        colors, backgrounds = None, None
    elif colors is None:
        raise ValueError(f"{op}: colors must be given for render_mode {render_mode!r}, got None")
    settings = Settings(
        width=width,
        height=height,
        near_plane=near_plane,
        far_plane=far_plane,
        radius_clip=radius_clip,
        eps2d=eps2d,
        sh_degree=-1 if sh_degree is None or colors is None else sh_degree,
        depth_mode=0 if render_mode == "RGB" else (2 if render_mode.endswith("ED") else 1),
        antialiased=rasterize_mode == "antialiased",
        max_alpha=COMPAT[compat].max_alpha,
        compensation_floor=COMPAT[compat].compensation_floor,
    )
    _check_settings(op, settings)
    inputs = _prepare(op, means, quats, scales, opacities, colors, viewmats, Ks, backgrounds, settings)
    chosen = _choose_backend(op, backend, inputs)
    return _run(inputs, settings, chosen, tuple(viewmats.shape[:-2]), with_projection=meta == "full")


def rasterization(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
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
    covars: Tensor | None = None,
    with_ut: bool = False,
    with_eval3d: bool = False,
    *,
    compat: str = "gsplat-1.6",
    meta: str = "full",
    backend: str = "auto",
) -> RasterizeOutput:
    """`rasterize` under gsplat's name and positional order, so that code written for gsplat runs unchanged.

    packed, tile_size, channel_chunk and segmented choose how gsplat computes, not what: they are accepted and have no
    effect. `meta` is "full" here because gsplat's users read it; "minimal" is faster. See `rasterize` for the rest.

    Returns:
      RasterizeOutput, which unpacks into gsplat's (render_colors, render_alphas, meta).
    Raises:
      NotImplementedError: sparse_grad, absgrad, distributed, covars, with_ut, with_eval3d, or a camera that is no
      pinhole. As `rasterize` otherwise.
    """
    del packed, tile_size, channel_chunk, segmented
    refused = {
        "sparse_grad": sparse_grad,
        "absgrad": absgrad,
        "distributed": distributed,
        "covars": covars is not None,
        "with_ut": with_ut,
        "with_eval3d": with_eval3d,
        "camera_model": camera_model != "pinhole",
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
        near_plane=near_plane,
        far_plane=far_plane,
        radius_clip=radius_clip,
        eps2d=eps2d,
        sh_degree=sh_degree,
        backgrounds=backgrounds,
        render_mode=render_mode,
        rasterize_mode=rasterize_mode,
        compat=compat,
        meta=meta,
        backend=backend,
    )
