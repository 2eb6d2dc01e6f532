"""What the trainings of the micro world share: the optimizer, the course of the learning rate, states on disk."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_SMALLEST = 8  # outputs or inputs; a thinner matrix has too few directions to be worth making orthogonal


class Muon:
    """Muon for the kernels and matrices of a network, AdamW for the rest, behind the interface of one optimizer.

    Updates in place. The trainings here need a third to two thirds as many steps as with AdamW (docs/log.md).
    `torch.optim.Muon` takes matrices only; a convolution's kernel is shown to it as
    [outputs, inputs x taps].

    Args:
      network: Whose parameters are learned.
      within: Part of it whose linear and convolution weights are left to Muon; None: all of it.
      learning_rate: Of both, on the scale of AdamW.
      weight_decay: Of both.
    """

    def __init__(
        self, network: nn.Module, *, learning_rate: float, weight_decay: float, within: nn.Module | None = None
    ) -> None:
        layers = [m for m in (within or network).modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.Conv3d)]
        self._kernels = [m.weight for m in layers if min(len(m.weight), m.weight[0].numel()) >= _SMALLEST]
        self._matrices = [nn.Parameter(_as_matrix(kernel.data, like=kernel)) for kernel in self._kernels]
        for kernel, matrix in zip(self._kernels, self._matrices, strict=True):
            assert kernel.data_ptr() == matrix.data_ptr(), "a matrix must share its memory with the kernel"
        known = {id(kernel) for kernel in self._kernels}
        self._rest = [p for p in network.parameters() if id(p) not in known]
        self._parts = (
            torch.optim.Muon(self._matrices, learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(self._rest, learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay),
        )

    def set_learning_rate(self, rate: float) -> None:
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = rate

    def zero_grad(self) -> None:
        for parameter in (*self._kernels, *self._rest):
            parameter.grad = None

    def step(self) -> None:
        for kernel, matrix in zip(self._kernels, self._matrices, strict=True):
            matrix.grad = None if kernel.grad is None else _as_matrix(kernel.grad, like=kernel)
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {str(i): part.state_dict() for i, part in enumerate(self._parts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for i, part in enumerate(self._parts):
            part.load_state_dict(state[str(i)])


def _as_matrix(values: Tensor, *, like: Tensor) -> Tensor:
    """[outputs, inputs x taps] in the order in which `like` lies in memory: of a kernel itself a view."""
    return (values if like.is_contiguous() else values.movedim(1, -1)).reshape(len(values), -1)


def cosine(step: int, num_steps: int, *, warm_up: int) -> float:
    """Learning rate factor: linear warm-up, then half a cosine to 0."""
    return min(1.0, (step + 1) / warm_up) * (0.5 + 0.5 * math.cos(math.pi * step / num_steps))


def save_state(path: Path, step: int, *, generator: torch.Generator, **parts: Any) -> None:
    """Write the state of a training through a temporary file, so that an interruption leaves the one before."""
    state = {"step": step, "generator": generator.get_state(), **{name: p.state_dict() for name, p in parts.items()}}
    temporary = path.with_suffix(".partial")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load_state(path: Path, *, generator: torch.Generator, **parts: Any) -> int:
    """Read what `save_state` wrote; returns the steps done, 0 where there is no file."""
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    generator.set_state(state["generator"])
    return int(state["step"])
