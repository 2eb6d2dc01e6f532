import io
import json
import math
import sys
import types

import pytest
import torch
from rich.console import Console

from worldr1.datatypes import RewardOutput
from worldr1.run import metrics as metrics_module
from worldr1.run.metrics import MetricsWriter, Progress, Stopwatch, progress_line, reward_metrics


def row(iteration, **changes):
    return {
        "iteration": iteration, "phase": "main", "reward": 1.5, "reward_stderr": 0.25, "clip_fraction": 0.125,
        "kl": 1e-4, "terms": {"traj": {"mean": 0.5, "stderr": 0.1, "weight": 1.0}}, "alarms": [],
    } | changes  # fmt: skip


def test_reward_metrics_by_hand():
    reward = torch.tensor([1.0, 3.0, math.nan, 2.0])
    output = RewardOutput(
        reward=reward, valid=torch.tensor([True, True, False, True]),
        breakdown={"traj": reward / 2}, weights={"traj": 2.0},
    )  # fmt: skip
    got = reward_metrics(output)
    assert got["reward"] == 2.0 and got["valid_fraction"] == 0.75
    assert got["reward_std"] == 1.0 and math.isclose(got["reward_stderr"], 1 / math.sqrt(3))
    traj = got["terms"]["traj"]
    assert traj["mean"] == 1.0 and traj["weight"] == 2.0 and math.isclose(traj["stderr"], 0.5 / math.sqrt(3))


def test_reward_metrics_of_nothing_are_nan():
    got = reward_metrics(RewardOutput(reward=torch.full((2,), math.nan), valid=torch.zeros(2, dtype=torch.bool)))
    assert math.isnan(got["reward"]) and math.isnan(got["reward_stderr"]) and got["valid_fraction"] == 0


def test_files(tmp_path):
    writer = MetricsWriter(tmp_path, first_iteration=0, enabled=True)
    writer.write(row(0, kl=math.nan))
    writer.write_seconds(0, {"rollout": 1.23456, "total": 2.0})
    writer.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == row(0, kl=None)
    assert json.loads((tmp_path / "timings.jsonl").read_text()) == {
        "iteration": 0, "seconds": 2.0, "stages": {"rollout": 1.2346},
    }  # fmt: skip
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert board.Scalars("terms/traj/mean")[0].value == 0.5 and board.Scalars("seconds/rollout")[0].step == 0


def test_resume_cuts_what_the_interrupted_run_left(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps(row(i)) + "\n" for i in range(5)]
    path.write_text("".join(lines) + '{"iteration": 5, "rew')
    (tmp_path / "timings.jsonl").write_text("")
    writer = MetricsWriter(tmp_path, first_iteration=3, enabled=True)
    writer.write(row(3, reward=9.0))
    writer.close()
    got = [json.loads(line) for line in path.read_text().splitlines()]
    assert [g["iteration"] for g in got] == [0, 1, 2, 3] and got[3]["reward"] == 9.0


def test_silent_ranks_write_nothing(tmp_path, capsys):
    writer = MetricsWriter(tmp_path, first_iteration=0, enabled=False)
    writer.write(row(0))
    writer.write_seconds(0, {"total": 1.0})
    writer.close()
    progress = Progress(max_iterations=2, enabled=False)
    with progress.stage("x"):
        progress.say("y")
    progress.iteration(row(0), 1.0)
    progress.close()
    assert not list(tmp_path.iterdir()) and capsys.readouterr().out == ""


def test_progress_line():
    line = progress_line(row(11), done=[9.0, 2.0, 2.0], last=80)
    assert line == "12/80 main  reward 1.500 +- 0.250  traj 0.500  clip 12%  kl 1.00e-04  4.3 s/it  ETA 4:55"
    assert "ETA 2:46:40" in progress_line(row(0), done=[100.0], last=101)
    bare = progress_line(row(11, clip_fraction=math.nan, kl=math.nan), done=[2.0], last=80)
    assert bare == "12/80 main  reward 1.500 +- 0.250  traj 0.500  2.0 s/it  ETA 2:16"


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_on_screen_and_in_a_file(terminal, monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(
        "rich.console.Console",
        lambda **_: Console(file=out, force_terminal=terminal, width=200, soft_wrap=True, highlight=False),
    )
    progress = Progress(max_iterations=2, enabled=True)
    with progress.stage("rollout"):
        pass
    progress.iteration(row(0), 1.0)
    progress.iteration(row(1, alarms=["look [here]"]), 1.0)
    progress.close()
    progress.close()
    text = out.getvalue()
    assert "2/2 main  reward 1.500" in text and "iteration 2: look [here]" in text
    assert ("\x1b" in text) == terminal


def test_stopwatch_adds_up():
    watch = Stopwatch()
    for _ in range(2):
        with watch.stage("a"):
            pass
    with pytest.raises(KeyError), watch.stage("b"):
        raise KeyError
    got = watch.finish()
    assert set(got) == {"a", "b", "total"} and got["total"] >= got["a"] + got["b"] > 0


def test_a_stage_within_another_is_its_own(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 7.0, 8.0, 20.0, 40.0])
    monkeypatch.setattr(metrics_module.time, "perf_counter", lambda: next(now))
    watch = Stopwatch()
    with watch.stage("rollout"):
        with watch.stage("rewards"):
            pass
    with watch.stage("rewards"):
        pass
    assert watch.seconds == {"rollout": (8.0 - 1.0) - (7.0 - 3.0), "rewards": (7.0 - 3.0) + (40.0 - 20.0)}


def test_stages_are_nvtx_ranges_and_nothing_when_off(monkeypatch):
    calls = []
    fake = types.SimpleNamespace(
        push_range=lambda message, domain: calls.append(("push", message)),
        pop_range=lambda domain: calls.append(("pop", domain)),
    )
    monkeypatch.setitem(sys.modules, "nvtx", fake)
    watch = Stopwatch(nvtx=True)
    with pytest.raises(ValueError), watch.stage("rollout"):
        raise ValueError
    with watch.stage("update"):
        pass
    assert calls == [("push", "rollout"), ("pop", "worldr1"), ("push", "update"), ("pop", "worldr1")]
    calls.clear()
    monkeypatch.setitem(sys.modules, "nvtx", None)  # importing it would fail
    off = Stopwatch()
    with off.stage("rollout"):
        pass
    assert not calls and set(off.finish()) == {"rollout", "total"}


def test_nvtx_itself_takes_these_calls():
    watch = Stopwatch(nvtx=True)
    with watch.stage("rollout"):
        pass
    assert watch.seconds["rollout"] >= 0.0 and "nvtx" in sys.modules
