"""What prompts ask for, in the classes that an evaluator can name. It comes with the prompt set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Labels:
    """The right answers for N clips, as class indices of the evaluator's heads."""

    motions: tuple[str, ...]  # the names of the motion classes, in the order of the evaluator's logits
    motion: Tensor  # [N] int64, index in motions
    contents: dict[str, Tensor]  # content head -> [N] int64

    def __len__(self) -> int:
        return len(self.motion)


class LabelReader(Protocol):
    """Reads the labels of a prompt set; microworld.captions.read_labels does it for the embedded one."""

    def __call__(self, prompts: Sequence[str]) -> Labels:
        """Labels of these prompts; ValueError for a prompt that does not say what the evaluator is asked."""
        ...
