"""All of a large run but its size: a rehearsal on tiny folders of the real classes, and Wan's preset as it stands."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import imageio.v2 as imageio
import pytest

from worldr1 import cli, doctor
from worldr1.config import EMBEDDED
from worldr1.config_checks import validate
from worldr1.rehearsal.__main__ import main
from worldr1.rehearsal.build import PARTS, build, command
from worldr1.rewards.judges.registry import kind_of
from worldr1.run.runtime import RANDOM_WEIGHTS, random_weights

REPOSITORY = Path(__file__).parents[2]
# What only a user knows, and the size that the embedded judges see; the rest is the preset's: bfloat16, checkpointing
# with attention kept, 20 steps, guidance, KL, shared first step, a window of two, spread frames, validation by UniPC.
SIZE = ("--video.height", "32", "--video.width", "32", "--video.num-frames", "9", "--evaluation.num-frames", "9")
PATHS = (
    "--prompts", "micro_train.txt", "--dynamic-prompts", "micro_dynamic.txt", "--eval-prompts", "micro_heldout.txt",
)  # fmt: skip
JUDGES = ("reconstructor=microgeo", "critic=microcritic", "aesthetic=microaesthetic", "perceptual=microperceptual")


@pytest.mark.slow
def test_two_ranks_share_one_group_by_the_preset_of_wan(tiny_wan: Path, tmp_path: Path) -> None:
    prompts = [str(EMBEDDED / "prompts" / p) if p.endswith(".txt") else p for p in PATHS]
    judges = [f"--reward.{role}={EMBEDDED / folder}" for role, folder in (j.split("=") for j in JUDGES)]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master-port", "29731",
        "worldr1/train.py", "--preset", "wan2.1-1.3b", "--model.path", str(tiny_wan), *prompts, *judges, *SIZE,
        "--rollout.prompts-per-iteration", "1", "--max-iterations", "2", "--validate-every", "1",
        "--evaluation.num-validation", "2", "--evaluation.num-steps", "6", "--output-dir", str(tmp_path / "run"),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = tmp_path / "run"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1]
    for row in rows:  # one group of eight, four samples on each rank
        assert row["valid_fraction"] == 1.0 and row["num_updates"] == 2 and len(row["window"]) == 2
        assert row["ratio_first_deviation"] == 0.0 and row["kl"] >= 0 and row["alarms"] == []
        assert set(row["validation"]["terms"]) == {"traj", "recon", "meta", "gen"} and row["validation"]["num"] == 2
    assert rows[1]["kl"] > 0  # the adapter has moved
    for iteration in (1, 2):
        folder = run / "validation" / f"iteration_{iteration:06d}"
        for name in ("prompt_00.mp4", "prompt_01.mp4", "grid.mp4"):
            assert len(imageio.mimread(folder / name, memtest=False)) == 9
    config = json.loads((run / "config.json").read_text())
    assert config["schedule"]["num_steps"] == 20 and config["rollout"]["share_first_step"]
    assert "4 samples" in done.stdout or "transformer passes per sample" in done.stdout
    assert (run / "report.html").stat().st_size > 10_000 and any((run / "adapter").iterdir())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole rehearsal."""
    path = tmp_path_factory.mktemp("rehearsal")
    assert main(["build", str(path)]) == 0
    return path


def test_every_part_is_of_the_kind_that_its_setting_asks_for(folder: Path) -> None:
    words = shlex.split(command(folder))
    config = cli.parse(words[words.index("worldr1/train.py") + 1 :])
    assert cli.missing_paths(config) == [] and validate(config, world_size=2) is None
    kinds = {"reconstructor": "DepthAnything", "critic": "QwenCritic", "aesthetic": "HPSv3", "perceptual": "LPIPS"}
    for role, kind in kinds.items():
        assert kind_of(getattr(config.reward, role), role=role).__name__ == kind
    assert random_weights(config) == ["model.path", *(f"reward.{role}" for role in kinds)]
    assert json.loads((config.model.path / "model_index.json").read_text())["_class_name"] == "WanPipeline"


def test_it_writes_over_itself_and_over_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = next(iter(build(tmp_path / "new")))
    next(iter(build(tmp_path / "new")))  # again
    assert (tmp_path / "new" / first.name / RANDOM_WEIGHTS).is_file()
    mine = tmp_path / "new" / PARTS[1].name
    mine.mkdir()
    (mine / "model.safetensors").write_text("published weights")
    with pytest.raises(ValueError, match="must be of an earlier rehearsal, it holds no RANDOM_WEIGHTS.txt"):
        list(build(tmp_path / "new"))
    assert (mine / "model.safetensors").read_text() == "published weights"
    (tmp_path / "thesis.tex").write_text("")
    assert main(["build", str(tmp_path)]) == 2
    assert "it holds" in capsys.readouterr().err and not (tmp_path / "wan").exists()


@pytest.mark.slow
def test_the_doctor_finds_a_rehearsal_ready(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command(folder))
    assert doctor.main(words[words.index("worldr1/train.py") + 1 :]) == 0
    out = capsys.readouterr().out
    assert "CC BY-NC 4.0" not in out and "Apache-2.0" in out  # the tiny model is none of the published ones
    assert sum(line.startswith("ok     clip, ") for line in out.splitlines()) == 4
    assert shlex.split(out.splitlines()[-1])[6:8] == ["--preset", "rehearsal"]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_command_of_a_rehearsal_trains(folder: Path, tmp_path: Path, ranks: int) -> None:
    words = shlex.split(command(folder))
    flags = words[words.index("worldr1/train.py") :]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--master-port", "29733",
         *flags, "--output-dir", str(tmp_path / "run")],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "RANDOM WEIGHTS (model.path, reward.reconstructor" in done.stdout
    run = tmp_path / "run"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["phase"] for row in rows] == ["main", "dynamic"]
    assert [sorted(row["terms"]) for row in rows] == [["gen", "meta", "recon", "traj"], ["gen"]]
    for row in rows:
        assert row["valid_fraction"] == 1.0 and row["ratio_first_deviation"] == 0.0 and row["num_updates"] == 2
        assert row["reward_std"] > 0 and row["advantage_abs"] > 0  # the judges tell the samples apart
        assert row["validation"]["num"] == 2
    assert "Random weights, a rehearsal: these scores mean nothing." in (run / "report.html").read_text()
    assert json.loads((run / "environment.json").read_text())["random_weights"][0] == "model.path"
