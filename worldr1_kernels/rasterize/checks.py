"""What the arguments of the rasterizer must be: checks with messages, and their flat form."""

import math

import torch
from torch import Tensor

from worldr1_kernels._checks import check_choice, check_dtype, check_same_device, check_shape
from worldr1_kernels.rasterize.arguments import DEPTH_MODES, NO_DEPTH, Inputs, Settings

RENDER_MODES = ("RGB", *DEPTH_MODES, *(f"RGB+{depth}" for depth in DEPTH_MODES))
RASTERIZE_MODES = ("classic", "antialiased")
META_LEVELS = ("minimal", "full", "packed")
MAX_SIZE = 1 << 20  # pixels; beyond it float32 cannot tell pixel centres apart
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# Where gsplat's versions differ: (max_alpha, compensation_floor).
COMPAT = {"gsplat-1.6": (0.99, 0.005), "gsplat-1.5": (0.999, 0.0)}


def check_settings(
    op: str,
    width: int,
    height: int,
    *,
    near_plane: float,
    far_plane: float,
    radius_clip: float,
    eps2d: float,
    sh_degree: int | None,
    render_mode: str,
    rasterize_mode: str,
    compat: str,
    pairs_per_gaussian: float,
) -> Settings:
    """Returns the settings.

    Raises:
      ValueError: a value is out of range or a name unknown.
    """
    check_choice(op, "render_mode", render_mode, RENDER_MODES)
    check_choice(op, "rasterize_mode", rasterize_mode, RASTERIZE_MODES)
    check_choice(op, "compat", compat, tuple(COMPAT))
    for name, size in (("width", width), ("height", height)):
        if isinstance(size, float) or not 1 <= size <= MAX_SIZE:
            raise ValueError(f"{op}: {name} must be an integer from 1 to {MAX_SIZE} pixels, got {size}")
    if not 0.0 <= near_plane < far_plane:
        raise ValueError(f"{op}: 0 <= near_plane < far_plane must hold, got {near_plane} and {far_plane}")
    finite = {"radius_clip": radius_clip, "eps2d": eps2d, "pairs_per_gaussian": pairs_per_gaussian}
    for name, value in finite.items():
        if not 0.0 <= value < math.inf:
            raise ValueError(f"{op}: {name} must be finite and >= 0, got {value}")
    if sh_degree is not None and sh_degree not in range(5):
        raise ValueError(f"{op}: sh_degree must be None or 0 to 4, got {sh_degree}")
    features, _, depth = render_mode.rpartition("+")
    has_features = render_mode == "RGB" or features == "RGB"
    max_alpha, compensation_floor = COMPAT[compat]
    return Settings(
        width=width,
        height=height,
        near_plane=near_plane,
        far_plane=far_plane,
        radius_clip=radius_clip,
        eps2d=eps2d,
        sh_degree=sh_degree if has_features and sh_degree is not None else -1,
        depth_mode=DEPTH_MODES.get(depth, NO_DEPTH),
        antialiased=rasterize_mode == "antialiased",
        max_alpha=max_alpha,
        compensation_floor=compensation_floor,
        pairs_per_gaussian=pairs_per_gaussian,
    )


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


def _check_shapes(op: str, raw: Inputs) -> tuple[tuple[int, ...], dict[str, int]]:
    """Checks all but colours and backgrounds; returns the batch dimensions and N, C."""
    sizes = check_shape(op, "means", raw.means, ("N", 3), leading=True)
    batch = tuple(raw.means.shape[:-2])
    if raw.covars is not None:
        check_shape(op, "covars", raw.covars, (*batch, "N", 3, 3), sizes=sizes)
    else:
        for name, value, size in (("quats", raw.quats, 4), ("scales", raw.scales, 3)):
            if value is None:
                raise ValueError(f"{op}: {name} must be given where covars is not, got None")
            check_shape(op, name, value, (*batch, "N", size), sizes=sizes)
    check_shape(op, "opacities", raw.opacities, (*batch, "N"), sizes=sizes)
    sizes = check_shape(op, "viewmats", raw.viewmats, (*batch, "C", 4, 4), sizes=sizes)
    check_shape(op, "Ks", raw.Ks, (*batch, "C", 3, 3), sizes=sizes)
    return batch, sizes


def check_inputs(op: str, raw: Inputs, settings: Settings) -> Inputs:
    """Checks the caller's tensors, of any batch dimensions and covars [..., N, 3, 3], and brings them into flat form.

    Raises:
      ValueError: a shape or a device is wrong.
      TypeError: not a tensor, or not a floating-point one.
    """
    batch, sizes = _check_shapes(op, raw)
    given = {name: tensor for name, tensor in raw._asdict().items() if tensor is not None}
    for name, tensor in given.items():
        check_dtype(op, name, tensor, DTYPES)
    check_same_device(op, given)
    num_scenes, n, c = math.prod(batch), sizes["N"], sizes["C"]
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in given.values()) else torch.float32

    def flat(tensor: Tensor | None, *tail: int) -> Tensor | None:
        return None if tensor is None else tensor.to(dtype).reshape(num_scenes, *tail)

    covars = raw.covars
    if covars is not None:  # the upper triangle
        covars = covars[..., [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]]
    colors, backgrounds = raw.colors, None
    if colors is not None:
        colors = _flatten_colors(op, colors, sizes, batch, settings.sh_degree).to(dtype)
        channels = 3 if settings.sh_degree >= 0 else colors.shape[-1]
        if raw.backgrounds is not None:
            check_shape(op, "backgrounds", raw.backgrounds, (*batch, "C", channels), sizes=sizes)
            backgrounds = raw.backgrounds.to(dtype).reshape(num_scenes, c, channels)
            if settings.depth_mode != NO_DEPTH:  # nothing is behind the scene for depth
                backgrounds = torch.nn.functional.pad(backgrounds, (0, 1))
    means, opacities = flat(raw.means, n, 3), flat(raw.opacities, n)
    viewmats, Ks = flat(raw.viewmats, c, 4, 4), flat(raw.Ks, c, 3, 3)
    assert means is not None and opacities is not None and viewmats is not None and Ks is not None
    quats, scales = flat(raw.quats, n, 4), flat(raw.scales, n, 3)
    return Inputs(means, quats, scales, flat(covars, n, 6), opacities, colors, viewmats, Ks, backgrounds)
