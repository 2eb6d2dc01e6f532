"""Launcher of the CUDA rasterizer, forward and backward: float32 device tensors in, no host synchronisation.

Compiled for sm_90a, and checked on the CPU by `rasterize_emulated`, which runs the same kernels. It has not yet run on
a device.
"""

import functools
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from worldr1_kernels import _native
from worldr1_kernels._native import address
from worldr1_kernels.rasterize.arguments import FIRST_DEPTH, MEDIAN_DEPTH, BackwardInputs, Inputs, Settings
from worldr1_kernels.rasterize.launch import backward_arguments, call_arguments, colors_per_view, contiguous

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
    transmittance: Tensor  # [B, C, H, W] for the backward; else empty
    last: Tensor  # [B, C, H, W] int32 for the backward; else empty


@functools.lru_cache(maxsize=256)
def _plan(
    module: ModuleType,
    device: torch.device,
    num_gaussians: int,
    num_views: int,
    width: int,
    height: int,
    backward_channels: int,
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
        backward_channels=backward_channels,
        pairs_per_gaussian=pairs_per_gaussian,
        memory_budget=memory_budget,
    )


class _Target(NamedTuple):
    """Where a call runs, and how much memory it may take."""

    module: Any
    stream: int
    memory_budget: int
    pairs_per_gaussian: float


def _check_sizes(inputs: Inputs, settings: Settings) -> None:
    tiles = -(-settings.width // 16) * -(-settings.height // 16)
    if inputs.means.shape[1] > MAX_GAUSSIANS:
        raise ValueError(f"rasterize: N must be at most {MAX_GAUSSIANS} on CUDA, got {inputs.means.shape[1]}")
    if tiles > MAX_TILES:
        raise ValueError(f"rasterize: an image must have at most {MAX_TILES} tiles of 16x16 on CUDA, got {tiles}")


def _arguments(
    target: _Target, inputs: Inputs, settings: Settings, backward_channels: int
) -> tuple[dict[str, Any], Tensor, Tensor, Tensor]:
    """What forward and backward share, and the tensors (num_invalid, overflow, workspace) that must live until all is
    queued; torch's allocator then keeps their memory for the stream. `inputs` must be contiguous."""
    means = inputs.means
    num_scenes, num_gaussians, num_views = *means.shape[:2], inputs.viewmats.shape[1]
    counted_views = num_views if colors_per_view(inputs) else 1
    num_invalid = means.new_zeros(num_scenes, counted_views, dtype=torch.int64)
    overflow = means.new_zeros(num_scenes, num_views, dtype=torch.int64)
    sizes = (num_gaussians, num_views, settings.width, settings.height, backward_channels)
    num_bytes, views_per_chunk, pairs_per_view = _plan(
        target.module, means.device, *sizes, target.pairs_per_gaussian, target.memory_budget
    )
    workspace = torch.empty(num_bytes, dtype=torch.uint8, device=means.device)
    arguments = {
        **call_arguments(inputs, settings),
        "num_invalid": address(num_invalid),
        "overflow": address(overflow),
        "views_per_chunk": views_per_chunk,
        "pairs_per_view": pairs_per_view,
        "workspace": address(workspace),
        "workspace_bytes": num_bytes,
        "stream": target.stream,
    }
    return arguments, num_invalid, overflow, workspace


def _forward(target: _Target, inputs: Inputs, settings: Settings, for_backward: bool) -> TiledOutput:
    assert not (for_backward and settings.depth_mode in (MEDIAN_DEPTH, FIRST_DEPTH))
    _check_sizes(inputs, settings)
    inputs = contiguous(inputs)
    arguments, num_invalid, overflow, workspace = _arguments(target, inputs, settings, 0)
    new = inputs.means.new_empty
    image = (*overflow.shape, settings.height, settings.width)
    colors, alphas = new(*image, arguments["channels"]), new(*image, 1)
    kept = image if for_backward else (0,)
    transmittance, last = new(*kept), new(*kept, dtype=torch.int32)
    target.module.rasterize_tiled(
        **arguments,
        render_colors=address(colors),
        render_alphas=address(alphas),
        transmittance=address(transmittance),
        last=address(last),
    )
    del workspace
    return TiledOutput(colors, alphas, num_invalid.expand_as(overflow).contiguous(), overflow, transmittance, last)


def _backward(
    target: _Target, inputs: Inputs, settings: Settings, images: BackwardInputs, split_means2d: bool
) -> tuple[Tensor, ...]:
    inputs = contiguous(inputs)
    shared, *held = _arguments(target, inputs, settings, settings.channels(inputs.colors))
    own, gradients, held_images = backward_arguments(images, inputs, split_means2d=split_means2d)
    target.module.rasterize_tiled_backward(**shared, **own)
    del held, held_images
    if inputs.backgrounds is None or images.grad_colors is None:
        return gradients
    *others, _, means2d = gradients
    return *others, torch.einsum("bchw,bchwx->bcx", images.transmittance, images.grad_colors), means2d


def rasterize_cuda(
    inputs: Inputs,
    settings: Settings,
    *,
    for_backward: bool = False,
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
      for_backward: Keep what `rasterize_backward_cuda` reads. Not with the depths MD and FD.
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
        return _forward(_Target(module, stream, memory_budget, pairs_per_gaussian), inputs, settings, for_backward)


def rasterize_backward_cuda(
    inputs: Inputs,
    settings: Settings,
    images: BackwardInputs,
    *,
    split_means2d: bool = False,
    memory_budget: int = MEMORY_BUDGET,
    pairs_per_gaussian: float = PAIRS_PER_GAUSSIAN,
) -> tuple[Tensor, ...]:
    """Gradients of `rasterize_cuda`, the same bits every time: no float is added atomically.

    Args:
      inputs: As in the forward.
      settings: As in the forward.
      images: Of the forward, and their gradients.
      split_means2d: Return the gradient of the projected means apart, and leave it out of the others.
      memory_budget: As in the forward; a pair takes 40 bytes more here.
      pairs_per_gaussian: As in the forward, and at least as much.
    Returns:
      The gradients of `inputs`, empty where one is None, and of the projected means [B, C, N, 2] or empty. NaN where
      the lists of a chunk did not fit.
    Raises:
      RuntimeError: the module is not built, there is no device, or CUDA reports an error.
    """
    module = _native.cuda()
    with torch.cuda.device(inputs.means.device):
        stream = torch.cuda.current_stream().cuda_stream
        target = _Target(module, stream, memory_budget, pairs_per_gaussian)
        return _backward(target, inputs, settings, images, split_means2d)


def rasterize_emulated(
    inputs: Inputs,
    settings: Settings,
    *,
    for_backward: bool = False,
    seed: int = 0,
    memory_budget: int = MEMORY_BUDGET,
    pairs_per_gaussian: float = PAIRS_PER_GAUSSIAN,
) -> TiledOutput:
    """The kernels of `rasterize_cuda` run by an interpreter on the CPU, thread by thread: for tests, very slow.

    Args:
      inputs: Float32 tensors on the CPU.
      settings: Scalars.
      for_backward: As in `rasterize_cuda`.
      seed: Order of threads, warps and blocks, and when asynchronous copies land. The result must not depend on it.
      memory_budget: As in `rasterize_cuda`.
      pairs_per_gaussian: As in `rasterize_cuda`.
    Returns:
      TiledOutput.
    Raises:
      RuntimeError: the C++ module is not built; a thread missed a collective of its warp or block; a kernel wrote past
      an array.
    """
    target = _Target(_native.cpu(), seed, memory_budget, pairs_per_gaussian)
    return _forward(target, inputs, settings, for_backward)


def rasterize_backward_emulated(
    inputs: Inputs,
    settings: Settings,
    output: TiledOutput,
    grad_colors: Tensor | None,
    grad_alphas: Tensor | None,
    *,
    split_means2d: bool = False,
    seed: int = 0,
    memory_budget: int = MEMORY_BUDGET,
    pairs_per_gaussian: float = PAIRS_PER_GAUSSIAN,
) -> tuple[Tensor, ...]:
    """The kernels of `rasterize_backward_cuda` run by the interpreter; see there and `rasterize_emulated`."""
    target = _Target(_native.cpu(), seed, memory_budget, pairs_per_gaussian)
    images = BackwardInputs(output.render_colors, output.transmittance, output.last, grad_colors, grad_alphas)
    return _backward(target, inputs, settings, images, split_means2d)
