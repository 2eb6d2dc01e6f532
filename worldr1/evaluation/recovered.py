"""What a reconstructor of the evaluation says of clips: cameras and depth, or why there are none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worldr1.datatypes import Reconstruction

MOVING, TURNING, STILL, FAILED = "moving", "turning", "still", "failed"
STATES = (MOVING, TURNING, STILL, FAILED)
"""A path with parallax; a rotation alone, whose scene has no depth; a camera at rest; nothing that can be judged."""


@dataclass(frozen=True)
class Recovered:
    """N clips, each in one of STATES. What cannot be judged is null, never a score.

    Fields:
      reconstruction: Of N clips. Rows that failed hold placeholders (identity poses, depth 1) that nobody is to read;
        with `turning` and `still` that holds of the depth, and the camera's centre is the origin throughout.
      state: N of STATES.
      reasons: N sentences, "" with `moving`.
    """

    reconstruction: Reconstruction
    state: tuple[str, ...]
    reasons: tuple[str, ...]


def recover(reconstructor: Any, video: Tensor) -> Recovered:
    """Cameras and depth of clips by any reconstructor.

    Args:
      reconstructor: With `recover(video) -> Recovered`, or with `infer(video) -> Reconstruction` alone, as the rewards'
        judges have it: those never say that they do not know, so every finite clip counts as moving.
      video: Shape [N, F, 3, H, W] in [0, 1].
    Returns:
      Recovered. A clip that is not finite has failed.
    """
    finite = torch.isfinite(video).flatten(1).all(dim=1)
    clean = torch.where(finite.view(-1, 1, 1, 1, 1), video, torch.full_like(video, 0.5))
    if hasattr(reconstructor, "recover"):
        found = reconstructor.recover(clean)
        state, reasons = list(found.state), list(found.reasons)
        scene = found.reconstruction
    else:
        scene = reconstructor.infer(clean)
        state, reasons = [MOVING] * len(video), [""] * len(video)
        whole = torch.isfinite(scene.viewmats).flatten(1).all(dim=1) & torch.isfinite(scene.depth).flatten(1).all(dim=1)
        for i in torch.nonzero(~whole).flatten().tolist():
            state[i], reasons[i] = FAILED, "the reconstructor's cameras or depth are not finite"
    for i in torch.nonzero(~finite).flatten().tolist():
        state[i], reasons[i] = FAILED, "the clip is not finite"
    return Recovered(scene, tuple(state), tuple(reasons))
