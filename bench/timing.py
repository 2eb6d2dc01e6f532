"""Timing on the CPU and on CUDA: variants interleaved, best of several rounds, p20/p50/p80.

On a CPU each call is timed by the wall clock and by the processor time of this process. On CUDA each call lies between
two events, after a write that flushes the L2 cache and a kernel that spins until the host has queued the whole call:
the device never waits for Python between the events. The call's processor time is what queueing took on the host.
"""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

_FLUSH_BYTES = 256 * 2**20  # several times the L2 cache of any GPU so far
_GPU_ROUNDS = 5
_LEAD_SECONDS = (1e-3, 20e-3)  # the spinning kernel: at least, at most
_CYCLES_PER_SECOND = 2e9  # of a fast GPU; a slower one spins longer


class Timing(NamedTuple):
    """Milliseconds of one call."""

    p20: float
    p50: float
    p80: float
    cpu_p50: float  # processor time of this process: what wall time would be without neighbours on the machine
    calls: int
    on_gpu: bool = False

    @property
    def decisive(self) -> float:
        """What ratios are made of: device time on a GPU, processor time on a CPU."""
        return self.p50 if self.on_gpu else self.cpu_p50


def turns(
    variants: Mapping[str, Callable[[], object]], *, count: int, device: str | torch.device = "cpu"
) -> dict[str, Timing]:
    """Times calls of a second and more: every variant once a turn, its percentiles over the turns.

    Args:
      variants: Name -> function without arguments, each called once before, so that it is warm.
      count: Turns.
      device: "cpu" or "cuda".
    Returns:
      Name -> Timing in milliseconds.
    """
    on_gpu = torch.device(device).type == "cuda"
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device) if on_gpu else torch.empty(0)
    single: dict[str, list[Timing]] = {name: [] for name in variants}
    for _ in range(count):
        for name, function in variants.items():
            single[name].append(_turn_cuda(function, 1, flush) if on_gpu else _turn(function, 1))
    out = {}
    for name, found in single.items():
        wall = [one.p50 for one in found]
        p20, p50, p80 = (_percentile(wall, fraction) for fraction in (0.2, 0.5, 0.8))
        out[name] = Timing(p20, p50, p80, _percentile([one.cpu_p50 for one in found], 0.5), count, on_gpu)
    return out


def _percentile(samples: list[float], fraction: float) -> float:
    ordered = sorted(samples)
    return ordered[min(int(fraction * len(ordered)), len(ordered) - 1)]


def _turn(function: Callable[[], object], calls: int) -> Timing:
    wall, cpu = [], []
    for _ in range(calls):
        start, cpu_start = time.perf_counter_ns(), time.process_time_ns()
        function()
        cpu.append((time.process_time_ns() - cpu_start) / 1e6)
        wall.append((time.perf_counter_ns() - start) / 1e6)
    p20, p50, p80 = (_percentile(wall, fraction) for fraction in (0.2, 0.5, 0.8))
    return Timing(p20, p50, p80, _percentile(cpu, 0.5), calls)


def _turn_cuda(function: Callable[[], object], calls: int, flush: torch.Tensor) -> Timing:
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(calls)]
    cpu: list[float] = []
    lead = _LEAD_SECONDS[0]
    for start, end in events:
        flush.zero_()
        torch.cuda._sleep(int(lead * _CYCLES_PER_SECOND))
        start.record()
        wall, cpu_start = time.perf_counter(), time.process_time_ns()
        function()
        cpu.append((time.process_time_ns() - cpu_start) / 1e6)
        end.record()
        # A call that waits for the device takes the lead into its own wall time: hence the limit.
        lead = min(max(1.5 * (time.perf_counter() - wall), lead), _LEAD_SECONDS[1])
    torch.cuda.synchronize()
    device = [start.elapsed_time(end) for start, end in events]
    p20, p50, p80 = (_percentile(device, fraction) for fraction in (0.2, 0.5, 0.8))
    return Timing(p20, p50, p80, _percentile(cpu, 0.5), calls, on_gpu=True)


def measure(
    variants: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 5,
    seconds_per_round: float = 0.3,
    min_calls: int = 3,
    device: str | torch.device = "cpu",
) -> dict[str, Timing]:
    """Times every variant in turns and keeps each one's best round, by its median.

    Interleaved, because clocks and neighbours drift: a variant must not own the quiet minute.

    Args:
      variants: Name -> function without arguments; all their work on `device`.
      rounds: Turns; on a GPU at least five, whatever a caller saves on a slow CPU.
      seconds_per_round: Aimed length of a variant's turn.
      min_calls: Calls in a turn at least, whatever they take.
      device: "cpu" or "cuda".
    Returns:
      Name -> Timing in milliseconds.
    """
    on_gpu = torch.device(device).type == "cuda"
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device=device) if on_gpu else torch.empty(0)
    calls = {}
    for name, function in variants.items():
        function()  # first call: allocations, imports
        if on_gpu:
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if on_gpu:
            torch.cuda.synchronize()
        wanted = int(seconds_per_round / max(time.perf_counter() - start, 1e-7))
        calls[name] = max(min_calls, min(wanted, 1000) if on_gpu else wanted)
    best: dict[str, Timing] = {}
    for _ in range(max(rounds, _GPU_ROUNDS) if on_gpu else rounds):
        for name, function in variants.items():
            timing = _turn_cuda(function, calls[name], flush) if on_gpu else _turn(function, calls[name])
            if name not in best or timing.p50 < best[name].p50:
                best[name] = timing
    return best
