"""Make every embedded weight from nothing: `python -m worldr1.microworld.build`.

Prints what it will do and how long each stage took on one core, then runs the stages in order. A stage that is
done leaves a mark in the work folder and is skipped next time; the two long trainings also go on from within.
Every file goes through a temporary name.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from worldr1.config import EMBEDDED


@dataclass(frozen=True)
class Work:
    """Where a build reads and writes, and its seed.

    Fields: work_dir (caches and states of training); assets_dir (the weights); sheet (picture of base samples);
    seed; log.
    """

    work_dir: Path
    assets_dir: Path
    sheet: Path
    seed: int
    log: Callable[[str], None]


@dataclass(frozen=True)
class Stage:
    """One stage: its name, about how many core-minutes it takes, what it makes, and the function that runs it."""

    name: str
    minutes: float
    makes: str
    run: Callable[[Work], dict[str, float]]


NUM_CLIPS = 9600


def _clips(work: Work) -> Any:
    from worldr1.microworld.dataset import training_clips

    return training_clips(work.work_dir / "clips.npy", NUM_CLIPS, seed=work.seed, log=work.log)


def run_clips(work: Work) -> dict[str, float]:
    """Render the training clips into the work folder."""
    return {"clips": float(len(_clips(work).video))}


def run_vae(work: Work) -> dict[str, float]:
    """Train the autoencoder and encode every clip."""
    from worldr1.microworld.dataset import held_out_clips
    from worldr1.microworld.train_vae import encode_clips, measure_psnr, train_vae

    clips, held_out = _clips(work), held_out_clips(64)
    vae = train_vae(clips, held_out, checkpoint=work.work_dir / "vae_state.pt", seed=work.seed, log=work.log)
    latents = encode_clips(vae, clips, log=work.log)
    statistics = {"latents_mean": vae.config.latents_mean, "latents_std": vae.config.latents_std}
    _save({"weights": vae.state_dict(), "latents": latents, **statistics}, work.work_dir / "vae.pt")
    return {"psnr_db": measure_psnr(vae, held_out)}


def run_base(work: Work) -> dict[str, float]:
    """Train the policy on the latents; every 500 steps the folder microwan is written anew."""
    from worldr1.microworld.dataset import draw_captions
    from worldr1.microworld.train_base import train_base, write_pipeline

    vae, latents = _load_vae(work)
    captions = draw_captions(NUM_CLIPS, seed=work.seed, dynamic_share=0.15)
    folder = work.assets_dir / "microwan"
    base = train_base(
        latents,
        captions,
        checkpoint=work.work_dir / "base_state.pt",
        seed=work.seed,
        on_snapshot=lambda average: write_pipeline(folder, average, vae),
        log=work.log,
    )
    write_pipeline(folder, base, vae)
    return {"megabytes": sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6}


def run_decoder(work: Work) -> dict[str, float]:
    """Refine the decoder on the latents that the base knows, and put it into microwan."""
    from worldr1.microworld.dataset import held_out_clips
    from worldr1.microworld.train_base import replace_vae
    from worldr1.microworld.train_vae import measure_psnr, refine_decoder

    vae, latents = _load_vae(work)
    held_out = held_out_clips(64)
    checkpoint = work.work_dir / "decoder_state.pt"
    refine_decoder(vae, _clips(work), held_out, latents, checkpoint=checkpoint, seed=work.seed, log=work.log)
    replace_vae(work.assets_dir / "microwan", vae)
    return {"psnr_db": measure_psnr(vae, held_out)}


def run_gates(work: Work) -> dict[str, float]:
    """Measure the gates, print each, and draw the sheet of base samples."""
    from worldr1.microworld.gates import measure_gates, write_contact_sheet

    gates = measure_gates(work.assets_dir, seed=work.seed)
    for gate in gates:
        verdict = "passed" if gate.passed else "NOT PASSED"
        work.log(f"gate {gate.name}: {gate.value:.3f}, must lie in [{gate.low:g}, {gate.high:g}]: {verdict}")
    write_contact_sheet(work.assets_dir, work.sheet, seed=work.seed, log=work.log)
    return {gate.name: gate.value for gate in gates}


def _judge(name: str) -> Callable[[Work], dict[str, float]]:
    """A stage of `worldr1.microworld.train_judges`, imported when it runs."""

    def run(work: Work) -> dict[str, float]:
        function = vars(import_module("worldr1.microworld.train_judges"))[name]
        return function(work.assets_dir, seed=work.seed, log=work.log)

    return run


# In the order they need each other. Minutes: one core of a 2.6 GHz Zen 4, as the last build counted them.
STAGES = (
    Stage("clips", 1.1, "9,600 rendered training clips", run_clips),
    Stage("vae", 6.7, "the autoencoder and the latents of every clip", run_vae),
    Stage("base", 15.0, "tokenizer, text encoder and transformer: assets/microwan", run_base),
    Stage("decoder", 2.2, "the decoder, refined", run_decoder),
    Stage("microgeo", 3.0, "the reconstructor of the rewards", _judge("microgeo")),
    Stage("evaluator", 3.1, "the independent evaluator", _judge("evaluator")),
    Stage("critic", 0.9, "the critic of novel views", _judge("critic")),
    Stage("aesthetic", 1.4, "the aesthetic judge", _judge("aesthetic")),
    Stage("perceptual", 0.9, "the perceptual distance", _judge("perceptual")),
    Stage("gates", 0.6, "the gates before reinforcement learning and a sheet of base samples", run_gates),
)


def build(names: Sequence[str], work: Work, *, again: bool = False) -> None:
    """Run stages in the order of STAGES, skipping those that are done.

    Args:
      names: Of stages; the gates are always measured when named.
      work: Where and how.
      again: Run also those that are done (a training that has a state in the work folder goes on from it).
    Raises:
      ValueError: an unknown stage.
    """
    known = [stage.name for stage in STAGES]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"build: stages must be among {', '.join(known)}, got {', '.join(unknown)}")
    for folder in (work.work_dir, work.assets_dir):
        folder.mkdir(parents=True, exist_ok=True)
    wanted = [stage for stage in STAGES if stage.name in names]
    done = set() if again else {s.name for s in wanted if _mark(work, s.name).is_file() and s.name != "gates"}
    work.log(f"{'stage':<12}{'core-minutes':>13}  makes")
    for stage in wanted:
        minutes = "done" if stage.name in done else f"{stage.minutes:.1f}"
        work.log(f"{stage.name:<12}{minutes:>13}  {stage.makes}")
    work.log(f"{'in all':<12}{sum(s.minutes for s in wanted if s.name not in done):>13.1f}")
    for stage in wanted:
        if stage.name in done:
            continue
        started, worked = time.monotonic(), _core_seconds()
        figures = stage.run(work)
        times = {"seconds": time.monotonic() - started, "core_seconds": _core_seconds() - worked}
        text = ", ".join(f"{key} {value:.3f}" for key, value in figures.items())
        work.log(f"{stage.name}: {times['seconds']:.0f} s, {times['core_seconds']:.0f} s of a core; {text}")
        _write_text(_mark(work, stage.name), json.dumps({**times, "figures": figures}, indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m worldr1.microworld.build", description=__doc__)
    parser.add_argument("--stages", default="all", help="comma-separated: " + ", ".join(s.name for s in STAGES))
    parser.add_argument("--work-dir", type=Path, default=Path("build/microworld"), help="caches and training states")
    parser.add_argument("--assets-dir", type=Path, default=EMBEDDED, help="where the weights go")
    parser.add_argument(
        "--sheet", type=Path, default=Path("docs/images/base_samples.png"), help="picture of base samples"
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; the recorded weights were made with 1")
    parser.add_argument("--again", action="store_true", help="run stages that are done, too")
    options = parser.parse_args(arguments)
    names = [s.name for s in STAGES] if options.stages == "all" else options.stages.split(",")
    torch.set_num_threads(options.threads)
    work = Work(options.work_dir, options.assets_dir, options.sheet, options.seed, lambda line: print(line, flush=True))
    try:
        build(names, work, again=options.again)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _load_vae(work: Work) -> tuple[Any, torch.Tensor]:
    """The trained autoencoder with its latents' statistics, and the normalised latents of the clips."""
    from worldr1.microworld.train_vae import build_vae

    path = work.work_dir / "vae.pt"
    if not path.is_file():
        raise ValueError(f"build: {path} must be there, made by the stage vae; run that first")
    state = torch.load(path, weights_only=True)
    vae = build_vae()
    vae.load_state_dict(state["weights"])
    vae.register_to_config(latents_mean=state["latents_mean"], latents_std=state["latents_std"])
    return vae, state["latents"]


def _core_seconds() -> float:
    """Processor time of this process and of the compilers that it started, which other work does not lengthen."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def _mark(work: Work, name: str) -> Path:
    return work.work_dir / f"done_{name}.json"


def _save(value: Any, path: Path) -> None:
    torch.save(value, path.with_suffix(".partial"))
    os.replace(path.with_suffix(".partial"), path)


def _write_text(path: Path, text: str) -> None:
    path.with_suffix(".partial").write_text(text, encoding="utf-8")
    os.replace(path.with_suffix(".partial"), path)


if __name__ == "__main__":
    raise SystemExit(main())
