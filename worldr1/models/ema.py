"""Exponential moving average of the adapter's parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """shadow = decay * shadow + (1 - decay) * parameter, stepped once per optimizer step.

    Args:
      params: The trained parameters, in a fixed order.
      decay: In [0, 1); 0 follows the parameters exactly.
    Raises:
      ValueError: decay outside [0, 1).
    """

    def __init__(self, params: Sequence[nn.Parameter], *, decay: float) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"Ema: decay must be in [0, 1), got {decay}")
        self.params = list(params)
        self.decay = decay
        self.shadow = [p.detach().clone() for p in self.params]

    @torch.no_grad()
    def step(self) -> None:
        """Move the average towards the current parameters."""
        for shadow, p in zip(self.shadow, self.params, strict=True):
            shadow.lerp_(p, 1.0 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The parameters hold the average inside the block, and their own values again after it, whatever happens."""
        with holding(self.params, self.shadow):
            yield

    def state(self) -> list[Tensor]:
        """The averages, in the order of the parameters."""
        return self.shadow

    @torch.no_grad()
    def load_state(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite the averages.

        Raises:
          ValueError: number or shapes differ from the parameters'.
        """
        if [tuple(t.shape) for t in tensors] != [tuple(s.shape) for s in self.shadow]:
            raise ValueError(f"Ema: state must match the {len(self.shadow)} parameters, got {len(tensors)} tensors")
        for shadow, t in zip(self.shadow, tensors, strict=True):
            shadow.copy_(t)


@contextmanager
def holding(params: Sequence[nn.Parameter], values: Sequence[Tensor]) -> Iterator[None]:
    """The parameters hold `values` inside the block, and their own again after it, whatever happens."""
    own = [p.detach().clone() for p in params]
    _write(params, values)
    try:
        yield
    finally:
        _write(params, own)


@torch.no_grad()
def _write(params: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for p, value in zip(params, values, strict=True):
        p.copy_(value)
