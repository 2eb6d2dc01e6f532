"""What the launchers of the compiled rasterizers share: the C++ one, the CUDA one and the CUDA one in its interpreter.

Names are those that csrc/common/rasterize_bindings.h reads. Only addresses cross: whoever calls holds the tensors.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from worldr1_kernels._native import address
from worldr1_kernels.rasterize.arguments import BackwardInputs, Inputs, Settings

LARGEST_FLOAT32 = torch.finfo(torch.float32).max


def contiguous(inputs: Inputs) -> Inputs:
    """`inputs` as the functions below take them."""
    return Inputs(*(None if t is None else t.contiguous() for t in inputs))  # type: ignore[arg-type]


def colors_per_view(inputs: Inputs) -> bool:
    """Whether the colours have one set for each view."""
    return inputs.colors is not None and inputs.colors.shape[1] != 1


def call_arguments(inputs: Inputs, settings: Settings) -> dict[str, Any]:
    """What every call takes, forward and backward. `inputs` must be contiguous."""
    means, colors = inputs.means, inputs.colors
    return {
        **{name: address(tensor) for name, tensor in inputs._asdict().items()},
        **settings._replace(far_plane=min(settings.far_plane, LARGEST_FLOAT32))._asdict(),
        "num_scenes": means.shape[0],
        "num_views": inputs.viewmats.shape[1],
        "num_gaussians": means.shape[1],
        "color_size": 0 if colors is None else colors.shape[3:].numel(),
        "channels": settings.channels(colors),
        "colors_per_view": colors_per_view(inputs),
    }


def empty_gradients(inputs: Inputs, *, split_means2d: bool) -> tuple[Tensor, ...]:
    """One contiguous tensor for each of `inputs` (no elements where it is None) and for the projected means."""
    means2d = (*inputs.viewmats.shape[:2], inputs.means.shape[1], 2) if split_means2d else (0,)
    shapes = [(0,) if t is None else tuple(t.shape) for t in inputs]
    return tuple(inputs.means.new_empty(shape) for shape in (*shapes, means2d))


def backward_arguments(
    images: BackwardInputs, inputs: Inputs, *, split_means2d: bool, written: Collection[str] = ()
) -> tuple[dict[str, int], tuple[Tensor, ...], BackwardInputs]:
    """(what the backward takes beside `call_arguments`, the gradients, zero before the call but for those in `written`,
    of which every element will be stored, tensors to hold)."""
    held = BackwardInputs(*(None if t is None else t.contiguous() for t in images))  # type: ignore[arg-type]
    gradients = empty_gradients(inputs, split_means2d=split_means2d)
    arguments = {name: address(t) for name, t in held._asdict().items()}
    for name, gradient in zip((*Inputs._fields, "means2d"), gradients, strict=True):
        if name not in written:
            gradient.zero_()
        arguments[f"v_{name}"] = address(gradient)
    return arguments, gradients, held
