"""Videos judged as they are decoded: a batch's rewards, part by part."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor

from worldr1.datatypes import PromptBatch, RewardOutput
from worldr1.rewards.base import Rewards


class Judging:
    """One batch on its way through the judges; `add` fits `rollout.sample`'s `take`.

    Judges that live in host memory between the stages (`reward.offload`) are not brought in beside the rollout: that is
    what the setting is to spare. The bytes then wait on the host, and `finish` has them judged.

    Args:
      rewards: The judges.
      batch: This rank's samples.
      offload: Wait for `finish`.
      during: A context for the time that judging takes, such as a stopwatch's.
    """

    def __init__(
        self,
        rewards: Rewards,
        batch: PromptBatch,
        *,
        offload: bool = False,
        during: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._rewards = rewards
        self._batch = batch
        self._offload = offload
        self._during = during
        self._waiting: list[tuple[slice, Tensor, Tensor]] = []
        self._done: list[RewardOutput] = []
        self._next = 0  # first row that has not come

    def add(self, rows: slice, video: Tensor, finite: Tensor) -> None:
        """Judge the videos [rows, F, 3, H, W] of the samples `rows`, which follow those of the last call.

        Args:
          rows: Of the batch.
          video: uint8, on any device.
          finite: [rows] bool; False: masked, and never shown to a judge.
        """
        assert rows.start == self._next, f"rows must follow row {self._next - 1}, got {rows}"
        self._next = rows.stop
        if self._offload:
            kept = torch.empty(video.shape, dtype=video.dtype, pin_memory=video.device.type == "cuda").copy_(video)
            self._waiting.append((rows, kept, finite.cpu()))
        else:
            self._judge(rows, video, finite)

    def finish(self) -> RewardOutput:
        """The rewards of all samples; no other rank is asked (`controls.settle` does that)."""
        assert self._next == self._batch.num_samples, f"{self._next} of {self._batch.num_samples} samples came"
        if self._waiting:
            with self._rewards.at_hand():
                for rows, video, finite in self._waiting:
                    self._judge(rows, video, finite)
        return _joined(self._done)

    def _judge(self, rows: slice, video: Tensor, finite: Tensor) -> None:
        with self._during():
            self._done.append(self._rewards.judge(self._batch.rows(rows), video, finite=finite))


def _joined(parts: list[RewardOutput]) -> RewardOutput:
    """The parts one after the other; they have the same terms."""
    reasons: dict[int, str] = {}
    first = 0
    for part in parts:
        assert part.weights == parts[0].weights
        reasons |= {first + i: why for i, why in part.reasons.items()}
        first += len(part.reward)
    return RewardOutput(
        reward=torch.cat([part.reward for part in parts]),
        valid=torch.cat([part.valid for part in parts]),
        breakdown={name: torch.cat([part.breakdown[name] for part in parts]) for name in parts[0].breakdown},
        weights=parts[0].weights,
        reasons=reasons,
    )
