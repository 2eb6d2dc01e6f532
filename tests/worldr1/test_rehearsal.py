"""The preset of Wan2.1 as it stands, on a Wan folder of random weights that fits: all of a large run but its size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import imageio.v2 as imageio
import pytest

from worldr1.config import EMBEDDED

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
