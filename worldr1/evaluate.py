"""Any clips, measured by what no reward has seen: 3D consistency, camera, motion; a model before against after.

python -m worldr1.evaluate --videos DIR --prompts FILE --output-dir OUT
python -m worldr1.evaluate --run runs/micro --reconstructor worldr1/assets/microeval --output-dir OUT
python -m worldr1.evaluate --preset wan2.1-1.3b --model WAN_FOLDER --adapter ADAPTER --prompts FILE --output-dir OUT

The same command goes on where it was interrupted. `torchrun --nproc_per_node N -m worldr1.evaluate ...` deals the clips
to N ranks. docs/evaluation.md says what is measured.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import sys
import time
import typing
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from worldr1.cli import EXIT_INTERRUPTED, exit_code, set_environment_defaults
from worldr1.config import CameraConfig, TrainConfig, to_json
from worldr1.presets import REQUIRED, preset
from worldr1.ranges import Real, Whole

if typing.TYPE_CHECKING:
    from worldr1.evaluation.clip_files import Prompt
    from worldr1.evaluation.clip_sources import FileClips, GeneratedClips

LPIPS_FOLDER = Path("weights/lpips-alex")
SECONDS_BETWEEN_LINES = 10.0
"""Where there is no terminal."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Evaluate clips (--videos), or a model before against after (--run, or --preset with --adapter)."""

    output_dir: Path
    """Where evaluation.json, clips.jsonl, summary.json, cameras/, videos/ and report.html go."""
    videos: Path | None = None
    """A folder of clips, .mp4 or .npz (key `video`, uint8 [F, H, W, 3] or [F, 3, H, W]), one for each line of --prompts
    in the order of names (numbers in them count as numbers)."""
    prompts: Path | None = None
    """A text file, one prompt a line, or .jsonl with `prompt` and where known `theme` and `seed`; default: the held-out
    prompts of the run or preset."""
    run: Path | None = None
    """A finished run: its settings, model and adapter. With --videos: what its motion words mean."""
    preset: str | None = None
    """Settings in place of a run's; with --videos: what its motion words mean (default: those of wan2.1-1.3b)."""
    adapter: Path | None = None
    """The adapter to compare with the base, a folder or a LoRA file; default: the run's."""
    model: Path | None = None
    """The WanPipeline folder; default: the one of the run or preset."""
    cameras: Path | None = None
    """With --videos: requested paths in place of the prompts' words, one pose file for all clips or a folder of one for
    each (RealEstate10K .txt, .tum, our .json)."""
    reconstructor: str = "classical"
    """Who recovers cameras and depth: `classical`, a folder, or `module:name`; not one that the reward has asked."""
    focal_ratio: Annotated[float, Real("[0, 100]")] = 0.0
    """For `classical`: focal length over image width; 0: that of the camera settings of the run or preset."""
    perceptual: str = ""
    """A folder of LPIPS; default: weights/lpips-alex where it is there, else its columns stay empty."""
    side: Annotated[int, Whole("[0, 8192]")] = 256
    """Clips whose shorter side is larger are reduced to it for all but flow and contrast; 0: never."""
    fps: Annotated[float, Real("(0, 1000]")] = 8.0
    """Frames per second of .npz clips."""
    samples: Annotated[int, Whole("[1, 1e6]")] = 1
    """Clips of each prompt that are made."""
    seed: Annotated[int, Whole("[0, 2^62)")] = 0
    """Seed of the first clip that is made; each has one of its own, and `worldr1.generate --seed` makes the same."""
    height: Annotated[int, Whole("[0, 8192]")] = 0
    """Frame height of clips that are made; 0, as the three below: as the run or preset evaluates."""
    width: Annotated[int, Whole("[0, 8192]")] = 0
    """Frame width."""
    num_frames: Annotated[int, Whole("[0, 4097]")] = 0
    """Frames, 4 k + 1."""
    num_steps: Annotated[int, Whole("[0, 1000]")] = 0
    """Steps from noise to video."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where model and judges run."""


def evaluate(config: EvaluateConfig) -> dict[str, Any] | None:
    """Evaluate, write the folder and print the tables; returns summary.json on rank 0.

    Raises:
      ValueError: settings that do not go together, files that are not there or do not match in number, a folder of
        another evaluation.
      OSError: the folder cannot be written.
    """
    settings = run_settings(config)
    perceptual = perceptual_of(config)
    for name, judge in (("reconstructor", config.reconstructor), ("perceptual", perceptual or "")):
        if judge not in ("", "classical") and ":" not in judge and not Path(judge).is_dir():
            raise ValueError(f"evaluate: {name} must be a folder or module:name, got {judge} (no such folder)")
    from worldr1.evaluation.clip_files import read_prompt_file

    prompts = read_prompt_file(_prompts_of(config, settings))

    # Heavy imports after everything that can be wrong without them.
    from worldr1.evaluation.folder import EvaluationFolder
    from worldr1.evaluation.measures import ClipMeasurer
    from worldr1.evaluation.motion_measures import opencv_version
    from worldr1.evaluation.protocol import evaluate_clips
    from worldr1.evaluation.reconstructors import load_reconstructor
    from worldr1.report import write_report
    from worldr1.rewards.judges.registry import load_judge
    from worldr1.run import distributed
    from worldr1.run.runtime import environment, set_threads

    world = distributed.init(config.device)
    set_threads(settings or TrainConfig())
    say = _Speaker(world.is_main)
    with ExitStack() as held:
        folder = EvaluationFolder(config.output_dir)
        files, described = _described(config, settings, prompts)
        described |= {"perceptual": str(perceptual or ""), "reconstructor": config.reconstructor}
        _take_folder(folder, described, world, held)
        if settings is not None and config.reconstructor == settings.reward.reconstructor:
            say.stays(f"{config.reconstructor} also gave the rewards of this run: it flatters what was trained on it")
        source = files or _generated(config, settings, prompts, device=world.device)
        measurer = ClipMeasurer(
            load_reconstructor(config.reconstructor, device=world.device, focal_ratio=described["focal_ratio"]),
            perceptual=perceptual and load_judge(perceptual, role="perceptual", device=world.device),
            device=world.device,
            side=config.side,
        )
        description = {
            "settings": described, "environment": environment(world) | {"opencv": opencv_version()},
            "reconstructor": config.reconstructor,
        }  # fmt: skip
        summary = evaluate_clips(source, measurer, folder, description=description, world=world, say=say)
        if summary is not None:
            _print(summary, folder.path)
            print(write_report(folder.path))
    return summary


def run_settings(config: EvaluateConfig) -> TrainConfig | None:
    """The settings of the run or preset, with the flags laid over them; None with --videos alone.

    Raises:
      ValueError: flags that do not go together, or a path that is not there.
    """
    if config.run is not None and config.preset is not None:
        raise ValueError("evaluate: give --run or --preset, got both")
    if config.videos is None and config.run is None and config.preset is None:
        raise ValueError("evaluate: give --videos and --prompts, or --run, or --preset and --adapter")
    if config.videos is not None:
        for name in ("adapter", "model"):
            if getattr(config, name) is not None:
                raise ValueError(f"evaluate: --{name} makes clips and --videos brings them, got both")
    elif config.cameras is not None:
        raise ValueError("evaluate: --cameras needs --videos: clips that are made follow the words of their prompts")
    settings = None
    if config.run is not None:
        from worldr1.run.saved_config import read_run_config

        if not (config.run / "config.json").is_file():
            raise ValueError(f"evaluate: run must be the folder of a run, got {config.run} (no config.json)")
        settings = read_run_config(config.run / "config.json")
    elif config.preset is not None:
        settings = preset(config.preset)
    if config.videos is not None:
        return settings
    assert settings is not None
    from worldr1.evaluation.clips import evaluation_settings

    settings = replace(settings, model=replace(settings.model, path=config.model or settings.model.path))
    if not settings.model.path.is_dir():
        what = "is not given" if settings.model.path == REQUIRED else f"{settings.model.path} is not there"
        raise ValueError(f"evaluate: model must be a WanPipeline folder, it {what}; give --model")
    if not adapter_of(config).exists():
        raise ValueError(
            f"evaluate: adapter must be a folder such as RUN/adapter, got {adapter_of(config)} (not there)"
        )
    settings = evaluation_settings(settings)
    size = {name: getattr(config, name) for name in ("height", "width", "num_frames") if getattr(config, name)}
    steps = config.num_steps or settings.evaluation.num_steps
    return replace(
        settings,
        video=replace(settings.video, **size),
        evaluation=replace(settings.evaluation, num_steps=steps),
    )


def adapter_of(config: EvaluateConfig) -> Path:
    """The adapter that is compared with the base."""
    if config.adapter is not None:
        return config.adapter
    if config.run is None:
        raise ValueError("evaluate: --preset needs --adapter: there is nothing to compare the base model with")
    return config.run / "adapter"


def perceptual_of(config: EvaluateConfig) -> str | None:
    """The folder of LPIPS; None where none is given and none found."""
    if config.perceptual:
        return config.perceptual
    return str(LPIPS_FOLDER) if (LPIPS_FOLDER / "config.json").is_file() else None


def _prompts_of(config: EvaluateConfig, settings: TrainConfig | None) -> Path:
    if config.prompts is not None:
        return config.prompts
    if config.videos is not None or settings is None or settings.eval_prompts == REQUIRED:
        raise ValueError("evaluate: prompts must be a file of one prompt for each clip; give --prompts")
    return settings.eval_prompts


def _described(
    config: EvaluateConfig, settings: TrainConfig | None, prompts: list[Prompt]
) -> tuple[FileClips | None, dict[str, Any]]:
    """The user's clips, and the settings that decide what is found: others are another evaluation."""
    from worldr1.evaluation.clip_sources import FileClips, adapter_fingerprint

    camera = CameraConfig() if settings is None else settings.camera
    own: dict[str, Any] = {
        "num_prompts": len(prompts), "prompts_sha256": hashlib.sha256(repr(prompts).encode()).hexdigest(),
        "focal_ratio": config.focal_ratio or camera.focal_ratio,
        "side": config.side,
    }  # fmt: skip
    if config.videos is not None:
        clips = FileClips(config.videos, prompts, camera=camera, cameras=config.cameras, fps=config.fps)
        own |= {"videos": str(config.videos.resolve()), "videos_sha256": clips.fingerprint(), "fps": config.fps}
        own |= {"cameras": str(config.cameras or ""), "camera": dataclasses.asdict(camera)}
        return clips, own
    assert settings is not None
    adapter = adapter_of(config)
    values = to_json(settings)
    own |= {name: values[name] for name in ("video", "camera", "noise", "schedule")}
    own |= {"guidance_scale": settings.rollout.guidance_scale, "seed": config.seed, "samples": config.samples}
    own |= {name: values["evaluation"][name] for name in ("solver", "num_steps")}
    own |= {"model": values["model"]["path"], "dtype": settings.model.dtype}
    own |= {"adapter": str(adapter.resolve()), "adapter_sha256": adapter_fingerprint(adapter)}
    return None, own


def _generated(
    config: EvaluateConfig, settings: TrainConfig | None, prompts: list[Prompt], *, device: Any
) -> GeneratedClips:
    """The clips of a model without and with its adapter."""
    from worldr1.evaluation.clip_sources import GeneratedClips, seeded
    from worldr1.models.wan import MAX_KEPT_PROMPTS, load_adapted_policy
    from worldr1.rollout.sample import NEGATIVE_PROMPT

    assert settings is not None
    policy = load_adapted_policy(settings.model.path, adapter_of(config), dtype=settings.model.dtype, device=device)
    if len(prompts) < MAX_KEPT_PROMPTS:  # the text encoder leaves its memory to the others
        policy.keep_prompts([*(p.text for p in prompts), NEGATIVE_PROMPT])
    return GeneratedClips(policy, seeded(prompts, samples=config.samples, seed=config.seed), config=settings)


def _take_folder(folder: Any, settings: dict[str, Any], world: Any, held: ExitStack) -> None:
    """Make and lock the folder on rank 0, and see that it is free or this evaluation's; every rank knows."""
    from worldr1.run import distributed
    from worldr1.run.lock import hold

    error = ""
    if world.is_main:
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            held.enter_context(hold(folder.path))
            folder.open(settings)
        except (ValueError, OSError) as problem:
            error = str(problem)
    if error := distributed.gather_objects(error)[0]:
        raise ValueError(error)


def _print(summary: dict[str, Any], folder: Path) -> None:
    from worldr1.evaluation.summary import group_table, table

    names = ("psnr", "mvcs", "rotation_deg", "camera_error", "path_ratio", "motion_magnitude")
    tables = [table(summary), *(group_table(summary, key, names) for key in ("by_motion", "by_theme"))]
    print("\n".join([*filter(None, tables), f"written to {folder}"]))


class _Speaker:
    """Progress on rank 0: one line that changes on a terminal, a line every so often elsewhere."""

    def __init__(self, enabled: bool) -> None:
        self.enabled, self.last = enabled, -SECONDS_BETWEEN_LINES

    def __call__(self, line: str) -> None:
        if not self.enabled:
            return
        if sys.stderr.isatty():
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self.last >= SECONDS_BETWEEN_LINES:
            self.last = time.monotonic()
            print(line, file=sys.stderr, flush=True)

    def stays(self, line: str) -> None:
        """A line that stays."""
        if self.enabled:
            print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0 done, 1 failed while running, 2 wrong settings, 130 stopped by Ctrl-C."""
    import tyro

    set_environment_defaults()
    prog = "python -m worldr1.evaluate"
    config = tyro.cli(EvaluateConfig, args=None if argv is None else list(argv), prog=prog)
    try:
        return exit_code(lambda: evaluate(config))
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("\nstopped; the same command goes on behind the clips that are done", file=sys.stderr)
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
