"""The results page of a hardware run: `python -m bench.page DIR [--publish] [--record]`, from the files of bench.gpu.

Every part writes it anew, so that it is there whenever a run is cut off. `--publish` copies it to
docs/results/<device>_<date>.md, `--record` appends the figures to bench/history/.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import report, targets
from bench.plan import ROOT

PAGE, CASES, FACTS, PARTS = "page.md", "cases.jsonl", "facts.json", "parts.jsonl"
RESULTS = ROOT / "docs" / "results"


@dataclass(frozen=True)
class Result:
    """How a part ended: "passed", "failed", "skipped" or "cut off", in how many seconds, with one line of detail and
    the GPU's clocks right after it."""

    part: str
    status: str
    seconds: float
    detail: str
    clocks: str = ""


def _lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines of a file; one that was cut off is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            found.append(entry)
    return found


def read_results(journal: Path) -> list[Result]:
    """Results of earlier calls, oldest first."""
    found = []
    for entry in _lines(journal):
        try:
            found.append(Result(**entry))
        except TypeError:
            continue
    return found


def write_facts(out: Path, gpu_reason: str | None) -> None:
    """What the page says of the machine, as it is found before the first part."""
    facts = report.environment() | {
        "gpu": gpu_reason is None,
        "no_gpu": gpu_reason or "",
        "python": platform.python_version(),
        "memory": report.nvidia_smi("memory.total"),
        "clocks": report.nvidia_smi("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw"),
        "clocks_max": report.nvidia_smi("clocks.max.sm", "clocks.max.mem"),
    }
    (out / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def collect(history: Path, out: Path) -> None:
    """Moves the lines that a part recorded in `history` to the run's cases.jsonl, each with its family."""
    for path in sorted(history.glob("*.jsonl")):
        with (out / CASES).open("a", encoding="utf-8") as file:
            for entry in _lines(path):
                file.write(json.dumps({"family": path.stem, **entry}) + "\n")
        path.unlink()


def cases(out: Path) -> list[tuple[str, dict[str, Any]]]:
    """(family, case) of a run, in the order in which they were first measured; of a case measured twice, the last."""
    found: dict[tuple[str, ...], tuple[str, dict[str, Any]]] = {}
    for entry in _lines(out / CASES):
        key = (*(entry[k] for k in ("family", "name", "shape", "dtype", "backend")),)
        found[key] = entry["family"], entry
    return list(found.values())


def ceilings(found: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, float]:
    """Measured bytes and FLOPs per second: {"num_bytes": ..., "num_flops": ...}; empty where they were not measured."""
    rates = {}
    for family, case in found:
        if family == "ceilings":
            for kind in ("num_bytes", "num_flops"):
                if case[kind]:
                    rates[kind] = case[kind] / report.decisive(case["timing"])
    return rates


def of_ceiling(case: Mapping[str, Any], rates: Mapping[str, float]) -> float | None:
    """The larger of a case's shares of the two ceilings, in per cent; None where it counts neither."""
    own = report.decisive(case["timing"])
    shares = [100.0 * case.get(kind, 0) / own / rate for kind, rate in rates.items() if case.get(kind, 0)]
    return max(shares, default=None)


def short(text: str) -> str:
    """One line of at most 200 characters."""
    return re.sub(r"\s+", " ", text)[:200]


def _cell(text: str) -> str:
    return short(text).replace("|", "/")


def _case_row(case: Mapping[str, Any], ceiling: float | None, device: str) -> str:
    t, own = case["timing"], report.decisive(case["timing"])
    peers = ", ".join(f"{peer} {report.decisive(timing) / own:.2f}x" for peer, timing in case["peers"].items())
    figures = f"{t['p20']:.3f} / {t['p50']:.3f} / {t['p80']:.3f} | {t['cpu_p50']:.3f}"
    share = "" if ceiling is None else f"{ceiling:.0f} %"
    last = report.against_last(case, device)
    name = f"{case['name']} {case['shape']} {case['dtype']}"
    return f"| {_cell(name)} | {case['backend']} | {figures} | {share} | {_cell(peers)} | {last} | {case['notes']} |"


def _means(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Geometric mean of the ratios to each peer."""
    ratios: dict[str, list[float]] = {}
    for case in found:
        for peer, timing in case["peers"].items():
            ratios.setdefault(peer, []).append(report.decisive(timing) / report.decisive(case["timing"]))
    return [
        f"Geometric mean against {peer}: {math.exp(sum(map(math.log, values)) / len(values)):.2f}x over {len(values)}."
        for peer, values in ratios.items()
    ]


def _head(facts: Mapping[str, Any]) -> list[str]:
    tree = "changed since" if facts["dirty"] else "clean"
    lines = [
        f"# Kernels and loop on {facts['device']}, {facts['date'][:10]}",
        "",
        f"Written by `python -m bench.gpu`, commit {facts['commit'] or 'unknown'} (tree {tree}). "
        f"Python {facts['python']}, torch {facts['torch']}, triton {facts['triton'] or 'none'}.",
    ]
    if facts["gpu"]:
        lines += [
            f"Driver {facts['driver']}, memory {facts['memory']}; clocks (SM, memory), temperature and power before "
            f"the first part: {facts['clocks']}; highest clocks {facts['clocks_max']}. Clocks were left as found.",
            "",
            "p20 / p50 / p80 in ms of device time, each call between two events after a write that flushes the L2 "
            "cache, variants in turns, the best of five rounds; CPU is the processor time of the call.",
        ]
    else:
        lines += [f"No GPU: {facts['no_gpu']}. Times are of this CPU: p20 / p50 / p80 by the clock, CPU beside them."]
    return lines


def text(out: Path, results: Sequence[Result]) -> str:
    """The page.

    Args:
      out: Folder of a run, with facts.json and what was measured.
      results: How the parts ended.
    """
    facts = json.loads((out / FACTS).read_text(encoding="utf-8"))
    found = cases(out)
    rates = ceilings(found)
    lines = [*_head(facts), "", "## Parts", "", "| part | | seconds | | clocks after it |", "|---|---|---|---|---|"]
    for r in results:
        lines.append(f"| {r.part} | {r.status} | {r.seconds:.0f} | {_cell(r.detail)} | {r.clocks} |")
    if rates:
        lines += ["", "Ceilings measured in this run: " + _rates(rates) + "."]
    for family in dict.fromkeys(family for family, _ in found):
        own = [case for name, case in found if name == family]
        lines += ["", f"## {family}", ""]
        lines += ["| case | backend | p20 / p50 / p80 ms | CPU ms | of ceiling | peers (times as long) | last | |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
        lines += [_case_row(case, of_ceiling(case, rates), facts["device"]) for case in own]
        lines += [line for mean in _means(own) for line in ("", mean)]
    rows = [(family, case, of_ceiling(case, rates)) for family, case in found]
    lines += ["", "## Targets", "", *targets.table(rows, gpu=facts["gpu"])]
    slower = [f"{f} {c['name']} {c['shape']}" for f, c in found if "slower" in report.against_last(c, facts["device"])]
    lines += ["", "## What got worse", "", *(f"- {name}" for name in slower)]
    if not slower:
        lines += ["Of the cases with an earlier line of this device none takes over 1.05 times as long."]
    skipped = [f"- {r.part}: {r.status}, {_cell(r.detail)}" for r in results if r.status != "passed"]
    lines += ["", "## What was not run", "", *(skipped or ["Nothing was left out."])]
    return "\n".join(lines) + "\n"


def _rates(rates: Mapping[str, float]) -> str:
    """Per millisecond to per second."""
    words = []
    if "num_bytes" in rates:
        words.append(f"copy {rates['num_bytes'] / 1e6:.0f} GB/s")
    if "num_flops" in rates:
        words.append(f"bf16 matmul {rates['num_flops'] / 1e9:.2f} TFLOP/s")
    return ", ".join(words)


def write(out: Path, results: Sequence[Result]) -> None:
    """Writes page.md anew."""
    (out / PAGE).write_text(text(out, results), encoding="utf-8")


def file_name(facts: Mapping[str, Any]) -> str:
    """<device>_<date>.md."""
    device = re.sub(r"[^a-z0-9]+", "_", facts["device"].lower().removeprefix("nvidia ")).strip("_")
    return f"{device}_{facts['date'][:10]}.md"


def publish(out: Path, folder: Path = RESULTS) -> Path:
    """Copies a run's page to docs/results/<device>_<date>.md and returns its path."""
    facts = json.loads((out / FACTS).read_text(encoding="utf-8"))
    target = folder / file_name(facts)
    shutil.copyfile(out / PAGE, target)
    return target


def append_history(out: Path, folder: Path = report.COMMITTED) -> int:
    """Appends a run's figures to the history, each once; returns how many."""
    count = 0
    for family, case in cases(out):
        line = json.dumps({name: value for name, value in case.items() if name != "family"})
        path = folder / f"{family}.jsonl"
        if path.exists() and line in path.read_text(encoding="utf-8").splitlines():
            continue
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        count += 1
    return count


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the page of a run that was copied here."""
    parser = argparse.ArgumentParser(prog="python -m bench.page", description=__doc__)
    parser.add_argument("out", type=Path, help="folder of a run of bench.gpu")
    parser.add_argument("--publish", action="store_true", help="copy it to docs/results/")
    parser.add_argument("--record", action="store_true", help="append its figures to bench/history/")
    options = parser.parse_args(arguments)
    if not (options.out / FACTS).exists():
        parser.error(f"out must be a folder of bench.gpu, {options.out} has no {FACTS}")
    last = {r.part: r for r in read_results(options.out / PARTS)}
    write(options.out, list(last.values()))
    print((options.out / PAGE).read_text(encoding="utf-8"))
    if options.publish:
        print(f"written to {publish(options.out)}")
    if options.record:
        print(f"{append_history(options.out)} lines appended to {report.COMMITTED}")


if __name__ == "__main__":
    main()
