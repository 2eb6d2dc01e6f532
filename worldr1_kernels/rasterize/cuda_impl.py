"""Launcher of the CUDA rasterizer, forward pass: float32 device tensors in, no host synchronisation.

Compiled for sm_90a, and checked on the CPU by `rasterize_emulated`, which runs the same kernels. It has not yet run on
a device.
"""

import functools
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from worldr1_kernels import _native
from worldr1_kernels.rasterize.arguments import Inputs, Settings

LARGEST_FLOAT32 = torch.finfo(torch.float32).max
MEMORY_BUDGET = 1 << 30  # bytes of workspace; more views of a scene are rendered in chunks
PAIRS_PER_GAUSSIAN = 4.0  # room for (tile, splat) pairs a view and Gaussian; 2^20 a view at least
MAX_GAUSSIANS = (1 << 31) - 2  # a scene; indices of one view are 32 bits wide
MAX_TILES = (1 << 31) - 1


class TiledOutput(NamedTuple):
    """Images, and what a caller should know of them. Nothing here was waited for."""

    render_colors: Tensor  # [B, C, H, W, X]
    render_alphas: Tensor  # [B, C, H, W, 1]
    num_invalid: Tensor  # [B, C] int64
    overflow: Tensor  # [B, C] int64: pairs that found no room; above 0 the view is NaN


@functools.lru_cache(maxsize=256)
def _plan(
    module: ModuleType,
    device: torch.device,
    num_gaussians: int,
    num_views: int,
    width: int,
    height: int,
    pairs_per_gaussian: float,
    memory_budget: int,
) -> tuple[int, int, int]:
    """(bytes of workspace, views a chunk, capacity of pairs a view). The device is part of the key alone."""
    del device
    return module.rasterize_tiled_plan(
        num_gaussians=num_gaussians,
        num_views=num_views,
        width=width,
        height=height,
        pairs_per_gaussian=pairs_per_gaussian,
        memory_budget=memory_budget,
    )


def _check_sizes(inputs: Inputs, settings: Settings) -> None:
    tiles = -(-settings.width // 16) * -(-settings.height // 16)
    if inputs.means.shape[1] > MAX_GAUSSIANS:
        raise ValueError(f"rasterize: N must be at most {MAX_GAUSSIANS} on CUDA, got {inputs.means.shape[1]}")
    if tiles > MAX_TILES:
        raise ValueError(f"rasterize: an image must have at most {MAX_TILES} tiles of 16x16 on CUDA, got {tiles}")


def _call(
    module: Any, inputs: Inputs, settings: Settings, stream: int, memory_budget: int, pairs_per_gaussian: float
) -> TiledOutput:
    """Allocates outputs and workspace on the device of the inputs, and queues the call."""
    _check_sizes(inputs, settings)
    # Held in a list until everything is queued: only addresses cross. Torch's allocator keeps memory for the stream.
    held = [None if t is None else t.contiguous() for t in inputs]
    means, colors = inputs.means, inputs.colors
    num_scenes, num_gaussians, num_views = *means.shape[:2], inputs.viewmats.shape[1]
    channels = settings.channels(colors)
    image = (num_scenes, num_views, settings.height, settings.width)
    render_colors, render_alphas = means.new_empty(*image, channels), means.new_empty(*image, 1)
    colors_per_view = colors is not None and colors.shape[1] != 1
    num_invalid = means.new_zeros(num_scenes, num_views if colors_per_view else 1, dtype=torch.int64)
    overflow = means.new_zeros(num_scenes, num_views, dtype=torch.int64)
    sizes = (num_gaussians, num_views, settings.width, settings.height)
    num_bytes, views_per_chunk, pairs_per_view = _plan(module, means.device, *sizes, pairs_per_gaussian, memory_budget)
    workspace = torch.empty(num_bytes, dtype=torch.uint8, device=means.device)
    addresses = {
        name: 0 if tensor is None else tensor.data_ptr() for name, tensor in zip(Inputs._fields, held, strict=True)
    }
    module.rasterize_tiled(
        **addresses,
        **settings._replace(far_plane=min(settings.far_plane, LARGEST_FLOAT32))._asdict(),
        render_colors=render_colors.data_ptr(),
        render_alphas=render_alphas.data_ptr(),
        num_invalid=num_invalid.data_ptr(),
        overflow=overflow.data_ptr(),
        num_scenes=num_scenes,
        num_views=num_views,
        num_gaussians=num_gaussians,
        color_size=0 if colors is None else colors.shape[3:].numel(),
        channels=channels,
        colors_per_view=colors_per_view,
        views_per_chunk=views_per_chunk,
        pairs_per_view=pairs_per_view,
        workspace=workspace.data_ptr(),
        workspace_bytes=num_bytes,
        stream=stream,
    )
    return TiledOutput(render_colors, render_alphas, num_invalid.expand(-1, num_views).contiguous(), overflow)


def rasterize_cuda(
    inputs: Inputs,
    settings: Settings,
    *,
    memory_budget: int = MEMORY_BUDGET,
    pairs_per_gaussian: float = PAIRS_PER_GAUSSIAN,
) -> TiledOutput:
    """Renders float32 CUDA tensors on the current stream; deterministic, bit for bit.

    The host waits for nothing, so the call can be captured in a CUDA graph (after a first call outside of one, which
    asks CUB for sizes). Hence buffers are allocated before the number of (tile, splat) pairs is known. Where N times
    the number of tiles is at most 2^20, every case fits. Beyond, a chunk of views whose pairs do not fit is filled with
    NaN, and `overflow` says how many were missing: read it when convenient (`overflow.any()` waits for the device), and
    render again with `pairs_per_gaussian` raised.

    Args:
      inputs: Float32 tensors on one CUDA device, any strides.
      settings: Scalars.
      memory_budget: Bytes of workspace; views are rendered in chunks that fit, one view at least whatever it takes.
      pairs_per_gaussian: Room for pairs, per view and Gaussian.
    Returns:
      TiledOutput.
    Raises:
      ValueError: a scene or an image exceeds 32-bit indices.
      RuntimeError: the module is not built, there is no device, or CUDA reports an error.
    """
    module = _native.cuda()
    with torch.cuda.device(inputs.means.device):
        stream = torch.cuda.current_stream().cuda_stream
        return _call(module, inputs, settings, stream, memory_budget, pairs_per_gaussian)


def rasterize_emulated(
    inputs: Inputs,
    settings: Settings,
    *,
    seed: int = 0,
    memory_budget: int = MEMORY_BUDGET,
    pairs_per_gaussian: float = PAIRS_PER_GAUSSIAN,
) -> TiledOutput:
    """The kernels of `rasterize_cuda` run by an interpreter on the CPU, thread by thread: for tests, very slow.

    Args:
      inputs: Float32 tensors on the CPU.
      settings: Scalars.
      seed: Order of threads, warps and blocks, and when asynchronous copies land. The result must not depend on it.
      memory_budget: As in `rasterize_cuda`.
      pairs_per_gaussian: As in `rasterize_cuda`.
    Returns:
      TiledOutput.
    Raises:
      RuntimeError: the C++ module is not built; a thread missed a collective of its warp or block; a kernel wrote past
      an array.
    """
    return _call(_native.cpu(), inputs, settings, seed, memory_budget, pairs_per_gaussian)
