"""Validation while a run goes on: the same few held-out prompts by the base and by the averaged adapter, to look at.

output_dir/validation/
    validation.jsonl        one line a validation: iteration, prompts, sample ids, figures (see `Validator.run`)
    base/prompt_00.npz      the base's clip and its scores: they do not change, so they are made once, a resume included
    iteration_000020/       after 20 iterations: prompt_00.mp4 ..., base on the left, adapter on the right; grid.mp4
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldr1.camera.motion import parse_motion
from worldr1.camera.noise import initial_noise
from worldr1.config import TrainConfig, to_json
from worldr1.datatypes import PromptBatch
from worldr1.evaluation.clips import evaluation_settings, sample_clips
from worldr1.evaluation.compare import paired
from worldr1.models.base import VideoPolicy
from worldr1.prompts.sampler import HELD_OUT_IDS, read_batch
from worldr1.rewards.base import Rewards
from worldr1.run import distributed
from worldr1.run.files import iteration_name, read_arrays, reading, whole, write_text
from worldr1.run.metrics import plain
from worldr1.run.video import beside, grid, shrunk, to_bytes, write_video

FIRST_ID = HELD_OUT_IDS + 2**30
"""First sample id of validation: its noise is neither that of training nor that of the study."""
GRID_CLIP_WIDTH = 208
"""Widest clip of the grid, in pixels."""


class Scored(NamedTuple):
    """A clip and what the rewards say of it."""

    clip: Tensor  # [F, 3, H, W] uint8
    scores: dict[str, float]  # "reward" and every term; NaN where invalid


def choose_prompts(held_out: Sequence[str], num: int) -> list[str]:
    """The prompts that are watched: the first of each camera motion, then the rest, both in the order of the file."""
    first: dict[tuple[str, ...], int] = {}
    for i, prompt in enumerate(held_out):
        first.setdefault(tuple(token.kind for token in parse_motion(prompt)), i)
    order = [*first.values(), *(i for i in range(len(held_out)) if i not in set(first.values()))]
    return [held_out[i] for i in order[:num]]


class Validator:
    """Samples, scores and shows the fixed prompts of a run; rank r takes every world.size-th of them.

    Args:
      policy: The model in training.
      rewards: The run's judges: their terms, with the weights of the main phase, are what is compared.
      held_out: Prompts that are never trained on.
      config: seed, evaluation, video, camera, noise, schedule, rollout, model and reward are read.
      world: This rank among all.
    Raises:
      ValueError: evaluation's video size is none that the model can make.
    """

    def __init__(
        self,
        policy: VideoPolicy,
        rewards: Rewards,
        held_out: Sequence[str],
        *,
        config: TrainConfig,
        world: distributed.World,
    ) -> None:
        self.policy = policy
        self.rewards = rewards
        self.prompts = choose_prompts(held_out, config.evaluation.num_validation)
        self.config = evaluation_settings(config)
        self.latent_shape = policy.latent_shape(self.config.video)
        self.world = world
        self.folder = Path(config.output_dir) / "validation"
        self._unsaved: dict[int, Scored] = {}  # of the base, where the disk was full

    def run(self, iteration: int, *, between: Callable[[], None], say: Callable[[str], None]) -> dict[str, Any]:
        """One validation of the adapter that the policy holds now. Every rank must call this.

        Args:
          iteration: Iterations done.
          between: Called before each clip, as often on every rank; may raise, and the validation is then begun anew
            another time.
          say: Takes one line where a file could not be written: that does not stop the run.
        Returns:
          num (prompts), reward and terms.<name>: base and adapter (means), gain and stderr (of the paired difference),
          num (pairs that are finite); the same on every rank, whatever their number.
        """
        folder = self.folder / iteration_name(iteration)
        scores: dict[int, tuple[dict[str, float], dict[str, float]]] = {}
        small: dict[int, Tensor] = {}
        faults: list[str] = []
        for start in range(0, len(self.prompts), self.world.size):
            i = start + self.world.rank
            between()
            base = self._base(i, faults) if i < len(self.prompts) else None
            between()
            if base is None:
                continue
            after = self._scored(i, adapter=True)
            scores[i] = base.scores, after.scores
            pair = beside([base.clip, after.clip])
            small[i] = beside([shrunk(clip, max_width=GRID_CLIP_WIDTH) for clip in (base.clip, after.clip)])
            with _noting(faults):
                folder.mkdir(parents=True, exist_ok=True)
                write_video(pair, folder / f"prompt_{i:02d}.mp4", fps=self.config.video.fps)
        gathered = distributed.gather_objects((scores, small if self.world.size > 1 else {}, faults))
        scores = {i: pair for part, _, _ in gathered for i, pair in part.items()}
        figures = self._figures([scores[i] for i in range(len(self.prompts))])
        if self.world.is_main:
            faults = [fault for _, _, part in gathered for fault in part]
            small = small if self.world.size == 1 else {i: clip for _, part, _ in gathered for i, clip in part.items()}
            with _noting(faults):
                folder.mkdir(parents=True, exist_ok=True)
                self._write_grid([small[i] for i in range(len(self.prompts))], folder / "grid.mp4")
            with _noting(faults):
                self._append(iteration, figures)
            if faults:
                more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
                say(f"validation after {iteration} iterations: not all files could be written: {faults[0]}{more}")
        return figures

    def _figures(self, pairs: list[tuple[dict[str, float], dict[str, float]]]) -> dict[str, Any]:
        def figure(name: str) -> dict[str, Any]:
            base, adapter = (torch.tensor([scores[name] for scores in side]) for side in zip(*pairs, strict=True))
            m = paired(base, adapter)
            return {"base": m.before, "adapter": m.after, "gain": m.gain, "stderr": m.stderr, "num": m.num}

        terms = {name: figure(name) for name in pairs[0][0] if name != "reward"}
        return {"num": len(pairs), "reward": figure("reward"), "terms": terms}

    def _batch(self, i: int) -> PromptBatch:
        ids = torch.tensor([FIRST_ID + i])
        return read_batch(
            [self.prompts[i]], config=self.config, group_size=1, sample_ids=ids, group_ids=ids, dynamic=False
        )

    def _scored(self, i: int, *, adapter: bool) -> Scored:
        """Prompt i sampled and scored. The judges see the bytes of the file, so that a resumed run says the same."""
        batch = self._batch(i)
        noise = initial_noise(batch, self.latent_shape, config=self.config)
        video = sample_clips(self.policy, batch, noise, slice(0, 1), config=self.config, adapter=adapter)
        clip = to_bytes(video[0])
        finite = torch.isfinite(video).all()[None]
        # Not `score`: a clip that no judge can score is left out of the means and does not stop the run, no control
        # experiment touches it, and the ranks come here unequally often.
        out = self.rewards.judge(batch, clip[None], finite=finite)
        return Scored(clip, {"reward": float(out.reward), **{k: float(v) for k, v in out.breakdown.items()}})

    def _base(self, i: int, faults: list[str]) -> Scored:
        """The base's clip of prompt i: from memory, from the disk, or made now and kept."""
        if i in self._unsaved:
            return self._unsaved[i]
        path, key = self.folder / "base" / f"prompt_{i:02d}.npz", self._base_key(i)
        found = _read_base(path, key)
        if found is None:
            found = self._scored(i, adapter=False)
            try:
                _write_base(path, key, found)
            except OSError as error:
                faults.append(str(error))
                self._unsaved[i] = found
        return found

    def _base_key(self, i: int) -> str:
        """What the base's clip and scores depend on: another key, another clip."""
        settings = to_json(self.config)
        parts = ("seed", "video", "camera", "noise", "schedule", "reward")
        what = [settings[part] for part in parts] + [settings["rollout"]["guidance_scale"]]
        what += [settings["evaluation"][name] for name in ("solver", "num_steps")]
        what += [settings["model"][name] for name in ("path", "dtype")]
        return hashlib.sha256(json.dumps([self.prompts[i], FIRST_ID + i, what]).encode()).hexdigest()

    def _write_grid(self, pairs: list[Tensor], path: Path) -> None:
        """All pairs in one file, in columns that make it about as wide as high."""
        columns = max(1, round(math.sqrt(len(pairs) * pairs[0].shape[2] / pairs[0].shape[3])))
        write_video(grid(pairs, columns=columns), path, fps=self.config.video.fps)

    def _append(self, iteration: int, figures: dict[str, Any]) -> None:
        """Add the line of this validation; lines of later ones, which an interrupted run left, go."""
        path = self.folder / "validation.jsonl"
        kept = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                if json.loads(line)["iteration"] < iteration - 1:
                    kept.append(line)
        ids = [FIRST_ID + i for i in range(len(self.prompts))]  # generate --sample-id makes the same clip again
        row = {"iteration": iteration - 1, "prompts": self.prompts, "sample_ids": ids, **figures}
        write_text(path, "\n".join([*kept, json.dumps(plain(row))]) + "\n")


@contextlib.contextmanager
def _noting(faults: list[str]) -> Iterator[None]:
    """An OSError inside ends the block and is noted."""
    try:
        yield
    except OSError as error:
        faults.append(str(error))


def _write_base(path: Path, key: str, base: Scored) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scores = np.array(list(base.scores.values()))
    with whole(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, key=key, clip=base.clip.numpy(), names=list(base.scores), scores=scores)


def _read_base(path: Path, key: str) -> Scored | None:
    """The clip of this key; None where there is none, or a file that is damaged or of another key."""
    try:
        file = read_arrays(path, "the base's clip and scores")
        with reading(path, "the base's clip and scores"):
            if str(file["key"]) != key:
                return None
            names, values = file["names"].tolist(), file["scores"].tolist()
            return Scored(torch.from_numpy(file["clip"]), dict(zip(names, values, strict=True)))
    except (OSError, ValueError):
        return None
