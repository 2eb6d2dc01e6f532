"""Launcher of the C++ rasterizer: contiguous float32 pointers in, forward and backward."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from worldr1_kernels import _native
from worldr1_kernels.rasterize.arguments import Inputs, Settings

LARGEST_FLOAT32 = torch.finfo(torch.float32).max
MAX_GAUSSIANS = (1 << 31) - 1  # a scene: where a pixel's list ends is counted in 32 bits


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _arguments(inputs: Inputs, settings: Settings, level: str) -> dict[str, Any]:
    """Arguments that forward and backward share. `inputs` must be contiguous, and live until the call returns."""
    means, colors = inputs.means, inputs.colors
    if means.shape[1] > MAX_GAUSSIANS:
        raise ValueError(f"rasterize: N must be at most {MAX_GAUSSIANS}, got {means.shape[1]}")
    return {
        **{name: _address(tensor) for name, tensor in inputs._asdict().items()},
        **settings._replace(far_plane=min(settings.far_plane, LARGEST_FLOAT32))._asdict(),
        "num_scenes": means.shape[0],
        "num_views": inputs.viewmats.shape[1],
        "num_gaussians": means.shape[1],
        "color_size": 0 if colors is None else colors.shape[3:].numel(),
        "channels": settings.channels(colors),
        "colors_per_view": int(colors is not None and colors.shape[1] != 1),
        "num_threads": torch.get_num_threads(),
        "level": level,
    }


@contextlib.contextmanager
def _out_of_memory(inputs: Inputs, settings: Settings) -> Iterator[None]:
    """Says what did not fit: a list has 8 bytes for each tile that a splat may reach. Sizes are 64 bits wide."""
    try:
        yield
    except MemoryError as error:
        size = f"{inputs.means.shape[1]} Gaussians in images of {settings.width}x{settings.height}"
        raise MemoryError(
            f"rasterize: the lists of (tile, splat) pairs must fit into memory, got {size}; render fewer Gaussians, "
            "smaller splats or smaller images at a time"
        ) from error


def _contiguous(inputs: Inputs) -> Inputs:
    return Inputs(*(None if t is None else t.contiguous() for t in inputs))  # type: ignore[arg-type]


def rasterize_native(
    inputs: Inputs, settings: Settings, *, for_backward: bool = False, level: str = ""
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Renders float32 CPU tensors on `torch.get_num_threads()` threads; the result does not depend on their number.

    Args:
      inputs: Float32 tensors on the CPU, any strides.
      settings: Scalars.
      for_backward: Keep what `rasterize_backward_native` reads.
      level: Instruction set, "x86-64-v2", "-v3" or "-v4"; "" takes the best this processor has.
    Returns:
      (render_colors [B, C, H, W, X], render_alphas [B, C, H, W, 1], num_invalid [B, C] int64, transmittance
      [B, C, H, W], last [B, C, H, W] int32); the last two are empty unless `for_backward`.
    Raises:
      RuntimeError: the module is not built, or the processor lacks `level`.
      MemoryError: the lists of pairs do not fit into memory.
    """
    module = _native.cpu()
    inputs = _contiguous(inputs)
    views = inputs.viewmats.shape[:2]
    image = (*views, settings.height, settings.width)
    new = inputs.means.new_empty
    colors, alphas = new(*image, settings.channels(inputs.colors)), new(*image, 1)
    num_invalid = torch.zeros(views, dtype=torch.int64)
    kept = image if for_backward else (0,)
    transmittance, last = new(*kept), new(*kept, dtype=torch.int32)
    with _out_of_memory(inputs, settings):
        module.rasterize_forward(
            **_arguments(inputs, settings, level),
            render_colors=_address(colors),
            render_alphas=_address(alphas),
            num_invalid=_address(num_invalid),
            transmittance=_address(transmittance) if for_backward else 0,
            last=_address(last) if for_backward else 0,
        )
    return colors, alphas, num_invalid, transmittance, last


def empty_gradients(inputs: Inputs, *, split_means2d: bool) -> tuple[Tensor, ...]:
    """One contiguous tensor for each of `inputs` (no elements where it is None) and for the projected means."""
    means2d = (*inputs.viewmats.shape[:2], inputs.means.shape[1], 2) if split_means2d else (0,)
    shapes = [(0,) if t is None else tuple(t.shape) for t in inputs]
    return tuple(inputs.means.new_empty(shape) for shape in (*shapes, means2d))


def rasterize_backward_native(
    inputs: Inputs,
    settings: Settings,
    render_colors: Tensor | None,
    transmittance: Tensor,
    last: Tensor,
    grad_colors: Tensor | None,
    grad_alphas: Tensor | None,
    *,
    split_means2d: bool = False,
    level: str = "",
) -> tuple[Tensor, ...]:
    """Gradients of `rasterize_native`, bit by bit the same at any number of threads.

    Args:
      inputs: As in the forward.
      settings: As in the forward.
      render_colors: The forward's, for expected depth alone.
      transmittance: The forward's.
      last: The forward's.
      grad_colors: Gradient of render_colors; None: zero.
      grad_alphas: Gradient of render_alphas; None: zero.
      split_means2d: Return the gradient of the projected means apart, and leave it out of the others.
      level: As in the forward.
    Returns:
      The gradients of `inputs`, empty where one is None, and of the projected means [B, C, N, 2] or empty.
    """
    module = _native.cpu()
    inputs = _contiguous(inputs)
    images = (render_colors, transmittance, last, grad_colors, grad_alphas)
    held = [None if t is None else t.contiguous() for t in images]
    names = ("render_colors", "transmittance", "last", "grad_colors", "grad_alphas")
    gradients = tuple(t.zero_() for t in empty_gradients(inputs, split_means2d=split_means2d))
    targets = zip((*Inputs._fields, "means2d"), gradients, strict=True)
    with _out_of_memory(inputs, settings):
        module.rasterize_backward(
            **_arguments(inputs, settings, level),
            **{name: _address(t) for name, t in zip(names, held, strict=True)},
            **{f"v_{name}": _address(t) if t.numel() else 0 for name, t in targets},
        )
    return gradients
