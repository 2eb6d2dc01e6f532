"""Launcher of the C++ rasterizer: contiguous float32 pointers in, forward and backward."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from worldr1_kernels import _native
from worldr1_kernels._native import address
from worldr1_kernels.rasterize.arguments import BackwardInputs, Inputs, Settings
from worldr1_kernels.rasterize.launch import backward_arguments, call_arguments, contiguous

MAX_GAUSSIANS = (1 << 31) - 1  # a scene: where a pixel's list ends is counted in 32 bits


def _arguments(inputs: Inputs, settings: Settings, level: str) -> dict[str, Any]:
    """Arguments that forward and backward share. `inputs` must be contiguous, and live until the call returns."""
    if inputs.means.shape[1] > MAX_GAUSSIANS:
        raise ValueError(f"rasterize: N must be at most {MAX_GAUSSIANS}, got {inputs.means.shape[1]}")
    return {**call_arguments(inputs, settings), "num_threads": torch.get_num_threads(), "level": level}


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


NOT_PROJECTED, PROJECTED, PACKED = range(3)


def empty_projected(inputs: Inputs, report: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What is reported of the projected Gaussians, without elements for NOT_PROJECTED.

    Returns:
      (mean x, y, inverse covariance xx, xy, yy, camera z and opacity [B, C, N, 7]; radii [B, C, N, 2] int32; and for
      PACKED, where the rows of those that are seen come first, their scene, view and Gaussian [3, B C N] int64, and
      their number [1] int64, 0 to begin with).
    """
    shape = (*inputs.viewmats.shape[:2], inputs.means.shape[1] if report else 0)
    num = math.prod(shape) if report == PACKED else 0
    values, radii = inputs.means.new_empty(*shape, 7), inputs.means.new_empty(*shape, 2, dtype=torch.int32)
    ids = inputs.means.new_empty(3, num, dtype=torch.int64)
    return values, radii, ids, inputs.means.new_zeros(int(report == PACKED), dtype=torch.int64)


def rasterize_native(
    inputs: Inputs, settings: Settings, *, for_backward: bool = False, report: int = NOT_PROJECTED, level: str = ""
) -> tuple[Tensor, ...]:
    """Renders float32 CPU tensors on `torch.get_num_threads()` threads; the result does not depend on their number.

    Args:
      inputs: Float32 tensors on the CPU, any strides.
      settings: Scalars.
      for_backward: Keep what `rasterize_backward_native` reads.
      report: NOT_PROJECTED, PROJECTED or PACKED.
      level: Instruction set, "x86-64-v2", "-v3" or "-v4"; "" takes the best this processor has.
    Returns:
      (render_colors [B, C, H, W, X], render_alphas [B, C, H, W, 1], num_invalid [B, C] int64, transmittance
      [B, C, H, W], last [B, C, H, W] int32, and the four of `empty_projected`, 0 where a Gaussian is not seen);
      transmittance and last are empty unless `for_backward`.
    Raises:
      RuntimeError: the module is not built, or the processor lacks `level`.
      MemoryError: the lists of pairs do not fit into memory.
    """
    module = _native.cpu()
    inputs = contiguous(inputs)
    views = inputs.viewmats.shape[:2]
    image = (*views, settings.height, settings.width)
    new = inputs.means.new_empty
    colors, alphas = new(*image, settings.channels(inputs.colors)), new(*image, 1)
    num_invalid = torch.zeros(views, dtype=torch.int64)
    kept = image if for_backward else (0,)
    transmittance, last = new(*kept), new(*kept, dtype=torch.int32)
    projected = empty_projected(inputs, report)
    names = ("projected", "radii", "projected_ids", "projected_count")
    with _out_of_memory(inputs, settings):
        module.rasterize_forward(
            **_arguments(inputs, settings, level),
            render_colors=address(colors),
            render_alphas=address(alphas),
            num_invalid=address(num_invalid),
            transmittance=address(transmittance),
            last=address(last),
            **{name: address(t) for name, t in zip(names, projected, strict=True)},
        )
    return colors, alphas, num_invalid, transmittance, last, *projected


def rasterize_backward_native(
    inputs: Inputs, settings: Settings, images: BackwardInputs, *, split_means2d: bool = False, level: str = ""
) -> tuple[Tensor, ...]:
    """Gradients of `rasterize_native`, bit by bit the same at any number of threads.

    Args:
      inputs: As in the forward.
      settings: As in the forward.
      images: Of the forward, and their gradients.
      split_means2d: Return the gradient of the projected means apart, and leave it out of the others.
      level: As in the forward.
    Returns:
      The gradients of `inputs`, empty where one is None, and of the projected means [B, C, N, 2] or empty.
    """
    module = _native.cpu()
    inputs = contiguous(inputs)
    arguments, gradients, held = backward_arguments(images, inputs, split_means2d=split_means2d)
    with _out_of_memory(inputs, settings):
        module.rasterize_backward(**_arguments(inputs, settings, level), **arguments)
    del held
    return gradients
