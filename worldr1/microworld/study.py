"""The article's ablation and data-scaling tables in miniature: every arm by both estimators, over several seeds.

    python -m worldr1.microworld.study --plan            # what would be run, and how long it takes
    python -m worldr1.microworld.study --jobs 2          # runs what is not done, then writes the page
    python -m worldr1.microworld.study --no-run          # writes the page again from what is there

The plan is part of the package (ARMS) and is written to plan.json before the first run; an output folder whose plan is
another one is refused, so that arms cannot be chosen by their results. A run that was cut goes on from its checkpoint.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

PRESETS = {"score": "micro", "forward": "micro-forward"}
"""Estimator -> the preset that it is run by."""


@dataclass(frozen=True)
class Arm:
    """One change to a preset, and what the article says that it does to its measures.

    Fields: name; title (of the row); flags (of train); share (of the training prompts that it sees, by content);
    article (its figures, where it has some); psnr (the sign of its change of PSNR against everything, 0: none told).
    """

    name: str
    title: str
    flags: tuple[str, ...] = ()
    share: float = 1.0
    article: str = ""
    psnr: int = 0


ARMS = (
    Arm("full", "everything"),
    Arm("permuted", "control: rewards shuffled inside each group", ("--reward.control", "permuted")),
    Arm("zero", "control: every advantage 0", ("--reward.control", "zero")),
    Arm("no_meta", "without S_meta", ("--reward.weight-meta", "0")),
    Arm("no_recon", "without S_recon", ("--reward.weight-recon", "0")),
    Arm("no_traj", "without S_traj", ("--reward.weight-traj", "0")),
    Arm("no_gen", "without R_gen", ("--reward.weight-gen", "0")),
    Arm(
        "no_3d", "without R_3D (S_meta, S_recon, S_traj)",
        ("--reward.weight-meta", "0", "--reward.weight-recon", "0", "--reward.weight-traj", "0"),
        article="PSNR 27.63 -> 18.93 dB", psnr=-1,
    ),
    Arm(
        "no_transport", "without noise transport", ("--noise.mode", "plain"),
        article="PSNR 27.63 -> 24.46 dB", psnr=-1,
    ),
    Arm(
        "no_dynamic", "without the dynamic phase", ("--phase.dynamic-iterations", "0"),
        article="PSNR 27.63 -> 27.89 dB, VBench 85.21 -> 82.64", psnr=1,
    ),
    Arm("data_1", "1/3 of the prompts", share=1 / 3, article="PSNR 27.63 -> 25.82 dB", psnr=-1),
    Arm("data_2", "2/3 of the prompts", share=2 / 3, article="PSNR 27.63 -> 26.54 dB", psnr=-1),
)  # fmt: skip
"""In the order of the table. The article: arXiv 2604.24764, Wan2.1-1.3B."""


@dataclass(frozen=True)
class StudyConfig:
    """Train every arm of the study by both estimators, and write one page of what it shows."""

    output_dir: Path = Path("runs/study")
    """Gets plan.json, a folder for each run, and study.json, study.md, study.png."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run of each arm for each."""
    estimators: tuple[Literal["score", "forward"], ...] = ("score", "forward")
    """By which presets: micro, micro-forward."""
    arms: tuple[str, ...] = ()
    """Names of arms; empty: all."""
    iterations: int = 0
    """Iterations of each run; 0: its preset's."""
    num_samples: int = 384
    """Held-out samples of each run's study."""
    jobs: int = field(default_factory=lambda: max(1, os.cpu_count() or 1))
    """Runs at a time, of one thread each."""
    plan: bool = False
    """Print the plan and stop."""
    run: bool = True
    """Train what is not done; else only the page is written."""


@dataclass(frozen=True)
class Run:
    """One training of the study."""

    name: str
    arm: str
    estimator: str
    seed: int
    flags: tuple[str, ...]


def plan_runs(config: StudyConfig) -> list[Run]:
    """The runs in the order in which they are made: seed by seed, so that a study that is cut short has whole tables.

    Raises:
      ValueError: an unknown arm, no seed or no estimator, a seed or an estimator given twice.
    """
    known = [arm.name for arm in ARMS]
    unknown = [name for name in config.arms if name not in known]
    if unknown:
        raise ValueError(f"study: arms must be among {', '.join(known)}, got {', '.join(unknown)}")
    for name, values in (("seeds", config.seeds), ("estimators", config.estimators)):
        if not values or len(set(values)) != len(values):
            raise ValueError(f"study: {name} must be one or more, each once, got {list(values)}")
    runs = []
    for seed in config.seeds:
        for arm in ARMS:
            if config.arms and arm.name not in config.arms:
                continue
            for estimator in config.estimators:
                flags = ["--preset", PRESETS[estimator], *arm.flags, "--seed", str(seed)]
                if config.iterations:
                    flags += ["--max-iterations", str(config.iterations)]
                if arm.share < 1:
                    flags += ["--prompts", str(config.output_dir / f"prompts_{arm.name}.txt")]
                flags += ["--evaluation.num-samples", str(config.num_samples), "--num-threads", "1"]
                runs.append(Run(f"{estimator}_{arm.name}_{seed}", arm.name, estimator, seed, tuple(flags)))
    return runs


def write_plan(config: StudyConfig, runs: Sequence[Run]) -> None:
    """Fix the plan in output_dir/plan.json, with the prompts of the arms that see a part of them.

    More seeds, arms or estimators may be added to a plan later; the runs that it has must stay as they are.

    Raises:
      ValueError: the folder has a plan in which a run of the same name is another one.
    """
    from worldr1.run.files import read_json, write_json

    file = config.output_dir / "plan.json"
    plan = {run.name: asdict(run) | {"flags": list(run.flags)} for run in runs}
    if file.is_file():
        before = read_json(file, "a JSON object")
        changed = [name for name, run in plan.items() if before.get(name, run) != run]
        if changed:
            raise ValueError(
                f"study: {file} was made for other settings of {', '.join(changed[:3])}; give another --output-dir"
            )
        plan = before | plan
    config.output_dir.mkdir(parents=True, exist_ok=True)
    for arm in ARMS:
        if arm.share < 1:
            (config.output_dir / f"prompts_{arm.name}.txt").write_text(
                "".join(line + "\n" for line in share_of_prompts(arm.share)), encoding="utf-8"
            )
    write_json(file, plan)


def share_of_prompts(share: float) -> list[str]:
    """The training prompts of a share of the contents, under every motion; a smaller share lies in a larger."""
    from worldr1.microworld.captions import split_captions

    train, _ = split_captions()
    contents = sorted({caption.content_index for caption in train}, key=lambda index: (index * 37) % 97)
    kept = set(contents[: round(share * len(contents))])
    return [caption.text for caption in train if caption.content_index in kept]


def is_done(folder: Path) -> bool:
    """Whether a run has ended with its study."""
    return (folder / "evaluation" / "study.json").is_file()


def train_run(run: Run, folder: Path) -> str:
    """Train one run in a process of its own, or go on with it; its output goes to FOLDER.log.

    Returns:
      "" or the last lines of what went wrong.
    """
    command = [sys.executable, "-m", "worldr1.train", *run.flags, "--output-dir", str(folder)]
    if (folder / "checkpoints").is_dir():
        command.append("--resume")
    log = folder.with_name(folder.name + ".log")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with log.open("a", encoding="utf-8") as file:  # behind what an interrupted run said
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, env=environment, check=False).returncode
    if code == 0 and is_done(folder):
        return ""
    return f"exit code {code}: " + " | ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-3:])


def study(config: StudyConfig) -> Path | None:
    """Plan, train what is not done, write the page.

    Returns:
      The page; None where only the plan was asked for.
    Raises:
      ValueError: wrong settings, another plan in the folder, or nothing to write a page of.
      RuntimeError: a run failed; the others were made, and the page shows them.
    """
    runs = plan_runs(config)
    waiting = [run for run in runs if not is_done(config.output_dir / run.name)]
    print(f"{len(runs)} runs of {len({r.arm for r in runs})} arms, {len(runs) - len(waiting)} done")
    if config.plan:
        for run in runs:
            print(f"  {run.name:32} {' '.join(run.flags)}")
        return None
    write_plan(config, runs)
    failed: dict[str, str] = {}
    if config.run and waiting:
        start, ended = time.monotonic(), 0

        def one(run: Run) -> tuple[Run, str]:
            return run, train_run(run, config.output_dir / run.name)

        with ThreadPoolExecutor(config.jobs) as pool:
            for run, error in pool.map(one, waiting):
                ended += 1
                seconds = time.monotonic() - start
                left = seconds / ended * (len(waiting) - ended)
                verdict = f"FAILED: {error}" if error else "done"
                print(f"{ended}/{len(waiting)} {run.name}: {verdict}; {left / 60:.0f} min left", flush=True)
                if error:
                    failed[run.name] = error
    from worldr1.microworld.study_page import write_page

    page = write_page(config.output_dir)
    print(page)
    if failed:
        raise RuntimeError(f"study: {len(failed)} run(s) failed, the first: {next(iter(failed.items()))}")
    return page


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0 done, 1 failed while running, 2 wrong settings, 130 stopped by Ctrl-C."""
    import tyro

    config = tyro.cli(StudyConfig, args=None if argv is None else list(argv), prog="python -m worldr1.microworld.study")
    try:
        study(config)
    except (ValueError, RuntimeError, OSError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on with the runs that are not done", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
