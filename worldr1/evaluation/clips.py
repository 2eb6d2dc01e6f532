"""Held-out clips, as the study and validation make them: by the deterministic sampler, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from worldr1.config import TrainConfig
from worldr1.datatypes import PromptBatch
from worldr1.evaluation.evaluate import CLIPS_PER_CALL
from worldr1.models.base import VideoPolicy
from worldr1.rollout.sample import NEGATIVE_PROMPT, batch_rows, generate
from worldr1.rollout.schedule import evaluation_sigmas

PIXELS_PER_CALL = 1 << 19
"""Video pixels that are held as float32 at a time: one clip of 81x480x832."""


def evaluation_settings(config: TrainConfig) -> TrainConfig:
    """The run's settings with the video size of evaluation: evaluation.height, width and num_frames where given."""
    e, v = config.evaluation, config.video
    size = {"height": e.height or v.height, "width": e.width or v.width, "num_frames": e.num_frames or v.num_frames}
    return replace(config, video=replace(v, **size))


def chunks(num_clips: int, config: TrainConfig) -> Iterator[slice]:
    """Rows of clips that are sampled and judged together, CLIPS_PER_CALL or PIXELS_PER_CALL at most."""
    v = config.video
    size = max(1, min(CLIPS_PER_CALL, PIXELS_PER_CALL // (v.num_frames * v.height * v.width)))
    return batch_rows(num_clips, size)


def sample_clips(
    policy: VideoPolicy,
    batch: PromptBatch,
    noise: Tensor,
    rows: slice,
    *,
    config: TrainConfig,
    adapter: bool,
    negative_prompt: str = NEGATIVE_PROMPT,
) -> Tensor:
    """Clips of some samples of a batch of group size 1, without or with the adapter: [rows, F, 3, H, W] in [0, 1].

    A clip is a function of its prompt, its noise and these settings alone, but for the last digits: the size of a
    transformer call changes the order of its sums. Validation and `worldr1.generate` sample clips one by one.

    Args:
      noise: Latents at sigma = 1 of the whole batch, [N, C, f, h, w].
      config: evaluation.solver and num_steps, schedule and rollout are read.
      negative_prompt: What the unconditional pass is given.
    """
    solver, num_steps = config.evaluation.solver, config.evaluation.num_steps or config.schedule.num_steps
    return generate(
        policy, batch.prompts[rows], noise[rows],
        sigmas=evaluation_sigmas(solver, num_steps, config.schedule.shift), solver=solver,
        guidance_scale=config.rollout.guidance_scale, adapter=adapter, micro_batch=config.rollout.micro_batch,
        negative_prompt=negative_prompt,
    )  # fmt: skip
