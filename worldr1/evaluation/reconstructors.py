"""Who recovers cameras and depth in an evaluation, by the name of a setting."""

from __future__ import annotations

from typing import Any

import torch

from worldr1.evaluation.classical import Classical
from worldr1.evaluation.evaluate import load_evaluator

CLASSICAL = "classical"
"""The reconstructor that no reward shares."""


def load_reconstructor(source: str, *, device: torch.device | str = "cpu", focal_ratio: float | None = None) -> Any:
    """Open a reconstructor, ready for `evaluation.recovered.recover`.

    Args:
      source: "classical", or as `load_evaluator` without labels: a folder, or `module:name`.
      device: Where its results go.
      focal_ratio: Focal length over image width, which the classical one must be told; the others find their own.
    Raises:
      ValueError: as `load_evaluator`; a package that the classical one needs is missing.
    """
    if source == CLASSICAL:
        return Classical(device=device, focal_ratio=focal_ratio)
    return load_evaluator(source, device=torch.device(device), labels=False)
