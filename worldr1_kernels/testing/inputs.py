"""Input factories: seeded, on demand non-contiguous, and a way to poison freshly allocated outputs."""

import contextlib
from collections.abc import Iterator, Sequence
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


@contextlib.contextmanager
def poison_empty() -> Iterator[None]:
    """Inside, `torch.empty`, `torch.empty_like` and `Tensor.new_empty` return NaN (or the lowest integer), so that an
    element a kernel forgets to write is seen."""
    empty, empty_like, new_empty = torch.empty, torch.empty_like, torch.Tensor.new_empty

    def poisoned(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point():
            return tensor.fill_(float("nan"))
        return tensor if tensor.dtype == torch.bool else tensor.fill_(torch.iinfo(tensor.dtype).min)

    with (
        mock.patch.object(torch, "empty", lambda *a, **k: poisoned(empty(*a, **k))),
        mock.patch.object(torch, "empty_like", lambda *a, **k: poisoned(empty_like(*a, **k))),
        mock.patch.object(torch.Tensor, "new_empty", lambda *a, **k: poisoned(new_empty(*a, **k))),
    ):
        yield
