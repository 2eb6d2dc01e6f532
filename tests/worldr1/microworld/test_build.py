"""The build's order, its skipping of what is done, and what it says before it starts."""

import json
from pathlib import Path

import pytest

from worldr1.microworld import build as module
from worldr1.microworld.build import STAGES, Stage, Work, build, main


def _work(folder: Path, lines: list[str]) -> Work:
    return Work(folder / "work", folder / "assets", folder / "sheet.png", 0, lines.append)


def test_stages_run_in_their_order_and_once(tmp_path, monkeypatch):
    ran: list[str] = []

    def stage(name: str, minutes: float) -> Stage:
        return Stage(name, minutes, f"the {name}", lambda work: ran.append(name) or {"figure": minutes})

    monkeypatch.setattr(module, "STAGES", (stage("first", 1.0), stage("second", 2.5), stage("gates", 0.5)))
    lines: list[str] = []
    build(["gates", "second", "first"], _work(tmp_path, lines))
    assert ran == ["first", "second", "gates"]
    assert lines[4].split() == ["in", "all", "4.0"]  # the budget, before anything runs
    assert json.loads((tmp_path / "work" / "done_second.json").read_text())["figures"] == {"figure": 2.5}
    build(["first", "second", "gates"], _work(tmp_path, lines))
    assert ran == ["first", "second", "gates", "gates"]  # the gates are always measured
    build(["second"], _work(tmp_path, lines), again=True)
    assert ran[-1] == "second" and not list((tmp_path / "work").glob("*.partial"))


def test_a_stage_that_fails_is_not_marked_done(tmp_path, monkeypatch):
    def fail(work: Work) -> dict[str, float]:
        raise RuntimeError("out of disk")

    monkeypatch.setattr(module, "STAGES", (Stage("first", 1.0, "nothing", fail),))
    with pytest.raises(RuntimeError, match="out of disk"):
        build(["first"], _work(tmp_path, []))
    assert not list((tmp_path / "work").glob("done_*"))


def test_every_judge_stage_names_a_function_of_train_judges():
    from worldr1.microworld import train_judges

    names = [stage.name for stage in STAGES]
    judges = names[names.index("decoder") + 1 : -1]
    assert judges and all(callable(vars(train_judges)[name]) for name in judges)


def test_unknown_stage_is_an_error_before_anything_is_made(tmp_path, capsys):
    arguments = ["--stages", "vae,vea", "--work-dir", str(tmp_path / "w"), "--assets-dir", str(tmp_path / "a")]
    assert main(arguments) == 2
    assert "stages must be among" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_base_before_the_autoencoder_says_what_to_run(tmp_path, capsys):
    arguments = ["--stages", "base", "--work-dir", str(tmp_path / "w"), "--assets-dir", str(tmp_path / "a")]
    assert main(arguments) == 2
    assert "made by the stage vae; run that first" in capsys.readouterr().err
