"""R_gen: human preference for the frames, the term that keeps the video a video."""

from __future__ import annotations

from torch import Tensor

from worldr1.rewards.base import AestheticJudge

SCALE = 10.0
"""R_gen = clip(mean score / SCALE, -1, 1). Ours: the article gives no scaling."""


def aesthetic_term(video: Tensor, prompts: list[str], judge: AestheticJudge, *, num_frames: int) -> Tensor:
    """R_gen = clip(mean over the first K frames of the score / 10, -1, 1).

    Args:
      video: Shape [N, F, 3, H, W] in [0, 1].
      prompts: N prompts.
      judge: Scores single frames.
      num_frames: K; a shorter video gives all it has.
    Returns:
      [N] in [-1, 1].
    """
    scores = judge.score(video[:, :num_frames], prompts).float()  # [N, K]
    return (scores.mean(dim=1) / SCALE).clamp(-1.0, 1.0)
