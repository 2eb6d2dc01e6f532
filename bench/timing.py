"""Timing on the CPU: variants interleaved, best of several rounds, p20/p50/p80 of wall time and the CPU time."""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple


class Timing(NamedTuple):
    """Milliseconds of one call."""

    p20: float
    p50: float
    p80: float
    cpu_p50: float  # processor time of this process: what wall time would be without neighbours on the machine
    calls: int


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


def measure(
    variants: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 5,
    seconds_per_round: float = 0.3,
    min_calls: int = 3,
) -> dict[str, Timing]:
    """Times every variant in turns and keeps each one's best round, by its median.

    Interleaved, because clocks and neighbours drift: a variant must not own the quiet minute.

    Args:
      variants: Name -> function without arguments, CPU work only.
      rounds: Turns.
      seconds_per_round: Aimed length of a variant's turn.
      min_calls: Calls in a turn at least, whatever they take.
    Returns:
      Name -> Timing in milliseconds.
    """
    calls = {}
    for name, function in variants.items():
        function()  # first call: allocations, imports
        start = time.perf_counter()
        function()
        calls[name] = max(min_calls, int(seconds_per_round / max(time.perf_counter() - start, 1e-7)))
    best: dict[str, Timing] = {}
    for _ in range(rounds):
        for name, function in variants.items():
            timing = _turn(function, calls[name])
            if name not in best or timing.p50 < best[name].p50:
                best[name] = timing
    return best
