"""The op `worldr1::rasterize`: schema, dispatch, fake kernel. Forward only; gradients: see api.py."""

from typing import Any

import torch
from torch import Tensor

from worldr1_kernels._library import define_op
from worldr1_kernels.rasterize.arguments import Inputs, Settings
from worldr1_kernels.rasterize.native_impl import rasterize_native
from worldr1_kernels.rasterize.reference import rasterize_reference

SCHEMA = (
    "rasterize(Tensor means, Tensor quats, Tensor scales, Tensor opacities, Tensor? colors, Tensor viewmats, "
    "Tensor Ks, Tensor? backgrounds, int width, int height, float near_plane, float far_plane, float radius_clip, "
    "float eps2d, int sh_degree, int depth_mode, bool antialiased, float max_alpha, float compensation_floor, "
    "str backend) -> (Tensor, Tensor, Tensor)"
)
_NUM_INPUTS = len(Inputs._fields)


def _split(args: tuple[Any, ...]) -> tuple[Inputs, Settings, str]:
    return Inputs(*args[:_NUM_INPUTS]), Settings(*args[_NUM_INPUTS:-1]), args[-1]


def _forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs, settings, backend = _split(args)
    if backend == "native":
        return rasterize_native(inputs, settings)
    output = rasterize_reference(inputs, settings)
    # Slices of a larger tensor: the fake kernel promises contiguous outputs of their own.
    return output.render_colors.contiguous(), output.render_alphas.contiguous(), output.num_invalid


def _fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs, settings, _ = _split(args)
    image = (*inputs.viewmats.shape[:2], settings.height, settings.width)
    return (
        inputs.means.new_empty(*image, settings.channels(inputs.colors)),
        inputs.means.new_empty(*image, 1),
        inputs.means.new_empty(*inputs.viewmats.shape[:2], dtype=torch.int64),
    )


# Positional: *Inputs, *Settings, backend -> (render_colors [B,C,H,W,X], render_alphas [B,C,H,W,1], num_invalid [B,C]).
rasterize_op = define_op(SCHEMA, _forward, _fake)
