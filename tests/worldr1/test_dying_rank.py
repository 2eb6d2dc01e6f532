"""A rank that dies in the reward stage: the others end with it, and the run goes on from the last checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

# Rank 1 ends without a word, as a killed process does, when it scores the third batch.
DYING = """
import os, sys
from worldr1.cli import main
from worldr1.rewards import RewardStack
from worldr1.train import train

judge, calls = RewardStack.judge, []

def dies(self, *args, **kwargs):
    calls.append(1)
    if os.environ["RANK"] == "1" and len(calls) == 3:
        os._exit(9)
    return judge(self, *args, **kwargs)

RewardStack.judge = dies
sys.exit(main(train))
"""


@pytest.mark.slow
def test_a_rank_that_dies_in_the_reward_stage_loses_one_iteration(tiny_wan: Path, tmp_path: Path) -> None:
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    flags = (
        "--model.path", str(tiny_wan), "--noise.mode", "plain", "--rollout.group-size", "4",
        "--rollout.prompts-per-iteration", "2", "--rollout.micro-batch", "4", "--num-threads", "1",
        "--evaluation.num-samples", "0", "--checkpoint-every", "1", "--max-iterations", "4",
    )  # fmt: skip

    def run(program: str, folder: Path, *more: str) -> subprocess.CompletedProcess:
        torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master-port", "29741")
        command = [*torchrun, program, *flags, "--output-dir", str(folder), *more]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=250, check=False)

    start = time.monotonic()
    died = run(str(script), tmp_path / "run")
    assert died.returncode != 0 and time.monotonic() - start < 200  # nobody waits for ever
    saved = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert saved == ["iteration_000001", "iteration_000002"]
    done = run("worldr1/train.py", tmp_path / "run", "--resume")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    whole = run("worldr1/train.py", tmp_path / "whole")
    assert whole.returncode == 0

    def rows(name: str) -> list[dict]:
        return [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]

    assert rows("run") == rows("whole") and len(rows("run")) == 4
