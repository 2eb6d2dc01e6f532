"""Verdicts in the user's cache: a JSON file for each family, backend and identity of a device; written whole or not.

What cannot be read, or is not what this module writes, is no verdict. Nothing here is trusted further than that: a
cache that cannot be written costs a verification in every process, and no more.
"""

import contextlib
import hashlib
import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows: two processes may then verify the same, and the later verdict stays
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
ENVIRONMENT_VARIABLE = "WORLDR1_CACHE"


@dataclass(frozen=True)
class Verdict:
    """Whether a family's kernels on one backend were right on one kind of device."""

    family: str
    backend: str
    identity: dict[str, str]  # Target.identity: what it depends on
    passed: bool
    reason: str  # one line where not passed, else ""
    comparisons: int  # of tensors
    seconds: float
    when: str
    report: str = ""  # path of the report where not passed
    temporary: bool = False  # the device was busy or full: nothing is known of the kernels, and nothing is kept
    format: int = FORMAT


def folder() -> Path:
    """WORLDR1_CACHE, else XDG_CACHE_HOME/worldr1, else ~/.cache/worldr1; below it, `verdicts`.

    Raises:
      OSError: this user has no home.
    """
    named, xdg = os.environ.get(ENVIRONMENT_VARIABLE, ""), os.environ.get("XDG_CACHE_HOME", "")
    try:
        if named:
            return Path(named).expanduser().absolute() / "verdicts"
        base = Path(xdg) if os.path.isabs(xdg) else Path.home() / ".cache"
    except RuntimeError as error:
        raise OSError(f"the cache needs a home: {error}; set {ENVIRONMENT_VARIABLE}") from error
    return base / "worldr1" / "verdicts"


def path_of(family: str, backend: str, identity: dict[str, str]) -> Path:
    """The file of a verdict. Raises OSError as `folder`."""
    text = json.dumps(identity, sort_keys=True)
    return folder() / f"{family}-{backend}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def load(family: str, backend: str, identity: dict[str, str]) -> Verdict | None:
    """The verdict that is kept; None where there is none, or rubbish, or that of something else."""
    try:
        found = json.loads(path_of(family, backend, identity).read_text(encoding="utf-8"))
        verdict = Verdict(**found)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    of_us = (verdict.family, verdict.backend, verdict.identity, verdict.format) == (family, backend, identity, FORMAT)
    plain = [field for field in fields(Verdict) if field.name != "identity"]
    well_formed = all(type(getattr(verdict, field.name)) is field.type for field in plain)
    if not (of_us and well_formed) or verdict.temporary or (verdict.passed and verdict.comparisons <= 0):
        return None
    return verdict


def keep(verdict: Verdict, report: str) -> tuple[Verdict, str]:
    """Writes a verdict, and its report where there is one.

    Returns:
      The verdict with the path of its report (in the system's folder of temporary files where the cache cannot be
      written, "" where nothing can), and why it is not kept, or "".
    """
    trouble = ""
    try:
        path = path_of(verdict.family, verdict.backend, verdict.identity)
        path.parent.mkdir(parents=True, exist_ok=True)
        if report and not verdict.temporary:
            _write(path.with_suffix(".report.txt"), report)
            verdict = replace(verdict, report=str(path.with_suffix(".report.txt")))
        if not verdict.temporary:
            _write(path, json.dumps({**asdict(verdict), "seconds": float(verdict.seconds)}, indent=1) + "\n")
    except OSError as error:
        trouble = str(error)
    if report and not verdict.report:
        with contextlib.suppress(OSError):
            descriptor, name = tempfile.mkstemp(prefix=f"worldr1_{verdict.family}_{verdict.backend}_", suffix=".txt")
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(report)
            verdict = replace(verdict, report=name)
    return verdict, trouble


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{secrets.token_hex(4)}_{path.name}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, path)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def lock(family: str, backend: str, identity: dict[str, str], seconds: float) -> Iterator[bool]:
    """Inside, no other process verifies the same; or does, after `seconds`, or where the cache or its file system has
    no locks. The system's lock (flock) ends with its holder, however that ends: a file that was left is no lock."""
    descriptor = -1
    try:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                path = path_of(family, backend, identity).with_suffix(".lock")
                path.parent.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        yield descriptor >= 0 and _take(descriptor, time.monotonic() + seconds)
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _take(descriptor: int, until: float) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.1)
        except OSError:
            return False
