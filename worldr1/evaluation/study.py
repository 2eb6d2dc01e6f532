"""The before/after study: held-out prompts sampled without and with the adapter, from the same noise.

A few clips are held as float32 at a time: each is judged as it is made, and goes to the disk as uint8.
"""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from worldr1.camera.noise import initial_noise
from worldr1.config import TrainConfig
from worldr1.evaluation.clips import chunks, evaluation_settings, sample_clips
from worldr1.evaluation.compare import Study, compare, write_study
from worldr1.evaluation.evaluate import Assessment, Classifier, Evaluator, assess, joined
from worldr1.evaluation.labels import LabelReader
from worldr1.models.base import VideoPolicy
from worldr1.prompts.sampler import held_out_batch
from worldr1.run import distributed
from worldr1.run.video import to_bytes


def run_study(
    policy: VideoPolicy,
    held_out: list[str],
    *,
    read_labels: LabelReader | None,
    evaluator: Evaluator | Classifier,
    config: TrainConfig,
    world: distributed.World,
    folder: Path,
) -> Study | None:
    """Sample and judge held-out prompts without and with the adapter, spread over the ranks; write on rank 0.

    Every rank must call this.

    Args:
      policy: The model with the adapter to judge.
      held_out: Prompts.
      read_labels: What they ask for, in the evaluator's classes; None measures geometry and picture alone.
      evaluator: Independent of every reward; a Classifier where there are labels.
      config: seed, evaluation, video, camera, noise, schedule and rollout are read, and the control's name.
      world: This rank among all.
      folder: Gets evaluation/study.json and evaluation/samples.npz.
    Returns:
      Study on rank 0, None on the others.
    """
    config = evaluation_settings(config)
    total = config.evaluation.num_samples
    batch = held_out_batch(held_out, config=config, rank=world.rank, world_size=world.size)
    noise = initial_noise(batch, policy.latent_shape(config.video), config=config)
    clips = {adapter: _ClipFile(folder / "evaluation" / f".unfinished_{adapter}", total) for adapter in (False, True)}
    found: dict[bool, Assessment] = {}
    seconds = 0.0
    with contextlib.ExitStack() as stack:
        for adapter, file in clips.items():
            if world.is_main:
                stack.callback(file.remove)
            parts = []
            for rows in chunks(batch.num_samples, config):
                videos = sample_clips(policy, batch, noise, rows, config=config, adapter=adapter)
                start = time.perf_counter()
                labels = None if read_labels is None else read_labels(batch.prompts[rows])
                parts.append(assess(videos, labels, batch.viewmats[rows], evaluator=evaluator))
                seconds += time.perf_counter() - start
                everywhere = distributed.gather(to_bytes(videos))  # [ranks * n, F, 3, H, W]
                if world.is_main:
                    for rank, part in enumerate(everywhere.chunk(world.size)):
                        file.put(rank * batch.num_samples + rows.start, part)
            found[adapter] = _of_all_ranks(joined(parts), total)
        if not world.is_main:
            return None
        # All ranks' prompts again, without their padding.
        whole = held_out_batch(held_out, config=config, rank=0, world_size=1)
        labels = None if read_labels is None else read_labels(whole.prompts)
        result = compare(
            found[False], found[True], whole.prompts, labels, control=config.reward.control, seconds=seconds
        )
        write_study(
            result, folder, videos_before=clips[False].array(), videos_after=clips[True].array(),
            viewmats_requested=whole.viewmats,
        )  # fmt: skip
    return result


def _of_all_ranks(mine: Assessment, total: int) -> Assessment:
    """The first `total` clips of all ranks; what lies beyond is padding."""
    fields = mine.__dict__.items()
    whole: dict[str, Any] = {k: None if v is None else distributed.gather(v)[:total] for k, v in fields}
    return Assessment(**whole)


class _ClipFile:
    """Clips of one size on the disk, uint8, written in any order. A full disk raises OSError.

    Args:
      path: Of a raw file.
      num: Clips that are kept; those put beyond are padding.
    """

    def __init__(self, path: Path, num: int) -> None:
        self.path, self.num = path, num
        self._shape: tuple[int, ...] = ()

    def put(self, first: int, clips: Tensor) -> None:
        """Clips [n, F, 3, H, W] as numbers first ... first + n - 1."""
        self._shape = tuple(clips.shape[1:])
        clips = clips[: max(0, self.num - first)]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("r+b" if self.path.exists() else "wb") as file:
            file.seek(first * math.prod(self._shape))
            file.write(clips.contiguous().numpy().tobytes())

    def array(self) -> np.ndarray:
        """All clips [num, F, 3, H, W], mapped from the file."""
        return np.memmap(self.path, dtype=np.uint8, mode="r", shape=(self.num, *self._shape))

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
