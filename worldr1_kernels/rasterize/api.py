"""The public function `rasterize`; `dropin.py` offers it under gsplat's name and positional order."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from worldr1_kernels._checks import check_choice
from worldr1_kernels._dispatch import always_available, resolve_backend
from worldr1_kernels._library import needs_grad
from worldr1_kernels._native import unavailable as native_unavailable
from worldr1_kernels.rasterize.arguments import FIRST_DEPTH, MEDIAN_DEPTH, PAIRS_PER_GAUSSIAN, Inputs, Settings
from worldr1_kernels.rasterize.checks import META_LEVELS, check_inputs, check_settings
from worldr1_kernels.rasterize.native_impl import NOT_PROJECTED, PACKED, PROJECTED
from worldr1_kernels.rasterize.ops import Rasterize, rasterize_op
from worldr1_kernels.rasterize.projected import Projected, WithGradient, by_module, project_by_torch, spread
from worldr1_kernels.rasterize.ragged import pad_scenes
from worldr1_kernels.rasterize.reference import rasterize_reference


class RasterizeOutput(NamedTuple):
    """Rendered images; unpacks like gsplat's tuple."""

    render_colors: Tensor  # [..., C, H, W, X]
    render_alphas: Tensor  # [..., C, H, W, 1]
    meta: dict[str, Any]


def _choose_backend(op: str, backend: str, inputs: Inputs, settings: Settings) -> str:
    """Native computes in float32; without a backend by name, the reference is taken where that is not enough."""
    device, dtype = inputs.means.device, inputs.means.dtype
    no_backward = device.type == "cuda" and needs_grad(inputs) and settings.depth_mode in (MEDIAN_DEPTH, FIRST_DEPTH)
    if backend == "native" and native_unavailable(device) is None:
        if no_backward:
            raise NotImplementedError(
                f"{op}: backend 'native' on CUDA has no gradient of the depths MD and FD, got inputs that require "
                "grad; use backend='reference'"
            )
        if dtype != torch.float32:
            raise TypeError(f"{op}: backend 'native' computes in float32, got float64; use backend='reference'")

    def native_probe(device: torch.device) -> str | None:
        if backend == "auto" and (no_backward or dtype != torch.float32):
            return "no float64, and on CUDA no gradient of the depths MD and FD"
        return native_unavailable(device)

    return resolve_backend(op, backend, device, {"native": native_probe, "reference": always_available})


def _listed(
    projected: Projected, views: tuple[int, ...], inputs: Inputs
) -> tuple[dict[str, Tensor | None], Tensor]:
    """What meta says of the projected Gaussians, and the projected means [..., C, N, 2] that the image must be made of:
    whoever reads the gradient of meta["means2d"] must hold a tensor between the inputs and the image."""
    names = ("batch_ids", "camera_ids", "gaussian_ids")
    if projected.ids is None:
        whole = Projected(*(t.reshape(*views, *t.shape[2:]) for t in projected[:2])).names()
        return dict.fromkeys(names) | whole, whole["means2d"]
    named = projected.names()
    means2d = named["means2d"]
    if means2d.requires_grad:
        means2d = spread(means2d, projected.ids, inputs)
    return dict(zip(names, projected.ids, strict=True)) | named, means2d


def _render(
    inputs: Inputs, settings: Settings, backend: str, views: tuple[int, ...], meta: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor | None]]:
    """render_colors, render_alphas, num_invalid, overflow and, when asked for, the projected Gaussians; `views` is
    [..., C]."""
    grads = needs_grad(inputs)
    rendered, means2d = None, None
    listed: dict[str, Tensor | None] = {}
    if meta != "minimal":
        # torch.compile cannot trace the backward of WithGradient.
        if backend == "native" and not inputs.means.is_cuda and not (grads and torch.compiler.is_compiling()):
            with torch.no_grad():
                rendered = rasterize_op(*inputs, *settings, backend, grads, PACKED if meta == "packed" else PROJECTED)
            projected = by_module(*rendered[6:])
            if grads:
                values = WithGradient.apply(settings, projected.values, projected.ids, *inputs)
                projected = projected._replace(values=values)
        else:
            projected = project_by_torch(inputs, settings)
            projected = projected.packed() if meta == "packed" else projected
        listed, means2d = _listed(projected, views, inputs)
    if not grads:
        return *(rendered or rasterize_op(*inputs, *settings, backend, False, NOT_PROJECTED))[:4], listed
    if backend == "native":
        return *Rasterize.apply(settings, rendered, means2d, *inputs), listed
    # Not through the op: autograd records plain torch operations.
    output = rasterize_reference(inputs, settings, means2d)
    return *output, torch.zeros_like(output.num_invalid), listed


def rasterize(
    means: Tensor | Sequence[Tensor],
    quats: Tensor | Sequence[Tensor] | None,
    scales: Tensor | Sequence[Tensor] | None,
    opacities: Tensor | Sequence[Tensor],
    colors: Tensor | Sequence[Tensor] | None,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    *,
    covars: Tensor | Sequence[Tensor] | None = None,
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
    pairs_per_gaussian: float = PAIRS_PER_GAUSSIAN,
    backend: str = "auto",
) -> RasterizeOutput:
    """Renders 3D Gaussians into pinhole cameras by EWA splatting and front-to-back blending.

        alpha_i = min(max_alpha, opacity_i exp(-d^T Sigma_i^-1 d / 2)),   Sigma_i = J R S R^T J^T + eps2d I
        color = sum_i c_i alpha_i T_i,   T_i = prod_{j before i} (1 - alpha_j),   alpha = 1 - T_end

    "..." is any number of batch dimensions, one scene each. Scenes of different N are lists of B tensors [N_b, ...] in
    place of [B, N, ...], with viewmats [B, C, 4, 4]; in meta they are padded to the largest. Input dtypes
    may be mixed; arithmetic is float32, or float64 when an input is float64.

    Args:
      means: Centres in the world. Shape [..., N, 3]. Unit: scene units.
      quats: Rotations wxyz, of any non-zero length. Shape [..., N, 4]. None where covars is given.
      scales: Standard deviations along the rotated axes. Shape [..., N, 3]. Unit: scene units. None as quats.
      opacities: Shape [..., N], in [0, 1].
      colors: Features [..., N, D] or, with one set per camera, [..., C, N, D]; with `sh_degree`, spherical harmonics
        coefficients [..., N, K, 3] or [..., C, N, K, 3]. Ignored, and may be None, where depth alone is rendered.
      viewmats: World-to-camera, OpenCV axes. Shape [..., C, 4, 4]. The upper three rows may have a common scale; depths
        and planes then have it too.
      Ks: Intrinsics; skew is ignored. Shape [..., C, 3, 3]. Unit: pixels.
      width: Image width in pixels.
      height: Image height in pixels.
      covars: Covariances in place of quats and scales, which are then ignored; the upper triangle is read. Shape
        [..., N, 3, 3].
      near_plane: Gaussians whose centre has camera z <= this are dropped.
      far_plane: And those with z >= this.
      radius_clip: Drop splats whose radius is at most this on both axes. Unit: pixels.
      eps2d: Added to the diagonal of the 2D covariance. Unit: pixels^2.
      sh_degree: Degree 0 to 4 of the spherical harmonics to use; None: `colors` are the features themselves.
      backgrounds: Shown through what alpha leaves. Shape [..., C, D].
      render_mode: "RGB" the features; "D" the weighted sum of camera z; "ED" that divided by max(alpha, 1e-10); "MD"
        the median: z of the splat that brings the transmittance to 1/2 or below; "FD" z of the first splat that is hit;
        both 0 where there is none. "RGB+D", "RGB+ED", "RGB+MD", "RGB+FD": features and depth, depth last.
      rasterize_mode: "classic", or "antialiased": opacity is scaled by what the blur eps2d adds to the splat's area.
      compat: Constants of a gsplat version: "gsplat-1.6" (max_alpha .99, compensation >= .005) or "gsplat-1.5"
        (.999, 0).
      meta: "minimal": width, height, num_invalid [..., C] (Gaussians dropped in each view for NaN, infinity or a zero
        quaternion), num_overflow [..., C] ((tile, splat) pairs that found no room in the buffers of the native CUDA
        kernels, which outside a CUDA graph are made to measure; above 0 the view is NaN, its gradients too; 0
        elsewhere). "full" adds n_batches, n_cameras and
        means2d, conics, depths, radii and opacities, each [..., C, N, ...] and 0 where culled; the gradient of
        the image reaches `means2d` on its way to the inputs. "packed" has those of the Gaussians that are seen alone,
        each [nnz, ...], and says which by batch_ids, camera_ids and gaussian_ids [nnz], which "full" has as None; it
        waits for the device.
      pairs_per_gaussian: While a CUDA graph is captured, the native kernels have room for 2^20 (tile, splat) pairs a
        view, or this many for each Gaussian; `num_overflow` says where that was too few. Outside of a graph they count.
      backend: "auto", "native" (float32; C++ on a CPU, CUDA, which "auto" takes once it is verified on the device) or
        "reference" (torch).
    Returns:
      RasterizeOutput(render_colors [..., C, H, W, X], render_alphas [..., C, H, W, 1], meta dict). X is D, 3 with
      spherical harmonics, plus 1 with depth. All tensors are differentiable inputs; a Gaussian that is culled or
      dropped has zero gradients.
    Raises:
      ValueError: a shape, size or name is wrong.
      TypeError: an argument is no floating-point tensor; backend "native" with float64.
      RuntimeError: the backend asked for by name cannot run here.
      NotImplementedError: backend "native" by name on CUDA, depth "MD" or "FD", and an input requires grad.
    Source: Kerbl et al., 3D Gaussian Splatting, 2023, https://arxiv.org/abs/2308.04079; Zwicker et al., EWA splatting,
      2002; constants and interface of gsplat, https://github.com/nerfstudio-project/gsplat.
    """
    op = "rasterize"
    check_choice(op, "meta", meta, META_LEVELS)
    settings = check_settings(
        op,
        width,
        height,
        near_plane=near_plane,
        far_plane=far_plane,
        radius_clip=radius_clip,
        eps2d=eps2d,
        sh_degree=sh_degree,
        render_mode=render_mode,
        rasterize_mode=rasterize_mode,
        compat=compat,
        pairs_per_gaussian=pairs_per_gaussian,
    )
    if not render_mode.startswith("RGB"):
        colors, backgrounds = None, None
    elif colors is None:
        raise ValueError(f"{op}: colors must be given for render_mode {render_mode!r}, got None")
    if covars is not None:
        quats, scales = None, None
    # What is no tensor here is refused by check_inputs.
    raw = Inputs(means, quats, scales, covars, opacities, colors, viewmats, Ks, backgrounds)  # type: ignore[arg-type]
    if isinstance(means, (list, tuple)):
        raw = pad_scenes(op, raw, is_sh=settings.sh_degree >= 0)
    inputs = check_inputs(op, raw, settings)
    chosen = _choose_backend(op, backend, inputs, settings)
    views = tuple(viewmats.shape[:-2])  # [..., C]
    rendered, alphas, num_invalid, overflow, projected = _render(inputs, settings, chosen, views, meta)
    info: dict[str, Any] = {"width": width, "height": height}
    info |= {"num_invalid": num_invalid.reshape(views), "num_overflow": overflow.reshape(views)}
    if meta != "minimal":
        info |= {"n_batches": inputs.means.shape[0], "n_cameras": views[-1], **projected}
    image = (*views, height, width)
    return RasterizeOutput(rendered.reshape(*image, rendered.shape[-1]), alphas.reshape(*image, 1), info)
