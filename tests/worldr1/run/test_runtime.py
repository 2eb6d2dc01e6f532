"""The output folder: what is moved, what is refused, who may write into it."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import fake_config, fake_learner

from worldr1.run import checkpoint
from worldr1.run.distributed import World
from worldr1.run.lock import LOCK_FILE, FolderRefused
from worldr1.run.runtime import prepare_output_dir
from worldr1.run.saved_config import is_run, read_run_config

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


def prepare(folder: Path, *, resume: bool = False) -> Path | None:
    with ExitStack() as held:
        return prepare_output_dir(replace(fake_config(), output_dir=folder, resume=resume), ALONE, held)


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_an_earlier_run_is_moved_aside_and_its_lock_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    for number in (1, 2):
        prepare(run)
        assert names(run) == {"config.json", "environment.json"} and is_run(run)
        (run / "mark").write_text(str(number))
    with ExitStack() as held:
        prepare_output_dir(replace(fake_config(), output_dir=run), ALONE, held)
        assert list(tmp_path.rglob(LOCK_FILE)) == [run / LOCK_FILE]  # not of the folder that was moved
    assert names(tmp_path) == {"run", "run.old1", "run.old2"}
    assert (tmp_path / "run.old2" / "mark").read_text() == "2" and not (run / "mark").exists()
    assert not list(tmp_path.rglob(LOCK_FILE)) and "is now" in capsys.readouterr().out


def test_the_settings_are_those_of_the_file(tmp_path: Path) -> None:
    prepare(tmp_path / "run")
    assert read_run_config(tmp_path / "run" / "config.json") == replace(fake_config(), output_dir=tmp_path / "run")


def test_a_second_run_is_refused_before_anything_is_touched(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with ExitStack() as held:
        prepare_output_dir(replace(fake_config(), output_dir=run), ALONE, held)
        before = {p.name: p.read_bytes() for p in run.iterdir()}
        for resume in (False, True):
            with pytest.raises(FolderRefused, match=f"in use by process {os.getpid()} "):
                prepare(run, resume=resume)
        assert {p.name: p.read_bytes() for p in run.iterdir()} == before and names(tmp_path) == {"run"}
    prepare(run)
    assert names(tmp_path) == {"run", "run.old1"}


@pytest.mark.parametrize("content", ['{"_class_name": "WanTransformer3DModel"}', "{", "[]"])
def test_a_folder_that_no_run_made_is_never_moved(tmp_path: Path, content: str) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(content)
    with pytest.raises(FolderRefused, match="got config.json and no config.json of a run; choose another"):
        prepare(model)
    assert names(tmp_path) == {"model"} and names(model) == {"config.json"}
    assert (model / "config.json").read_text() == content


def test_a_folder_with_other_files_is_used_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "slurm-17.out").write_text("a log")
    prepare(tmp_path)
    assert names(tmp_path) == {"slurm-17.out", "config.json", "environment.json"}


@pytest.mark.parametrize("spelling", [".", "", "..", "../run", "inside/.."])
def test_the_folder_one_stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str) -> None:
    """Usable where it holds no run; else refused, since the shell would move along with it."""
    run = tmp_path / "run"
    (run / "inside").mkdir(parents=True)
    monkeypatch.chdir(run / "inside" if spelling == ".." else run)
    prepare(Path(spelling))
    assert is_run(run)
    with pytest.raises(FolderRefused, match="cannot be moved aside from where you stand.*--resume goes on with it"):
        prepare(Path(spelling))
    assert names(tmp_path) == {"run"} and not (run / LOCK_FILE).exists()


def test_a_spelling_through_the_folder_itself_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "run" / "inside").mkdir(parents=True)
    prepare(tmp_path / "run")
    with pytest.raises(ValueError, match="output_dir must be .*busy"):
        prepare(tmp_path / "run" / "inside" / "..")
    assert names(tmp_path) == {"run"} and not (tmp_path / "run" / LOCK_FILE).exists()


def test_a_link_to_a_run_is_moved_and_the_run_stays(tmp_path: Path) -> None:
    prepare(tmp_path / "run")
    (tmp_path / "latest").symlink_to("run")
    prepare(tmp_path / "latest")
    assert (tmp_path / "latest.old1").resolve() == tmp_path / "run" and not (tmp_path / "latest").is_symlink()
    assert not list(tmp_path.rglob(LOCK_FILE))


def test_resume_takes_the_highest_number_and_no_copy(tmp_path: Path) -> None:
    config = replace(fake_config(), output_dir=tmp_path)
    prepare(tmp_path)
    with pytest.raises(ValueError, match="must hold a checkpoint"):
        prepare(tmp_path, resume=True)
    newest = checkpoint.save(tmp_path, *fake_learner(config), iteration=3, config=config)
    shutil.copytree(newest, newest.with_name("iteration_backup"))
    assert prepare(tmp_path, resume=True) == newest


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match="output_dir must be a folder that can be written"):
            prepare(path)
