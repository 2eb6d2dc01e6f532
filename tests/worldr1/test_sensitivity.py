"""python -m worldr1.sensitivity."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from worldr1 import sensitivity
from worldr1.config import EMBEDDED
from worldr1.sensitivity import Verdict, table, verdict

PERCEPTUAL = ["--perceptual", str(EMBEDDED / "microperceptual")]


def test_verdicts() -> None:
    truth = torch.tensor([0.9, 0.8, 0.7, 0.9])
    lower = verdict(truth, truth - torch.tensor([0.1, 0.2, 0.1, 0.2]))
    assert lower.gap == pytest.approx(0.15) and lower.stderr == pytest.approx(0.0577350 / 2) and lower.word == "right"
    assert verdict(truth, truth + 0.1).word == "WRONG"
    assert verdict(truth, truth).word == "even" and verdict(truth, truth.flip(0)).word == "even"
    assert verdict(truth, torch.tensor([0.8, torch.nan, 0.6, 0.8])).gap == pytest.approx(0.1)
    assert Verdict(0.2, 0.1).word == "even" and Verdict(0.21, 0.1).word == "right"


def test_the_table_says_which_are_not_ordered() -> None:
    truth = torch.tensor([0.5, 0.6, 0.7])
    scores = {
        "truth": {"recon": truth, "gen": truth}, "blur 1": {"recon": truth + 0.1, "gen": truth - 0.1},
        "frozen": {"recon": truth, "gen": truth - 0.2},
    }  # fmt: skip
    lines = table(scores).splitlines()
    assert lines[0] == "| version | recon | gen |" and lines[2] == "| truth | 0.600 | 0.600 |"
    assert lines[3] == "| blur 1 | +0.100 +- 0.000 WRONG | -0.100 +- 0.000 right |"
    assert lines[-2:] == ["  recon: blur 1, frozen (even)", "  gen: none"]


def test_the_command_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    args = [*PERCEPTUAL, "--num", "2", "--num-frames", "5", "--only", "blur", "frozen", "--output-dir", str(out)]
    assert sensitivity.main(args) == 0
    printed = capsys.readouterr()
    assert printed.err == ""  # no terminal, no progress
    lines = printed.out.splitlines()
    assert lines[0] == "| version | traj | recon |" and lines[2].startswith("| truth | 1.000 | 0.")
    found = json.loads((out / "sensitivity.json").read_text())
    assert found["settings"]["num_frames"] == 5 and found["settings"]["perceptual"] == PERCEPTUAL[1]
    assert list(found["versions"]) == ["truth", "frozen", "blur 0.5", "blur 1", "blur 2", "blur 4"]
    blur = found["versions"]["blur 1"]["recon"]
    assert len(blur["scores"]) == 2 and blur["mean"] == pytest.approx(sum(blur["scores"]) / 2)
    truth = found["versions"]["truth"]["recon"]
    assert blur["gap"] == pytest.approx(truth["mean"] - blur["mean"], abs=1e-6) and blur["verdict"] in printed.out
    assert (out / "sensitivity.png").stat().st_size > 5000


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sensitivity.main(["--output-dir", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("sensitivity: one of --reconstructor")
    assert sensitivity.main(["--perceptual", str(tmp_path), "--output-dir", str(tmp_path / "out")]) == 2
    assert "reward.perceptual must be a folder of MicroPerceptual, LPIPS" in capsys.readouterr().err
