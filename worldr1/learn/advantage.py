"""Group-relative advantages: each sample against the others of its prompt."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from worldr1.config import AdvantageConfig
from worldr1.datatypes import RewardOutput
from worldr1.run import distributed

DEAD_GROUP_STD = 1e-6
"""A group whose reward varies less than this teaches nothing and is dropped."""


@dataclass(frozen=True)
class Advantage:
    """Advantages of this rank's samples, and what was left out."""

    advantage: Tensor  # [N] float32; 0 where masked
    mask: Tensor  # [N] bool: valid samples of groups that were kept
    num_active: int  # masked-in samples over all ranks
    group_std: Tensor  # [groups of all ranks] float64; NaN for a group with fewer than 2 valid samples
    num_dropped_groups: int  # over all ranks
    alarms: tuple[str, ...]  # sentences for the user, the same on all ranks
    mean_size: float  # mean |advantage| of the masked-in samples of all ranks

    def metrics(self) -> dict[str, float]:
        """The figures of metrics.jsonl."""
        known = self.group_std[torch.isfinite(self.group_std)]
        return {
            "group_std": float(known.mean()) if len(known) else math.nan,
            "dropped_groups": self.num_dropped_groups,
            "advantage_abs": self.mean_size,
        }


def group_advantage(rewards: RewardOutput, *, group_size: int, config: AdvantageConfig) -> Advantage:
    """Advantages of one iteration. Every rank must call this: deviations are over the samples of all ranks.

        a_k = (r_k - mean_group r_k) / (std r_k + 1e-4)          for each reward term k with weight w_k
        A   = clip(sum_k w_k a_k / sqrt(sum_k w_k^2), +- clip)   so that A keeps unit size, whatever the number of terms

    With `normalize_each` off, or where there is no breakdown, the summed reward is the only term. Invalid samples are
    masked out of every mean and deviation; a group with fewer than 2 valid samples or a reward std below 1e-6 is
    dropped. A term that is NaN for all valid samples of a group does not apply to it (S_traj where no camera is known):
    both sums of that group run over its other terms, and it has no part in the deviation of that term.

    Args:
      rewards: Rewards of this rank's samples, of equally many on each rank: the groups are contiguous in the samples of
        all ranks in their order, and may be split between ranks. Shape [N].
      group_size: G of the whole groups; the samples of all ranks must be a multiple.
      config: Normalisation, clip and alarm threshold.
    Returns:
      Advantage(advantage [N], mask [N], num_active, group_std, num_dropped_groups, alarms).
    Raises:
      ValueError: the number of samples of all ranks is not a multiple of group_size.
    Source: Shao et al. 2024 (GRPO), arXiv 2402.03300; Liu et al. 2025 (Flow-GRPO), arXiv 2505.05470.
    """
    n = len(rewards.reward)
    everywhere = n * distributed.world_size()
    if group_size < 1 or everywhere % group_size:
        raise ValueError(
            f"group_advantage: number of samples must be a multiple of group_size {group_size}, got {everywhere}"
        )
    weights = {k: w for k, w in rewards.weights.items() if w > 0 and k in rewards.breakdown}
    terms = {k: (rewards.breakdown[k], w) for k, w in weights.items()} if config.normalize_each else {}
    terms = terms or {"reward": (rewards.reward, 1.0)}
    # Statistics are computed on all ranks from the same gathered numbers in the same order, so that they are equal bit
    # for bit whatever the number of ranks.
    valid_all = distributed.gather(rewards.valid & torch.isfinite(rewards.reward)).view(-1, group_size)  # [groups, G]
    reward_all = distributed.gather(rewards.reward.double()).view(-1, group_size)
    terms_all = {k: (distributed.gather(values.double()).view(-1, group_size), w) for k, (values, w) in terms.items()}
    applies = {k: (valid_all & values.isfinite()).any(1, keepdim=True) for k, (values, _) in terms_all.items()}
    for k, (values, _) in terms_all.items():
        valid_all = valid_all & (values.isfinite() | ~applies[k])
    group_std = _masked_std(reward_all, valid_all)  # [groups]
    kept = torch.nan_to_num(group_std) >= DEAD_GROUP_STD
    kept = kept & torch.stack(list(applies.values())).any(0)[:, 0]
    mask_all = valid_all & kept[:, None]
    total = torch.zeros_like(reward_all)
    squares = torch.zeros_like(reward_all[:, :1])  # [groups, 1]
    for k, (values, weight) in terms_all.items():
        total += weight * _normalised(values, mask_all & applies[k], per_group=config.std == "group")
        squares += weight * weight * applies[k].double()
    total /= torch.where(kept[:, None], squares, 1.0).sqrt()
    total = total.clamp(-config.clip, config.clip)
    rank = distributed.rank()
    mine = slice(rank * n, (rank + 1) * n)  # it may begin inside a group
    return Advantage(
        advantage=total.flatten()[mine].float(),
        mask=mask_all.flatten()[mine],
        num_active=int(mask_all.sum()),
        group_std=group_std,
        num_dropped_groups=int((~kept).sum()),
        alarms=_alarms(group_std, kept, group_size, config),
        mean_size=float(total.abs().sum() / mask_all.sum().clamp(min=1)),
    )


def _normalised(values: Tensor, mask: Tensor, *, per_group: bool) -> Tensor:
    """(value - group mean) / (std + 1e-4) over the masked-in entries of [groups, G]; 0 elsewhere.

    The std over the iteration is that of the deviations from the group means: with the spread between the groups in it
    a term whose level depends on the prompt would weigh less than one whose level does not.
    """
    values = torch.where(mask, values, 0.0)
    count = mask.sum(1, keepdim=True).clamp(min=1)
    centred = torch.where(mask, values - values.sum(1, keepdim=True) / count, 0.0)  # [groups, G]
    if per_group:
        std = (centred.square().sum(1, keepdim=True) / count).sqrt()  # [groups, 1]
    else:
        std = (centred.square().sum() / mask.sum().clamp(min=1)).sqrt()
    return centred / (std + 1e-4)


def _masked_std(values: Tensor, mask: Tensor) -> Tensor:
    """Population std of each row over its masked-in entries; NaN with fewer than 2."""
    count = mask.sum(1)
    safe = torch.where(mask, values, 0.0)
    mean = safe.sum(1) / count.clamp(min=1)
    variance = torch.where(mask, safe - mean[:, None], 0.0).square().sum(1) / count.clamp(min=1)
    return torch.where(count >= 2, variance.sqrt(), torch.nan)


def _alarms(group_std: Tensor, kept: Tensor, group_size: int, config: AdvantageConfig) -> tuple[str, ...]:
    out = []
    low = int((group_std < config.min_group_std).sum())
    if low:
        out.append(f"{low} of {len(group_std)} groups teach almost nothing: reward std below {config.min_group_std:g}")
    if not bool(kept.any()):
        out.append("no group is left: this iteration has no update")
    if group_size == 2 and config.std == "group":
        out.append("with G = 2 and a per-group std every advantage is +-1, whatever the rewards")
    return tuple(out)
