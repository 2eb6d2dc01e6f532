"""The ops `worldr1::rasterize` and `worldr1::rasterize_backward`: schemas, dispatch, fake kernels, autograd."""

from typing import Any

import torch
from torch import Tensor

from worldr1_kernels import _native
from worldr1_kernels._dispatch import Probe, always_available
from worldr1_kernels._library import define_op
from worldr1_kernels.rasterize import cuda_impl, native_impl
from worldr1_kernels.rasterize.arguments import EXPECTED_DEPTH, BackwardInputs, Inputs, Settings
from worldr1_kernels.rasterize.launch import empty_gradients
from worldr1_kernels.rasterize.reference import rasterize_reference

PROBES: dict[str, Probe] = {"native": _native.unavailable, "reference": always_available}

_INPUTS = (
    "Tensor means, Tensor? quats, Tensor? scales, Tensor? covars, Tensor opacities, Tensor? colors, Tensor viewmats, "
    "Tensor Ks, Tensor? backgrounds"
)
_SETTINGS = (
    "int width, int height, float near_plane, float far_plane, float radius_clip, float eps2d, int sh_degree, "
    "int depth_mode, bool antialiased, float max_alpha, float compensation_floor, float pairs_per_gaussian"
)
_NUM_INPUTS, _NUM_SETTINGS = len(Inputs._fields), len(Settings._fields)


def _forward(*args: Any) -> tuple[Tensor, ...]:
    inputs, settings = Inputs(*args[:_NUM_INPUTS]), Settings(*args[_NUM_INPUTS:-3])
    backend, for_backward, report = args[-3:]
    if backend == "native" and not inputs.means.is_cuda:
        outputs = native_impl.rasterize_native(
            inputs, settings, for_backward=for_backward, report=report
        )
        return *outputs[:3], torch.zeros_like(outputs[2]), *outputs[3:]
    projected = native_impl.empty_projected(inputs, native_impl.NOT_PROJECTED)
    if backend == "native":
        # Without a look at `overflow`, which would wait for the device.
        return *cuda_impl.rasterize_cuda(inputs, settings, for_backward=for_backward)[:6], *projected
    output = rasterize_reference(inputs, settings)
    none = inputs.means.new_empty(0)
    # Slices of a larger tensor: the fake kernel promises contiguous outputs of their own.
    images = output.render_colors.contiguous(), output.render_alphas.contiguous()
    return *images, output.num_invalid, torch.zeros_like(output.num_invalid), none, none.to(torch.int32), *projected


def _forward_fake(*args: Any) -> tuple[Tensor, ...]:
    inputs, settings = Inputs(*args[:_NUM_INPUTS]), Settings(*args[_NUM_INPUTS:-3])
    backend, for_backward, report = args[-3:]
    means, views = inputs.means, inputs.viewmats.shape[:2]
    image = (*views, settings.height, settings.width)
    kept = image if for_backward else (0,)
    return (
        means.new_empty(*image, settings.channels(inputs.colors)),
        means.new_empty(*image, 1),
        means.new_empty(*views, dtype=torch.int64),
        means.new_empty(*views, dtype=torch.int64),
        means.new_empty(*kept),
        means.new_empty(*kept, dtype=torch.int32),
        *native_impl.empty_projected(inputs, report if backend == "native" and not means.is_cuda else 0),
    )


def _backward(*args: Any) -> tuple[Tensor, ...]:
    inputs, images = Inputs(*args[:_NUM_INPUTS]), BackwardInputs(*args[_NUM_INPUTS : -_NUM_SETTINGS - 1])
    settings, split_means2d = Settings(*args[-_NUM_SETTINGS - 1 : -1]), args[-1]
    if inputs.means.is_cuda:
        return cuda_impl.rasterize_backward_cuda(inputs, settings, images, split_means2d=split_means2d)
    return native_impl.rasterize_backward_native(inputs, settings, images, split_means2d=split_means2d)


def _backward_fake(*args: Any) -> tuple[Tensor, ...]:
    inputs, split_means2d = Inputs(*args[:_NUM_INPUTS]), args[-1]
    return empty_gradients(inputs, split_means2d=split_means2d)


# *Inputs, *Settings, backend, for_backward, report -> render_colors [B,C,H,W,X], render_alphas [B,C,H,W,1],
# num_invalid [B,C], overflow [B,C] (pairs that found no room, on CUDA alone: such a view is NaN); with for_backward
# (backend "native" alone; else empty) what the backward reads, the transmittance left [B,C,H,W] and where each pixel's
# list of splats ended [B,C,H,W], in the implementation's own count; and the four of `native_impl.empty_projected`, for
# backend "native" on a CPU alone (else empty).
rasterize_op = define_op(
    f"rasterize({_INPUTS}, {_SETTINGS}, str backend, bool for_backward, int report) "
    f"-> ({', '.join(['Tensor'] * 10)})",
    _forward,
    _forward_fake,
)

# Gradients of *Inputs, empty for those that are None, and of the projected means [B,C,N,2], empty unless split_means2d:
# then the chain stops at the projected means, and the other gradients leave out what comes through them.
rasterize_backward_op = define_op(
    f"rasterize_backward({_INPUTS}, Tensor? render_colors, Tensor transmittance, Tensor last, Tensor? grad_colors, "
    f"Tensor? grad_alphas, {_SETTINGS}, bool split_means2d) "
    f"-> ({', '.join(['Tensor'] * (_NUM_INPUTS + 1))})",
    _backward,
    _backward_fake,
)


def _keeps_lists(means: Tensor | None) -> bool:
    """Whether the forward goes past the op, which has no place for the lists that the backward can use again. A
    compiler sees the op, and the lists are built twice."""
    return means is not None and means.is_cuda and not torch.compiler.is_compiling()


class Rasterize(torch.autograd.Function):
    """The native kernels, differentiable in every tensor. `means2d` [..., C, N, 2] may be None; given, it receives the
    gradient of the projected means, which then does not flow to the other inputs from here. `rendered`: outputs of
    `rasterize_op` with for_backward, where they are there already."""

    @staticmethod
    def forward(
        ctx: Any,
        settings: Settings,
        rendered: tuple[Tensor, ...] | None,
        means2d: Tensor | None,
        *inputs: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        chunks: tuple[cuda_impl.Chunk, ...] = ()
        if rendered is None and _keeps_lists(inputs[0]):
            *rendered, chunks = cuda_impl.rasterize_cuda(Inputs(*inputs), settings, for_backward=True)  # type: ignore[assignment, arg-type]
        elif rendered is None:
            rendered = rasterize_op(*inputs, *settings, "native", True, native_impl.NOT_PROJECTED)
        assert rendered is not None
        colors, alphas, num_invalid, overflow, transmittance, last = rendered[:6]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(num_invalid, overflow)
        divided = colors if settings.depth_mode == EXPECTED_DEPTH else None
        # Saved, not kept as they are: what is saved is freed when the backward has run.
        lists = [t for chunk in chunks for t in chunk.kept or ()]
        ctx.save_for_backward(*inputs, divided, transmittance, last, *lists)
        ctx.chunks = [(chunk._replace(kept=None), len(chunk.kept or ())) for chunk in chunks]
        ctx.settings, ctx.means2d_shape = settings, None if means2d is None else means2d.shape
        return colors, alphas, num_invalid, overflow

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, lists = ctx.saved_tensors[: _NUM_INPUTS + 3], list(ctx.saved_tensors[_NUM_INPUTS + 3 :])
        shape = ctx.means2d_shape
        if ctx.chunks:
            inputs, images = Inputs(*saved[:_NUM_INPUTS]), BackwardInputs(*saved[_NUM_INPUTS:], *grads[:2])
            chunks = []
            for chunk, num in ctx.chunks:
                chunks.append(chunk._replace(kept=tuple(lists[:num]) or None))
                del lists[:num]
            *outputs, means2d = cuda_impl.rasterize_backward_cuda(
                inputs, ctx.settings, images, chunks=tuple(chunks), split_means2d=shape is not None
            )
        else:
            *outputs, means2d = rasterize_backward_op(*saved, *grads[:2], *ctx.settings, shape is not None)
        gradients = [g if t is not None else None for g, t in zip(outputs, saved[:_NUM_INPUTS], strict=True)]
        return None, None, (None if shape is None else means2d.reshape(shape)), *gradients
