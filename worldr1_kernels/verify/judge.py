"""Starts the process that runs the checks, and makes a verdict of what it left behind.

What it says is not taken at its word: the checks must be those that there are, each must have compared something, on
the device that was asked for, and the process must have ended well.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from worldr1_kernels.verify import store
from worldr1_kernels.verify.store import Verdict
from worldr1_kernels.verify.target import PACKAGE, Target

SECONDS = 300.0
"""That the checks of one family and backend may take. Seconds, once Triton has compiled its kernels."""

GRACE = 60.0
"""That a process waits for another one that verifies the same, beyond the time which that one has."""

_NOT_HANDED_ON = ("WORLDR1_BACKEND", "TRITON_INTERPRET", "PYTHONOPTIMIZE", "PYTHONPATH")
_STDERR_LINES = 60


class Ended(NamedTuple):
    """How a process ended."""

    found: Any  # what it wrote, None where nothing or rubbish
    code: int | None  # None: it was ended after its time
    stderr: str


class Finding(NamedTuple):
    """What is to be said of the checks."""

    failures: list[str]
    temporary: str
    comparisons: int


def verify(target: Target, family: str, backend: str, *, again: bool = False, seconds: float = SECONDS) -> Verdict:
    """Whether the kernels of a family are right on a device: the verdict that is kept, or a new one.

    Args:
      target: The device.
      family: One of `_dispatch.FAMILIES`' values.
      backend: One of `target.backends(family)`.
      again: Whatever is kept.
      seconds: After which the process that runs the checks is ended, and its kernels have failed.
    Returns:
      Verdict. One that is `temporary` is not kept.
    """
    identity = target.identity()
    known = None if again else store.load(family, backend, identity)
    if known is not None:
        return known
    with store.lock(family, backend, identity, seconds + GRACE):
        known = None if again else store.load(family, backend, identity)  # of whoever held the lock
        if known is not None:
            return known
        start = time.monotonic()
        ended = _run(target, family, backend, seconds)
        found = judge(ended, target, family, backend, seconds)
        took = round(time.monotonic() - start, 1)
        reason = found.temporary or (found.failures[0] if found.failures else "")
        if len(found.failures) > 1 and not found.temporary:
            reason += f" (and {len(found.failures) - 1} more)"
        verdict = Verdict(
            family=family,
            backend=backend,
            identity=identity,
            passed=not reason,
            reason=reason,
            comparisons=found.comparisons,
            seconds=took,
            when=time.strftime("%Y-%m-%d %H:%M:%S %z"),
            temporary=bool(found.temporary),
        )
        verdict, trouble = store.keep(verdict, _report(verdict, found.failures, ended.stderr) if reason else "")
        if trouble:
            print(
                f"worldr1_kernels: the verdict cannot be kept ({trouble}), every process verifies again; set "
                f"{store.ENVIRONMENT_VARIABLE} to a folder that can be written",
                file=sys.stderr,
            )
        return verdict


def _run(target: Target, family: str, backend: str, seconds: float) -> Ended:
    """Runs the checks in a process of its own. Never raises on its account."""
    paths = [str(PACKAGE.parent), *(path for path in sys.path if path)]
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_HANDED_ON}
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    try:
        with tempfile.TemporaryDirectory(prefix="worldr1_verify_", ignore_cleanup_errors=True) as folder:
            result, said = Path(folder) / "found.json", Path(folder) / "stderr.txt"
            command = [sys.executable, "-P", "-m", "worldr1_kernels.verify.worker", target.spec, str(target.device)]
            with open(said, "wb") as output:
                process = subprocess.Popen(
                    [*command, family, backend, str(result), str(seconds)],
                    env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                )  # fmt: skip
                code = _wait(process, seconds)
            stderr = said.read_text(encoding="utf-8", errors="replace")
            try:
                found = json.loads(result.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError):
                found = None
            return Ended(found, code, stderr)
    except (OSError, subprocess.SubprocessError) as error:
        return Ended({"temporary": f"no process could be started: {error}"}, 0, "")


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Its exit code; None where it did not end in time. It never outlives this."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may hold it; it is not waited for
                process.wait(10.0)


def judge(ended: Ended, target: Target, family: str, backend: str, seconds: float) -> Finding:
    """What is to be said of what a process wrote, how it ended, and what it should have done."""
    found, code, stderr = ended
    last = [line for line in stderr.splitlines() if line.strip()]
    where = next((f", in {line}" for line in reversed(last) if line.startswith("check: ")), "")
    if code is None:
        return Finding([f"its process had not ended after {seconds:.0f} s{where}"], "", 0)
    if code == -signal.SIGKILL:
        return Finding([], f"its process was killed{where}, as a machine without memory does", 0)
    if code < 0:
        with contextlib.suppress(ValueError):
            return Finding([f"its process died of {signal.Signals(-code).name}{where}"], "", 0)
        return Finding([f"its process died of signal {-code}{where}"], "", 0)
    if code != 0:  # an exception outside the checks: nothing of the kernels ran
        return Finding([], f"the checks could not run: {last[-1] if last else f'exit code {code}'}", 0)
    if not isinstance(found, dict):
        return Finding(["its process wrote no result"], "", 0)
    if found.get("temporary"):
        return Finding([], str(found["temporary"]), 0)
    if found.get("identity") != target.identity():
        return Finding([], f"the checks saw another device, or other files: {found.get('identity')}", 0)
    try:
        return _weigh(found, target, family, backend)
    except (KeyError, TypeError, AttributeError) as error:
        return Finding([f"its process wrote rubbish: {type(error).__name__}: {error}"], "", 0)


def _weigh(found: dict[str, Any], target: Target, family: str, backend: str) -> Finding:
    failures, comparisons = [], 0
    if (found["family"], found["backend"]) != (family, backend):
        failures.append(f"the checks of {found['family']} {found['backend']} ran")
    for done in found["checks"]:
        failures += [f"{done['name']}: {failure}" for failure in done["failures"]]
        comparisons += int(done["comparisons"])
    wanted = target.checks(family)
    done = {str(check["name"]): check for check in found["checks"]}
    for check in wanted:
        if check.name not in done:
            failures.append(f"{check.name}: did not run")
        elif done[check.name]["failures"]:
            continue
        elif done[check.name]["comparisons"] < 1 or (done[check.name]["values"] < 1 and not check.is_empty):
            failures.append(f"{check.name}: compared nothing")
    if not wanted:
        failures.append(f"{family} has no checks")
    return Finding(failures, "", comparisons)


def _report(verdict: Verdict, failures: list[str], stderr: str) -> str:
    lines = [
        f"worldr1_kernels: {verdict.family}, backend {verdict.backend}, {verdict.when}",
        *(f"  {name}: {value}" for name, value in verdict.identity.items()),
        f"result: {verdict.reason}",
        "",
        f"{len(failures)} failures:",
        *(f"  {failure}" for failure in failures),
        "",
        f"last lines of the process that ran the checks ({_STDERR_LINES} at most):",
        *(f"  {line}" for line in stderr.splitlines()[-_STDERR_LINES:]),
        "",
        f"again: python -m worldr1_kernels verify --family {verdict.family} --again",
    ]
    return "\n".join(lines) + "\n"
