"""What a setting names -> a reconstructor of the evaluation: the classical one, or any that the rewards can open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

CLASSICAL = "classical"


def load_reconstructor(source: str | Path, *, device: torch.device, focal_ratio: float | None = None) -> Any:
    """Open a reconstructor that `recovered.recover` takes.

    Args:
      source: "classical"; a folder, or `module:name`, as `rewards.judges.registry.load_judge` opens them.
      device: Where its results go.
      focal_ratio: Focal length in widths of the frame, for the classical one; None: that of the micro world's lens.
    Raises:
      ValueError: nothing there, no OpenCV for the classical one, or a judge of another role.
    """
    if str(source) == CLASSICAL:
        from worldr1.config import MICRO_CAMERA
        from worldr1.evaluation.classical import Classical

        return Classical(device=device, focal_ratio=focal_ratio or MICRO_CAMERA.focal_ratio)
    from worldr1.rewards.judges.registry import load_judge

    return load_judge(source, role="reconstructor", device=device)
