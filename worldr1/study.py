"""The before/after study: what ends a run, and a second look at its adapter with noise that no choice was made on.

python -m worldr1.study --run runs/micro --seed 101 --num-samples 384
"""

from __future__ import annotations

import sys
import typing
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

if typing.TYPE_CHECKING:
    from worldr1.compare import Study
    from worldr1.config import TrainConfig
    from worldr1.evaluate import Evaluator
    from worldr1.models.base import VideoPolicy
    from worldr1.run.distributed import World


@dataclass(frozen=True)
class StudyConfig:
    """Compare the base with a run's adapter on held-out prompts, from the same noise."""

    run: Path
    """Output folder of a finished run."""
    seed: int = 101
    """Seed of the initial noise; the run's own study used the run's seed."""
    num_samples: int = 384
    """Samples, all held-out prompts equally often."""
    output_dir: Path | None = None
    """Where evaluation/study.json and evaluation/samples.npz go; default: RUN/study_seed<seed>."""


def run_study(
    policy: VideoPolicy, held_out: list[str], *, evaluator: Evaluator, config: TrainConfig, world: World, folder: Path
) -> Study | None:
    """Sample held-out prompts without and with the adapter, spread over the ranks; judge and write on rank 0.

    Every rank must call this.

    Args:
      policy: The model with the adapter to judge.
      held_out: Prompts, captions of the micro world.
      evaluator: Independent of every reward.
      config: seed, evaluation, video, camera, noise, schedule and rollout are read, and the control's name.
      world: This rank among all.
      folder: Gets evaluation/study.json and evaluation/samples.npz.
    Returns:
      Study on rank 0, None on the others.
    """
    from worldr1.camera.noise import initial_noise
    from worldr1.compare import compare_clips, write_study
    from worldr1.prompts.sampler import held_out_batch
    from worldr1.rollout.sample import generate
    from worldr1.rollout.schedule import evaluation_sigmas
    from worldr1.run import distributed

    batch = held_out_batch(held_out, config=config, rank=world.rank, world_size=world.size)
    noise = initial_noise(batch, policy.latent_shape(config.video), config=config)
    solver, num_steps = config.evaluation.solver, config.evaluation.num_steps or config.schedule.num_steps
    sigmas = evaluation_sigmas(solver, num_steps, config.schedule.shift)
    before, after = (
        distributed.gather(
            generate(
                policy, batch.prompts, noise, sigmas=sigmas, solver=solver,
                guidance_scale=config.rollout.guidance_scale, adapter=adapter, micro_batch=config.rollout.micro_batch,
            )
        )[: config.evaluation.num_samples]  # [n, F, 3, H, W]
        for adapter in (False, True)
    )  # fmt: skip
    if not world.is_main:
        return None
    # All ranks' prompts again, without their padding.
    whole = held_out_batch(held_out, config=config, rank=0, world_size=1)
    result = compare_clips(
        before, after, whole.prompts, whole.viewmats, evaluator=evaluator, control=config.reward.control
    )
    write_study(result, folder, videos_before=before, videos_after=after, viewmats_requested=whole.viewmats)
    return result


def study_of_run(config: StudyConfig) -> Study:
    """Load a run's adapter and study it.

    Raises:
      ValueError: no run in the folder, num_samples < 2, a negative seed.
    """
    from worldr1.run.saved_config import read_run_config

    if not (config.run / "config.json").is_file() or not (config.run / "adapter").is_dir():
        raise ValueError(f"study: run must be the folder of a finished run (config.json, adapter/), got {config.run}")
    if config.num_samples < 2 or config.seed < 0:
        raise ValueError(f"study: need num_samples >= 2 and seed >= 0, got {config.num_samples} and {config.seed}")
    settings = read_run_config(config.run / "config.json")
    settings = replace(
        settings, seed=config.seed, evaluation=replace(settings.evaluation, num_samples=config.num_samples)
    )

    from worldr1.evaluate import load_evaluator
    from worldr1.models.wan import load_adapted_policy
    from worldr1.prompts.sampler import read_prompts
    from worldr1.run import distributed

    world = distributed.init(settings.device)
    policy = load_adapted_policy(
        settings.model.path, config.run / "adapter", dtype=settings.model.dtype, device=world.device
    )
    evaluator = load_evaluator(settings.evaluation.evaluator, device=world.device)
    folder = config.output_dir or config.run / f"study_seed{config.seed}"
    result = run_study(
        policy, read_prompts(settings.eval_prompts), evaluator=evaluator, config=settings, world=world, folder=folder
    )
    assert result is not None  # one rank
    print(f"written to {folder / 'evaluation'}")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0 done, 1 failed while running, 2 wrong settings."""
    import tyro

    config = tyro.cli(StudyConfig, args=None if argv is None else list(argv), prog="python -m worldr1.study")
    try:
        result = study_of_run(config)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except (RuntimeError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    for name, m in result.measures.items():
        print(f"{name:18} {m.before:9.4f} -> {m.after:9.4f}  {m.gain:+.4f} +- {m.stderr or 0.0:.4f}")
    for gate in result.gates:
        verdict = "passed" if gate.passed else "NOT PASSED"
        print(f"{verdict:10} {gate.label}: {gate.value:.3f} (must be {gate.threshold})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
