"""What a run writes while it goes: metrics.jsonl, timings.jsonl, TensorBoard, and one live line on the screen.

metrics.jsonl holds one JSON object an iteration and nothing that depends on the clock, so that two runs with the same
seed write the same bytes. Its keys:

    iteration, phase ("main" or "dynamic"), learning_rate, window (indices of the stochastic steps)
    reward, reward_stderr, reward_std     mean over valid samples, its standard error (taken as independent), spread
    terms: {name: {mean, stderr, std, weight}}     each reward term: traj, recon, meta, gen
    valid_fraction, dropped_groups, group_std, advantage_abs
    ratio_mean, ratio_max_deviation, ratio_first_deviation (sqrt(elements) x |log_prob - rollout's|
    before the first update: 0 unless rollout and training disagree)
    clip_fraction, approx_kl, kl, grad_norm, num_updates, skipped_updates, nonfinite_updates, cut_gradients
    steps: {t: {weight, clip_fraction, kl, ratio, lambda, grad_norm}}     by stochastic step t of the grid
    alarms                                sentences, empty when all is well
    validation                            only where one was made (see evaluation/validate.py): num; reward and
                                          terms.<name>: {base, adapter, gain, stderr, num}
A value that does not exist (the mean of no samples) is null.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from worldr1.datatypes import RewardOutput
from worldr1.run import distributed
from worldr1.run.files import whole

Metrics = dict[str, Any]


def reward_metrics(rewards: RewardOutput) -> Metrics:
    """Mean, standard error and spread of the reward and of each term, over the valid samples of all ranks.

    Args:
      rewards: This rank's rewards. Every rank must call this.
    """
    valid = distributed.gather(rewards.valid & torch.isfinite(rewards.reward))
    mean, stderr, std = _summary(distributed.gather(rewards.reward.double())[valid])
    terms = {}
    for name, values in rewards.breakdown.items():
        term = distributed.gather(values.double())
        figures = _summary(term[valid & torch.isfinite(term)])
        terms[name] = {**dict(zip(("mean", "stderr", "std"), figures, strict=True)), "weight": rewards.weights[name]}
    return {
        "reward": mean,
        "reward_stderr": stderr,
        "reward_std": std,
        "terms": terms,
        "valid_fraction": float(valid.double().mean()),
    }


def _summary(values: Tensor) -> tuple[float, float, float]:
    """Mean, its standard error, and std (n - 1 in the denominator); NaN where there are too few values."""
    n = len(values)
    std = float(values.std()) if n > 1 else math.nan
    return (float(values.mean()) if n else math.nan), std / math.sqrt(n) if n else math.nan, std


class Stopwatch:
    """Seconds spent in each stage of an iteration; what a stage within another takes is its own alone.

    Args:
      nvtx: Also mark each stage as an NVTX range, which Nsight Systems shows. Off, the package is not imported.
    """

    def __init__(self, *, nvtx: bool = False) -> None:
        self.seconds: dict[str, float] = {}
        self._nvtx = nvtx
        self._start = time.perf_counter()
        self._inner = [0.0]  # of each stage that is open: seconds of the stages within it

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the block's duration to `name`."""
        start = time.perf_counter()
        self._inner.append(0.0)
        try:
            with _nvtx_range(name) if self._nvtx else nullcontext():
                yield
        finally:
            seconds = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds - self._inner.pop()
            self._inner[-1] += seconds

    def finish(self) -> dict[str, float]:
        """Seconds by stage, and "total" since the stopwatch was made."""
        return {**self.seconds, "total": time.perf_counter() - self._start}


@contextmanager
def _nvtx_range(name: str) -> Iterator[None]:
    import nvtx

    nvtx.push_range(message=name, domain="worldr1")
    try:
        yield
    finally:
        nvtx.pop_range(domain="worldr1")


class MetricsWriter:
    """Appends to metrics.jsonl, timings.jsonl and TensorBoard under output_dir; silent on ranks other than 0.

    Args:
      output_dir: Must exist.
      first_iteration: The iteration that will be written first: lines of it and later ones, left by an interrupted run,
        are cut off; 0 starts new files.
      enabled: False makes every method do nothing.
    """

    def __init__(self, output_dir: Path, *, first_iteration: int, enabled: bool) -> None:
        self.enabled = enabled
        if not enabled:
            return
        self._path = output_dir / "metrics.jsonl"
        self._metrics = _reopened(self._path, first_iteration)
        self._timings = _reopened(output_dir / "timings.jsonl", first_iteration)
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(output_dir / "tensorboard"), purge_step=first_iteration)

    def write(self, metrics: Mapping[str, Any]) -> None:
        """The figures of one iteration; must hold "iteration"."""
        if not self.enabled:
            return
        _append(self._metrics, metrics)
        self._show(metrics, metrics["iteration"])

    def newest(self) -> Metrics:
        """The figures of the newest iteration, an earlier part of the run included; empty if there are none."""
        rows = [row for _, row in _rows(self._path) if row] if self.enabled else []
        return rows[-1] if rows else {}

    def amend(self, **figures: Mapping[str, Any]) -> None:
        """Add figures to the line of the newest iteration."""
        if not self.enabled:
            return
        row = self.newest() | figures
        assert "iteration" in row, "there is no line to amend"
        self._metrics.close()
        self._metrics = _reopened(self._path, row["iteration"])
        _append(self._metrics, row)
        self._show(figures, row["iteration"])

    def _show(self, figures: Mapping[str, Any], iteration: int) -> None:
        for key, value in _scalars(figures):
            if key != "iteration" and math.isfinite(value):
                self._board.add_scalar(key, value, iteration)

    def write_seconds(self, iteration: int, seconds: Mapping[str, float]) -> None:
        """What the stages of one iteration took; must hold "total"."""
        if not self.enabled:
            return
        stages = {k: round(v, 4) for k, v in seconds.items()}
        _append(self._timings, {"iteration": iteration, "seconds": stages.pop("total"), "stages": stages})
        for key, value in seconds.items():
            self._board.add_scalar(f"seconds/{key}", value, iteration)

    def close(self) -> None:
        """Flush and close the files."""
        if self.enabled:
            self._metrics.close()
            self._timings.close()
            self._board.close()
        self.enabled = False


def _append(file: TextIO, row: Mapping[str, Any]) -> None:
    file.write(json.dumps(plain(row), allow_nan=False) + "\n")
    file.flush()


def _scalars(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of nested figures, named by their path."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):
            yield prefix + key, value


def plain(value: Any) -> Any:
    """JSON types; a number that is not finite becomes null, since JSON has no NaN."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _reopened(path: Path, first_iteration: int) -> TextIO:
    """The file without the lines from `first_iteration` on and without a last line cut short, open for appending.

    A damaged line stays where it is: it may be read by eye, and those after it are whole.
    """
    kept = [line for line, row in _rows(path) if row is None or row["iteration"] < first_iteration]
    with whole(path) as unfinished:
        unfinished.write_bytes(b"".join(kept) if first_iteration else b"")
    return open(path, "a", encoding="utf-8")


def _rows(path: Path) -> list[tuple[bytes, dict[str, Any] | None]]:
    """The whole lines of a file of figures, and what each holds; None where it is damaged."""
    out: list[tuple[bytes, dict[str, Any] | None]] = []
    for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else []:
        try:
            row = json.loads(line)
            row = row if isinstance(row, dict) and type(row.get("iteration")) is int else None
        except (ValueError, RecursionError):
            row = None
        if line.endswith(b"\n"):
            out.append((line, row))
    return out


class Progress:
    """The user's view on rank 0: a live line on a terminal, one plain line an iteration elsewhere.

    Args:
      max_iterations: Where the run will end.
      enabled: False makes every method do nothing.
    """

    def __init__(self, *, max_iterations: int, enabled: bool) -> None:
        self.enabled = enabled
        self._last = max_iterations
        self._done: list[float] = []
        self._latest = ""
        if enabled:
            from rich.console import Console
            from rich.live import Live

            self._console = Console(soft_wrap=True, highlight=False)
            self._live = Live("", console=self._console, refresh_per_second=4, transient=True)
            self._is_live = self._console.is_terminal
            if self._is_live:
                self._live.start()

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.enabled:
            self._console.print(text, markup=False)

    @contextmanager
    def stage(self, text: str) -> Iterator[None]:
        """Shows what is being done, beside the latest figures, while the block runs; on a terminal only."""
        if self.enabled and self._is_live:
            from rich.spinner import Spinner

            self._live.update(Spinner("dots", text=f"{self._latest}  {text}" if self._latest else text))
        yield

    def iteration(self, metrics: Mapping[str, Any], seconds: float) -> None:
        """Figures of a finished iteration."""
        if not self.enabled:
            return
        self._done.append(seconds)
        self._latest = progress_line(metrics, done=self._done, last=self._last)
        if self._is_live:
            self._live.update(self._latest)
        else:
            self.say(self._latest)
        for alarm in metrics["alarms"]:
            self.say(f"  iteration {metrics['iteration'] + 1}: {alarm}")

    def close(self) -> None:
        """Leave the terminal as it was; the latest figures stay."""
        if self.enabled and self._is_live:
            self._live.stop()
            if self._latest:
                self.say(self._latest)
        self._latest = ""
        self._is_live = False


def progress_line(metrics: Mapping[str, Any], *, done: list[float], last: int) -> str:
    """`12/80 main  reward 2.103 +- 0.041  traj 0.612 ...  clip 12%  2.3 s/it  ETA 2:36`.

    Args:
      metrics: Of the newest iteration.
      done: Seconds of every iteration of this process so far; the newest 20 make the estimate.
      last: max_iterations.
    """
    recent = sum(done[-20:]) / len(done[-20:])
    left = round(max(0, last - metrics["iteration"] - 1) * recent)
    eta = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}" if left >= 3600 else f"{left // 60}:{left % 60:02d}"
    terms = [f"{name} {term['mean']:.3f}" for name, term in metrics["terms"].items()]
    return "  ".join(
        [
            f"{metrics['iteration'] + 1}/{last} {metrics['phase']}",
            f"reward {metrics['reward']:.3f} +- {metrics['reward_stderr']:.3f}",
            *terms,
            f"clip {metrics['clip_fraction']:.0%}",
            f"kl {metrics['kl']:.2e}",
            f"{recent:.1f} s/it",
            f"ETA {eta}",
        ]
    )
