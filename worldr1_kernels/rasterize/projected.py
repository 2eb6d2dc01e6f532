"""What meta says of the projected Gaussians: from the C++ module where that renders, else by torch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from worldr1_kernels.rasterize.arguments import Inputs, Settings
from worldr1_kernels.rasterize.reference import project, replace_invalid


class Projected(NamedTuple):
    """Projected Gaussians [B, C, N, ...], 0 where one is not seen; or [nnz, ...] of those that are seen."""

    values: Tensor  # [..., 7] as `names` unpacks them
    radii: Tensor  # [..., 2] int32, gsplat's rounded-up radius
    ids: Tensor | None = None  # [3, nnz] scene, view and Gaussian of a list

    def names(self) -> dict[str, Tensor]:
        """means2d [..., 2] in pixels, conics [..., 3] (inverse 2D covariance xx, xy, yy), depths [...] (camera z),
        radii [..., 2] and opacities [...] after antialiasing compensation: views."""
        means2d, conics, depths, opacities = self.values.split([2, 3, 1, 1], -1)
        named = {"means2d": means2d, "conics": conics, "depths": depths[..., 0], "radii": self.radii}
        return named | {"opacities": opacities[..., 0]}

    def packed(self) -> "Projected":
        """The list of those that are seen."""
        ids = (self.radii[..., 0] > 0).nonzero().T
        row = rows(ids, self.values.shape)
        values, radii = (t.flatten(0, 2).index_select(0, row) for t in (self.values, self.radii))
        return Projected(values, radii, ids)


def rows(ids: Tensor, shape: Sequence[int]) -> Tensor:
    """[nnz] places of a list in the flattened [B, C, N, ...]."""
    return (ids[0] * shape[1] + ids[1]) * shape[2] + ids[2]


def spread(listed: Tensor, ids: Tensor, inputs: Inputs) -> Tensor:
    """[B, C, N, k] of a list [nnz, k], 0 elsewhere."""
    whole = listed.new_zeros(*inputs.viewmats.shape[:2], inputs.means.shape[1], listed.shape[-1])
    return whole.flatten(0, 2).index_copy(0, rows(ids, whole.shape), listed).view_as(whole)


def by_module(values: Tensor, radii: Tensor, ids: Tensor, count: Tensor) -> Projected:
    """What `native_impl.empty_projected` lists, filled."""
    if count.numel() == 0:
        return Projected(values, radii)
    num = int(count)
    return Projected(values.flatten(0, 2)[:num], radii.flatten(0, 2)[:num], ids[:, :num])


def project_by_torch(inputs: Inputs, settings: Settings) -> Projected:
    """By the reference, differentiable."""
    found = project(*replace_invalid(inputs), settings)
    values = [found.means2d, found.conics, found.depths[..., None], found.opacities[..., None]]
    return Projected(torch.where(found.keep[..., None], torch.cat(values, -1), 0.0), found.radii)


def _means_backward(
    inputs: Inputs, means2d: Tensor, depths: Tensor, grad: Tensor, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of the inputs of means2d = (fx x/z + cx, fy y/z + cy), where (x, y, z) = R mean + t.

    Args:
      inputs: As projected.
      means2d: [B, C, N, 2].
      depths: z, [B, C, N]; 0 where a Gaussian is not seen.
      grad: Of means2d, [B, C, N, 2].
      wanted: Which of `inputs` are to get one.
    """
    seen = depths != 0
    inverse = torch.where(seen, depths, 1.0).reciprocal()[..., None]
    grad = torch.where(seen[..., None], grad, 0.0)
    focal = inputs.Ks[:, :, None, [0, 1], [0, 1]]
    offsets = means2d - inputs.Ks[:, :, None, :2, 2]  # focal (x, y) / z
    by_point = inverse * torch.cat([grad * focal, -(grad * offsets).sum(-1, keepdim=True)], -1)  # [B, C, N, 3]
    given: dict[str, Tensor] = {}
    if wanted[Inputs._fields.index("means")]:
        given["means"] = (by_point @ inputs.viewmats[..., :3, :3]).sum(1)
    if wanted[Inputs._fields.index("viewmats")]:
        means = torch.where(seen.any(1)[..., None], inputs.means, 0.0)  # what is not seen may be NaN
        given["viewmats"] = v_viewmats = torch.zeros_like(inputs.viewmats)
        v_viewmats[..., :3, :3] = by_point.mT @ means[:, None]
        v_viewmats[..., :3, 3] = by_point.sum(2)
    if wanted[Inputs._fields.index("Ks")]:
        given["Ks"] = v_Ks = torch.zeros_like(inputs.Ks)
        v_Ks[..., [0, 1], [0, 1]] = (grad * offsets / focal).sum(2)
        v_Ks[..., :2, 2] = grad.sum(2)
    return [given.get(name) for name in Inputs._fields]


class WithGradient(torch.autograd.Function):
    """`values` of the C++ module as a function of the inputs. Gradients by torch, through the whole projection only
    where more than the means have one."""

    @staticmethod
    def forward(ctx: Any, settings: Settings, values: Tensor, ids: Tensor | None, *inputs: Tensor | None) -> Tensor:
        ctx.save_for_backward(*inputs, values, ids)
        ctx.settings = settings
        return values.view_as(values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *saved, values, ids = ctx.saved_tensors
        wanted = ctx.needs_input_grad[3:]
        if ids is not None:
            values, grad = (spread(t, ids, Inputs(*saved)) for t in (values, grad))
        if not bool(grad[..., 2:].any()):
            by_means = _means_backward(Inputs(*saved), values[..., :2], values[..., 5], grad[..., :2], wanted)
            return None, None, None, *by_means
        leaves = [t if t is None else t.detach().requires_grad_(want) for t, want in zip(saved, wanted, strict=True)]
        with torch.enable_grad():
            found = project_by_torch(Inputs(*leaves), ctx.settings).values  # type: ignore[arg-type]
        needed = [t for t in leaves if t is not None and t.requires_grad]
        depends = found.requires_grad  # on one of those
        got = iter(torch.autograd.grad(found, needed, grad, allow_unused=True) if depends else [None] * len(needed))
        return None, None, None, *(next(got) if want else None for want in wanted)
