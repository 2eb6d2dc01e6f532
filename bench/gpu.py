"""Build, check, measure, and print a short table: `python -m bench.gpu [--minutes 9] [--out DIR]`, on a fresh machine.

Parts run one after the other, most valuable first, each in a process of its own and inside the minutes that are left. A
part's lines are written when it ends, so a run that is cut off still counts; a second call goes on with the parts that
are missing. The benchmarks of a family run only if its tests passed. Without a GPU the parts measure the CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = ("rasterize", "noise_transport", "sde_step", "se3")
_ERROR_LINES = 15


@dataclass(frozen=True)
class Result:
    """How a part ended: "passed", "failed", "skipped" or "cut off", in how many seconds, with one line of detail."""

    part: str
    status: str
    seconds: float
    detail: str


@dataclass(frozen=True)
class Part:
    """A step of the run.

    Fields: name; command, without the interpreter; needs, parts that must have passed.
    """

    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...] = ()


def parts(*, gpu: bool) -> list[Part]:
    """All parts in the order of their value: the build first, then each family's tests and at once its benchmarks."""
    # With a GPU only what needs one: the CPU's share of the tests runs everywhere else.
    select = "gpu" if gpu else "not slow and not gpu"
    found = [
        Part("build", ("setup.py", "build_ext", "--inplace")),
        Part("ceilings", ("-m", "bench.ceilings"), needs=("build",)),
    ]
    for family in FAMILIES:
        tests = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "tests" / "kernels").glob(f"test_{family}*.py"))
        flags = ("-q", "-x", "-p", "no:cacheprovider", "-m", select)
        found.append(Part(f"test {family}", ("-m", "pytest", *flags, *tests), needs=("build",)))
        bench = ROOT / "bench" / f"test_{family}.py"
        if bench.exists():
            command = ("-m", "pytest", "-q", "-s", str(bench.relative_to(ROOT)), "--record", "--history", "{out}")
            found.append(Part(f"bench {family}", command, needs=(f"test {family}",)))
    return found


def _environment() -> dict[str, str]:
    wanted = {"WORLDR1_BUILD": "auto", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **{name: value for name, value in wanted.items() if name not in os.environ}}


def run_part(part: Part, out: Path, seconds: float) -> Result:
    """Runs one part; its output goes to DIR/<part>.log.

    Args:
      part: What to run.
      out: The run's folder.
      seconds: The part and its children are killed after this long.
    Returns:
      Result; `detail` is the last line of the output, or the last lines where it failed.
    """
    log = out / f"{part.name.replace(' ', '_')}.log"
    command = [sys.executable, *(argument.replace("{out}", str(out)) for argument in part.command)]
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=_environment(), stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(timeout=max(seconds, 1.0))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
    elapsed = time.monotonic() - started
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if code is None:
        return Result(part.name, "cut off", elapsed, f"no time left after {elapsed:.0f} s; see {log.name}")
    # 5 is pytest's word for "nothing to run": nothing was checked, so nothing may be timed.
    if code == 5 and "pytest" in part.command:
        return Result(part.name, "skipped", elapsed, "no tests for this device")
    if code != 0:
        return Result(part.name, "failed", elapsed, " | ".join(lines[-_ERROR_LINES:])[-1500:])
    return Result(part.name, "passed", elapsed, lines[-1] if lines else "")


def run(
    out: Path, *, minutes: float, only: Sequence[str] = (), gpu_reason: str | None, say: Callable[[str], None] = print
) -> list[Result]:
    """Runs the parts that have not passed in `out` yet.

    Args:
      out: Gets parts.jsonl, a log for each part, the benchmarks' JSON lines and table.md; made when it is not there.
      minutes: For everything; a part that finds no time left is "cut off" and is tried again by the next call.
      only: Words; a part runs when its name holds one of them. The parts that it needs run too.
      gpu_reason: None when there is a GPU, else why not.
      say: Takes lines of progress.
    Returns:
      One result for each part, those of earlier calls included.
    Raises:
      ValueError: `only` names no part.
    """
    out.mkdir(parents=True, exist_ok=True)
    plan = parts(gpu=gpu_reason is None)
    wanted = _with_needs(plan, only)
    journal = out / "parts.jsonl"
    done = {r.part: r for r in read_results(journal) if r.status == "passed"}
    deadline = time.monotonic() + 60.0 * minutes
    results: dict[str, Result] = {}
    for part in plan:
        if part.name not in wanted:
            continue
        missing = [name for name in part.needs if results.get(name) is None or results[name].status != "passed"]
        left = deadline - time.monotonic()
        if part.name in done:
            result = done[part.name]
        elif missing:
            result = Result(part.name, "skipped", 0.0, f"{missing[0]} has not passed")
        elif left < 1.0:
            result = Result(part.name, "cut off", 0.0, "no time left")
        else:
            say(f"{part.name} ... ({left / 60:.1f} min left)")
            result = run_part(part, out, left)
            with journal.open("a", encoding="utf-8") as file:
                file.write("\n" + json.dumps(asdict(result)))  # a line cut off before stays a line of its own
        results[part.name] = result
        say(f"{part.name:22} {result.status:8} {result.seconds:7.1f} s  {_short(result.detail)}")
        (out / "table.md").write_text(table(out, list(results.values()), gpu_reason), encoding="utf-8")
    return list(results.values())


def _with_needs(plan: Sequence[Part], only: Sequence[str]) -> set[str]:
    """Names of the parts that hold one of the words, and of those that they need."""
    known = {part.name: part for part in plan}
    wanted = {name for name in known if not only or any(word in name for word in only)}
    if not wanted:
        raise ValueError(f"bench.gpu: --only must be part of one of {', '.join(known)}, got {' '.join(only)}")
    while more := {need for name in wanted for need in known[name].needs} - wanted:
        wanted |= more
    return wanted


def read_results(journal: Path) -> list[Result]:
    """Results of earlier calls, oldest first; a line that was cut off is left out."""
    found = []
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []:
        try:
            found.append(Result(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


def _short(text: str) -> str:
    return re.sub(r"\s+", " ", text)[:160]


def table(out: Path, results: Sequence[Result], gpu_reason: str | None) -> str:
    """The run as Markdown: how each part ended, then every measured case with the ratio to its peers."""
    lines = [f"No GPU: {gpu_reason}", ""] if gpu_reason else []
    lines += ["| part | | seconds | |", "|---|---|---|---|"]
    lines += [f"| {r.part} | {r.status} | {r.seconds:.0f} | {_short(r.detail).replace('|', '/')} |" for r in results]
    cases = []
    for path in sorted(p for p in out.glob("*.jsonl") if p.name != "parts.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            cases.append((path.stem, json.loads(line)))
    if cases:
        lines += [
            "",
            "| family | case | backend | p50 ms | against (times as long) | notes |",
            "|---|---|---|---|---|---|",
        ]
    for family, case in cases:
        key = "p50" if case["timing"].get("on_gpu") else "cpu_p50"
        own = case["timing"][key]
        peers = ", ".join(f"{peer} {timing[key] / own:.2f}x" for peer, timing in case["peers"].items())
        name = f"{case['name']} {case['shape']}"
        lines.append(f"| {family} | {name} | {case['backend']} | {own:.3f} | {peers} | {case['notes']} |")
    return "\n".join(lines) + "\n"


def gpu_missing() -> str | None:
    """None when torch sees a CUDA device, else the reason."""
    import torch

    if torch.cuda.is_available():
        return None
    return "torch is built without CUDA" if torch.version.cuda is None else "torch sees no CUDA device"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0 when every part passed or was skipped."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=9.0, help="time for everything")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of logs, JSON lines and table.md")
    parser.add_argument(
        "--only", nargs="+", default=[], help="words; parts whose name holds one of them, and their needs"
    )
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        parser.error(f"--minutes must be > 0, got {options.minutes}")
    reason = gpu_missing()
    try:
        results = run(
            options.out.resolve(), minutes=options.minutes, only=options.only, gpu_reason=reason,
            say=lambda line: print(line, flush=True),
        )  # fmt: skip
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print((options.out / "table.md").read_text(encoding="utf-8"))
    return 1 if any(r.status in ("failed", "cut off") for r in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
