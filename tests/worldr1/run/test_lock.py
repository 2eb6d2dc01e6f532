"""One run at a time in a folder: who holds it is told, who died is taken over, other machines are believed."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from worldr1.run import lock
from worldr1.run.lock import LOCK_FILE, FolderRefused, hold

HOLDER = """
import sys, time
from pathlib import Path
from worldr1.run.lock import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture()
def holder(tmp_path: Path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_holder_is_named_and_after_its_death_the_folder_is_free(tmp_path: Path, holder) -> None:
    with pytest.raises(FolderRefused, match=f"{tmp_path} is in use by process {holder.pid} on .* since 2"):
        with hold(tmp_path):
            pass
    holder.kill()  # SIGKILL: it cannot clean up
    holder.wait()
    assert (tmp_path / LOCK_FILE).exists()
    with hold(tmp_path) as own:
        assert f"process {holder.pid} " in own.took_over
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_it_is_held_against_the_same_process_too_and_let_go_once(tmp_path: Path) -> None:
    with hold(tmp_path) as own:
        assert own.took_over == ""
        with pytest.raises(FolderRefused, match=f"process {os.getpid()} "):
            with hold(tmp_path):
                pass
        own.release()
        with hold(tmp_path) as other:
            own.release()  # not the other's
            assert (tmp_path / LOCK_FILE).exists() and other.took_over == ""


def test_a_folder_that_is_renamed_takes_its_lock_along(tmp_path: Path) -> None:
    old, new = tmp_path / "run", tmp_path / "run.old1"
    old.mkdir()
    with hold(old) as own:
        old.rename(new)
        own.moved(new)
        old.mkdir()
        with hold(old), pytest.raises(FolderRefused):
            with hold(new):
                pass
    assert list(new.iterdir()) == [] and list(old.iterdir()) == []


def note(folder: Path, **changes: object) -> None:
    (folder / LOCK_FILE).write_text(json.dumps({**lock._self(), **changes}))


def test_a_holder_on_another_machine_is_believed_until_its_note_is_deleted(tmp_path: Path) -> None:
    note(tmp_path, host="elsewhere", boot="another", pid=7)
    with pytest.raises(FolderRefused, match=f"process 7 on elsewhere .*has ended, delete {tmp_path / LOCK_FILE}"):
        with hold(tmp_path):
            pass
    (tmp_path / LOCK_FILE).unlink()
    with hold(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"pid": "x"}\x00'])
def test_a_damaged_note_holds_nobody_back(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK_FILE).write_text(text)
    with hold(tmp_path) as own:
        assert own.took_over == ""


def test_a_container_of_this_machine_and_a_machine_started_again_are_known(tmp_path: Path) -> None:
    for change in ({"host": "another-container"}, {"boot": "before the power cut"}):
        note(tmp_path, **change)
        with hold(tmp_path) as own:
            assert own.took_over


def test_where_the_file_system_has_no_locks_the_note_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    alive = subprocess.Popen(["sleep", "60"])
    try:
        note(tmp_path, pid=alive.pid)
        with pytest.raises(FolderRefused, match=f"process {alive.pid}"):
            with hold(tmp_path):
                pass
    finally:
        alive.kill()
        alive.wait()
    with hold(tmp_path) as own:  # it has ended
        assert f"process {alive.pid}" in own.took_over
    note(tmp_path, host="another-container")
    with pytest.raises(FolderRefused):
        with hold(tmp_path):
            pass


def test_other_errors_of_the_system_are_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output"), hold(tmp_path):
        pass
    with pytest.raises(FileNotFoundError), hold(tmp_path / "nowhere"):
        pass
