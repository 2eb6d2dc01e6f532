"""The reward's terms rank known faults."""

import pytest
import torch

from worldr1.microworld import sensitivity


@pytest.fixture(scope="module")
def means() -> dict[str, dict[str, float]]:
    scores = sensitivity.measure_sensitivity(num=16)
    assert all(v.shape == (16,) and torch.isfinite(v).all() for own in scores.values() for v in own.values())
    return {name: {term: v.mean().item() for term, v in own.items()} for name, own in scores.items()}


def test_the_camera_term_wants_the_motion_that_was_asked_for(means: dict[str, dict[str, float]]) -> None:
    traj = {name: own["traj"] for name, own in means.items()}
    assert traj["truth"] > 0.85
    assert traj["truth"] > traj["half"] + 0.2 > traj["frozen"] + 0.4
    assert (
        max(traj["frozen"], traj["reversed"], traj["other motion"], traj["other scene each frame"], traj["grey"]) < 0.25
    )


def test_the_other_terms_answer_what_it_does_not_see(means: dict[str, dict[str, float]]) -> None:
    truth = means["truth"]
    for fault in ("contrast 0.5", "noise 0.5", "tear 0.5", "blocks 0.7", "other scene each frame"):
        assert means[fault]["recon"] < truth["recon"] - 0.05, fault
    for fault in ("blur 1", "tear 0.5", "grey", "contrast 0.5"):
        assert means[fault]["meta"] < truth["meta"] - 0.1, fault
        assert means[fault]["gen"] < truth["gen"] - 0.2, fault


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert sensitivity.main(["--num", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| video | traj | recon | meta | gen |"
    assert lines[2].startswith("| truth | ") and lines[-1].startswith("| grey | ")
