"""Where the clips of an evaluation come from: files of the user's, or a model with and without its adapter."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from worldr1.camera.motion import read_camera
from worldr1.camera.noise import initial_noise
from worldr1.camera.pose_files import Poses, load_poses, resampled
from worldr1.camera.trajectory import build_trajectory
from worldr1.config import CameraConfig, TrainConfig
from worldr1.evaluation.clip_files import CLIP_SUFFIXES, POSE_SUFFIXES, Prompt, list_files, read_clip
from worldr1.evaluation.clips import sample_clips
from worldr1.evaluation.measures import Request
from worldr1.models.base import VideoPolicy
from worldr1.prompts.sampler import read_batch
from worldr1.run.video import to_bytes


class Shown(NamedTuple):
    """A clip, or why there is none."""

    video: Tensor | None  # uint8 [F, 3, H, W]
    fps: float
    fault: str


class ClipSource(Protocol):
    """Clips by number, each in every arm."""

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms."""
        ...

    @property
    def prompts(self) -> list[Prompt]:
        """Of each clip, with the seed of its noise where that is known."""
        ...

    @property
    def cameras(self) -> Cameras:
        """What was asked for."""
        ...

    def show(self, index: int, arm: str) -> Shown:
        """Read or make a clip."""
        ...

    def file(self, index: int, arm: str) -> str | None:
        """Where it lies; None: it is made here, and the evaluation's folder keeps it."""
        ...


class Cameras:
    """The camera paths that clips were asked for: by their prompts, or by pose files.

    Args:
      prompts: Of each clip.
      camera: What a motion word of magnitude 1 means.
      files: A pose file for each clip, or one for all; None: the words of the prompts decide.
    Raises:
      ValueError: as many pose files as neither, or a file that is no path, by its name.
    """

    def __init__(self, prompts: Sequence[Prompt], camera: CameraConfig, files: Sequence[Path] | None = None) -> None:
        if files is not None and len(files) not in (1, len(prompts)):
            raise ValueError(
                f"evaluate: cameras must be one pose file, or one for each of {len(prompts)} clips, got {len(files)}"
            )
        self.camera = camera
        self.paths = None if files is None else [_path_of(file) for file in files]
        self.readings = [read_camera(prompt.text) for prompt in prompts]

    def request(self, index: int, num_frames: int) -> Request | None:
        """The path of a clip of so many frames; None where none was asked for.

        That of a file is brought to the frames of the clip over its own time, as `generate --camera` does.
        """
        if num_frames < 2:
            return None
        if self.paths is not None:
            return Request(resampled(self.paths[index if len(self.paths) > 1 else 0], num_frames), None)
        reading = self.readings[index]
        if not reading.asked:
            return None
        return Request(build_trajectory(reading.tokens, num_frames, self.camera), self.camera.depth)

    def motions(self, index: int) -> list[str]:
        """The motions in words, ["push_in x1"]."""
        if self.paths is not None:
            return []
        reading = self.readings[index]
        return [f"{token.kind} x{token.magnitude:g}" for token in reading.tokens] if reading.asked else []

    def motion(self, index: int) -> str:
        """The one motion, "composite" for several, "none" where none was asked for, "file" for a pose file."""
        if self.paths is not None:
            return "file"
        reading = self.readings[index]
        if not reading.asked:
            return "none"
        return reading.tokens[0].kind if len(reading.tokens) == 1 else "composite"

    @property
    def any_asked(self) -> bool:
        """Whether there is a clip of which a camera was asked."""
        return self.paths is not None or any(reading.asked for reading in self.readings)


def _path_of(file: Path) -> Poses:
    """The poses of a file; what is wrong with them is said now, and not clip by clip."""
    poses = load_poses(file)
    try:
        resampled(poses, 2)
    except ValueError as error:
        raise ValueError(f"evaluate: {file}: {error}") from error
    return poses


class FileClips:
    """Clips in a folder, one for each prompt, in the order of names.

    Args:
      folder: Of .mp4 and .npz files.
      prompts: Of each.
      camera: See `Cameras`.
      cameras: A pose file, a folder of one for each clip, or None.
      fps: Of .npz files.
    Raises:
      ValueError: the numbers do not match, with the first name or line that is left over; as `list_files`, `Cameras`.
    """

    arms = ("videos",)

    def __init__(
        self, folder: Path, prompts: list[Prompt], *, camera: CameraConfig, cameras: Path | None, fps: float
    ) -> None:
        self.files = list_files(folder, CLIP_SUFFIXES)
        if len(self.files) != len(prompts):
            n, m = len(self.files), len(prompts)
            over = (
                f"{self.files[m].name} has no prompt"
                if n > m
                else f"prompt {n + 1} has no clip: {prompts[n].text[:80]}"
            )
            raise ValueError(
                f"evaluate: {folder} must hold one clip for each prompt, in the order of names, got {n} clips and {m} "
                f"prompts ({over})"
            )
        poses = None
        if cameras is not None:
            poses = list_files(cameras, POSE_SUFFIXES) if cameras.is_dir() else [cameras]
        self.prompts, self.fps = prompts, fps
        self.cameras = Cameras(prompts, camera, poses)

    def show(self, index: int, arm: str) -> Shown:
        """Read a clip; what cannot be read is no clip, and says why."""
        try:
            return Shown(*read_clip(self.files[index], fps=self.fps), "")
        except (OSError, ValueError) as error:
            return Shown(None, self.fps, str(error))

    def file(self, index: int, arm: str) -> str | None:
        """The user's own file."""
        return str(self.files[index].resolve())

    def fingerprint(self) -> str:
        """Names and sizes of the files, digested: another set of clips, another fingerprint."""
        text = "\n".join(f"{file.name} {file.stat().st_size}" for file in self.files)
        return hashlib.sha256(text.encode()).hexdigest()


class GeneratedClips:
    """Clips of a model, without and with its adapter, each pair from one noise.

    A clip is what `worldr1.generate` makes of its prompt with its seed, the noise of sample 0. It is made alone, so
    that it does not depend on how clips are dealt to ranks.

    Args:
      policy: The model with the adapter.
      prompts: Of each clip, with its seed.
      config: video, camera, noise, schedule, rollout and evaluation are read.
    """

    arms = ("base", "tuned")

    def __init__(self, policy: VideoPolicy, prompts: list[Prompt], *, config: TrainConfig) -> None:
        self.policy, self.prompts, self.config = policy, prompts, config
        self.latent_shape = policy.latent_shape(config.video)
        self.cameras = Cameras(prompts, config.camera)

    def show(self, index: int, arm: str) -> Shown:
        """Sample a clip."""
        prompt, fps = self.prompts[index], float(self.config.video.fps)
        assert prompt.seed is not None, "a clip that is made has a seed"
        config = replace(self.config, seed=prompt.seed)
        first = torch.zeros(1, dtype=torch.int64)
        batch = read_batch([prompt.text], config=config, group_size=1, sample_ids=first, group_ids=first, dynamic=False)
        batch = replace(batch, viewmats=batch.viewmats.to(self.policy.device))  # where noise is moved
        noise = initial_noise(batch, self.latent_shape, config=config)
        video = sample_clips(self.policy, batch, noise, slice(0, 1), config=config, adapter=arm == "tuned")[0]
        if not bool(video.isfinite().all()):
            return Shown(None, fps, "the video is not finite")
        return Shown(to_bytes(video), fps, "")

    def file(self, index: int, arm: str) -> str | None:
        """None: it is made here."""
        return None


def seeded(prompts: Sequence[Prompt], *, samples: int, seed: int) -> list[Prompt]:
    """Each prompt `samples` times in a row, each clip with a seed of its own: the prompt's, counted on, or `seed` plus
    the number of the clip."""
    return [
        p._replace(seed=(p.seed + k) if p.seed is not None else seed + samples * i + k)
        for i, p in enumerate(prompts)
        for k in range(samples)
    ]


def adapter_fingerprint(adapter: Path) -> str:
    """SHA-256 over the weights of an adapter: a folder, or a file of others."""
    files = sorted(adapter.glob("*.safetensors")) if adapter.is_dir() else [adapter]
    found: Any = hashlib.sha256()
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()
