"""What all ranks say together of their rewards: whether too many failed, and the control experiments."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import torch

from worldr1.config import RewardConfig
from worldr1.datatypes import PromptBatch, RewardOutput
from worldr1.run import distributed

_CONTROL_SALT = 0x434F4E54  # keeps the draws of the control experiments apart from every other


def settle(output: RewardOutput, batch: PromptBatch, *, config: RewardConfig, seed: int) -> RewardOutput:
    """The check that not too many samples failed, and the control experiment. Every rank must call this: the invalid
    are counted together, and a group may lie on several ranks.

    Args:
      output: What the judges say of this rank's samples.
      batch: These samples.
      config: max_invalid_fraction and control.
      seed: The run's.
    Returns:
      `output`; in a control experiment its terms permuted, or replaced by one term "random" or "zero".
    Raises:
      RuntimeError: more than max_invalid_fraction of the samples of all ranks are invalid; the reasons are counted.
        Raised on every rank.
    """
    _check_share(batch.num_samples, output.reasons, limit=config.max_invalid_fraction)
    if config.control == "permuted":
        return permuted(output, batch, seed=seed)
    if config.control == "random":
        return randomised(output, batch, seed=seed)
    if config.control == "zero":
        return zeroed(output)
    return output


def permuted(output: RewardOutput, batch: PromptBatch, *, seed: int) -> RewardOutput:
    """The control that keeps the distribution and breaks the link: rewards shuffled inside each group.

    All terms of a sample move together; invalid samples keep their place. Keyed by (seed, sample ids). A group may lie
    on several ranks, and is shuffled as on one: every rank must call this.
    """
    ids = distributed.gather(batch.sample_ids)  # [samples of all ranks], as everything that is gathered
    groups = distributed.gather(batch.repeat(batch.group_ids))
    valid = distributed.gather(output.valid).cpu()
    source = torch.arange(len(ids))
    for group in groups.unique():
        rows = torch.nonzero(groups == group).flatten()
        keys = [int(ids[rows[0]]), int(ids[rows[-1]])]
        rows = rows[valid[rows]]
        order = np.random.default_rng([_CONTROL_SALT, seed, *keys]).permutation(len(rows))
        source[rows] = rows[torch.from_numpy(order)]
    start = distributed.rank() * batch.num_samples
    source = source[start : start + batch.num_samples].to(output.reward.device)
    breakdown = {name: distributed.gather(value)[source] for name, value in output.breakdown.items()}
    return replace(output, reward=distributed.gather(output.reward)[source], breakdown=breakdown)


def randomised(output: RewardOutput, batch: PromptBatch, *, seed: int) -> RewardOutput:
    """The control without any signal: one term "random", standard normal, keyed by (seed, sample id)."""
    draws = [np.random.default_rng([_CONTROL_SALT, seed, int(i)]).standard_normal() for i in batch.sample_ids]
    noise = torch.tensor(draws, dtype=output.reward.dtype, device=output.reward.device)
    noise = torch.where(output.valid, noise, torch.full_like(noise, torch.nan))
    return replace(output, reward=noise, breakdown={"random": noise}, weights={"random": 1.0})


def zeroed(output: RewardOutput) -> RewardOutput:
    """The control without advantages: one term "zero". No group has a spread, so no iteration has an update."""
    zero = torch.where(output.valid, 0.0, torch.full_like(output.reward, torch.nan))
    return replace(output, reward=zero, breakdown={"zero": zero}, weights={"zero": 1.0})


def _check_share(num: int, reasons: dict[int, str], *, limit: float) -> None:
    """RuntimeError, on every rank, where more than `limit` of the samples of all ranks are invalid.

    A rank counted alone would stop the run for its few samples: the share of 8 says little about that of 384.
    """
    counts = distributed.gather_objects((num, Counter(reasons.values())))  # the same list on every rank
    total = sum(count for count, _ in counts)
    together: Counter[str] = sum((why for _, why in counts), Counter())
    invalid = together.total()
    if invalid > limit * total:
        spelled = "; ".join(f"{count} x {reason}" for reason, count in together.most_common(5))
        raise RuntimeError(
            f"RewardStack.score: at most {limit:.0%} of the samples may be invalid (reward.max_invalid_fraction), "
            f"got {invalid} of {total}: {spelled}"
        )
