"""The run's surroundings: threads, the output folder, signals, and what is said about them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from worldr1.config import TrainConfig, to_json
from worldr1.config_checks import judges_asked
from worldr1.run import checkpoint, distributed
from worldr1.run.files import write_json
from worldr1.run.lock import FolderRefused, hold
from worldr1.run.metrics import Progress
from worldr1.run.saved_config import is_run

PACKAGES = ("worldr1", "torch", "triton", "diffusers", "transformers", "peft", "numpy", "safetensors", "tyro")
RANDOM_WEIGHTS = "RANDOM_WEIGHTS.txt"
"""A file beside weights that nobody trained (worldr1.rehearsal)."""
FILES_OF_A_RUN = (
    "config.json", "environment.json", "metrics.jsonl", "timings.jsonl", "checkpoints", "adapter", "validation",
    "evaluation", "tensorboard", "report.html",
)  # fmt: skip
"""What a run writes into its output_dir."""
SAME_PRESS_SECONDS = 1.0
"""Signals that come sooner after the first count as the same one: torchrun hands on what a terminal sent already."""


def set_threads(config: TrainConfig) -> None:
    """Set torch's CPU threads of this rank: config.num_threads, else OMP_NUM_THREADS, else the cores over the ranks.

    torchrun sets OMP_NUM_THREADS to 1 when it starts several ranks.
    """
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    named = os.environ.get("OMP_NUM_THREADS", "")
    shared = max(1, len(os.sched_getaffinity(0)) // ranks)
    torch.set_num_threads(config.num_threads or (int(named) if named.isdecimal() and int(named) else shared))


def prepare_output_dir(config: TrainConfig, world: distributed.World, held: ExitStack) -> Path | None:
    """Make the run's folder on rank 0, lock it, check that it can be written, and write config.json and
    environment.json.

    Without --resume a run that is already there is moved aside, never overwritten; what is no run is never moved.

    Args:
      held: Gets the folder's lock, which rank 0 holds for all.
    Returns:
      With --resume, the checkpoint to go on from; else None.
    Raises:
      ValueError: it cannot be made or written; with --resume, it holds no checkpoint or one of other settings.
        FolderRefused, before anything is moved or written: another process runs in it, or it is another's.
    """
    folder, error, refused = Path(config.output_dir), "", False
    if world.is_main:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _take_over(folder, held, resume=config.resume)
            with tempfile.TemporaryFile(dir=folder):
                pass
            if config.resume:
                checkpoint.check_same_run(_newest(folder), config)
            write_json(folder / "config.json", to_json(config))
            write_json(folder / "environment.json", environment(world) | {"random_weights": random_weights(config)})
        except ValueError as problem:
            error, refused = str(problem), isinstance(problem, FolderRefused)
        except OSError as problem:
            why = problem.strerror or problem
            error = f"output_dir must be a folder that can be written, got {folder} ({why}); choose --output-dir"
    error, refused = distributed.gather_objects((error, refused))[0]
    if error:
        raise FolderRefused(error) if refused else ValueError(error)
    return _newest(folder) if config.resume else None


def _take_over(folder: Path, held: ExitStack, *, resume: bool) -> None:
    """Lock the folder; an earlier run in it moves aside, unless it is to go on."""
    lock = held.enter_context(hold(folder))
    if lock.took_over:
        print(f"the run in {folder} ended without letting go of it and is taken over: {lock.took_over}", flush=True)
    if resume:
        return
    if is_run(folder):
        aside = _free_name(folder)
        os.rename(folder, aside)
        lock.moved(aside)
        print(f"the earlier run in {folder} is now {aside}", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        held.enter_context(hold(folder))
        lock.release()
    elif there := [name for name in FILES_OF_A_RUN if (folder / name).exists()]:
        raise FolderRefused(
            f"output_dir: {folder} must be a run's folder or one without files of their names, got {', '.join(there)} "
            "and no config.json of a run; choose another --output-dir"
        )


def environment(world: distributed.World) -> dict[str, object]:
    """Versions and hardware, for the report."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else platform.processor()
    return {
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": shlex.join(sys.argv),
        "device": device or platform.machine(),
        "cores": os.cpu_count(),
        "ranks": world.size,
        "threads_per_rank": torch.get_num_threads(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        **versions,
    }


def random_weights(config: TrainConfig) -> list[str]:
    """The settings that name a folder of random weights."""
    w = config.reward
    named = {"model.path": config.model.path} | {f"reward.{role}": getattr(w, role) for role in judges_asked(config)}
    return [name for name, folder in named.items() if (Path(folder) / RANDOM_WEIGHTS).is_file()]


def opening_line(config: TrainConfig, world: distributed.World, *, first: int, num_params: int) -> str:
    """What is about to run, in two lines; three where its scores mean nothing."""
    total = config.rollout.prompts_per_iteration * config.rollout.group_size
    waits = os.environ.get("OMP_WAIT_POLICY", "unset")
    m = config.model
    ways = f"attention {m.attention}" + ", TF32" * m.tf32 + ", compiled" * m.compile + ", LoRA merged" * m.merge_lora
    start = f"going on after iteration {first}" if first else "starting"
    made_up = random_weights(config)
    notice = f"RANDOM WEIGHTS ({', '.join(made_up)}): a rehearsal, its scores mean nothing\n" if made_up else ""
    return notice + (
        f"{config.model.path} on {world.device.type}, adapter of {num_params:,} parameters; {world.size} rank(s) of "
        f"{torch.get_num_threads()} thread(s), OMP_WAIT_POLICY {waits}; {ways}\n"
        f"{start}: {config.max_iterations} iterations of {total} videos, seed {config.seed}, "
        f"control {config.reward.control}, writing to {config.output_dir}"
    )


def resume_command() -> str:
    """The command that goes on with this run: the one that started it, and --resume."""
    args = [a for a in sys.argv[1:] if a not in ("--resume", "--no-resume")]
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    start = ["torchrun", "--nproc_per_node", str(ranks)] if "TORCHELASTIC_RUN_ID" in os.environ else ["python"]
    script = ["-m", "worldr1.train"] if Path(sys.argv[0]).name != "train.py" else [sys.argv[0]]
    return shlex.join([*start, *script, *args, "--resume"])


def peak_memory_gib() -> float:
    """Largest resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


class Stopped(Exception):
    """The user asked to stop, and every rank knows: raised where an iteration may be left unfinished."""


class Stop:
    """Whether the user asked to stop."""

    def __init__(self) -> None:
        self.asked = False

    def check(self) -> None:
        """Raise Stopped on every rank if any was asked to stop. Every rank must call this, as often as the others."""
        if distributed.any_rank(self.asked):
            raise Stopped


@contextmanager
def stop_on_signal(progress: Progress) -> Iterator[Stop]:
    """Inside, the first Ctrl-C (or SIGTERM) sets `asked`, which `Stop.check` then acts on; a second one stops at once.

    Outside the main thread, where Python allows no handlers, signals keep their meaning.
    """
    stop, since = Stop(), 0.0

    def on_signal(number: int, frame: object) -> None:
        nonlocal since
        if not stop.asked:
            stop.asked, since = True, time.monotonic()
            progress.say(
                "stopping after this stage; finished iterations are saved. Ctrl-C again stops at once, without saving"
            )
        elif time.monotonic() - since > SAME_PRESS_SECONDS:
            raise KeyboardInterrupt

    try:
        old = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        old = {}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _newest(folder: Path) -> Path:
    found = checkpoint.latest(folder)
    if not found:
        raise ValueError(f"--resume: {folder} must hold a checkpoint, got a folder without one; start without --resume")
    return found


def _free_name(folder: Path) -> Path:
    """Where an earlier run moves. A folder that a shell or this process stands in would move with them."""
    if Path.cwd().is_relative_to(folder.resolve()):
        raise FolderRefused(
            f"output_dir: the earlier run in {folder} cannot be moved aside from where you stand, {Path.cwd()}: "
            "--resume goes on with it; else choose another --output-dir"
        )
    number = 1
    while (name := folder.with_name(f"{folder.name}.old{number}")).exists():
        number += 1
    return name
