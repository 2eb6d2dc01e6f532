"""Obedience while a run goes on, on a policy of a few numbers and a classifier that looks at brightness."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import PROMPTS, FakePolicy, fake_config

from worldr1.config import EvaluationConfig
from worldr1.evaluation import lookout as lookout_module
from worldr1.evaluation.labels import Labels
from worldr1.evaluation.lookout import FIRST_ID, Lookout
from worldr1.prompts.sampler import HELD_OUT_IDS
from worldr1.run.distributed import World


class Bright:
    """Finds motion 1 in a clip whose mean is above .335, else motion 0."""

    def classify(self, video):
        bright = (video.flatten(1).mean(1) > 0.335).float()
        return torch.stack([1 - bright, bright], 1), {}


def labels(prompts):
    return Labels(motions=("dark", "bright"), motion=torch.ones(len(prompts), dtype=torch.int64), contents={})


def make(folder: Path, *, rank: int = 0, size: int = 1, num: int = 7, **changes) -> Lookout:
    config = fake_config(output_dir=folder, max_iterations=200, evaluation=EvaluationConfig(num_samples=num, **changes))
    world = World(rank=rank, size=size, local_rank=rank, device=torch.device("cpu"))
    policy = FakePolicy()
    with torch.no_grad():
        policy.bias.fill_(-0.5)
    prompts = [f"{prompt} {k}" for k in range(2) for prompt in PROMPTS]
    return Lookout(policy, prompts, read_labels=labels, evaluator=Bright(), config=config, world=world)


def test_it_is_due_evenly_and_never_where_the_study_looks(tmp_path: Path) -> None:
    assert [i for i in range(201) if make(tmp_path).due(i)] == [40, 80, 120, 160]
    assert [i for i in range(201) if make(tmp_path, num_looks=1).due(i)] == [100]
    assert not any(make(tmp_path, num_looks=0).due(i) for i in range(201))
    short = make(tmp_path)
    short.every = replace(short.config, max_iterations=3).max_iterations // 5
    assert not any(short.due(i) for i in range(4))


def test_a_look_is_the_share_of_clips_that_obey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    true_clips = lookout_module.sample_clips

    def kept(*args, **kwargs):
        assert kwargs["adapter"] is True
        seen.append(true_clips(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(lookout_module, "sample_clips", kept)
    asked: list[int] = []
    share, stderr = make(tmp_path).look(40, between=lambda: asked.append(1))
    bright = (torch.cat(seen).flatten(1).mean(1) > 0.335).float()
    assert len(bright) == 7 and asked == [1]
    assert share == pytest.approx(float(bright.mean())) and 0 < share < 1
    assert stderr == pytest.approx(np.sqrt(share * (1 - share) / 7))
    [row] = map(json.loads, (tmp_path / "validation" / "obedience.jsonl").read_text().splitlines())
    assert row == {"iteration": 39, "obedience": {"mean": share, "stderr": stderr, "num": 7}}


def test_ranks_share_the_samples_and_their_noise(tmp_path: Path) -> None:
    alone = make(tmp_path)._obeyed()
    for size in (2, 3, 9):
        parts = [make(tmp_path, rank=rank, size=size)._obeyed() for rank in range(size)]
        assert [parts[i % size][i // size] for i in range(7)] == alone


def test_a_clip_that_is_not_finite_does_not_obey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = torch.ones(7, 9, 3, 8, 8)
    video[2, 4, 0, 1, 1] = torch.nan
    monkeypatch.setattr(lookout_module, "sample_clips", lambda *a, **k: video)
    assert make(tmp_path)._obeyed() == [True, True, False, True, True, True, True]


def test_a_resumed_run_writes_a_look_again_once(tmp_path: Path) -> None:
    look = make(tmp_path)
    for iteration in (40, 80, 120, 80):
        look.look(iteration, between=lambda: None)
    rows = map(json.loads, (tmp_path / "validation" / "obedience.jsonl").read_text().splitlines())
    assert [row["iteration"] for row in rows] == [39, 79]


def test_its_noise_is_its_own() -> None:
    assert HELD_OUT_IDS + 10**8 < FIRST_ID < HELD_OUT_IDS + 2**30 - 10**6  # the study's and validation's
