"""The whole loop, from settings to report, on an untrained Wan folder and the embedded judges."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from worldr1 import cli, train
from worldr1 import study as study_command
from worldr1.config import (
    EvaluationConfig,
    ModelConfig,
    NoiseConfig,
    PhaseConfig,
    RolloutConfig,
    ScheduleConfig,
    TrainConfig,
    to_json,
)
from worldr1.config_checks import validate
from worldr1.datatypes import RewardOutput
from worldr1.evaluation import validate as validate_module
from worldr1.rewards import RewardStack
from worldr1.run import checkpoint, video

REPOSITORY = Path(__file__).parents[2]


def settings(tiny_wan: Path, output_dir: Path) -> TrainConfig:
    """4 iterations of 8 videos; the last is dynamic."""
    return TrainConfig(
        max_iterations=4,
        output_dir=output_dir,
        checkpoint_every=2,
        keep_checkpoints=9,
        num_threads=1,
        model=ModelConfig(path=tiny_wan, lora_rank=4, adapter_sigma_min=0.65),
        noise=NoiseConfig(mode="plain"),
        schedule=ScheduleConfig(num_steps=6, window_range=(0, 3), window_size=2),
        rollout=RolloutConfig(group_size=4, prompts_per_iteration=2, micro_batch=8),
        phase=PhaseConfig(main_iterations=3, dynamic_iterations=1),
        evaluation=EvaluationConfig(num_samples=0),
    )


# The same run from the shell, but for its length and folder; the model's folder follows.
SHELL_FLAGS = (
    "--noise.mode", "plain", "--rollout.group-size", "4", "--rollout.prompts-per-iteration", "2", "--num-threads", "1",
    "--rollout.micro-batch", "4", "--evaluation.num-samples", "0", "--model.path",
)  # fmt: skip


def lines(folder: Path) -> list[str]:
    return (folder / "metrics.jsonl").read_text().splitlines()


@pytest.fixture
def small(tiny_wan, tmp_path) -> TrainConfig:
    return settings(tiny_wan, tmp_path / "run")


@pytest.fixture(scope="module")
def finished(tiny_wan, tmp_path_factory) -> TrainConfig:
    """A finished run, for reading only."""
    config = settings(tiny_wan, tmp_path_factory.mktemp("finished") / "run")
    validate(config)
    outcome = train.train(config)
    assert outcome.iterations == 4 and not outcome.interrupted and outcome.report.is_file()
    return config


def test_a_run_leaves_what_it_should(finished):
    folder = finished.output_dir
    rows = [json.loads(line) for line in lines(folder)]
    assert [r["iteration"] for r in rows] == [0, 1, 2, 3]
    assert [r["phase"] for r in rows] == ["main", "main", "main", "dynamic"]
    assert set(rows[0]["terms"]) == {"traj", "recon", "meta", "gen"} and set(rows[3]["terms"]) == {"gen"}
    for row in rows:
        assert row["ratio_first_deviation"] <= 1e-6 and row["num_updates"] == 2 and row["valid_fraction"] == 1
        assert 0 < row["grad_norm"] and len(row["window"]) == 2
    assert [p.name for p in sorted((folder / "checkpoints").iterdir())] == ["iteration_000002", "iteration_000004"]
    weights = load_file(folder / "adapter" / "pytorch_lora_weights.safetensors")
    assert max(float(v.abs().max()) for k, v in weights.items() if "lora_B" in k) > 0
    assert json.loads((folder / "config.json").read_text())["max_iterations"] == 4
    assert len((folder / "timings.jsonl").read_text().splitlines()) == 4


def test_same_seed_same_lines_and_resume_is_exact(finished, tmp_path, monkeypatch, capsys):
    again = replace(finished, output_dir=tmp_path / "again")
    true_step, calls = train.policy_step, []

    def interrupted_in_the_second(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return true_step(*args, **kwargs)

    monkeypatch.setattr(train, "policy_step", interrupted_in_the_second)
    outcome = train.train(again)
    assert (
        outcome.interrupted and outcome.iterations == 2 and "2 of 4 iterations are done" in outcome.report.read_text()
    )
    assert lines(again.output_dir) == lines(finished.output_dir)[:2]
    assert "--resume" in capsys.readouterr().out
    # A run that died later leaves a line beyond its last checkpoint.
    with open(again.output_dir / "metrics.jsonl", "a") as file:
        file.write('{"iteration": 2, "reward": 0}\n')
    assert train.train(replace(again, resume=True)).iterations == 4
    assert lines(again.output_dir) == lines(finished.output_dir)
    name = "checkpoints/iteration_000004/tensors.safetensors"
    mine, other = load_file(again.output_dir / name), load_file(finished.output_dir / name)
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[k], other[k]) for k in mine if k != "torch_rng")


@pytest.mark.slow
def test_the_forward_estimator_runs_and_resumes_bit_for_bit(tiny_wan, tmp_path, monkeypatch, capsys):
    """Both phases, validation, own self-tests; cut after the second of four iterations, where its means are not 0."""
    base = settings(tiny_wan, tmp_path / "straight")
    straight = replace(base, validate_every=2, update=replace(base.update, estimator="forward"))
    validate(straight)
    assert train.train(straight).iterations == 4
    assert "sigma_of_each_sample" in capsys.readouterr().out
    rows = [json.loads(line) for line in lines(straight.output_dir)]
    assert [r["phase"] for r in rows] == ["main"] * 3 + ["dynamic"] and "validation" in rows[1]
    for row in rows:
        assert row["window"] == [] and row["clip_fraction"] is None and row["num_updates"] == 2 and row["kl"] > 0
    true_step, calls = train.forward_step, []

    def interrupted_in_the_second(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return true_step(*args, **kwargs)

    monkeypatch.setattr(train, "forward_step", interrupted_in_the_second)
    cut = replace(straight, output_dir=tmp_path / "cut")
    assert train.train(cut).interrupted
    assert train.train(replace(cut, resume=True)).iterations == 4
    assert [json.loads(line) for line in lines(cut.output_dir)] == rows
    name = "checkpoints/iteration_000004/tensors.safetensors"
    mine, other = load_file(cut.output_dir / name), load_file(straight.output_dir / name)
    assert mine.keys() == other.keys() and other["extra.drift"].abs().max() > 0
    assert all(torch.equal(mine[k], other[k]) for k in mine if k != "torch_rng")


def test_ctrl_c_in_the_rollout_saves_the_finished_iterations_and_resume_is_exact(finished, tmp_path, monkeypatch):
    """A signal during the first of two micro-batches of iteration 4 ends the run before the second."""
    config = replace(finished, output_dir=tmp_path / "cut", rollout=replace(finished.rollout, micro_batch=4))
    straight = replace(config, output_dir=tmp_path / "straight")
    train.train(straight)
    true_sample, true_settle, seen = train.sample, train.settle, []

    def interrupted_in_the_fourth(policy, *args, between, **kwargs):
        def counted():
            between()
            seen.append("micro-batch")
            if seen.count("micro-batch") == 7:  # the first of the fourth rollout is under way
                os.kill(os.getpid(), signal.SIGINT)

        return true_sample(policy, *args, between=counted, **kwargs)

    monkeypatch.setattr(train, "sample", interrupted_in_the_fourth)
    monkeypatch.setattr(train, "settle", lambda *a, **k: (seen.append("score"), true_settle(*a, **k))[1])
    outcome = train.train(config)
    assert outcome.interrupted and outcome.iterations == 3
    assert seen.count("micro-batch") == 7 and seen[-1] == "micro-batch" and seen.count("score") == 3
    assert (config.output_dir / "checkpoints" / "iteration_000003" / "state.json").is_file()
    assert lines(config.output_dir) == lines(straight.output_dir)[:3]
    monkeypatch.undo()
    assert train.train(replace(config, resume=True)).iterations == 4
    assert lines(config.output_dir) == lines(straight.output_dir)
    name = "checkpoints/iteration_000004/tensors.safetensors"
    mine, other = load_file(config.output_dir / name), load_file(straight.output_dir / name)
    assert all(torch.equal(mine[k], other[k]) for k in mine if k != "torch_rng")


def test_ctrl_c_in_the_first_iteration_leaves_a_checkpoint_of_none(small, monkeypatch):
    """The signal comes while the judges score: no update begins."""
    true_judge = RewardStack.judge

    def interrupted(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGINT)
        return true_judge(*args, **kwargs)

    monkeypatch.setattr(RewardStack, "judge", interrupted)
    monkeypatch.setattr(train, "policy_step", lambda *a, **k: pytest.fail("an update began after the signal"))
    config = replace(small, max_iterations=2, self_test=False)
    outcome = train.train(config)
    assert outcome.interrupted and outcome.iterations == 0 and lines(config.output_dir) == []
    monkeypatch.undo()
    assert train.train(replace(config, resume=True)).iterations == 2


class Brightest:
    """A stack of judges of somebody else's: how bright a video is, and nothing of ours."""

    def __init__(self):
        self.batches = []

    def judge(self, batch, video, *, finite=None, dynamic=None):
        self.batches.append((batch.prompts, tuple(video.shape), video.dtype))
        reward = video.float().mean((1, 2, 3, 4)) / 255
        return RewardOutput(
            reward=reward, valid=torch.ones(len(reward), dtype=torch.bool), breakdown={"bright": reward},
            weights={"bright": 1.0}, reasons={},
        )  # fmt: skip

    def at_hand(self):
        return contextlib.nullcontext()


def test_judges_of_ones_own(small):
    reward = replace(small.reward, reconstructor="nowhere", critic="nowhere")  # not asked for
    config = replace(small, max_iterations=2, reward=reward, rollout=replace(small.rollout, micro_batch=4))
    mine = Brightest()
    assert train.train(config, rewards=mine).iterations == 2
    rows = [json.loads(line) for line in lines(config.output_dir)]
    assert all(list(row["terms"]) == ["bright"] and row["reward"] == row["terms"]["bright"]["mean"] for row in rows)
    assert [shape for _, shape, _ in mine.batches] == [(4, 9, 3, 32, 32)] * 4  # as they are decoded
    assert all(dtype == torch.uint8 for _, _, dtype in mine.batches)


def test_offloaded_judges_give_the_same_run(finished, tmp_path):
    config = replace(finished, output_dir=tmp_path / "off", reward=replace(finished.reward, offload=True))
    train.train(config)
    assert lines(config.output_dir) == lines(finished.output_dir)


def test_checkpoints_by_the_clock(small, monkeypatch):
    """Every 10 minutes, where an iteration takes 4: after the third, and again after the sixth."""
    true_noise, now = train.initial_noise, [0.0]

    def four_minutes(*args, **kwargs):
        now[0] += 240.0
        return true_noise(*args, **kwargs)

    monkeypatch.setattr(train, "initial_noise", four_minutes)
    monkeypatch.setattr(checkpoint, "monotonic", lambda: now[0])
    config = replace(small, max_iterations=7, checkpoint_every=100, checkpoint_minutes=10.0, self_test=False)
    train.train(config)
    found = sorted(p.name for p in (config.output_dir / "checkpoints").iterdir())
    assert found == ["iteration_000003", "iteration_000006", "iteration_000007"]


VALIDATED = EvaluationConfig(num_samples=0, num_validation=3, num_steps=3)


@pytest.mark.slow
def test_validation_shows_base_and_adapter_and_a_resume_changes_nothing(finished, tmp_path, monkeypatch, capsys):
    """Also where the signal comes inside a validation, and where the disk is full."""
    config = replace(finished, output_dir=tmp_path / "seen", validate_every=2, evaluation=VALIDATED)
    train.train(config)
    rows = [json.loads(line) for line in lines(config.output_dir)]
    assert ["validation" in row for row in rows] == [False, True, False, True]
    for row, plain in zip(rows, map(json.loads, lines(finished.output_dir)), strict=True):
        assert {k: v for k, v in row.items() if k != "validation"} == plain  # to watch changes nothing
    folder = config.output_dir / "validation"
    for name in ("iteration_000002", "iteration_000004"):
        found = sorted(p.name for p in (folder / name).iterdir())
        assert found == ["grid.mp4", "prompt_00.mp4", "prompt_01.mp4", "prompt_02.mp4"]
    told = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in told] == [1, 3] and len(set(told[0]["prompts"])) == 3
    assert told[1]["terms"] == rows[3]["validation"]["terms"]
    assert set(told[1]["terms"]) == {"traj", "recon", "meta", "gen"}
    assert told[0]["reward"]["base"] == told[1]["reward"]["base"] and told[1]["reward"]["gain"] != 0.0
    assert told[0]["reward"]["adapter"] != told[1]["reward"]["adapter"]
    assert "validation after 4: reward" in capsys.readouterr().out

    cut = replace(config, output_dir=tmp_path / "cut")
    true_clips, calls = validate_module.sample_clips, []

    def interrupted(*args, adapter, **kwargs):
        calls.append(adapter)
        if len(calls) == 3:  # the second prompt's base, in the first validation
            os.kill(os.getpid(), signal.SIGINT)
        return true_clips(*args, adapter=adapter, **kwargs)

    monkeypatch.setattr(validate_module, "sample_clips", interrupted)
    outcome = train.train(cut)
    assert outcome.interrupted and outcome.iterations == 2 and calls == [False, True, False]
    assert lines(cut.output_dir) == lines(finished.output_dir)[:2]
    calls += [None] * 9
    monkeypatch.setattr(video, "_write_mp4", full_disk)
    assert train.train(replace(cut, resume=True)).iterations == 4
    assert lines(cut.output_dir) == lines(config.output_dir)
    assert calls[12:] == [True, True, False, True, True, True, True]  # one base was left to make
    written = [p.name for p in (cut.output_dir / "validation").glob("iteration_*/*")]
    assert written == ["prompt_00.mp4"]  # from before the disk was full; no half file
    assert capsys.readouterr().out.count("not all files could be written: [Errno 28]") == 2


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_validation_prompts_that_are_missing_are_named_before_anything_is_loaded(small, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "load_policy", lambda *a, **k: pytest.fail("the model was loaded"))
    with pytest.raises(ValueError, match="file must be readable, got .*none.txt"):
        train.train(replace(small, validate_every=2, eval_prompts=tmp_path / "none.txt"))


def test_a_memory_budget_chooses_the_micro_batch_also_after_a_resume(finished, tmp_path, capsys):
    rollout = replace(finished.rollout, micro_batch=3, memory_budget_gib=1.0)
    config = replace(finished, output_dir=tmp_path / "budget", rollout=rollout)
    validate(config)
    train.train(config)
    assert "micro-batch by rollout.memory_budget_gib: 8" in capsys.readouterr().out
    assert lines(config.output_dir) == lines(finished.output_dir)  # where it was 8 by name
    assert train.train(replace(config, resume=True)).iterations == 4


def test_resume_with_other_settings_is_refused(finished):
    with pytest.raises(ValueError, match="seed: 0 -> 5"):
        train.train(replace(finished, resume=True, seed=5))
    assert len(lines(finished.output_dir)) == 4
    assert json.loads((finished.output_dir / "config.json").read_text())["seed"] == 0


@pytest.mark.slow
def test_a_second_run_is_refused_and_after_sigkill_the_first_goes_on(tiny_wan, tmp_path):
    run = tmp_path / "run"
    flags = ["--output-dir", str(run), *SHELL_FLAGS, str(tiny_wan), "--checkpoint-every", "1"]

    def start(*more: str) -> subprocess.Popen:
        command = [sys.executable, "worldr1/train.py", *flags, *more]
        return subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )  # fmt: skip

    first = start("--max-iterations", "1000")
    while not (run / "checkpoints" / "iteration_000002").is_dir():
        assert first.poll() is None, first.stdout.read()
        time.sleep(0.2)
    for more in ([], ["--resume"]):
        second = start("--max-iterations", "3", *more)
        said = second.communicate(timeout=200)[0]
        assert second.returncode == 2 and f"in use by process {first.pid} on " in said and "Traceback" not in said
    assert first.poll() is None and [p.name for p in tmp_path.iterdir()] == ["run"]
    assert not list(run.glob("error_rank*"))
    first.kill()
    first.communicate()
    done = int(checkpoint.latest(run).name.removeprefix("iteration_"))
    third = start("--max-iterations", str(done + 1), "--resume")
    said = third.communicate(timeout=200)[0]
    assert third.returncode == 0 and f"is taken over: process {first.pid} on " in said, said
    assert len(lines(run)) == done + 1 and not (run / "run.lock").exists()


def test_a_new_run_moves_the_old_one_aside(small, capsys):
    for seed, folder in enumerate((small.output_dir, small.output_dir.with_name("run.old1"))):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(to_json(replace(small, seed=seed))))
    train.train(replace(small, max_iterations=1, seed=7))
    seeds = {
        folder.name: json.loads((folder / "config.json").read_text())["seed"]
        for folder in small.output_dir.parent.iterdir()
    }
    assert seeds == {"run": 7, "run.old1": 1, "run.old2": 0}
    assert "is now" in capsys.readouterr().out


def test_prompts_that_are_not_understood_are_said_at_the_start(small, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    long = "A red ball " * 20 + "and the camera pans left."
    prompts.write_text(f"The camera swoops over a red ball.\nPan left. A ball.\n{long}\n", encoding="utf-8")
    train.train(replace(small, max_iterations=0, prompts=prompts))
    said = " ".join(capsys.readouterr().out.split())
    assert "camera words: 2 of 3 prompts ask for a motion" in said and '"swoops over a red" x1' in said
    assert "1 of them name camera motions there, which the model never sees" in said
    assert "dynamic prompts: 0 of 64 prompts ask for a motion, 64 for rest" in said


def test_resume_without_a_checkpoint(small):
    with pytest.raises(ValueError, match="must hold a checkpoint, .*start without --resume"):
        train.train(replace(small, resume=True))


def test_bad_input_is_named_before_anything_is_loaded(small, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "load_policy", lambda *a, **k: pytest.fail("the model was loaded"))
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    with pytest.raises(ValueError, match="at least one prompt"):
        train.train(replace(small, prompts=empty))
    other = tmp_path / "other.txt"
    other.write_text("A cat plays the piano.\n")
    with pytest.raises(ValueError, match="--evaluation.num-samples 0 the study"):
        train.train(replace(small, eval_prompts=other, evaluation=EvaluationConfig(num_samples=4)))
    with pytest.raises(ValueError, match="output_dir must be a folder that can be written"):
        train.train(replace(small, output_dir=empty / "run"))
    with pytest.raises(ValueError, match="window_range must lie where the adapter acts"):
        train.train(replace(small, schedule=ScheduleConfig(num_steps=6, window_range=(0, 5))))


def test_nan_latents_are_masked(small, monkeypatch):
    """One sample with a NaN start: it has no reward and no say, the run goes on."""
    true_noise = train.initial_noise

    def one_bad(*args, **kwargs):
        noise = true_noise(*args, **kwargs).clone()
        noise[1] = torch.nan
        return noise

    monkeypatch.setattr(train, "initial_noise", one_bad)
    train.train(replace(small, max_iterations=1))
    row = json.loads(lines(small.output_dir)[0])
    assert row["valid_fraction"] == 7 / 8 and row["num_updates"] == 2 and row["grad_norm"] > 0


def test_too_many_failures_stop_the_run(small, monkeypatch):
    true_noise = train.initial_noise
    monkeypatch.setattr(train, "initial_noise", lambda *a, **k: true_noise(*a, **k) * torch.nan)
    with pytest.raises(RuntimeError, match="8 of 8"):
        train.train(replace(small, self_test=False))


def test_study_and_report(small):
    config = replace(small, max_iterations=1, evaluation=EvaluationConfig(num_samples=5))
    train.train(config)
    study = json.loads((config.output_dir / "evaluation" / "study.json").read_text())
    assert study["num_samples"] == 5 and study["gates"]
    page = (config.output_dir / "report.html").read_text()
    assert "obedience" in page and "iterations are done" not in page
    # The same study from the exported adapter: the same seed gives the same figures, another one others.
    assert study_command.main(["--run", str(config.output_dir), "--seed", "0", "--num-samples", "5"]) == 0
    again = json.loads((config.output_dir / "study_seed0" / "evaluation" / "study.json").read_text())
    assert again["metrics"] == study["metrics"] and again["gates"] == study["gates"]
    assert study_command.main(["--run", str(config.output_dir), "--num-samples", "5"]) == 0
    other = json.loads((config.output_dir / "study_seed101" / "evaluation" / "study.json").read_text())
    assert other["metrics"] != study["metrics"]
    assert study_command.main(["--run", str(config.output_dir / "nothing")]) == 2


@pytest.mark.slow
def test_ctrl_c_from_the_shell(small):
    """The script itself: exit code 130 after saving, and the command that it prints works."""
    flags = [
        "--max-iterations", "200", "--output-dir", str(small.output_dir), *SHELL_FLAGS, str(small.model.path),
    ]  # fmt: skip
    command = [sys.executable, "worldr1/train.py", *flags]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    metrics = small.output_dir / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while not (metrics.is_file() and metrics.read_text().count("\n")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=100)
    assert process.returncode == cli.EXIT_INTERRUPTED, out
    assert "Traceback" not in out and "--resume" in out
    done = len(lines(small.output_dir))
    assert 0 < done < 200
    assert (small.output_dir / "checkpoints" / f"iteration_{done:06d}" / "state.json").is_file()


@pytest.mark.slow
def test_two_ranks_then_one_goes_on_as_if_never_stopped(small, tmp_path):
    """A checkpoint belongs to no number of ranks: the resumed run follows the one that two ranks ran to the end."""

    def run(folder: Path, iterations: int, ranks: int, *more: str) -> list[dict]:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        flags = ["--max-iterations", str(iterations), "--output-dir", str(folder), "--update.final-lr-fraction", "1"]
        command = [*torchrun, "worldr1/train.py", *flags, *SHELL_FLAGS, str(small.model.path), *more]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=280, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return [json.loads(line) for line in lines(folder)]

    straight = run(tmp_path / "straight", 3, 2)
    run(tmp_path / "moved", 1, 2)
    moved = run(tmp_path / "moved", 3, 1, "--resume")
    assert [m["iteration"] for m in moved] == [0, 1, 2]
    assert moved[0] == straight[0]

    # Up to rounding: the ranks' batches have other shapes. Videos are bytes: a last digit may move one by 1 / 255.
    def check(ours: dict, theirs: dict) -> None:
        assert set(ours) == set(theirs)
        for name, value in theirs.items():
            if isinstance(value, dict):
                check(ours[name], value)
            elif isinstance(value, float):
                assert ours[name] == pytest.approx(value, rel=5e-3, abs=1e-5), name
            else:
                assert ours[name] == value, name

    for ours, theirs in zip(moved[1:], straight[1:], strict=True):
        check(ours, theirs)


def test_the_ranks_agree_on_their_kernels_before_a_model_is_loaded(small, monkeypatch):
    def agree(world):
        raise RuntimeError(f"asked on {world.device}")

    monkeypatch.setattr(train.distributed, "agree_on_kernels", agree)
    monkeypatch.setattr(train, "build_rewards", None)
    with pytest.raises(RuntimeError, match="asked on cpu"):
        train.train(small)
