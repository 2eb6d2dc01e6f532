"""Prints a table of figures beside the last ones of the same device; appends lines to bench/history/ when asked."""

import datetime
import functools
import importlib.metadata
import json
import math
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.timing import Timing

HISTORY = Path(__file__).parent / "history"
"""Where `record` writes; a run of bench.gpu puts a folder of its own here."""
COMMITTED = HISTORY
"""What a figure is compared with."""
REGRESSION = 1.05
"""A case that takes this many times as long as its last line is marked."""


@dataclass(frozen=True)
class Case:
    """One measured case: what ran, how fast, and its peers in the same run.

    `num_bytes` (read and written at least) and `num_flops`, where given, are set against the measured ceilings.
    `peaks`: bytes of device memory that a call takes, of the backend and of peers, by their names.
    """

    name: str
    shape: str
    dtype: str
    backend: str
    timing: Timing
    peers: Mapping[str, Timing] = field(default_factory=dict)
    notes: str = ""
    num_bytes: int = 0
    num_flops: int = 0
    peaks: Mapping[str, int] = field(default_factory=dict)


def _output(*command: str) -> str:
    """What a command prints; empty where there is no such command or it fails."""
    try:
        result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def _git(*arguments: str) -> str:
    return _output("git", *arguments)


def nvidia_smi(*fields: str) -> str:
    """Fields of the first GPU as nvidia-smi gives them, separated by commas; it is only asked, nothing is set."""
    text = _output("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader")
    return text.splitlines()[0] if text else ""


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def device_name() -> str:
    """The GPU's name, else the processor's."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else _processor()


def environment() -> dict[str, Any]:
    """What a figure depends on besides the code: device, versions, commit, date."""
    versions = {}
    for package in ("triton", "gsplat"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = ""
    return {
        "device": device_name(),
        "driver": nvidia_smi("driver_version") if torch.cuda.is_available() else "",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **versions,
        "commit": _git("rev-parse", "--short", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def row(case: Case) -> dict[str, Any]:
    """The case as plain JSON types."""
    peers = {peer: timing._asdict() for peer, timing in case.peers.items()}
    return {**asdict(case), "timing": case.timing._asdict(), "peers": peers}


def decisive(timing: Mapping[str, Any]) -> float:
    """`Timing.decisive` of a timing read from a history line."""
    return float(timing["p50"] if timing.get("on_gpu") else timing["cpu_p50"])


_IDENTITY = ("name", "shape", "dtype", "backend")


@functools.cache
def _history(folder: Path) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """Lines of a history folder by case and device, oldest first; a line that was cut off is left out."""
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
                key = *(entry[k] for k in _IDENTITY), entry["device"]
            except (ValueError, KeyError):
                continue
            found.setdefault(key, []).append(entry)
    return found


def previous(entry: Mapping[str, Any], device: str, folder: Path | None = None) -> dict[str, Any] | None:
    """The last committed line of the same case, backend and device; None where there is none.

    Args:
      entry: name, shape, dtype and backend.
      device: As in the lines.
      folder: Of the history; default `COMMITTED`.
    """
    lines = _history(folder or COMMITTED).get((*(entry[k] for k in _IDENTITY), device), [])
    return lines[-1] if lines else None


def against_last(entry: Mapping[str, Any], device: str, folder: Path | None = None) -> str:
    """How many times as long as in its last line the case takes, "slower" beside it where it regressed; "" without."""
    before = previous(entry, device, folder)
    if before is None:
        return ""
    ratio = decisive(entry["timing"]) / decisive(before["timing"])
    return f"{ratio:.2f}x of {before['commit']}" + (" **slower**" if ratio > REGRESSION else "")


def print_table(cases: Sequence[Case]) -> None:
    """One line a case with its peers and how many times slower they are; the geometric mean of each peer last.

    Ratios are of device time on a GPU, on a CPU of processor time: neighbours on the machine disturb it less."""
    ratios: dict[str, list[float]] = {}
    device = device_name()
    for case in cases:
        t = case.timing
        figures = f"p20/p50/p80 {t.p20:8.3f} {t.p50:8.3f} {t.p80:8.3f} ms, CPU {t.cpu_p50:8.3f} ms"
        last = against_last(row(case), device)
        print(f"{case.name:12} {case.shape:30} {case.backend:10} {figures}" + (f"; {last}" if last else ""))
        for peer, timing in case.peers.items():
            ratio = timing.decisive / t.decisive
            ratios.setdefault(peer, []).append(ratio)
            print(f"{'':12} {peer:41} p50 {timing.p50:21.3f} ms, CPU {timing.cpu_p50:8.3f} ms, {ratio:.1f}x")
    for peer, values in ratios.items():
        mean = math.exp(sum(map(math.log, values)) / len(values))
        print(f"geometric mean against {peer}: {mean:.2f}x over {len(values)} cases")


def record(cases: Sequence[Case], file_name: str) -> Path:
    """Appends the cases to <HISTORY>/<file_name>.jsonl and returns its path."""
    HISTORY.mkdir(parents=True, exist_ok=True)
    path = HISTORY / f"{file_name}.jsonl"
    facts = environment()
    with path.open("a", encoding="utf-8") as file:
        for case in cases:
            file.write(json.dumps({**row(case), **facts}) + "\n")
    return path
