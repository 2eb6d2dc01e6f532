"""The study streams: what it says and writes is what clips held all at once would give."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import PROMPTS, FakePolicy, fake_config

from worldr1.camera.noise import initial_noise
from worldr1.config import EMBEDDED, EvaluationConfig, VideoConfig
from worldr1.evaluation import clips, study
from worldr1.evaluation.clips import chunks, evaluation_settings
from worldr1.evaluation.compare import compare_clips, to_json
from worldr1.evaluation.evaluate import load_evaluator
from worldr1.prompts.sampler import held_out_batch
from worldr1.rollout.sample import generate
from worldr1.rollout.schedule import evaluation_sigmas
from worldr1.run.distributed import World

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


def adapted() -> FakePolicy:
    policy = FakePolicy()
    with torch.no_grad():
        policy.bias.fill_(-0.5)
    return policy


def config(**evaluation: int):
    return fake_config(
        video=VideoConfig(height=32, width=32, num_frames=9),
        evaluation=EvaluationConfig(num_samples=7, labels=False, **evaluation),
    )


def test_any_prompts_and_an_evaluator_that_only_reconstructs(tmp_path, monkeypatch):
    """In pieces of 3 clips, the last of 1; against all clips at once."""
    settings = config()
    monkeypatch.setattr(clips, "PIXELS_PER_CALL", 3 * 9 * 32 * 32)
    evaluator = load_evaluator(EMBEDDED / "microgeo", device=torch.device("cpu"), labels=False)
    assert not hasattr(evaluator, "classify")
    result = study.run_study(
        adapted(), PROMPTS, read_labels=None, evaluator=evaluator, config=settings, world=ALONE, folder=tmp_path
    )
    batch = held_out_batch(PROMPTS, config=settings, rank=0, world_size=1)
    noise = initial_noise(batch, (4, 3, 8, 8), config=settings)
    sigmas = evaluation_sigmas("euler", settings.schedule.num_steps, settings.schedule.shift)
    before, after = (generate(adapted(), batch.prompts, noise, sigmas=sigmas, adapter=a) for a in (False, True))
    whole = compare_clips(before, after, batch.prompts, batch.viewmats, labels=None, evaluator=evaluator)
    assert set(result.measures) == set(whole.measures)
    for name, m in whole.measures.items():
        assert result.measures[name][:4] == pytest.approx(m[:4], rel=1e-4, abs=1e-5, nan_ok=True), name
    folder = tmp_path / "evaluation"
    assert sorted(p.name for p in folder.iterdir()) == ["samples.npz", "study.json"]
    assert [g["name"] for g in json.loads((folder / "study.json").read_text())["gates"]] == [
        g["name"] for g in to_json(whole)["gates"]
    ]
    with np.load(folder / "samples.npz", allow_pickle=False) as arrays:
        for name, video in (("before", before), ("after", after)):
            assert arrays[name].dtype == np.uint8
            assert np.abs(arrays[name] - 255.0 * video.numpy()).max() <= 0.51
        assert arrays["prompts"].tolist() == batch.prompts


def test_pieces_stay_small_at_any_size():
    micro = config()
    assert [r.stop - r.start for r in chunks(70, micro)] == [32, 32, 6]
    wan = replace(micro, video=VideoConfig(height=480, width=832, num_frames=81))
    assert [r.stop - r.start for r in chunks(3, wan)] == [1, 1, 1]


def test_evaluation_has_a_size_of_its_own():
    settings = evaluation_settings(config(height=16, num_frames=5))
    assert (settings.video.num_frames, settings.video.height, settings.video.width) == (5, 16, 32)
    assert evaluation_settings(config()).video == config().video


def test_a_clip_file_takes_pieces_in_any_order_and_no_padding(tmp_path):
    all_clips = torch.randint(0, 256, (6, 2, 3, 4, 5), dtype=torch.uint8)
    file = study._ClipFile(tmp_path / "clips", 5)
    for rows in (slice(3, 6), slice(0, 1), slice(1, 3)):
        file.put(rows.start, all_clips[rows])
    file.put(5, all_clips[5:])
    assert np.array_equal(file.array(), all_clips[:5].numpy()) and (tmp_path / "clips").stat().st_size == 5 * 120
    file.remove()
    assert not list(tmp_path.iterdir())
