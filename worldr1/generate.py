"""Prompts -> video files, by the base model, a trained adapter, or both side by side.

python -m worldr1.generate --prompt "Camera pan left. A red ball stands on a wooden floor." --adapter RUN/adapter \
    --compare --output output.mp4
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from worldr1.cli import exit_code
from worldr1.config import TrainConfig
from worldr1.run.saved_config import read_run_config


@dataclass(frozen=True)
class GenerateConfig:
    """Generate videos with World-R1. What is left out comes from the run that made the adapter."""

    prompt: tuple[str, ...]
    """One video for each; camera words move the camera."""
    adapter: Path | None = None
    """A trained adapter (RUN/adapter), or a LoRA file of others for Wan; without it the base model is sampled."""
    output: Path = Path("output.mp4")
    """An .mp4 or .gif file; with several prompts the number of the prompt is added to its name."""
    compare: bool = False
    """Show the base model on the left and the adapter on the right, from the same noise."""
    model: Path | None = None
    """A diffusers WanPipeline folder; default: the one of the adapter's run, else the embedded micro world."""
    seed: int = 0
    """Seed of the initial noise."""
    height: int | None = None
    """Frame height in pixels."""
    width: int | None = None
    """Frame width in pixels."""
    num_frames: int | None = None
    """Frames, 4 k + 1."""
    num_steps: int | None = None
    """Steps from noise to video."""
    solver: Literal["euler", "multistep", "unipc"] = "euler"
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


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0 done, 1 failed while running, 2 wrong settings."""
    import tyro

    config = tyro.cli(GenerateConfig, args=None if argv is None else list(argv), prog="python -m worldr1.generate")
    return exit_code(lambda: run(config))


def run(config: GenerateConfig) -> list[Path]:
    """Generate and write the files, and say on stdout what was understood.

    Args:
      config: The settings.
    Returns:
      The files, one per prompt.
    Raises:
      ValueError: no prompt, an output that is not .mp4 or .gif, compare without an adapter, a missing folder, sizes
        that the model cannot make. Before the model is loaded, where that can be known.
      RuntimeError: a video that is not finite; no CUDA device where one was asked for.
      OSError: the output cannot be written, a file of the adapter or the run not read.
    """
    files = output_files(config.output, len(config.prompt))
    if config.compare and config.adapter is None:
        raise ValueError("generate: --compare needs --adapter, there is nothing to compare the base model with")
    settings = resolve(config)
    config.output.parent.mkdir(parents=True, exist_ok=True)

    # Heavy imports after everything that can be wrong without them.
    import torch

    from worldr1.camera.motion import read_camera
    from worldr1.camera.noise import initial_noise
    from worldr1.models.wan import load_adapted_policy, load_policy
    from worldr1.rollout.sample import NEGATIVE_PROMPT, generate
    from worldr1.rollout.schedule import evaluation_sigmas
    from worldr1.run.video import beside, write_video

    if config.device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("generate: --device cuda needs a CUDA device, torch sees none; use --device cpu")
    device = "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"
    if config.adapter is None:
        policy = load_policy(settings.model, device=device)
    else:
        policy = load_adapted_policy(settings.model.path, config.adapter, dtype=settings.model.dtype, device=device)
    for prompt in config.prompt:
        reading = read_camera(prompt)
        motions = ", then ".join(f"{t.kind} x{t.magnitude:g}" for t in reading.tokens)
        print(f"camera {motions if reading.asked else 'not asked for'}: {prompt}")
        if reading.unread:
            print("  not understood: " + "; ".join(reading.unread))
    shape = policy.latent_shape(settings.video)
    policy.keep_prompts([*config.prompt, NEGATIVE_PROMPT])  # the text encoder leaves its memory to the others
    batch = _batch(config.prompt, settings, device=device)
    noise = initial_noise(batch, shape, config=settings)
    sigmas = evaluation_sigmas(config.solver, settings.schedule.num_steps, settings.schedule.shift)
    columns = []
    for adapter in [False, True] if config.compare else [config.adapter is not None]:
        start = time.perf_counter()
        videos = generate(
            policy,
            list(config.prompt),
            noise,
            sigmas=sigmas,
            solver=config.solver,
            guidance_scale=settings.rollout.guidance_scale,
            adapter=adapter,
            micro_batch=1 if settings.video.height * settings.video.width > 2**16 else 8,
        )
        if not bool(videos.isfinite().all()):
            raise RuntimeError(
                f"generate: a video of {config.adapter if adapter else settings.model.path} must be finite, got NaN: "
                f"its weights are beyond what {settings.model.dtype} can hold, or are damaged"
            )
        columns.append(videos.cpu())
        seconds = time.perf_counter() - start
        print(f"{'adapter' if adapter else 'base model'}: {len(videos)} video(s) in {seconds:.1f} s")
    for row, file in enumerate(files):
        write_video(beside([c[row] for c in columns]), file, fps=settings.video.fps, upscale=config.upscale)
        print(file)
    return files


def resolve(config: GenerateConfig) -> TrainConfig:
    """The run's settings (or the defaults) with the command line laid over them.

    Raises:
      ValueError: unreadable config.json, or a folder that is not there.
    """
    settings = TrainConfig()
    if config.adapter is not None:
        if not config.adapter.exists():
            raise ValueError(f"generate: --adapter must be a folder such as RUN/adapter, got {config.adapter}")
        beside_it = config.adapter.resolve().parent / "config.json"
        if beside_it.is_file() and (config.adapter / "adapter.json").is_file():  # a LoRA of others has no run
            settings = read_run_config(beside_it)
    if config.model is not None:
        settings = replace(settings, model=replace(settings.model, path=config.model))
    if not settings.model.path.is_dir():
        raise ValueError(f"generate: {settings.model.path} must be a WanPipeline folder, it is not there; give --model")

    def laid_over(part: Any, **values: Any) -> Any:
        return replace(part, **{k: v for k, v in values.items() if v is not None})

    for name, value in (("num_steps", config.num_steps), ("fps", config.fps)):
        if value is not None and value < 1:
            raise ValueError(f"generate: {name} must be >= 1, got {value}")
    if config.guidance_scale is not None and not config.guidance_scale >= 1:
        raise ValueError(f"generate: guidance_scale must be >= 1, got {config.guidance_scale}")
    return replace(
        settings,
        seed=config.seed,
        video=laid_over(
            settings.video, height=config.height, width=config.width, num_frames=config.num_frames, fps=config.fps
        ),
        schedule=laid_over(settings.schedule, num_steps=config.num_steps),
        rollout=laid_over(settings.rollout, guidance_scale=config.guidance_scale),
        noise=laid_over(settings.noise, mode=config.noise),
    )


def _batch(prompts: Sequence[str], settings: TrainConfig, *, device: str) -> Any:
    import torch

    from worldr1.prompts.sampler import read_batch

    ids = torch.arange(len(prompts))
    batch = read_batch(prompts, config=settings, group_size=1, sample_ids=ids, group_ids=ids, dynamic=False)
    return replace(batch, viewmats=batch.viewmats.to(device))


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
