"""Prompts of an iteration: read, drawn by shuffled epochs, repeated G times, dealt to the ranks.

Everything is a function of (seed, iteration, rank): no sampler state, so a resumed run deals the prompts that the
uninterrupted run would have dealt, and the group size is exact from the first iteration.
"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from worldr1.camera.motion import read_camera
from worldr1.camera.trajectory import build_trajectory
from worldr1.config import PhaseConfig, RolloutConfig, TrainConfig
from worldr1.datatypes import PromptBatch

HELD_OUT_IDS = 2**31
"""First sample id of the study; training counts from 0 and the draws take ids below 2^32."""


def read_prompts(path: Path) -> list[str]:
    """One prompt a line; white space at the ends is cut, empty lines and comments are left out.

    A comment is a line that begins with "# " or is "#" alone; "#sunset" is a prompt. A prompt that stands there twice
    is drawn twice as often. Lines may end as on any system, and a byte-order mark (also of files joined by `cat`) is
    no part of a prompt.

    Args:
      path: UTF-8 text file.
    Returns:
      The prompts, at least one.
    Raises:
      ValueError: the file is missing, holds no prompt, or is not UTF-8 text (with the line number): NUL characters are
        those of UTF-16.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"prompts: file must be readable, got {path} ({error.strerror or error})") from error
    prompts = []
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"prompts: {path} must be UTF-8 text, got UTF-16; save it as UTF-8")
    for number, line in enumerate(raw.splitlines(), start=1):
        if b"\0" in line:
            raise ValueError(
                f"prompts: {path} must be UTF-8 text, got a NUL character in line {number}: UTF-16 without a mark, or "
                "no text; save it as UTF-8"
            )
        try:
            text = line.decode("utf-8").strip("\ufeff" + string.whitespace).strip()
        except UnicodeDecodeError as error:
            byte = line[error.start]
            raise ValueError(
                f"prompts: {path} must be UTF-8 text, got byte 0x{byte:02x} in line {number}; save it as UTF-8"
            ) from error
        if text and text != "#" and not text.startswith(("# ", "#\t")):
            prompts.append(text)
    if not prompts:
        what = "an empty file" if not raw.strip() else "empty lines and comments alone"
        raise ValueError(f"prompts: {path} must hold at least one prompt, got {what}; write one prompt a line")
    return prompts


def is_dynamic(iteration: int, phase: PhaseConfig) -> bool:
    """Whether an iteration is of the dynamic phase: `main_iterations` main ones, `dynamic_iterations`, and again."""
    return iteration % (phase.main_iterations + phase.dynamic_iterations) >= phase.main_iterations


def iterations_before(iteration: int, phase: PhaseConfig, *, dynamic: bool) -> int:
    """How many earlier iterations were of the given phase."""
    cycles, rest = divmod(iteration, phase.main_iterations + phase.dynamic_iterations)
    if dynamic:
        return cycles * phase.dynamic_iterations + max(0, rest - phase.main_iterations)
    return cycles * phase.main_iterations + min(rest, phase.main_iterations)


def rank_share(rollout: RolloutConfig, world_size: int) -> tuple[int, int]:
    """How the P G samples of an iteration are dealt: in a row, equally many to each rank.

    Args:
      rollout: P prompts, G samples each.
      world_size: Number of ranks.
    Returns:
      (n, g): samples of a rank, n = P G / world_size, and of the pieces of groups that they are made of: g = gcd(n, G)
      is the largest size of which every rank holds whole pieces; G where no group is split.
    Raises:
      ValueError: P G is not a multiple of world_size.
    """
    samples = rollout.prompts_per_iteration * rollout.group_size
    if world_size < 1 or samples % world_size:
        raise ValueError(
            f"rank_share: prompts_per_iteration x group_size must be a multiple of the {world_size} ranks, "
            f"got {samples}"
        )
    return samples // world_size, math.gcd(samples // world_size, rollout.group_size)


def prompt_batch(
    prompts: Sequence[str], *, config: TrainConfig, iteration: int, dynamic: bool, rank: int, world_size: int
) -> PromptBatch:
    """The samples of one iteration on one rank.

    Prompts come in shuffled epochs without replacement, one sequence per phase, each G times in a row. Rank r takes the
    r-th contiguous share of the samples, so that all ranks together hold what a single rank would, in the same order
    and with the same sample ids. A share may begin and end inside a group: it is made of pieces of g samples, the
    largest size of which every rank holds whole pieces, so that all ranks make the same transformer calls.

    Args:
      prompts: All prompts of the phase's file.
      config: The run's settings; read are seed, rollout, phase, video.num_frames and camera.
      iteration: Counted from 0.
      dynamic: Whether the prompts are those of the dynamic phase.
      rank: This rank, in [0, world_size).
      world_size: Number of ranks.
    Returns:
      PromptBatch of n / g pieces, n and g as `rank_share` gives them: P whole groups on a single rank.
      sample_ids are unique over ranks and iterations.
    Raises:
      ValueError: no prompts, or the samples of an iteration are not a multiple of world_size.
    """
    if not prompts:
        raise ValueError("prompt_batch: prompts must not be empty")
    total, group_size = config.rollout.prompts_per_iteration, config.rollout.group_size
    share, piece = rank_share(config.rollout, world_size)
    first = rank * share  # of this rank's samples, among those of the iteration
    groups = [sample // group_size for sample in range(first, first + share, piece)]  # of each piece, in [0, total)
    drawn = iterations_before(iteration, config.phase, dynamic=dynamic) * total + groups[0]
    order = _shuffled(len(prompts), drawn, groups[-1] - groups[0] + 1, seed=2 * config.seed + dynamic)
    before = iteration * total * group_size  # samples of earlier iterations
    return read_batch(
        [prompts[order[group - groups[0]]] for group in groups],
        config=config,
        group_size=piece,
        sample_ids=torch.arange(before + first, before + first + share, dtype=torch.int64),  # [N]
        group_ids=before + group_size * torch.tensor(groups, dtype=torch.int64),  # [P]
        dynamic=dynamic,
    )


def held_out_batch(prompts: Sequence[str], *, config: TrainConfig, rank: int, world_size: int) -> PromptBatch:
    """One rank's share of the samples of the before/after study: one sample a prompt, all prompts equally often.

    Args:
      prompts: Held out from training.
      config: The run's settings; read are seed, evaluation.num_samples, video.num_frames and camera.
      rank: This rank.
      world_size: Number of ranks. All get the same number of samples; those beyond num_samples are padding.
    Returns:
      PromptBatch with group_size 1; its sample ids are never used in training.
    """
    share = -(-config.evaluation.num_samples // world_size)
    chosen = [prompts[i] for i in _shuffled(len(prompts), rank * share, share, seed=2 * config.seed)]
    start = HELD_OUT_IDS + rank * share
    ids = torch.arange(start, start + share, dtype=torch.int64)
    return read_batch(chosen, config=config, group_size=1, sample_ids=ids, group_ids=ids, dynamic=False)


def read_batch(
    prompts: Sequence[str],
    *,
    config: TrainConfig,
    group_size: int,
    sample_ids: Tensor,
    group_ids: Tensor,
    dynamic: bool,
) -> PromptBatch:
    """A batch of given prompts, with what they ask of the camera.

    Args:
      prompts: P prompts, of each piece.
      config: The run's settings; read are video.num_frames and camera.
      group_size: Samples of a piece.
      sample_ids: [P * group_size] int64.
      group_ids: [P] int64.
      dynamic: Whether the prompts are those of the dynamic phase.
    Returns:
      PromptBatch on the CPU. The path of a prompt that asks for no camera (`asked`) is one at rest.
    """
    readings = [read_camera(p) for p in prompts]
    paths = [build_trajectory(r.tokens, config.video.num_frames, config.camera) for r in readings]
    return PromptBatch(
        prompts=list(prompts),
        group_size=group_size,
        tokens=[r.tokens for r in readings],
        viewmats=torch.stack(paths).float(),  # [P, F, 4, 4]
        sample_ids=sample_ids,
        dynamic=dynamic,
        group_ids=group_ids,
        asked=torch.tensor([r.asked for r in readings]),  # [P]
    )


def _shuffled(length: int, start: int, count: int, *, seed: int) -> list[int]:
    """Items start ... start + count - 1 of an endless sequence of shuffled epochs of range(length)."""
    out: list[int] = []
    epoch, offset = divmod(start, length)
    while len(out) < count:
        # One generator per epoch: a mixed 63-bit key, since neighbouring seeds would otherwise share a stream.
        key = (seed * 0x9E3779B97F4A7C15 + epoch * 0xD1B54A32D192ED03) % 2**63
        order = torch.randperm(length, generator=torch.Generator().manual_seed(key)).tolist()
        out += order[offset : offset + count - len(out)]
        epoch, offset = epoch + 1, 0
    return out
