"""Prompts of an iteration: read, drawn by shuffled epochs, dealt to the ranks, repeated G times.

Everything is a function of (seed, iteration, rank): no sampler state, so a resumed run deals the prompts that the
uninterrupted run would have dealt, and the group size is exact from the first iteration.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from worldr1.camera.motion import read_camera
from worldr1.camera.trajectory import build_trajectory
from worldr1.config import PhaseConfig, TrainConfig
from worldr1.datatypes import PromptBatch

HELD_OUT_IDS = 2**31
"""First sample id of the study; training counts from 0 and the draws take ids below 2^32."""


def read_prompts(path: Path) -> list[str]:
    """One prompt a line; empty lines are left out, white space at the ends is cut.

    Args:
      path: UTF-8 text file (a byte-order mark is accepted).
    Returns:
      The prompts, at least one.
    Raises:
      ValueError: the file is missing, holds no prompt, or is not UTF-8 (with the line number).
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"prompts: file must be readable, got {path} ({error.strerror or error})") from error
    prompts = []
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            byte = line[error.start]
            raise ValueError(
                f"prompts: {path} must be UTF-8 text, got byte 0x{byte:02x} in line {number}; save it as UTF-8"
            ) from error
        if text:
            prompts.append(text)
    if not prompts:
        raise ValueError(f"prompts: {path} must hold at least one prompt, got an empty file; write one prompt a line")
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


def prompt_batch(
    prompts: Sequence[str], *, config: TrainConfig, iteration: int, dynamic: bool, rank: int, world_size: int
) -> PromptBatch:
    """The prompts of one iteration on one rank.

    Prompts come in shuffled epochs without replacement, one sequence per phase. Rank r takes the r-th contiguous share,
    so that all ranks together hold what a single rank would, in the same order and with the same sample ids.

    Args:
      prompts: All prompts of the phase's file.
      config: The run's settings; read are seed, rollout, phase, video.num_frames and camera.
      iteration: Counted from 0.
      dynamic: Whether the prompts are those of the dynamic phase.
      rank: This rank, in [0, world_size).
      world_size: Number of ranks.
    Returns:
      PromptBatch with P = prompts_per_iteration / world_size prompts; sample_ids are unique over ranks and iterations.
    Raises:
      ValueError: no prompts, or prompts_per_iteration is not a multiple of world_size.
    """
    if not prompts:
        raise ValueError("prompt_batch: prompts must not be empty")
    total, group_size = config.rollout.prompts_per_iteration, config.rollout.group_size
    if total % world_size:
        raise ValueError(f"prompt_batch: prompts_per_iteration must be a multiple of {world_size} ranks, got {total}")
    share = total // world_size
    first = rank * share
    drawn = iterations_before(iteration, config.phase, dynamic=dynamic) * total + first
    chosen = [prompts[i] for i in _shuffled(len(prompts), drawn, share, seed=2 * config.seed + dynamic)]
    start = (iteration * total + first) * group_size
    ids = torch.arange(start, start + share * group_size, dtype=torch.int64)  # [P * G]
    return read_batch(chosen, config=config, group_size=group_size, sample_ids=ids, dynamic=dynamic)


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
    return read_batch(chosen, config=config, group_size=1, sample_ids=ids, dynamic=False)


def read_batch(
    prompts: Sequence[str], *, config: TrainConfig, group_size: int, sample_ids: Tensor, dynamic: bool
) -> PromptBatch:
    """A batch of given prompts, with what they ask of the camera.

    Args:
      prompts: P prompts.
      config: The run's settings; read are video.num_frames and camera.
      group_size: G.
      sample_ids: [P * G] int64.
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
