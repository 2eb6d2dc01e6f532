"""Prints a table of figures and, when asked to record, appends one JSON line a case to bench/history/."""

import datetime
import importlib.metadata
import json
import math
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from bench.timing import Timing

HISTORY = Path(__file__).parent / "history"


@dataclass(frozen=True)
class Case:
    """One measured case: what ran, how fast, and its peers in the same run."""

    name: str
    shape: str
    dtype: str
    backend: str
    timing: Timing
    peers: Mapping[str, Timing] = field(default_factory=dict)
    notes: str = ""


def _git(*arguments: str) -> str:
    result = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return result.stdout.strip()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def environment() -> dict[str, object]:
    """What a figure depends on besides the code: device, versions, commit, date."""
    versions = {}
    for package in ("triton", "gsplat"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = ""
    return {
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **versions,
        "commit": _git("rev-parse", "--short", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def print_table(cases: Sequence[Case]) -> None:
    """One line a case with its peers and how many times slower they are; the geometric mean of each peer last.

    Ratios are of device time on a GPU, on a CPU of processor time: neighbours on the machine disturb it less."""
    ratios: dict[str, list[float]] = {}
    for case in cases:
        t = case.timing
        figures = f"p20/p50/p80 {t.p20:8.3f} {t.p50:8.3f} {t.p80:8.3f} ms, CPU {t.cpu_p50:8.3f} ms"
        print(f"{case.name:12} {case.shape:30} {case.backend:10} {figures}")
        for peer, timing in case.peers.items():
            ratio = timing.decisive / t.decisive
            ratios.setdefault(peer, []).append(ratio)
            print(f"{'':12} {peer:41} p50 {timing.p50:21.3f} ms, CPU {timing.cpu_p50:8.3f} ms, {ratio:.1f}x")
    for peer, values in ratios.items():
        mean = math.exp(sum(map(math.log, values)) / len(values))
        print(f"geometric mean against {peer}: {mean:.2f}x over {len(values)} cases")


def record(cases: Sequence[Case], file_name: str) -> Path:
    """Appends the cases to bench/history/<file_name>.jsonl and returns its path."""
    HISTORY.mkdir(exist_ok=True)
    path = HISTORY / f"{file_name}.jsonl"
    facts = environment()
    with path.open("a", encoding="utf-8") as file:
        for case in cases:
            line = asdict(case)
            line["timing"] = case.timing._asdict()
            line["peers"] = {peer: timing._asdict() for peer, timing in case.peers.items()}
            file.write(json.dumps({**line, **facts}) + "\n")
    return path
