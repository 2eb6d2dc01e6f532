"""Rasterization of 3D Gaussians in plain torch: any floating dtype, any device, differentiable by autograd.

This is the referee of the native kernels (run it in float64) and the backend that gives gradients. It sorts by depth
and blends densely; images are cut into blocks only to bound memory. No result depends on the block size.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from worldr1_kernels.rasterize.arguments import (
    EXPECTED_DEPTH,
    FIRST_DEPTH,
    MEDIAN_DEPTH,
    NO_DEPTH,
    Inputs,
    Settings,
)

ALPHA_THRESHOLD = 1.0 / 255.0
TRANSMITTANCE_STOP = 1e-4
MAX_EXTEND = 3.33  # standard deviations; only limits the reported radii
BLOCK = 16  # pixels


class Projection(NamedTuple):
    """Gaussians seen by cameras; [B, C, N, ...]. `keep` marks those that may touch a pixel."""

    means2d: Tensor  # [B, C, N, 2] pixels
    conics: Tensor  # [B, C, N, 3] xx, xy, yy of the inverse 2D covariance
    depths: Tensor  # [B, C, N] camera z
    reach: Tensor  # [B, C, N, 2] pixels from the mean where alpha falls to 1/255
    radii: Tensor  # [B, C, N, 2] int32, gsplat's rounded-up radius, 0 when culled
    opacities: Tensor  # [B, C, N] after antialiasing compensation
    keep: Tensor  # [B, C, N] bool


def replace_invalid(inputs: Inputs) -> tuple[Inputs, Tensor]:
    """Harmless values in place of Gaussians that are not finite or have a zero quaternion; `valid` [B, C, N] is False
    there. Replaced rather than dropped: no NaN enters the arithmetic, so none can leave through a gradient."""
    means, quats, scales, covars, opacities, colors = inputs[:6]
    good = means.isfinite().all(-1) & opacities.isfinite()  # [B, N]
    if covars is not None:
        good = good & covars.isfinite().all(-1)
        covars = torch.where(good[..., None], covars, 0.0)
    if quats is not None and scales is not None:
        norm = (quats * quats).sum(-1)
        good = good & quats.isfinite().all(-1) & scales.isfinite().all(-1) & norm.isfinite() & (norm > 0)
        identity = torch.zeros_like(quats)
        identity[..., 0] = 1.0
        quats = torch.where(good[..., None], quats, identity)
        scales = torch.where(good[..., None], scales, 1.0)
    valid = good[:, None].expand(-1, inputs.viewmats.shape[1], -1)
    if colors is not None:
        color_good = colors.isfinite().flatten(3).all(-1)  # [B, 1 or C, N]
        valid = valid & color_good
        colors = torch.where(color_good.reshape(color_good.shape + (1,) * (colors.dim() - 3)), colors, 0.0)
    means = torch.where(good[..., None], means, 0.0)
    opacities = torch.where(good, opacities, 0.0)
    replaced = inputs._replace(
        means=means, quats=quats, scales=scales, covars=covars, opacities=opacities, colors=colors
    )
    return replaced, valid


def rotation_matrices(quats: Tensor) -> Tensor:
    """Rotations of wxyz quaternions of any length. [..., 4] -> [..., 3, 3]."""
    w, x, y, z = (quats / quats.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def covariances(inputs: Inputs) -> Tensor:
    """Covariances in the world, from quats and scales or as given. [B, N, 3, 3]."""
    if inputs.covars is not None:
        return inputs.covars[..., [0, 1, 2, 1, 3, 4, 2, 4, 5]].unflatten(-1, (3, 3))
    assert inputs.quats is not None and inputs.scales is not None
    factor = rotation_matrices(inputs.quats) * inputs.scales[..., None, :]
    return factor @ factor.transpose(-1, -2)


def project(inputs: Inputs, valid: Tensor, settings: Settings) -> Projection:
    """Projects every Gaussian into every camera (EWA splatting); takes what `replace_invalid` returns."""
    viewmats, Ks, width, height = inputs.viewmats, inputs.Ks, settings.width, settings.height
    rotation, translation = viewmats[..., :3, :3], viewmats[..., :3, 3]
    p = torch.einsum("bcij,bnj->bcni", rotation, inputs.means) + translation[..., None, :]
    in_front = (p[..., 2] > settings.near_plane) & (p[..., 2] < settings.far_plane)
    z = torch.where(in_front, p[..., 2], 1.0)  # a culled Gaussian must not divide by zero, not even in the backward
    fx, fy = Ks[..., 0, 0, None], Ks[..., 1, 1, None]  # [B, C, 1]
    cx, cy = Ks[..., 0, 2, None], Ks[..., 1, 2, None]
    u, v = p[..., 0] / z, p[..., 1] / z
    margin_x, margin_y = 0.3 * 0.5 * width / fx, 0.3 * 0.5 * height / fy
    uc = torch.minimum(torch.maximum(u, -(cx / fx + margin_x)), (width - cx) / fx + margin_x)
    vc = torch.minimum(torch.maximum(v, -(cy / fy + margin_y)), (height - cy) / fy + margin_y)
    zero = torch.zeros_like(z)
    jacobian = torch.stack([fx / z, zero, -fx * uc / z, zero, fy / z, -fy * vc / z], -1).unflatten(-1, (2, 3))

    m = jacobian @ rotation[:, :, None]  # [B, C, N, 2, 3]
    raw = m @ covariances(inputs)[:, None] @ m.transpose(-1, -2)
    xx, xy, yy = raw[..., 0, 0] + settings.eps2d, raw[..., 0, 1], raw[..., 1, 1] + settings.eps2d
    det = xx * yy - xy * xy
    det_ok = det > 0
    det = torch.where(det_ok, det, 1.0)
    conics = torch.stack([yy / det, -xy / det, xx / det], -1)
    means2d = torch.stack([fx * u + cx, fy * v + cy], -1)

    opacity = inputs.opacities[:, None].expand(z.shape)
    if settings.antialiased:
        floor = settings.compensation_floor
        ratio = (raw[..., 0, 0] * raw[..., 1, 1] - xy * xy) / det
        above = ratio > floor**2  # selected before the square root, which has no derivative at 0
        opacity = opacity * torch.where(above, torch.where(above, ratio, 1.0).sqrt(), floor)
    with torch.no_grad():
        extend = (2.0 * (opacity / ALPHA_THRESHOLD).clamp_min(1.0).log()).sqrt()
        sigma = torch.stack([xx, yy], -1).clamp_min(0).sqrt()
        reach = extend[..., None] * sigma * 1.0001 + 1e-3
        radii = (extend.clamp_max(MAX_EXTEND)[..., None] * sigma).ceil()
        size = torch.tensor([width, height], dtype=z.dtype, device=z.device)
        on_screen = ((means2d + reach > 0) & (means2d - reach < size)).all(-1)
        keep = valid & in_front & det_ok & on_screen & (opacity >= ALPHA_THRESHOLD)
        keep &= (radii > settings.radius_clip).any(-1)
        radii = torch.where(keep[..., None], radii.clamp_max(2**30), 0).int()
    return Projection(means2d, conics, p[..., 2], reach, radii, opacity, keep)


def sh_basis(degree: int, directions: Tensor) -> Tensor:
    """Real spherical harmonics at unit directions. [..., 3] -> [..., (degree + 1)^2]. Sloan, JCGT 2(2), 2013."""
    x, y, z = directions.unbind(-1)
    basis = [torch.full_like(x, 0.2820947917738781)]
    if degree >= 1:
        basis += [-0.48860251190292 * y, 0.48860251190292 * z, -0.48860251190292 * x]
    if degree >= 2:
        zz, c1, s1 = z * z, x * x - y * y, 2 * x * y
        basis += [
            0.5462742152960395 * s1,
            -1.092548430592079 * z * y,
            0.9461746957575601 * zz - 0.3153915652525201,
            -1.092548430592079 * z * x,
            0.5462742152960395 * c1,
        ]
    if degree >= 3:
        third = -2.285228997322329 * zz + 0.4570457994644658
        c2, s2 = x * c1 - y * s1, x * s1 + y * c1
        basis += [
            -0.5900435899266435 * s2,
            1.445305721320277 * z * s1,
            third * y,
            z * (1.865881662950577 * zz - 1.119528997770346),
            third * x,
            1.445305721320277 * z * c1,
            -0.5900435899266435 * c2,
        ]
    if degree >= 4:
        fourth = z * (-4.683325804901025 * zz + 2.007139630671868)
        fourth_second = 3.31161143515146 * zz - 0.47308734787878
        c3, s3 = x * c2 - y * s2, x * s2 + y * c2
        basis += [
            0.6258357354491763 * s3,
            -1.770130769779931 * z * s2,
            fourth_second * s1,
            fourth * y,
            1.984313483298443 * z * basis[12] - 1.006230589874905 * basis[6],
            fourth * x,
            fourth_second * c1,
            -1.770130769779931 * z * c2,
            0.6258357354491763 * c3,
        ]
    return torch.stack(basis, -1)


def camera_centers(viewmats: Tensor) -> Tensor:
    """-R^-1 t, in float64 between: the determinant is the cube of a scale. 0 where R has no inverse.
    [..., 4, 4] -> [..., 3]."""
    a, b, c = (viewmats[..., i, :3].double() for i in range(3))
    t = viewmats[..., :3, 3].double()
    columns = torch.stack([torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)], -1)
    det = (a * columns[..., 0]).sum(-1, keepdim=True)
    center = -(columns @ t[..., None])[..., 0] / torch.where(det == 0, 1.0, det)
    return torch.where(det == 0, 0.0, center).to(viewmats.dtype)


def sh_colors(degree: int, coefficients: Tensor, means: Tensor, viewmats: Tensor) -> Tensor:
    """Colours seen from each camera: max(sum_k basis_k coefficients_k + 1/2, 0).

    coefficients [B, 1 or C, N, K, 3], means [B, N, 3], viewmats [B, C, 4, 4] -> [B, C, N, 3].
    """
    direction = means[:, None] - camera_centers(viewmats)[:, :, None]  # [B, C, N, 3]
    direction = direction / direction.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    basis = sh_basis(degree, direction)
    used = coefficients[..., : basis.shape[-1], :]
    return ((basis[..., None] * used).sum(-2) + 0.5).clamp_min(0.0)


def blend(
    pixels: Tensor,  # [P, 2] centres
    means2d: Tensor,  # [n, 2], nearest first
    conics: Tensor,  # [n, 3]
    opacities: Tensor,  # [n]
    features: Tensor,  # [n, X]
    settings: Settings,
) -> tuple[Tensor, Tensor]:
    """Blends splats front to back. Returns (features [P, X], transmittance left [P])."""
    d = pixels[:, None] - means2d[None]  # [P, n, 2]
    sigma = 0.5 * (conics[:, 0] * d[..., 0] ** 2 + conics[:, 2] * d[..., 1] ** 2) + conics[:, 1] * d[..., 0] * d[..., 1]
    alpha = (opacities * torch.exp(-sigma)).clamp_max(settings.max_alpha)
    alpha = torch.where((sigma < 0) | (alpha < ALPHA_THRESHOLD), 0.0, alpha)
    after = torch.cumprod(1.0 - alpha, 1)  # [P, n] transmittance behind each splat
    # The splat that would bring it to the threshold is left out, and so is everything behind it; `after` never rises.
    alpha = torch.where(after > TRANSMITTANCE_STOP, alpha, 0.0)
    after = torch.cumprod(1.0 - alpha, 1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], 1)
    color = (alpha * before) @ features
    if settings.depth_mode in (MEDIAN_DEPTH, FIRST_DEPTH):  # the depth of one splat, 0 where there is none
        reached = after <= 0.5 if settings.depth_mode == MEDIAN_DEPTH else alpha > 0
        depth = features[reached.int().argmax(1), -1]  # argmax: the first of them
        color = torch.cat([color[:, :-1], torch.where(reached.any(1), depth, 0.0)[:, None]], 1)
    return color, after[:, -1]


def _render_block(
    x: Tensor, y: Tensor, splats: tuple[Tensor, Tensor, Tensor, Tensor], hit: Tensor, settings: Settings
) -> Tensor:
    """Blends the splats `hit` over the pixels of a block. Returns [len(y), len(x), X + 1], transmittance last."""
    means2d, conics, opacities, features = (t[hit] for t in splats)
    pixels = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2)
    if hit.numel() == 0:
        zeros, ones = features.new_zeros(len(pixels), features.shape[-1]), features.new_ones(len(pixels), 1)
        block = torch.cat([zeros, ones], 1)
    else:
        color, left = blend(pixels, means2d, conics, opacities, features, settings)
        block = torch.cat([color, left[:, None]], 1)
    return block.reshape(len(y), len(x), -1)


def render_view(view: Projection, features: Tensor, settings: Settings) -> Tensor:
    """Renders one view. `view` holds [N, ...] tensors, features [N, X]. Returns [H, W, X + 1], transmittance last."""
    kept = view.keep.nonzero()[:, 0]
    order = kept[torch.sort(view.depths[kept], stable=True).indices]  # camera z, ties by lower index
    splats = (view.means2d[order], view.conics[order], view.opacities[order], features[order])
    low = (view.means2d - view.reach)[order].detach()
    high = (view.means2d + view.reach)[order].detach()
    ys = torch.arange(settings.height, dtype=features.dtype, device=features.device) + 0.5
    xs = torch.arange(settings.width, dtype=features.dtype, device=features.device) + 0.5
    rows = []
    for y in ys.split(BLOCK):
        in_rows = (high[:, 1] >= y[0]) & (low[:, 1] <= y[-1])
        row = []
        for x in xs.split(BLOCK):
            hit = (in_rows & (high[:, 0] >= x[0]) & (low[:, 0] <= x[-1])).nonzero()[:, 0]
            row.append(_render_block(x, y, splats, hit, settings))
        rows.append(torch.cat(row, 1))
    return torch.cat(rows, 0)


def render(projection: Projection, features: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Renders projected Gaussians with features [B, C, N, X]. Returns ([B, C, H, W, X], alphas [B, C, H, W, 1])."""
    num_scenes, num_views, _, channels = features.shape
    shape = (settings.height, settings.width, channels + 1)
    images = [
        render_view(Projection(*(t[b, c] for t in projection)), features[b, c], settings)
        for b in range(num_scenes)
        for c in range(num_views)
    ]
    out = torch.stack(images) if images else features.new_zeros(0, *shape)
    # Differentiable, with zero gradients, also where no Gaussian is seen: sums over nothing.
    inputs = (features, projection.means2d, projection.conics, projection.opacities)
    out = out.reshape(num_scenes, num_views, *shape) + sum(t[..., :0].sum() for t in inputs)
    return out[..., :channels], 1.0 - out[..., channels:]


class ReferenceOutput(NamedTuple):
    """What `rasterize_reference` returns."""

    render_colors: Tensor  # [B, C, H, W, X]
    render_alphas: Tensor  # [B, C, H, W, 1]
    num_invalid: Tensor  # [B, C] int64


def rasterize_reference(inputs: Inputs, settings: Settings, means2d: Tensor | None = None) -> ReferenceOutput:
    """The whole forward pass: drop what is not finite, project, shade, blend. Differentiable in every tensor. Where
    `means2d` [..., C, N, 2] is given, the image is made of that in place of its equals."""
    inputs, valid = replace_invalid(inputs)
    projection = project(inputs, valid, settings)
    if means2d is not None:
        projection = projection._replace(means2d=means2d.reshape(projection.means2d.shape))
    features = []
    if inputs.colors is not None:
        colors = inputs.colors
        if settings.sh_degree >= 0:
            colors = sh_colors(settings.sh_degree, colors, inputs.means, inputs.viewmats)
        features.append(colors.expand(-1, inputs.viewmats.shape[1], -1, -1))
    if settings.depth_mode != NO_DEPTH:
        features.append(torch.where(projection.keep, projection.depths, 0.0)[..., None])
    render_colors, render_alphas = render(projection, torch.cat(features, -1), settings)
    if inputs.backgrounds is not None:
        render_colors = render_colors + (1.0 - render_alphas) * inputs.backgrounds[:, :, None, None]
    if settings.depth_mode == EXPECTED_DEPTH:
        depth = render_colors[..., -1:] / render_alphas.clamp_min(1e-10)
        render_colors = torch.cat([render_colors[..., :-1], depth], -1)
    return ReferenceOutput(render_colors, render_alphas, (~valid).sum(-1))
