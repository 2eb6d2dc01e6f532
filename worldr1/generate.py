"""Prompts -> video files, by the base model, a trained adapter, or both side by side.

python -m worldr1.generate --prompt "Camera pan left. A red ball stands on a wooden floor." --adapter RUN/adapter \
    --compare --output output.mp4
python -m worldr1.generate --prompts FILE --adapter RUN/adapter --output-dir DIR

The same command goes on where a batch was interrupted; `torchrun --nproc_per_node N -m worldr1.generate ...` deals it
to N ranks. docs/generating.md says which video a seed gives.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
import typing
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from worldr1.cli import EXIT_INTERRUPTED, exit_code, set_environment_defaults
from worldr1.config import TrainConfig
from worldr1.run.saved_config import read_run_config

if typing.TYPE_CHECKING:
    from torch import Tensor

    from worldr1.datatypes import PromptBatch
    from worldr1.models.base import VideoPolicy
    from worldr1.prompts.requests import ClipRequest
    from worldr1.run.clip_folder import ClipFolder

SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True)
class GenerateConfig:
    """Generate videos with World-R1. What is left out comes from the run that made the adapter."""

    prompt: tuple[str, ...] = ()
    """One video for each; camera words move the camera."""
    prompts: Path | None = None
    """A file of prompts in their place, with --output-dir: text, one a line, or .jsonl with `prompt` and, where given,
    `seed`, `sample_id`, `negative_prompt` and `camera`."""
    adapter: Path | None = None
    """A trained adapter (RUN/adapter), or a LoRA file of others for Wan; without it the base model is sampled."""
    output: Path = Path("output.mp4")
    """An .mp4 or .gif file; with several prompts the number of the prompt is added to its name."""
    output_dir: Path | None = None
    """A folder for a batch instead: 0000.mp4 ..., manifest.jsonl. What is there and whole is not made again."""
    num_per_prompt: int = 1
    """Videos of each prompt, of the sample ids from `sample_id` on."""
    compare: bool = False
    """Show the base model on the left and the adapter on the right, from the same noise."""
    model: Path | None = None
    """A diffusers WanPipeline folder; default: the one of the adapter's run, else the embedded micro world."""
    camera: str = "words"
    """`words`: those of the prompt move the camera; or a pose file (RealEstate10K .txt, TUM, the JSON of `python -m
    worldr1.camera --save`), brought to the frames of the video. The prompt is given to the model as it is."""
    camera_scale: float = 1.0
    """Scene units in a unit of the pose file; the scene is thought at camera.depth of them."""
    negative_prompt: str = ""
    """What the unconditional pass is given; it is run where guidance_scale is not 1."""
    seed: int | None = None
    """Seed of the initial noise."""
    sample_id: int = 0
    """Which of the draws of the seed; a run's validation.jsonl and study have their own."""
    height: int | None = None
    """Frame height in pixels."""
    width: int | None = None
    """Frame width in pixels."""
    num_frames: int | None = None
    """Frames, 4 k + 1."""
    num_steps: int | None = None
    """Steps from noise to video."""
    solver: Literal["euler", "multistep", "unipc"] | None = None
    """`multistep` is of second order; `unipc`, on its own grid, is what Wan's pipeline uses."""
    guidance_scale: float | None = None
    """Classifier-free guidance; 1 runs no unconditional pass."""
    noise: Literal["transport", "plain"] | None = None
    """How the initial noise is drawn."""
    fps: int | None = None
    """Frames per second of the file."""
    upscale: int = 0
    """Enlarge by this whole factor; 0 chooses one for small videos."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run."""


class Clip(typing.NamedTuple):
    """One video to make: all that it depends on beside the settings."""

    prompt: str
    seed: int
    sample_id: int
    negative_prompt: str
    camera: Path | None  # a pose file; None: the words of the prompt
    viewmats: Tensor | None  # [F, 4, 4] of that file


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0 done, 1 failed while running, 2 wrong settings, 130 stopped by Ctrl-C."""
    import tyro

    set_environment_defaults()
    config = tyro.cli(GenerateConfig, args=None if argv is None else list(argv), prog="python -m worldr1.generate")
    try:
        return exit_code(lambda: run(config))
    except KeyboardInterrupt:
        print("stopped; with --output-dir the same command goes on", file=sys.stderr)
        return EXIT_INTERRUPTED


def run(config: GenerateConfig) -> list[Path]:
    """Generate and write the files, and say on stdout what was understood.

    Args:
      config: The settings.
    Returns:
      The files, one per video.
    Raises:
      ValueError: no prompt, an output that is not .mp4 or .gif, compare without an adapter, a missing folder, a pose
        file that is none, sizes that the model cannot make, a folder of another batch. Before the model is loaded,
        where that can be known.
      RuntimeError: a video that is not finite; no CUDA device where one was asked for.
      OSError: the output cannot be written, a file of the adapter or the run not read.
    """
    if config.compare and config.adapter is None:
        raise ValueError("generate: --compare needs --adapter, there is nothing to compare the base model with")
    wanted = requests_of(config)
    files = [] if config.output_dir else output_files(config.output, len(wanted) * config.num_per_prompt)
    settings = resolve(config)

    # Heavy imports after everything that can be wrong without them.
    import torch

    from worldr1.camera.motion import read_camera
    from worldr1.models.wan import load_adapted_policy, load_policy
    from worldr1.prompts.reading import limit_lines, summarise_reading
    from worldr1.run import distributed
    from worldr1.run.lock import hold

    if config.device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("generate: --device cuda needs a CUDA device, torch sees none; use --device cpu")
    clips = clips_of(wanted, config, settings)
    folder = None if config.output_dir is None else _folder(config, settings, clips)
    world = distributed.init(config.device)
    say = print if world.is_main else _quiet
    with contextlib.ExitStack() as stack:
        stack.callback(distributed.shutdown)
        pending = list(range(len(clips)))
        if folder is not None:
            folder.path.mkdir(parents=True, exist_ok=True)
            if world.is_main:
                stack.enter_context(hold(folder.path))
                folder.begin()
            pending = distributed.gather_objects(folder.pending(settings.video.num_frames))[0]
            files = [folder.file(i) for i in range(len(clips))]
            if not pending:
                say(f"{folder.path}: all {len(clips)} videos are there")
                return files
        else:
            config.output.parent.mkdir(parents=True, exist_ok=True)
        if config.adapter is None:
            policy = load_policy(settings.model, device=world.device)
        else:
            policy = load_adapted_policy(
                settings.model.path, config.adapter, dtype=settings.model.dtype, device=world.device
            )
        policy.latent_shape(settings.video)
        prompts = list(dict.fromkeys(clip.prompt for clip in clips))
        if config.prompts is not None:
            say("\n".join(summarise_reading(prompts).lines() + limit_lines(prompts, policy.split_at_limit)))
        else:
            for prompt in prompts:
                reading = read_camera(prompt)
                say(f"camera {', then '.join(_motions(prompt)) if reading.asked else 'not asked for'}: {prompt}")
                if reading.unread:
                    say("  not understood: " + "; ".join(reading.unread))
                for line in limit_lines([prompt], policy.split_at_limit):
                    say(f"  {line.strip()}")
        negative = [clip.negative_prompt for clip in clips]
        policy.keep_prompts(list(dict.fromkeys([*prompts, *negative])))  # the text encoder leaves its memory to others
        _make_all(clips, pending, files, policy, config, settings, folder=folder, world=world, say=say)
    return files


def _make_all(
    clips: Sequence[Clip],
    pending: Sequence[int],
    files: Sequence[Path],
    policy: VideoPolicy,
    config: GenerateConfig,
    settings: TrainConfig,
    *,
    folder: ClipFolder | None,
    world: Any,
    say: Any,
) -> None:
    """Make and write the pending clips, one at a time on each rank; every rank must call this."""
    from worldr1.run import distributed
    from worldr1.run.video import beside, write_video

    start, told = time.perf_counter(), 0.0
    for first in range(0, len(pending), world.size):
        turn = pending[first : first + world.size]
        fault: RuntimeError | OSError | None = None
        if world.rank < len(turn):
            clip, file = clips[turn[world.rank]], files[turn[world.rank]]
            try:
                columns = [
                    make_clip(policy, clip, settings, adapter=adapter)
                    for adapter in ([False, True] if config.compare else [config.adapter is not None])
                ]
                for column in columns:
                    if not bool(column.isfinite().all()):
                        raise RuntimeError(
                            f"generate: a video of {config.adapter or settings.model.path} must be finite, got NaN: "
                            f"its weights are beyond what {settings.model.dtype} can hold, or are damaged"
                        )
                write_video(beside(columns), file, fps=settings.video.fps, upscale=config.upscale)
            except (RuntimeError, OSError) as error:
                fault = error
        faults = distributed.gather_objects(None if fault is None else str(fault))
        if folder is not None and world.is_main:
            folder.done([i for i, text in zip(turn, faults, strict=False) if text is None])
        if fault is not None:
            raise fault
        if found := [text for text in faults if text]:
            raise RuntimeError(f"generate: another rank failed: {found[0]}")
        done, seconds = first + len(turn), time.perf_counter() - start
        if seconds - told > SECONDS_BETWEEN_LINES or done == len(pending):
            left = seconds / done * (len(pending) - done)
            told = seconds
            say(f"video {done} of {len(pending)}: {seconds / done:.1f} s each, {left:.0f} s left")
    if folder is None:
        for file in files:
            say(str(file))
    else:
        say(f"{len(pending)} video(s) in {folder.path}, of {len(clips)}")


def make_clip(policy: VideoPolicy, clip: Clip, settings: TrainConfig, *, adapter: bool) -> Tensor:
    """One video, alone in its batch, so that nothing beside it plays a part: [F, 3, H, W] in [0, 1], on the CPU.

    The sampler and the noise are those of validation and of the study (`evaluation.clips.sample_clips`).
    """
    from worldr1.camera.noise import initial_noise
    from worldr1.evaluation.clips import sample_clips

    settings = replace(settings, seed=clip.seed)
    batch = batch_of(clip, settings)
    noise = initial_noise(
        replace(batch, viewmats=batch.viewmats.to(policy.device)), policy.latent_shape(settings.video), config=settings
    )
    return sample_clips(
        policy, batch, noise, slice(0, 1), config=settings, adapter=adapter, negative_prompt=clip.negative_prompt
    )[0].cpu()


def batch_of(clip: Clip, settings: TrainConfig) -> PromptBatch:
    """The batch of a clip: its sample id, its path by words or by file."""
    import torch

    from worldr1.prompts.sampler import read_batch

    ids = torch.tensor([clip.sample_id])
    batch = read_batch([clip.prompt], config=settings, group_size=1, sample_ids=ids, group_ids=ids, dynamic=False)
    if clip.viewmats is None:
        return batch
    return replace(batch, viewmats=clip.viewmats.float()[None], asked=torch.tensor([True]))


def requests_of(config: GenerateConfig) -> list[ClipRequest]:
    """The prompts of the command line or of its file."""
    from worldr1.prompts.requests import ClipRequest, read_requests

    if (config.prompts is None) == (not config.prompt):
        raise ValueError("generate: --prompt must be given at least once, or --prompts FILE in its place")
    if config.prompts is not None and config.output_dir is None:
        raise ValueError("generate: --prompts needs --output-dir, a folder for its videos")
    for name, low in (("num_per_prompt", 1), ("sample_id", 0), ("upscale", 0)):
        if getattr(config, name) < low:
            raise ValueError(f"generate: {name} must be >= {low}, got {getattr(config, name)}")
    if not 0 < config.camera_scale < float("inf"):
        raise ValueError(f"generate: camera_scale must be finite and > 0, got {config.camera_scale}")
    if config.prompts is not None:
        return read_requests(config.prompts)
    return [ClipRequest(prompt) for prompt in config.prompt]


def clips_of(wanted: Sequence[ClipRequest], config: GenerateConfig, settings: TrainConfig) -> list[Clip]:
    """Each prompt num_per_prompt times in a row, with seed, sample id and camera path.

    A video does not depend on its place in the list: videos of one prompt differ in their sample ids, and prompts of
    one seed share the draw that their cameras move.

    Raises:
      ValueError: a pose file that is none, or a path through the plane that stands for the scene, by its name.
    """
    paths: dict[Path, Tensor] = {}
    default = None if config.camera == "words" else Path(config.camera)
    out = []
    for request in wanted:
        camera = request.camera or default
        if camera is not None and camera not in paths:
            paths[camera] = path_of_file(camera, settings, scale=config.camera_scale)
        seed = settings.seed if request.seed is None else request.seed
        first = config.sample_id if request.sample_id is None else request.sample_id
        negative = config.negative_prompt if request.negative_prompt is None else request.negative_prompt
        viewmats = None if camera is None else paths[camera]
        for k in range(config.num_per_prompt):
            out.append(Clip(request.prompt, seed, first + k, negative, camera, viewmats))
    return out


def path_of_file(file: Path, settings: TrainConfig, *, scale: float) -> Tensor:
    """The path of a pose file at the frames of the video: viewmats [F, 4, 4], float64, frame 0 the identity.

    Raises:
      ValueError: an unreadable file or no path of a rigid camera in it; a path through the plane of the scene.
    """
    from worldr1.camera.flow import CameraFlow
    from worldr1.camera.pose_files import load_poses, resampled
    from worldr1.camera.trajectory import intrinsics

    video = settings.video
    try:
        viewmats = resampled(load_poses(file), video.num_frames)
        viewmats[:, :3, 3] *= scale
        K = intrinsics(video.height, video.width, settings.camera)
        CameraFlow(viewmats, K, depth=settings.camera.depth, height=video.height, width=video.width)
    except OSError as error:
        raise ValueError(f"generate: --camera must be `words` or a pose file, got {file} ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"generate: --camera {file}: {error}") from error
    return viewmats


def _folder(config: GenerateConfig, settings: TrainConfig, clips: Sequence[Clip]) -> ClipFolder:
    """The folder of a batch, checked against what is in it."""
    from worldr1.evaluation.clip_sources import adapter_fingerprint
    from worldr1.run.clip_folder import ClipFolder
    from worldr1.run.files import digest

    common: dict[str, Any] = {
        "model": str(settings.model.path.resolve()), "dtype": settings.model.dtype,
        "adapter": None if config.adapter is None else adapter_fingerprint(config.adapter),
        "compare": config.compare, "upscale": config.upscale, "solver": settings.evaluation.solver,
        "num_steps": settings.evaluation.num_steps or settings.schedule.num_steps, "shift": settings.schedule.shift,
        "guidance_scale": settings.rollout.guidance_scale, "camera_scale": config.camera_scale,
    }  # fmt: skip
    for name in ("video", "camera", "noise"):
        values = dataclasses.asdict(getattr(settings, name))
        common |= {f"{name}.{key}": value for key, value in values.items()}
    lines = [
        {
            "prompt": clip.prompt, "negative_prompt": clip.negative_prompt, "seed": clip.seed,
            "sample_id": clip.sample_id, "motions": [] if clip.camera else _motions(clip.prompt),
            "camera": "words" if clip.camera is None else f"{clip.camera.name} {digest(clip.camera)[:12]}",
        }
        for clip in clips
    ]  # fmt: skip
    assert config.output_dir is not None
    return ClipFolder(config.output_dir, common, lines)


def _motions(prompt: str) -> list[str]:
    """The motions that were read, ["push_in x1"]; none where none was asked for."""
    from worldr1.camera.motion import read_camera

    reading = read_camera(prompt)
    return [f"{token.kind} x{token.magnitude:g}" for token in reading.tokens] if reading.asked else []


def _quiet(line: str) -> None:
    """What ranks other than 0 say."""


def resolve(config: GenerateConfig) -> TrainConfig:
    """The run's settings (or the defaults) of its evaluation, with the command line laid over them.

    Raises:
      ValueError: unreadable config.json, or a folder that is not there.
    """
    from worldr1.evaluation.clips import evaluation_settings

    settings = TrainConfig()
    if config.adapter is not None:
        if not config.adapter.exists():
            raise ValueError(f"generate: --adapter must be a folder such as RUN/adapter, got {config.adapter}")
        beside_it = config.adapter.resolve().parent / "config.json"
        if beside_it.is_file() and (config.adapter / "adapter.json").is_file():  # a LoRA of others has no run
            settings = read_run_config(beside_it)
    settings = evaluation_settings(settings)
    if config.model is not None:
        settings = replace(settings, model=replace(settings.model, path=config.model))
    if not settings.model.path.is_dir():
        raise ValueError(f"generate: {settings.model.path} must be a WanPipeline folder, it is not there; give --model")

    def laid_over(part: Any, **values: Any) -> Any:
        return replace(part, **{k: v for k, v in values.items() if v is not None})

    if config.seed is not None and not 0 <= config.seed < 2**63:
        raise ValueError(f"generate: seed must be in [0, 2^63), got {config.seed}")
    for name, value in (("num_steps", config.num_steps), ("fps", config.fps)):
        if value is not None and value < 1:
            raise ValueError(f"generate: {name} must be >= 1, got {value}")
    if config.guidance_scale is not None and not config.guidance_scale >= 1:
        raise ValueError(f"generate: guidance_scale must be >= 1, got {config.guidance_scale}")
    return replace(
        settings,
        seed=settings.seed if config.seed is None else config.seed,
        video=laid_over(
            settings.video, height=config.height, width=config.width, num_frames=config.num_frames, fps=config.fps
        ),
        evaluation=laid_over(settings.evaluation, num_steps=config.num_steps, solver=config.solver),
        rollout=laid_over(settings.rollout, guidance_scale=config.guidance_scale),
        noise=laid_over(settings.noise, mode=config.noise),
    )


def output_files(output: Path, count: int) -> list[Path]:
    """output.mp4 for one prompt; output_0.mp4, output_1.mp4 ... for several."""
    if count < 1:
        raise ValueError("generate: --prompt must be given at least once")
    if output.suffix.lower() not in (".mp4", ".gif"):
        raise ValueError(f"generate: --output must end in .mp4 or .gif, got {output}")
    if count == 1:
        return [output]
    width = len(str(count - 1))
    return [output.with_name(f"{output.stem}_{i:0{width}d}{output.suffix}") for i in range(count)]


if __name__ == "__main__":
    sys.exit(main())
