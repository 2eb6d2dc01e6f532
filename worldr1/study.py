"""The before/after study of a finished run again: a second look at its adapter, with noise that no choice was made on.

python -m worldr1.study --run runs/micro --seed 101 --num-samples 384
python -m worldr1.study --run runs/micro --prompts prompts.txt --output-dir DIR
"""

from __future__ import annotations

import sys
import typing
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from worldr1.cli import exit_code

if typing.TYPE_CHECKING:
    from worldr1.evaluation.compare import Study


@dataclass(frozen=True)
class StudyConfig:
    """Compare the base with a run's adapter on held-out prompts, from the same noise."""

    run: Path
    """Output folder of a finished run."""
    seed: int = 101
    """Seed of the initial noise; the run's own study used the run's seed."""
    num_samples: int = 384
    """Samples, all held-out prompts equally often."""
    prompts: Path | None = None
    """Held-out prompts, one a line; default: the run's."""
    output_dir: Path | None = None
    """Where evaluation/study.json and evaluation/samples.npz go; default: RUN/study_seed<seed>."""


def study_of_run(config: StudyConfig) -> Study:
    """Load a run's adapter, study it and print what was found.

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

    from worldr1.evaluation.evaluate import load_evaluator
    from worldr1.evaluation.study import run_study
    from worldr1.microworld.captions import read_labels
    from worldr1.models.wan import load_adapted_policy
    from worldr1.prompts.sampler import read_prompts
    from worldr1.run import distributed

    world = distributed.init(settings.device)
    policy = load_adapted_policy(
        settings.model.path, config.run / "adapter", dtype=settings.model.dtype, device=world.device
    )
    evaluator = load_evaluator(settings.evaluation.evaluator, device=world.device, labels=settings.evaluation.labels)
    folder = config.output_dir or config.run / f"study_seed{config.seed}"
    result = run_study(
        policy, read_prompts(config.prompts or settings.eval_prompts),
        read_labels=read_labels if settings.evaluation.labels else None,
        evaluator=evaluator, config=settings, world=world, folder=folder,
    )  # fmt: skip
    assert result is not None  # one rank
    print(f"written to {folder / 'evaluation'}")
    for name, m in result.measures.items():
        print(f"{name:18} {m.before:9.4f} -> {m.after:9.4f}  {m.gain:+.4f} +- {m.stderr or 0.0:.4f}")
    for gate in result.gates:
        verdict = "passed" if gate.passed else "NOT PASSED"
        print(f"{verdict:10} {gate.label}: {gate.value:.3f} (must be {gate.threshold})")
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0 done, 1 failed while running, 2 wrong settings."""
    import tyro

    config = tyro.cli(StudyConfig, args=None if argv is None else list(argv), prog="python -m worldr1.study")
    return exit_code(lambda: study_of_run(config))


if __name__ == "__main__":
    sys.exit(main())
