"""Checkpoints: everything that a bit-exact resume needs, written beside the others and renamed into place when whole.

output_dir/checkpoints/iteration_000020/
    tensors.safetensors   adapter.<name>, ema.<i>, exp_avg.<i>, exp_avg_sq.<i>, torch_rng
    state.json            iterations done, optimizer steps, the run's configuration, SHA-256 of the tensors
Only folders of exactly such a name that hold such a state.json are ours: others in checkpoints/ are left alone.
Every random draw of the loop is keyed by (seed, iteration, sample), so there is no sampler state to keep.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from worldr1.config import TrainConfig, to_json
from worldr1.run import distributed
from worldr1.run.files import (
    UNFINISHED,
    digest,
    iteration_name,
    numbered,
    read_json,
    read_tensors,
    reading,
    write_json,
    write_tensors,
)

FORMAT = 1
_TENSORS, _STATE = "tensors.safetensors", "state.json"
_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOTDIR)


class Adapter(Protocol):
    """The part of a policy that a checkpoint holds; models.base.VideoPolicy has it."""

    def adapter_state(self) -> dict[str, Tensor]: ...

    def load_adapter_state(self, state: dict[str, Tensor]) -> None: ...


class Average(Protocol):
    """An average of the adapter's parameters; models.ema.Ema has it."""

    params: list[nn.Parameter]

    def state(self) -> list[Tensor]: ...

    def load_state(self, tensors: Sequence[Tensor]) -> None: ...


class Clock:
    """Whether it is time for a checkpoint, by the clock of rank 0.

    Args:
      minutes: TrainConfig.checkpoint_minutes; 0: never.
    """

    def __init__(self, minutes: float) -> None:
        self._seconds = 60.0 * minutes
        self.saved()

    def saved(self) -> None:
        """A checkpoint was written now."""
        self._since = monotonic()

    def due(self) -> bool:
        """The same answer on all ranks, which must all ask."""
        if not self._seconds:
            return False
        return distributed.any_rank(distributed.rank() == 0 and monotonic() - self._since >= self._seconds)


def save(
    output_dir: Path,
    policy: Adapter,
    optimizer: torch.optim.AdamW,
    ema: Average,
    *,
    iteration: int,
    config: TrainConfig,
) -> Path:
    """Write the checkpoint of `iteration` finished iterations, then remove the oldest beyond keep_checkpoints.

    Call it on one rank only; the ranks hold the same adapter, average and optimizer.

    Args:
      output_dir: The run's folder.
      policy: Its adapter is saved; the base never changes.
      optimizer: Of the adapter's parameters.
      ema: Their average.
      iteration: Iterations done.
      config: Saved for the comparison on resume, and for keep_checkpoints.
    Returns:
      The new folder. An unfinished one is never found under this name.
    Raises:
      RuntimeError: it cannot be written (disk full, no permission, a folder of that name that is not ours); older
        checkpoints are as they were.
    """
    folder = Path(output_dir) / "checkpoints"
    final = folder / iteration_name(iteration)
    unfinished = folder / f"{UNFINISHED}{final.name}"
    if final.exists() and not _is_ours(final, iteration):
        raise RuntimeError(f"checkpoint: {final} must be free, got something that no run wrote; move it away")
    tensors = _tensors(policy, optimizer, ema)
    steps = max((int(optimizer.state[p]["step"]) for p in ema.params if p in optimizer.state), default=0)
    state = {"format": FORMAT, "iteration": iteration, "optimizer_steps": steps, "config": to_json(config)}
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        _write_files(unfinished, tensors, state)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(unfinished, final)
        _sync(folder)
    except OSError as error:
        if error.errno not in _WRITE_ERRORS:
            raise
        shutil.rmtree(unfinished, ignore_errors=True)
        older = latest(output_dir)
        kept = f"the newest whole checkpoint is {older}" if older else "there is no older checkpoint"
        raise RuntimeError(
            f"checkpoint: {final} must be writable, got {error}; free some space and use --resume; {kept}"
        ) from error
    ours = [path for number, path in numbered(folder) if _is_ours(path, number)]
    for old in ours[: -config.keep_checkpoints]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def latest(output_dir: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None."""
    found = numbered(Path(output_dir) / "checkpoints")
    return found[-1][1] if found else None


def load(folder: Path, policy: Adapter, optimizer: torch.optim.AdamW, ema: Average) -> int:
    """Overwrite adapter, optimizer, average and torch's generator with those of a checkpoint. Call it on every rank.

    Args:
      folder: From `latest`.
      policy, optimizer, ema: Built by the same configuration.
    Returns:
      Iterations done.
    Raises:
      ValueError: damaged (a byte that changed included), of another format, or of another adapter.
    """
    state = read_state(folder)
    file = Path(folder) / _TENSORS
    with _usable(folder):
        tensors = read_tensors(file, "the tensors of a checkpoint")
        written = state.get("sha256")  # checkpoints of earlier versions have none
        if written not in (None, digest(file)):
            raise ValueError(f"{file} must be as it was written, got bytes that changed since")
    adapter = {k.removeprefix("adapter."): v for k, v in tensors.items() if k.startswith("adapter.")}
    with reading(Path(folder), "a checkpoint of this model and adapter"):
        averages, states = _of_parameters(tensors, ema.params, state["optimizer_steps"])
        policy.load_adapter_state(adapter)
        ema.load_state(averages)
        torch.set_rng_state(tensors["torch_rng"])
    optimizer.state.update(states)
    return state["iteration"]


def read_state(folder: Path) -> dict[str, Any]:
    """state.json of a checkpoint.

    Raises:
      ValueError: missing, damaged or of another format.
    """
    with _usable(folder):
        state = read_json(Path(folder) / _STATE, "the state of a checkpoint")
    if state.get("format") != FORMAT:
        raise ValueError(
            f"checkpoint: {folder} must have format {FORMAT}, got {state.get('format')}; start a new output_dir"
        )
    with _usable(folder):
        for name, kind in (("iteration", int), ("optimizer_steps", int), ("config", dict)):
            value = state.get(name)
            if type(value) is not kind or (isinstance(value, int) and value < 0):
                raise ValueError(f"{folder / _STATE} must hold {name}, got {value!r}")
    return state


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """What cannot be read is an error of the user's, who may remove the folder."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(f"checkpoint: {error}; remove the folder {folder} to use an older one") from error


def _is_ours(folder: Path, iteration: int) -> bool:
    """Whether a run wrote this folder: its state says so."""
    try:
        return read_state(folder)["iteration"] == iteration
    except ValueError:
        return False


FREE_TO_CHANGE = (
    "max_iterations", "resume", "output_dir", "open_report", "num_threads", "checkpoint_every", "checkpoint_minutes",
    "keep_checkpoints", "validate_every", "self_test", "device", "evaluation",
)  # fmt: skip
"""Settings that a resumed run may change. None touches what an iteration computes, but for the decay of the learning
rate, which follows max_iterations."""


def check_same_run(folder: Path, config: TrainConfig) -> None:
    """Refuse to go on with other settings than the checkpoint's.

    Raises:
      ValueError: a setting outside FREE_TO_CHANGE differs; all of them are named with both values.
    """
    then, now = _flat(read_state(folder)["config"]), _flat(to_json(config))
    changed = [
        f"{key}: {then.get(key, 'absent')} -> {now.get(key, 'absent')}"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key) and key.split(".")[0] not in FREE_TO_CHANGE
    ]
    if changed:
        raise ValueError(
            f"--resume: the settings must be those of {folder}, these changed:\n  - "
            + "\n  - ".join(changed)
            + "\ngive the old values again, or start a new run with another --output-dir"
        )


def _tensors(policy: Adapter, optimizer: torch.optim.AdamW, ema: Average) -> dict[str, Tensor]:
    out = {f"adapter.{name}": value for name, value in policy.adapter_state().items()}
    for i, (p, shadow) in enumerate(zip(ema.params, ema.state(), strict=True)):
        out[f"ema.{i}"] = shadow
        if p in optimizer.state:
            out[f"exp_avg.{i}"] = optimizer.state[p]["exp_avg"]
            out[f"exp_avg_sq.{i}"] = optimizer.state[p]["exp_avg_sq"]
    out["torch_rng"] = torch.get_rng_state()
    return {k: v.detach().cpu().contiguous() for k, v in out.items()}


def _of_parameters(
    tensors: dict[str, Tensor], params: list[nn.Parameter], steps: int
) -> tuple[list[Tensor], dict[Tensor, dict[str, Tensor]]]:
    """The average of each parameter and AdamW's state of it, with the shapes that they must have."""

    def of(name: str, i: int) -> Tensor:
        found = tensors[f"{name}.{i}"]
        if found.shape != params[i].shape:
            raise ValueError(f"{name}.{i} of shape {list(found.shape)} for a parameter of {list(params[i].shape)}")
        return found

    averages = [of("ema", i) for i in range(len(params))]
    states: dict[Tensor, dict[str, Tensor]] = {}
    for i, p in enumerate(params if steps else []):
        moments = {name: of(name, i).to(p.device) for name in ("exp_avg", "exp_avg_sq")}
        states[p] = {"step": torch.tensor(float(steps)), **moments}
    return averages, states


def _write_files(folder: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    sha256 = write_tensors(folder / _TENSORS, tensors)
    write_json(folder / _STATE, {**state, "sha256": sha256})
    for file in folder.iterdir():
        _sync(file)
    _sync(folder)


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk, so that a power cut after the rename leaves no empty file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        out.update(_flat(value, f"{name}.") if isinstance(value, dict) else {name: value})
    return out
