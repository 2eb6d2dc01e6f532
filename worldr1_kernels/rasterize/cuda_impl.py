"""Launcher of the CUDA rasterizer, forward and backward: float32 device tensors in.

Checked on the CPU by `rasterize_emulated`, which runs the same kernels, and by `worldr1_kernels.verify` on the user's
own device; not yet run on one by us.
"""

import functools
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from worldr1_kernels import _native
from worldr1_kernels._native import address
from worldr1_kernels.rasterize.arguments import FIRST_DEPTH, MEDIAN_DEPTH, BackwardInputs, Inputs, Settings
from worldr1_kernels.rasterize.launch import backward_arguments, call_arguments, colors_per_view, contiguous

MEMORY_BUDGET = 1 << 30  # bytes of workspace; more views of a scene are rendered in chunks
MAX_GAUSSIANS = (1 << 31) - 2  # a scene; indices of one view are 32 bits wide
MAX_TILES = (1 << 31) - 1
MAX_PAIRS = (1 << 31) - 2  # a chunk
MOST_STAGED = 75  # floats of a colour row that go through shared memory, kMostStaged of rasterize_splats.h


class Chunk(NamedTuple):
    """Views of a scene that are rendered together."""

    scene: int
    first_view: int
    views: int
    splats: int  # counted, or a capacity
    pairs: int
    is_exact: bool
    kept: tuple[Tensor, ...] | None  # lists for the backward: splats, sorted pairs, ranges; None: it builds them again


class TiledOutput(NamedTuple):
    """Images, and what a caller should know of them. They may still be under way."""

    render_colors: Tensor  # [B, C, H, W, X]
    render_alphas: Tensor  # [B, C, H, W, 1]
    num_invalid: Tensor  # [B, C] int64
    overflow: Tensor  # [B, C] int64: pairs that found no room; above 0 the view is NaN
    transmittance: Tensor  # [B, C, H, W] for the backward; else empty
    last: Tensor  # [B, C, H, W] int32 for the backward; else empty
    chunks: tuple[Chunk, ...]  # for the backward: what was rendered together, with lists as far as memory allows


class _Target(NamedTuple):
    """Where a call runs, how much memory it may take, and whether it may wait for the device."""

    module: Any
    stream: int
    memory_budget: int
    may_wait: bool


@functools.lru_cache(maxsize=256)
def _plan(
    module: ModuleType,
    device: torch.device,
    num_views: int,
    pairs_per_gaussian: float,
    memory_budget: int,
    sizes: tuple[tuple[str, Any], ...],
) -> tuple[int, int]:
    """(views a chunk, capacity of pairs a view). The device is part of the key alone."""
    del device
    return module.rasterize_tiled_plan(
        num_views=num_views, pairs_per_gaussian=pairs_per_gaussian, memory_budget=memory_budget, **dict(sizes)
    )


def _check_sizes(inputs: Inputs, settings: Settings) -> None:
    tiles = -(-settings.width // 16) * -(-settings.height // 16)
    if inputs.means.shape[1] > MAX_GAUSSIANS:
        raise ValueError(f"rasterize: N must be at most {MAX_GAUSSIANS} on CUDA, got {inputs.means.shape[1]}")
    if tiles > MAX_TILES:
        raise ValueError(f"rasterize: an image must have at most {MAX_TILES} tiles of 16x16 on CUDA, got {tiles}")


class _Call:
    """What the chunks of a call share. Memory is freed as soon as what uses it is queued: torch's allocator then keeps
    it for the stream."""

    def __init__(self, target: _Target, inputs: Inputs, settings: Settings, *, for_backward: bool) -> None:
        """`inputs` must be contiguous and live as long."""
        means = inputs.means
        num_scenes, self.num_gaussians, self.num_views = *means.shape[:2], inputs.viewmats.shape[1]
        self.target, self.device, self.num_scenes = target, means.device, num_scenes
        counted_views = self.num_views if colors_per_view(inputs) else 1
        self.num_invalid = means.new_zeros(num_scenes, counted_views, dtype=torch.int64)
        self.overflow = means.new_zeros(num_scenes, self.num_views, dtype=torch.int64)
        self.arguments = {
            **call_arguments(inputs, settings),
            "num_invalid": address(self.num_invalid),
            "overflow": address(self.overflow),
            "for_backward": for_backward,
            "stream": target.stream,
        }
        one_view = {
            "num_gaussians": self.num_gaussians,
            "views": 1,
            "splats": 0,
            "pairs": 0,
            **{name: self.arguments[name] for name in ("width", "height", "channels", "for_backward")},
            "is_exact": target.may_wait,
        }
        # The same for the forward and the backward of a call: chunks must not differ where there is no count.
        self.views_per_chunk, self.pairs_per_view = _plan(
            target.module,
            self.device,
            self.num_views,
            settings.pairs_per_gaussian,
            target.memory_budget,
            tuple(one_view.items()),
        )

    def empty(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, device=self.device)

    def chunk_arguments(self, chunk: Chunk) -> dict[str, Any]:
        return {**self.arguments, **chunk._asdict()}

    def build(self, chunk: Chunk, outputs: dict[str, int] | None = None, *, is_counted: bool = False) -> Chunk:
        """Lists of the chunk's views and, with `outputs` (addresses), the images. Where splats and pairs are not known
        and may be waited for, they are counted; the chunk is halved as long as its memory exceeds the budget."""
        module, budget = self.target.module, self.target.memory_budget
        while True:
            arguments = self.chunk_arguments(chunk)
            kept_splats, splats = (self.empty(n) for n in module.rasterize_tiled_bytes(**arguments)[:2])
            parts = [address(kept_splats), address(splats)]
            counts = module.rasterize_tiled_prepare(**arguments, parts=parts, wait=chunk.is_exact and not is_counted)
            if chunk.is_exact and not is_counted:
                chunk = chunk._replace(splats=counts[0], pairs=min(counts[1], MAX_PAIRS))
            arguments = self.chunk_arguments(chunk)
            num_bytes = module.rasterize_tiled_bytes(**arguments)
            fits = sum(num_bytes) <= budget and counts[1] <= MAX_PAIRS
            if fits or is_counted or not chunk.is_exact or chunk.views == 1:
                break
            chunk = chunk._replace(views=chunk.views // 2, splats=0, pairs=0)
        pairs0, pairs1, kept_lists, lists = (self.empty(n) for n in num_bytes[2:6])
        parts += [address(t) for t in (pairs0, pairs1, kept_lists, lists)]
        has_images = outputs is not None
        second = module.rasterize_tiled_finish(
            **arguments, **(outputs or {}), has_images=has_images, parts=parts, list_bytes=num_bytes[5]
        )
        return chunk._replace(kept=(kept_splats, pairs1 if second else pairs0, kept_lists))

    def chunks(self, outputs: dict[str, int] | None = None) -> Iterator[Chunk]:
        """All views of all scenes, built one chunk after the other."""
        may_wait, most = self.target.may_wait, self.views_per_chunk
        for scene in range(self.num_scenes):
            first = 0
            while first < self.num_views:
                views = min(most, self.num_views - first)
                sizes = (0, 0) if may_wait else (self.num_gaussians * views, self.pairs_per_view * views)
                chunk = self.build(Chunk(scene, first, views, *sizes, may_wait, None), outputs)
                first += chunk.views
                most = chunk.views if chunk.views < views else most
                yield chunk
                del chunk  # its memory, for the next


def _forward(target: _Target, inputs: Inputs, settings: Settings, for_backward: bool) -> TiledOutput:
    assert not (for_backward and settings.depth_mode in (MEDIAN_DEPTH, FIRST_DEPTH))
    _check_sizes(inputs, settings)
    inputs = contiguous(inputs)
    call = _Call(target, inputs, settings, for_backward=for_backward)
    new = inputs.means.new_empty
    image = (*call.overflow.shape, settings.height, settings.width)
    colors, alphas = new(*image, settings.channels(inputs.colors)), new(*image, 1)
    kept = image if for_backward else (0,)
    transmittance, last = new(*kept), new(*kept, dtype=torch.int32)
    outputs = {"render_colors": colors, "render_alphas": alphas, "transmittance": transmittance, "last": last}
    chunks, left = [], target.memory_budget
    for chunk in call.chunks({name: address(t) for name, t in outputs.items()}):
        assert chunk.kept is not None
        left -= sum(t.numel() for t in chunk.kept)
        chunks.append(chunk if for_backward and left >= 0 else chunk._replace(kept=None))
        del chunk  # its memory, for the next
    num_invalid = call.num_invalid.expand_as(call.overflow).contiguous()
    return TiledOutput(colors, alphas, num_invalid, call.overflow, transmittance, last, tuple(chunks))


def _backward(
    target: _Target,
    inputs: Inputs,
    settings: Settings,
    images: BackwardInputs,
    split_means2d: bool,
    chunks: tuple[Chunk, ...],
) -> tuple[Tensor, ...]:
    inputs = contiguous(inputs)
    call = _Call(target, inputs, settings, for_backward=True)
    written = {"means", "quats", "scales", "covars", "opacities", "means2d"} if call.num_views else set()
    if call.num_views and call.arguments["color_size"] <= MOST_STAGED:
        written.add("colors")
    own, gradients, held_images = backward_arguments(images, inputs, split_means2d=split_means2d, written=written)
    for chunk in chunks or call.chunks():
        built = chunk if chunk.kept is not None else call.build(chunk, is_counted=True)
        assert built.kept is not None
        arguments = call.chunk_arguments(built)
        memory = call.empty(target.module.rasterize_tiled_bytes(**arguments)[-1])
        kept_splats, pairs, kept_lists = (address(t) for t in built.kept)
        parts = [kept_splats, 0, pairs, 0, kept_lists, 0, address(memory)]
        target.module.rasterize_tiled_backward(**arguments, **own, parts=parts)
        del chunk, built, memory, arguments  # memory, for the next
    del held_images
    if inputs.backgrounds is None or images.grad_colors is None:
        return gradients
    *others, _, means2d = gradients
    return *others, torch.einsum("bchw,bchwx->bcx", images.transmittance, images.grad_colors), means2d


def _target(inputs: Inputs, memory_budget: int) -> _Target:
    stream = torch.cuda.current_stream(inputs.means.device).cuda_stream
    may_wait = not torch.cuda.is_current_stream_capturing()
    return _Target(_native.cuda(), stream, memory_budget, may_wait)


def rasterize_cuda(
    inputs: Inputs,
    settings: Settings,
    *,
    for_backward: bool = False,
    memory_budget: int = MEMORY_BUDGET,
) -> TiledOutput:
    """Renders float32 CUDA tensors on the current stream; deterministic, bit for bit.

    For each chunk of views the host waits once for two numbers, splats and (tile, splat) pairs, and allocates what they
    take: only a chunk of one view with more than 2^31 - 2 pairs overflows. While a CUDA graph is captured (after a
    first call outside of one, which asks CUB for sizes) it cannot wait. Then buffers have a capacity: where N times the
    number of tiles is at most 2^20, every case fits; beyond, `settings.pairs_per_gaussian` N. A chunk of views whose
    pairs do not fit is filled with NaN, its gradients too, and `overflow` says how many were missing.

    Args:
      inputs: Float32 tensors on one CUDA device, any strides.
      settings: Scalars.
      for_backward: Keep what `rasterize_backward_cuda` reads. Not with the depths MD and FD.
      memory_budget: Bytes. Views are rendered in chunks whose memory fits, one view at least whatever it takes; and as
        many bytes of lists are kept for the backward, which builds the others again.
    Returns:
      TiledOutput.
    Raises:
      ValueError: a scene or an image exceeds 32-bit indices.
      RuntimeError: the module is not built, there is no device, or CUDA reports an error.
    """
    _native.cuda()
    with torch.cuda.device(inputs.means.device):
        return _forward(_target(inputs, memory_budget), inputs, settings, for_backward)


def rasterize_backward_cuda(
    inputs: Inputs,
    settings: Settings,
    images: BackwardInputs,
    *,
    chunks: tuple[Chunk, ...] = (),
    split_means2d: bool = False,
    memory_budget: int = MEMORY_BUDGET,
) -> tuple[Tensor, ...]:
    """Gradients of `rasterize_cuda`, the same bits every time: no float is added atomically.

    Args:
      inputs: As in the forward.
      settings: As in the forward.
      images: Of the forward, and their gradients.
      chunks: Of the forward's output: nothing is counted again, and lists that were kept are not built again. Without,
        all are; in a CUDA graph from the same sizes as in the forward, so that what fitted there fits here.
      split_means2d: Return the gradient of the projected means apart, and leave it out of the others.
      memory_budget: As in the forward, the same.
    Returns:
      The gradients of `inputs`, empty where one is None, and of the projected means [B, C, N, 2] or empty. NaN where
      the lists of a chunk did not fit.
    Raises:
      RuntimeError: the module is not built, there is no device, or CUDA reports an error.
    """
    _native.cuda()
    with torch.cuda.device(inputs.means.device):
        target = _target(inputs, memory_budget)
        return _backward(target, inputs, settings, images, split_means2d, chunks)


def rasterize_emulated(
    inputs: Inputs,
    settings: Settings,
    *,
    for_backward: bool = False,
    seed: int = 0,
    may_wait: bool = True,
    memory_budget: int = MEMORY_BUDGET,
) -> TiledOutput:
    """The kernels of `rasterize_cuda` run by an interpreter on the CPU, thread by thread: for tests, very slow.

    Args:
      inputs: Float32 tensors on the CPU.
      settings: Scalars.
      for_backward: As in `rasterize_cuda`.
      seed: Order of threads, warps and blocks, and when asynchronous copies land. The result must not depend on it.
      may_wait: False: as while a CUDA graph is captured.
      memory_budget: As in `rasterize_cuda`.
    Returns:
      TiledOutput.
    Raises:
      RuntimeError: the C++ module is not built; a thread missed a collective of its warp or block; a kernel wrote past
      an array.
    """
    target = _Target(_native.cpu(), seed, memory_budget, may_wait)
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
    may_wait: bool = True,
    memory_budget: int = MEMORY_BUDGET,
) -> tuple[Tensor, ...]:
    """The kernels of `rasterize_backward_cuda` run by the interpreter, with the chunks of `output`; see there and
    `rasterize_emulated`."""
    target = _Target(_native.cpu(), seed, memory_budget, may_wait)
    images = BackwardInputs(output.render_colors, output.transmittance, output.last, grad_colors, grad_alphas)
    return _backward(target, inputs, settings, images, split_means2d, output.chunks)
