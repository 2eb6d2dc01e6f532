"""One run at a time in a folder: a lock of the operating system, and a note beside it that says who holds it.

The lock (flock) ends with its process, however that ends, so a run that was killed can be resumed at once. It holds
between the processes of a machine, and between machines on network file systems that carry locks (NFS, GPFS, Lustre
mounted with `flock`). Where they do not, locks are silently each machine's own or are refused; since one cannot tell
which, a holder on another machine is believed to be alive until its note is deleted by hand.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOCK_FILE = "run.lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class FolderRefused(ValueError):
    """The folder is another's: nothing may be written into it, not even an error."""


class RunLock:
    """The lock of a folder, held by this process. From `hold`."""

    def __init__(self, path: Path, descriptor: int, took_over: str) -> None:
        self.path = path
        self.took_over = took_over  # what is known of a holder that died, or nothing
        self._descriptor = descriptor

    def moved(self, folder: Path) -> None:
        """The locked folder was renamed."""
        self.path = folder / LOCK_FILE

    def release(self) -> None:
        """Let go, once. The file goes first: whoever opened it in between sees that it is the folder's no more."""
        if self._descriptor < 0:
            return
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self._descriptor), os.stat(self.path)):
                self.path.unlink()
        os.close(self._descriptor)
        self._descriptor = -1


@contextmanager
def hold(folder: Path) -> Iterator[RunLock]:
    """Inside, the folder is this process's.

    Args:
      folder: Must exist.
    Raises:
      FolderRefused: another process holds it; it is named.
      OSError: the folder cannot be written.
    """
    lock = _acquire(Path(folder))
    try:
        yield lock
    finally:
        lock.release()


def _acquire(folder: Path) -> RunLock:
    path = folder / LOCK_FILE
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            took_over = _take(descriptor, path)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return RunLock(path, descriptor, took_over)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder deleted it between our two calls: again, with the folder's new file


def _take(descriptor: int, path: Path) -> str:
    """Lock an open file and write our note into it; returns what its last holder, now dead, left there."""
    system = True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FolderRefused(
            f"output_dir: {path.parent} is in use by {_told(_note(descriptor))}; wait for it, or choose another "
            "--output-dir"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        system = False
    holder = _note(descriptor)
    if holder and not _is_dead(holder, system=system):
        raise FolderRefused(
            f"output_dir: {path.parent} may be in use by {_told(holder)}: this machine cannot see whether it still "
            f"runs. Where it has ended, delete {path}; else choose another --output-dir"
        )
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(_self()).encode() + b"\n", 0)
    return _told(holder) if holder else ""


def _self() -> dict[str, Any]:
    return {
        "host": platform.node(),
        "boot": _boot(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "command": shlex.join(sys.argv)[:200],
    }


def _boot() -> str:
    """Which start of which kernel this is: containers of one machine differ in name and share it."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _is_dead(holder: dict[str, Any], *, system: bool) -> bool:
    """Whether the process of a note has ended, given that the system's lock was free (or that there is none)."""
    same_name, same_boot = holder.get("host") == platform.node(), holder.get("boot") == _boot() != ""
    if system:
        return same_name or same_boot
    if not same_name:
        return False
    if holder.get("boot") != _boot():
        return True  # the machine was started again
    try:
        os.kill(int(holder["pid"]), 0)
    except (ProcessLookupError, OverflowError, ValueError, TypeError, KeyError):
        return True
    except PermissionError:  # another user's
        return False
    return int(holder["pid"]) == os.getpid()


def _note(descriptor: int) -> dict[str, Any]:
    """What the file says of its holder; nothing where it is empty or damaged."""
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _told(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    who = f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}"
    return f"{who} ({holder['command']})" if holder.get("command") else who
