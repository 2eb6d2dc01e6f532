"""Obedience on held-out prompts while a run goes on: a few looks, by the study's evaluator, which no reward has seen.

output_dir/validation/obedience.jsonl    one line a look: iteration, obedience (mean, stderr, num)
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from worldr1.camera.noise import initial_noise
from worldr1.config import TrainConfig
from worldr1.evaluation.clips import chunks, evaluation_settings, sample_clips
from worldr1.evaluation.evaluate import Classifier, Evaluator
from worldr1.evaluation.labels import LabelReader
from worldr1.evaluation.validate import choose_prompts
from worldr1.models.base import VideoPolicy
from worldr1.prompts.sampler import HELD_OUT_IDS, read_batch
from worldr1.run import distributed
from worldr1.run.files import write_text

FIRST_ID = HELD_OUT_IDS + 2**29
"""First sample id: its noise is neither that of training, nor of the study, nor of validation."""
MAX_SAMPLES = 40
"""Samples of a look, at most those of the study: a standard error of .08; 1.2 to 1.4 s of a core in the micro world."""


class Lookout:
    """Looks at the adapter evaluation.num_looks times, evenly over the run; rank r takes its share of the samples.

    Args:
      policy: The model in training.
      held_out: Prompts that are never trained on.
      read_labels: What they ask for, in the evaluator's classes.
      evaluator: A Classifier: labels are at hand.
      config: As the study reads it; output_dir, max_iterations.
      world: This rank among all.
    """

    def __init__(
        self,
        policy: VideoPolicy,
        held_out: Sequence[str],
        *,
        read_labels: LabelReader,
        evaluator: Evaluator | Classifier,
        config: TrainConfig,
        world: distributed.World,
    ) -> None:
        self.policy, self.read_labels, self.evaluator, self.world = policy, read_labels, evaluator, world
        self.config = evaluation_settings(config)
        self.prompts = choose_prompts(held_out, min(MAX_SAMPLES, config.evaluation.num_samples))
        self.every = config.max_iterations // (config.evaluation.num_looks + 1) if config.evaluation.num_looks else 0

    def due(self, iteration: int) -> bool:
        """Whether the adapter is looked at after so many iterations; the study looks at the first and the last."""
        last = iteration >= self.config.max_iterations
        return bool(self.every and iteration and not last and iteration % self.every == 0)

    def look(self, iteration: int, *, between: Callable[[], None]) -> tuple[float, float]:
        """Sample and judge the adapter that the policy holds now; write on rank 0. Every rank must call this.

        Args:
          iteration: Iterations done.
          between: Called before the clips are sampled, once on every rank; may raise.
        Returns:
          Share of samples that obey, and its standard error; the same on every rank.
        Raises:
          OSError: on rank 0, the line cannot be written.
        """
        between()
        obeyed = [o for part in distributed.gather_objects(self._obeyed()) for o in part]
        share = sum(obeyed) / len(obeyed)
        stderr = math.sqrt(share * (1 - share) / len(obeyed))
        if self.world.is_main:
            self._append(iteration, {"mean": share, "stderr": stderr, "num": len(obeyed)})
        return share, stderr

    @torch.no_grad()
    def _obeyed(self) -> list[bool]:
        """Of this rank's samples, in order."""
        mine = range(self.world.rank, len(self.prompts), self.world.size)
        if not mine:
            return []
        ids = torch.tensor([FIRST_ID + i for i in mine])
        prompts = [self.prompts[i] for i in mine]
        batch = read_batch(prompts, config=self.config, group_size=1, sample_ids=ids, group_ids=ids, dynamic=False)
        noise = initial_noise(batch, self.policy.latent_shape(self.config.video), config=self.config)
        asked = self.read_labels(prompts).motion
        out: list[bool] = []
        for rows in chunks(len(prompts), self.config):
            video = sample_clips(self.policy, batch, noise, rows, config=self.config, adapter=True)
            finite = torch.isfinite(video).flatten(1).all(1).cpu()
            motion, _ = self.evaluator.classify(torch.nan_to_num(video, nan=0.5))  # type: ignore[union-attr]
            out += ((motion.argmax(1).cpu() == asked[rows]) & finite).tolist()
        return out

    def _append(self, iteration: int, obedience: dict[str, float]) -> None:
        """Add the line of this look; lines of later ones, which an interrupted run left, go."""
        path = Path(self.config.output_dir) / "validation" / "obedience.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                if json.loads(line)["iteration"] < iteration - 1:
                    kept.append(line)
        write_text(path, "\n".join([*kept, json.dumps({"iteration": iteration - 1, "obedience": obedience})]) + "\n")
