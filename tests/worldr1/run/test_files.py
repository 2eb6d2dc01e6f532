"""Damaged files are sentences with their path; written files are whole, and as readable as the umask says."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch

from worldr1.run import files
from worldr1.run.files import (
    numbered,
    read_arrays,
    read_json,
    read_tensors,
    reading,
    whole,
    write_json,
    write_tensors,
    write_text,
)


@pytest.fixture()
def umask_027():
    before = os.umask(0o027)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_umask_gives_the_mode(tmp_path: Path, umask_027: None) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    write_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2)})
    assert {mode(p) for p in tmp_path.iterdir()} == {0o640} and len(list(tmp_path.iterdir())) == 2


def test_what_is_written_is_read(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([1], dtype=torch.uint8)}
    sha256 = write_tensors(tmp_path / "a.safetensors", tensors, metadata={"k": "v"})
    found = read_tensors(tmp_path / "a.safetensors", "tensors")
    assert found.keys() == tensors.keys() and all(torch.equal(found[k], tensors[k]) for k in tensors)
    assert files.read_tensor_metadata(tmp_path / "a.safetensors", "tensors") == {"k": "v"}
    assert sha256 == files.digest(tmp_path / "a.safetensors") and len(sha256) == 64
    write_json(tmp_path / "a.json", {"ä": [1, None]})
    assert read_json(tmp_path / "a.json", "an object") == {"ä": [1, None]}
    np.savez(tmp_path / "a.npz", a=np.arange(3))
    assert read_arrays(tmp_path / "a.npz", "arrays")["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("damage", ["cut", "empty", "zeros", "text", "flip", "nested"])
def test_a_damaged_file_is_a_sentence_with_its_path(tmp_path: Path, damage: str) -> None:
    write_tensors(tmp_path / "a.safetensors", {"a": torch.ones(400)})
    np.savez_compressed(tmp_path / "a.npz", a=np.arange(4000))
    write_json(tmp_path / "a.json", {"a": list(range(100))})
    readers = {"a.safetensors": read_tensors, "a.npz": read_arrays, "a.json": read_json}
    for name, read in readers.items():
        path = tmp_path / name
        raw = path.read_bytes()
        flipped = bytes(b ^ 0xFF if 40 <= i < 200 else b for i, b in enumerate(raw))
        damaged = {
            "cut": raw[: len(raw) // 2], "empty": b"", "zeros": bytes(len(raw)), "text": b"not this", "flip": flipped,
            "nested": b"[" * 100_000,
        }[damage]  # fmt: skip
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{name} must be what was asked for, got .") as caught:
            read(path, "what was asked for")
        assert "\n" not in str(caught.value)


def test_other_kinds_of_content_are_refused(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[1]")
    np.save(tmp_path / "single.npz.npy", np.ones(2))
    np.savez(tmp_path / "pickled.npz", a=np.array([{}], dtype=object))
    for read, name in ((read_json, "list.json"), (read_arrays, "single.npz.npy"), (read_arrays, "pickled.npz")):
        with pytest.raises(ValueError, match=f"{name} must be X, got"):
            read(tmp_path / name, "X")


def test_the_disk_keeps_its_error_and_gets_a_path(tmp_path: Path) -> None:
    for read in (read_tensors, read_arrays, read_json):
        with pytest.raises(FileNotFoundError, match="gone"):
            read(tmp_path / "gone", "X")
        with pytest.raises(OSError, match="Is a directory.*"):
            read(tmp_path, "X")
    with pytest.raises(OSError, match=r"\[Errno 5\] broken: '/x'"), reading(Path("/x"), "X"):
        raise OSError(errno.EIO, "broken")


def test_the_innermost_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "inner.json").write_text("{")
    with pytest.raises(ValueError) as caught, reading(tmp_path, "a folder"):
        read_json(tmp_path / "inner.json", "JSON")
    assert str(caught.value).startswith(f"{tmp_path / 'inner.json'} must be JSON, got JSONDecodeError: ")
    with pytest.raises(KeyboardInterrupt), reading(tmp_path, "a folder"):
        raise KeyboardInterrupt


def test_an_older_file_stays_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), whole(path) as unfinished:
        unfinished.write_text("half")
        assert path.read_text() == "old"
        raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    with whole(path) as one:  # two at once: neither takes the other's half
        one.write_text("one, ")
        write_text(path, "two")
        with one.open("a") as file:
            file.write("whole")
    assert path.read_text() == "one, whole" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_tensor_file_that_is_not_whole_never_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors.torch

    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.ones(3)})
    true_save = safetensors.torch.save_file

    def half(tensors: dict, name: str, **more: object) -> None:
        true_save(tensors, name, **more)
        os.truncate(name, os.path.getsize(name) - 4)

    monkeypatch.setattr(safetensors.torch, "save_file", half)
    with pytest.raises(OSError, match="a.safetensors"):
        write_tensors(path, {"a": torch.zeros(3)})
    assert torch.equal(read_tensors(path, "X")["a"], torch.ones(3)) and len(list(tmp_path.iterdir())) == 1


def test_folders_are_ours_by_their_exact_name_and_sorted_by_number(tmp_path: Path) -> None:
    ours = ["iteration_000002", "iteration_000010", "iteration_999999", "iteration_1000000"]
    theirs = [
        "iteration_000010_best", "iteration_backup", "iteration_1", "iteration_0000011", "old_iteration_000003",
        ".unfinished_iteration_000011",
    ]  # fmt: skip
    for name in [*reversed(ours), *theirs]:
        (tmp_path / name).mkdir()
    (tmp_path / "iteration_000099").write_text("a file")
    assert [path.name for _, path in numbered(tmp_path)] == ours
    assert [number for number, _ in numbered(tmp_path)] == [2, 10, 999_999, 1_000_000]
    assert [files.iteration_name(n) for n, _ in numbered(tmp_path)] == ours
    assert numbered(tmp_path / "nowhere") == [] and numbered(tmp_path / "iteration_000099") == []


def test_a_json_file_is_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": 0.1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 0.1}
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 0.1}
