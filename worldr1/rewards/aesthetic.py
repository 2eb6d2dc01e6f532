"""R_gen: human preference for the frames, the term that keeps the video a video."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from worldr1.rewards.base import AestheticJudge, evenly

SCALE = 10.0
"""R_gen = clip(mean score / SCALE, -1, 1). Ours: the article gives no scaling."""


def frames_to_judge(num_frames: int, *, k: int, which: Literal["first", "spread"]) -> list[int]:
    """Indices of the K frames of a clip of F that R_gen looks at, rising; all of them where F <= K.

    Args:
      num_frames: F.
      k: K >= 1.
      which: "first" 0 ... K-1; "spread" evenly over the clip, its first and its last among them, and for K = 1 the
        middle one.
    """
    return list(range(min(k, num_frames))) if which == "first" else evenly(num_frames, k)


def aesthetic_term(frames: Tensor, prompts: list[str], judge: AestheticJudge) -> Tensor:
    """R_gen = clip(mean over K frames of the score / 10, -1, 1).

    Args:
      frames: Those of `frames_to_judge`, shape [N, K, 3, H, W] in [0, 1].
      prompts: N prompts.
      judge: Scores single frames.
    Returns:
      [N] in [-1, 1].
    """
    scores = judge.score(frames, prompts).float()  # [N, K]
    return (scores.mean(dim=1) / SCALE).clamp(-1.0, 1.0)
