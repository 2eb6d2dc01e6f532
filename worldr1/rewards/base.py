"""What the terms share: the judges they ask, and how a failure becomes a reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from worldr1.config import RewardConfig
from worldr1.datatypes import PromptBatch, Reconstruction, RewardOutput


class Reconstructor(Protocol):
    """Lifts videos to 3D."""

    def infer(self, video: Tensor) -> Reconstruction:
        """Video [N, F, 3, H, W] in [0, 1] -> Reconstruction of N scenes. Gaussians of pixels come frame by frame, the
        same number each: where there are too many, whole frames are left out."""
        ...


class Critic(Protocol):
    """Looks at one picture of each scene and answers with a digit."""

    def digit_probs(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Images [N, 3, H, W] in [0, 1] -> probabilities of '0' ... '9', [N, 10]; a row may sum to less than 1."""
        ...


class AestheticJudge(Protocol):
    """Human preference for single frames."""

    def score(self, frames: Tensor, prompts: list[str]) -> Tensor:
        """Frames [N, K, 3, H, W] in [0, 1] -> score of each frame, [N, K], about -10 ... 10."""
        ...


class PerceptualDistance(Protocol):
    """How different two images look."""

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Images [N, 3, H, W] in [0, 1] twice -> distance [N], >= 0, 0 for equal images."""
        ...


class Rewards(Protocol):
    """What the loop asks: all judges together. `RewardStack` is one; `train(config, rewards=...)` takes another."""

    def judge(
        self, batch: PromptBatch, video: Tensor, *, finite: Tensor | None = None, dynamic: Tensor | None = None
    ) -> RewardOutput:
        """As `RewardStack.judge`: the rewards of these samples alone, without asking another rank."""
        ...

    def at_hand(self) -> AbstractContextManager[None]:
        """While it is open the judges stay where they judge; a context without effect where they always do."""
        ...


class JudgeKind(Protocol):
    """A class of judges that live in folders; `judges.registry` asks each in turn. One that fills a role has also the
    method of that role's protocol above, and `to(device)` where it can be offloaded."""

    role: ClassVar[str]
    """"reconstructor", "critic", "aesthetic" or "perceptual"."""

    @classmethod
    def recognises(cls, folder: Path, config: dict[str, Any]) -> bool:
        """Whether the folder holds one; config is its config.json, {} without."""
        ...

    @classmethod
    def load(cls, folder: Path, *, device: torch.device, config: RewardConfig) -> Any:
        """The judge, frozen, in evaluation mode, on `device`. ValueError or OSError where a file is missing, damaged or
        of another model, with its path."""
        ...


# A judge that fails on a video fails in one of these ways. Anything else (TypeError, AssertionError ...) is a mistake
# of this program and is not hidden behind a mask.
FAILURES = (RuntimeError, ValueError, ArithmeticError, OSError)


@contextmanager
def asking(role: str, remedy: str) -> Iterator[None]:
    """Around a judge's call: where the device has no room for it, say whose call it was and what would help."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(f"out of memory in the {role}: {remedy}\n{error}") from error


def evenly(num_frames: int, k: int) -> list[int]:
    """K of F frames, rising: the nearest to i (F - 1) / (K - 1), first and last among them; the middle for K = 1; all
    where F <= K."""
    if k >= num_frames:
        return list(range(num_frames))
    if k == 1:
        return [num_frames // 2]
    # Rounded in whole numbers; the spacing is above 1, so that no frame comes twice.
    return [(2 * i * (num_frames - 1) + k - 1) // (2 * (k - 1)) for i in range(k)]


def video_faults(video: Tensor, finite: Tensor | None) -> dict[int, str]:
    """Sample index -> why its video [N, F, 3, H, W] cannot be judged; finite [N] bool is the rollout's own finding."""
    faults: dict[int, str] = {}
    if video.is_floating_point():
        for i, clip in enumerate(video):
            # The extremes of a clip are NaN or infinite where one of its values is; isfinite would copy it three times.
            if not bool(torch.stack(torch.aminmax(clip)).isfinite().all()):
                faults[i] = "the video is not finite"
    if finite is not None:
        for i in torch.nonzero(~finite).flatten().tolist():
            faults[i] = "a latent of the rollout is not finite"
    return faults


def score_rows(
    term: Callable[[list[int]], dict[str, Tensor]],
    rows: list[int],
    *,
    values: dict[str, Tensor],
    reasons: dict[int, str],
) -> None:
    """Fill values[name][rows] from one call of `term`; where it fails, find the guilty samples one by one.

    Args:
      term: Sample indices -> term name -> score of each, [len(rows)].
      rows: Sample indices of this call.
      values: Term name -> [N]; written at `rows`.
      reasons: Sample index -> why it is invalid; a sample that fails, or whose score is not finite, is added.
    """
    if not rows:
        return
    try:
        scores = term(rows)
    except torch.OutOfMemoryError:
        raise  # of the machine, not of a sample
    except FAILURES as error:
        if len(rows) == 1:
            reasons[rows[0]] = f"{type(error).__name__}: {error}"
            return
        for row in rows:
            score_rows(term, [row], values=values, reasons=reasons)
        return
    for name, score in scores.items():
        assert score.shape == (len(rows),), f"{name}: one score a sample, got {tuple(score.shape)} for {len(rows)}"
        score = score.to(values[name])
        values[name][rows] = score
        for k in torch.nonzero(~torch.isfinite(score)).flatten().tolist():
            reasons.setdefault(rows[k], f"{name} is not finite")
