"""Who recovers cameras and depth in an evaluation, by the name of a setting."""

from __future__ import annotations

from typing import Any

import torch

CLASSICAL = "classical"
"""The reconstructor that no reward shares."""


def load_reconstructor(source: str, *, device: torch.device | str = "cpu", focal_ratio: float | None = None) -> Any:
    """Open a reconstructor, ready for `evaluation.recovered.recover`.

    Args:
      source: "classical"; a folder that `rewards.judges.registry.load_judge` opens; or `module:name`, which is called
        with `device`.
      focal_ratio: Focal length in widths of the frame, which only the classical one must be told; None: its default.
    Raises:
      ValueError: nothing of that name, a judge of another role, or a package is missing.
    """
    from worldr1.evaluation.classical import Classical
    from worldr1.rewards.judges.registry import load_judge

    if source == CLASSICAL:
        return Classical(device=device, focal_ratio=focal_ratio)
    return load_judge(source, role="reconstructor", device=torch.device(device))
