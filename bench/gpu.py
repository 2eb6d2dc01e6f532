"""Build, check, measure, and write a results page: `python -m bench.gpu [--minutes 9] [--out DIR]`, on a fresh machine.

Parts run most valuable first, each in a process of its own and inside the minutes that are left; what a part measured
is written when it ends, and a second call goes on with the parts that are missing. A part whose requirement is not here
(GPU, nvcc, memory, package, tool) is skipped with the reason. The benchmarks of a family run only if its tests passed.
Without a GPU the parts measure the CPU. See bench/README.md.
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

from bench import page, plan, probes, report
from bench.page import Result, read_results
from bench.plan import ROOT, Part

_ERROR_LINES = 15
_SANITIZER_ERROR = re.compile(r"^========= +(Error|Invalid|Uninit|Barrier error|.*hazard|Program hit)", re.MULTILINE)


@dataclass(frozen=True)
class Options:
    """Of a run: minutes for everything, words that choose parts, wheels to install for it, the folder for what is not
    kept (None: work/ inside the run's folder)."""

    minutes: float = 9.0
    only: tuple[str, ...] = ()
    wheels: tuple[Path, ...] = ()
    work: Path | None = None


@dataclass
class _Running:
    part: Part
    process: subprocess.Popen[bytes]
    log: Path
    started: float
    deadline: float


class Runner:
    """Runs parts and keeps what they leave: parts.jsonl, cases.jsonl, log.txt and page.md in `out`."""

    def __init__(
        self, out: Path, options: Options, *, gpu_reason: str | None, say: Callable[[str], None] = print
    ) -> None:
        self.out, self.work = out, options.work or out / "work"
        self.gpu_reason, self.say = gpu_reason, say
        self.site, self.wheels = self.work / "site", options.wheels
        self.minutes = options.minutes
        self.parts = plan.order(plan.parts(gpu=gpu_reason is None, wheels=options.wheels), options.only)
        self.deadline = time.monotonic() + 60.0 * self.minutes
        self.journal = out / "parts.jsonl"
        self.done = {r.part: r for r in read_results(self.journal) if r.status == "passed"}
        self.results: dict[str, Result] = {}
        self.running: dict[str, _Running] = {}

    def run(self) -> list[Result]:
        """All parts in order; one result each, those of earlier calls included."""
        for folder in (self.out, self.work / "logs", self.work / "history", self.site):
            folder.mkdir(parents=True, exist_ok=True)
        page.write_facts(self.out, self.gpu_reason)
        try:
            for part in self.parts:
                if part.measures:
                    self._wait_for_background()
                self._one(part)
            self._wait_for_background()
        finally:
            for one in self.running.values():
                _kill(one.process)
        return [self.results[part.name] for part in self.parts]

    def describe(self) -> str:
        """What `run` would do: each part's limit if those before it take their share, or why it is skipped."""
        left = 60.0 * self.minutes
        lines = [f"{self.minutes:g} minutes; a part may take twice its share of what is left, a minute at least"]
        coming = [part for part in self.parts if self._may_run(part)]
        for part in self.parts:
            if part.name in self.done and not part.always:
                lines.append(f"{part.name:22} done in an earlier call")
            elif part not in coming:
                reasons = (probes.missing(r, (self.site, *self.wheels)) for r in part.requires)
                lines.append(f"{part.name:22} skipped: {next(reason for reason in reasons if reason)}")
            else:
                coming.remove(part)
                seconds = plan.limit(part, coming, left)
                command = " ".join((*part.prefix, "python", *part.command))
                beside = ", beside the next parts" if part.background else ""
                lines.append(f"{part.name:22} about {seconds / 2:3.0f} s, at most {seconds:3.0f} s{beside}: {command}")
                left -= 0.0 if part.background else seconds / 2
        return "\n".join(lines)

    def reason_to_skip(self, part: Part) -> str | None:
        """The first requirement that does not hold, or the part that it needs and that has not passed."""
        for requirement in part.requires:
            reason = probes.missing(requirement, (self.site,))
            if reason is not None:
                return reason
        for need in part.needs:
            if need not in self.results or self.results[need].status != "passed":
                return f"{need} has not passed"
        return None

    def _one(self, part: Part) -> None:
        left = self.deadline - time.monotonic()
        if part.name in self.done and not part.always:
            self._keep(self.done[part.name], journal=False)
            return
        reason = self.reason_to_skip(part)
        if reason is not None:
            self._keep(Result(part.name, "skipped", 0.0, reason), journal=True)
            return
        if left < 1.0:
            self._keep(Result(part.name, "cut off", 0.0, "no time left"), journal=True)
            return
        following = self.parts[self.parts.index(part) + 1 :]
        rest = [p for p in following if self._may_run(p)]
        seconds = plan.limit(part, rest, left)
        self.say(f"{part.name} ... (at most {seconds:.0f} s, {left / 60:.1f} min left)")
        running = self._start(part, seconds)
        self.running[part.name] = running
        if not part.background:
            self._finish(running)

    def _may_run(self, part: Part) -> bool:
        """Whether to keep time for a later part; a wheel that is still to be installed counts as installed."""
        if part.name in self.done and not part.always:
            return False
        return all(probes.missing(r, (self.site, *self.wheels)) is None for r in part.requires)

    def _start(self, part: Part, seconds: float) -> _Running:
        log = self.work / "logs" / f"{part.name.replace(' ', '_')}.log"
        values = {"{out}": str(self.out), "{work}": str(self.work), "{seconds}": f"{0.95 * seconds:.0f}"}
        command = [*part.prefix, sys.executable, *(_filled(argument, values) for argument in part.command)]
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, cwd=ROOT, env=self._environment(part), stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        now = time.monotonic()
        return _Running(part, process, log, now, now + max(seconds, 1.0))

    def _environment(self, part: Part) -> dict[str, str]:
        # cudnn and compilers may use all cores; the kernels' own tests want one thread (see tests/conftest.py).
        wanted = {"WORLDR1_BUILD": "auto", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        environment = {**wanted, **os.environ, **dict(part.environment)}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(self.site), os.environ.get("PYTHONPATH")]))
        return environment

    def _finish(self, running: _Running) -> None:
        try:
            running.process.wait(timeout=max(running.deadline - time.monotonic(), 0.0))
            code: int | None = running.process.returncode
        except subprocess.TimeoutExpired:
            _kill(running.process)
            code = None
        del self.running[running.part.name]
        text = running.log.read_text(encoding="utf-8", errors="replace")
        result = outcome(running.part, code, time.monotonic() - running.started, text)
        with (self.out / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"\n===== {running.part.name}: {result.status}, {result.seconds:.0f} s\n{text}")
        page.collect(self.work / "history", self.out)
        self._keep(result, journal=True)

    def _wait_for_background(self) -> None:
        for running in list(self.running.values()):
            self._finish(running)

    def _keep(self, result: Result, *, journal: bool) -> None:
        self.results[result.part] = result
        if journal:
            with self.journal.open("a", encoding="utf-8") as file:
                file.write("\n" + json.dumps(asdict(result)))  # a line cut off before stays a line of its own
        self.say(f"{result.part:22} {result.status:8} {result.seconds:7.1f} s  {page.short(result.detail)}")
        page.write(self.out, list(self.results.values()))


def _filled(argument: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        argument = argument.replace(name, value)
    return argument


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)  # its own session: the children go too
        process.wait()


def outcome(part: Part, code: int | None, seconds: float, text: str) -> Result:
    """How a part ended, from its exit code (None: killed at its limit) and its output."""
    lines = [line for line in text.splitlines() if line.strip()]
    clocks = report.nvidia_smi("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw")
    is_pytest = "pytest" in part.command
    if code is None:
        passed = sum(" PASSED" in line for line in lines)
        if _SANITIZER_ERROR.search(text):
            return Result(part.name, "failed", seconds, " | ".join(lines[-_ERROR_LINES:])[-1500:], clocks)
        so_far = f"; {passed} tests had passed" if passed else ""
        return Result(part.name, "cut off", seconds, f"no time left after {seconds:.0f} s{so_far}", clocks)
    # 5 is pytest's word for "nothing to run": nothing was checked, so nothing may be timed.
    if is_pytest and code == 5:
        why = next((line for line in reversed(lines) if line.startswith("SKIPPED")), "no tests for this device")
        return Result(part.name, "skipped", seconds, why, clocks)
    if code != 0:
        return Result(part.name, "failed", seconds, " | ".join(lines[-_ERROR_LINES:])[-1500:], clocks)
    # All skipped is no proof either.
    if is_pytest and not re.search(r"\d+ passed", text):
        return Result(part.name, "skipped", seconds, lines[-1] if lines else "no output", clocks)
    return Result(part.name, "passed", seconds, lines[-1] if lines else "", clocks)


def _wheels(folder: Path | None) -> tuple[Path, ...]:
    if folder is None:
        return ()
    found = tuple(sorted(folder.resolve().glob("*.whl")))
    if not found:
        raise ValueError(f"bench.gpu: --wheels must be a folder of .whl files, got {folder} without any")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns 0 when every part passed or was skipped."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=9.0, help="time for everything")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of the five files that are kept")
    parser.add_argument("--work", type=Path, help="folder of all others; default OUT/work")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install for the run: gsplat, roma ...")
    parser.add_argument(
        "--only", nargs="+", default=[], help="words; parts whose name holds one of them, and their needs"
    )
    parser.add_argument("--plan", action="store_true", help="print what would run, and run nothing")
    parser.add_argument("--publish", action="store_true", help="copy the page to docs/results/<device>_<date>.md")
    options = parser.parse_args(arguments)
    if options.minutes <= 0:
        parser.error(f"--minutes must be > 0, got {options.minutes}")
    work = None if options.work is None else options.work.resolve()
    out = options.out.resolve()
    try:
        settings = Options(options.minutes, tuple(options.only), _wheels(options.wheels), work)
        runner = Runner(out, settings, gpu_reason=probes.gpu_missing(), say=lambda line: print(line, flush=True))
        if options.plan:
            print(runner.describe())
            return 0
        results = runner.run()
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print((out / page.PAGE).read_text(encoding="utf-8"))
    if options.publish:
        print(f"written to {page.publish(out)}")
    return 1 if any(r.status in ("failed", "cut off") for r in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
