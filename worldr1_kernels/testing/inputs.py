"""Input factories: seeded, on demand non-contiguous, and a way to poison freshly allocated outputs."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from unittest import mock

import torch


def generator(seed: int, device: str = "cpu") -> torch.Generator:
    """A generator seeded with `seed`; global random state is not touched."""
    return torch.Generator(device=device).manual_seed(seed)


def normal(shape: Sequence[int], seed: int, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> torch.Tensor:
    """N(0, 1) of `shape`, drawn in float64 so that every dtype sees roundings of the same values."""
    return torch.randn(tuple(shape), generator=generator(seed), dtype=torch.float64).to(device=device, dtype=dtype)


def uniform(
    shape: Sequence[int],
    seed: int,
    *,
    low: float = 0.0,
    high: float = 1.0,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> torch.Tensor:
    """U(low, high) of `shape`, drawn in float64."""
    values = torch.rand(tuple(shape), generator=generator(seed), dtype=torch.float64)
    return (low + (high - low) * values).to(device=device, dtype=dtype)


def noncontiguous(tensor: torch.Tensor) -> torch.Tensor:
    """The same values in a layout that is not contiguous: every second element of a larger buffer filled with NaN."""
    padded = tensor.new_full((*tensor.shape, 2), float("nan") if tensor.is_floating_point() else -1)
    padded[..., 0] = tensor
    return padded[..., 0]


POISON = 0xCD
"""A byte that is neither zero nor a small number, in whatever type it is read."""


@contextlib.contextmanager
def poison_empty() -> Iterator[None]:
    """Inside, `torch.empty`, `torch.empty_like` and `Tensor.new_empty` return NaN (the lowest integer; bytes of 0xCD
    where the lowest is 0, as in workspaces), so that an element a kernel forgets to write is seen."""

    def poisoned(tensor: torch.Tensor, cleared: bool) -> torch.Tensor:
        if cleared or tensor.dtype == torch.bool:
            return tensor
        if tensor.is_floating_point():
            return tensor.fill_(float("nan"))
        return tensor.fill_(torch.iinfo(tensor.dtype).min or POISON)

    with _allocations(poisoned):
        yield


class GuardBands:
    """Tensors with a margin on both sides whose bytes are known, and looked at again when the kernels are done."""

    MARGIN = 512  # bytes: keeps the alignment of torch's allocator

    def __init__(self, fill: int) -> None:
        self.fill = fill
        self._held: list[tuple[torch.Tensor, int, str]] = []

    def around(self, tensor: torch.Tensor, values: torch.Tensor | None = None) -> torch.Tensor:
        """A tensor of the geometry of `tensor`, which is not expanded, with guard bands; bytes are `fill`, or what
        `values` holds."""
        extent = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        num_bytes = extent * tensor.element_size()
        whole = -(-num_bytes // 16) * 16 + 2 * self.MARGIN
        buffer = torch.full((whole,), self.fill, dtype=torch.uint8, device=tensor.device)
        inside = torch.tensor([], dtype=tensor.dtype, device=tensor.device)
        offset = self.MARGIN // tensor.element_size()
        inside.set_(buffer.untyped_storage(), offset, tensor.shape, tensor.stride())  # type: ignore[call-overload]
        if values is not None:
            inside.copy_(values)
        name = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        self._held.append((buffer, num_bytes, name))
        return inside

    def broken(self) -> list[str]:
        """What was written outside of which tensor."""
        found = []
        for buffer, num_bytes, name in self._held:
            end = self.MARGIN + num_bytes
            for where, band in (("before", buffer[: self.MARGIN]), ("behind", buffer[end:])):
                count = int((band != self.fill).sum())
                if count:
                    found.append(f"{count} bytes were written {where} a tensor {name}")
        return found


@contextlib.contextmanager
def guard_bands(fill: int = POISON) -> Iterator[GuardBands]:
    """Inside, what `poison_empty` poisons lies between guard bands and is full of bytes `fill`; `torch.zeros`,
    `torch.zeros_like` and `Tensor.new_zeros` are guarded too. Memory is kept until the end."""
    bands = GuardBands(fill)

    def guarded(tensor: torch.Tensor, cleared: bool) -> torch.Tensor:
        if tensor.numel() == 0 or tensor.is_meta or tensor.requires_grad:
            return tensor
        return bands.around(tensor, tensor if cleared else None)

    with _allocations(guarded):
        yield bands


@contextlib.contextmanager
def _allocations(change: Callable[[torch.Tensor, bool], torch.Tensor]) -> Iterator[None]:
    """Inside, `change(tensor, whether it is zero)` takes the place of what torch's Python functions allocate."""

    def changed(allocate: Callable[..., torch.Tensor], cleared: bool) -> Callable[..., torch.Tensor]:
        return lambda *a, **k: change(allocate(*a, **k), cleared)

    with contextlib.ExitStack() as stack:
        for owner, name in (
            (torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty"),
            (torch, "zeros"), (torch, "zeros_like"), (torch.Tensor, "new_zeros"),
        ):  # fmt: skip
            stack.enter_context(mock.patch.object(owner, name, changed(getattr(owner, name), "zeros" in name)))
        yield
