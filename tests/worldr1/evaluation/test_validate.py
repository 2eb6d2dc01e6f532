"""What validation shows and says, on a policy of a few numbers and one judge that likes brightness."""

from __future__ import annotations

import json
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from fakes import PROMPTS, FakePolicy, fake_config

from worldr1.config import EvaluationConfig, RewardConfig
from worldr1.evaluation import validate
from worldr1.evaluation.validate import Validator, choose_prompts
from worldr1.rewards import RewardStack
from worldr1.run import files, video
from worldr1.run.distributed import World

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


class Brightness:
    """An aesthetic judge: 10 times the mean of a frame."""

    def score(self, frames, prompts):
        return 10.0 * frames.flatten(2).mean(2)


def stack() -> RewardStack:
    reward = RewardConfig(
        weight_traj=0.0, weight_recon=0.0, weight_meta=0.0, weight_gen=0.5, control="random", num_aesthetic_frames=9
    )
    return RewardStack(reward, seed=0, reconstructor=None, critic=None, aesthetic=Brightness(), perceptual=None)


def bright(policy: FakePolicy) -> FakePolicy:
    with torch.no_grad():
        policy.bias.fill_(-0.5)  # velocity = noise - video: the video grows brighter
    return policy


def make(folder: Path, policy: FakePolicy, **evaluation: int) -> Validator:
    config = fake_config(output_dir=folder, evaluation=EvaluationConfig(num_validation=3, **evaluation))
    return Validator(policy, stack(), PROMPTS, config=config, world=ALONE)


def run(validator: Validator, iteration: int, said: list[str] | None = None) -> dict:
    return validator.run(iteration, between=lambda: None, say=[].append if said is None else said.append)


def test_the_first_of_each_motion_then_the_rest() -> None:
    prompts = ["camera fixed a", "camera fixed b", "pan left", "pan left again", "push in"]
    assert choose_prompts(prompts, 4) == ["camera fixed a", "pan left", "push in", "camera fixed b"]
    assert choose_prompts(prompts, 9) == ["camera fixed a", "pan left", "push in", "camera fixed b", "pan left again"]


def test_figures_are_those_of_the_clips_in_the_files(tmp_path: Path) -> None:
    figures = run(make(tmp_path, bright(FakePolicy())), 20)
    folder = tmp_path / "validation"
    base, adapter = [], []
    for i in range(3):
        with np.load(folder / "base" / f"prompt_{i:02d}.npz") as file:
            base.append(file["clip"].mean() / 255)
        frames = imageio.imread(folder / "iteration_000020" / f"prompt_{i:02d}.mp4") / 255
        assert frames.shape == (9, 256, (8 + 4 + 8) * 32, 3)
        assert frames[:, :, : 8 * 32].mean() == pytest.approx(base[-1], abs=0.02)
        adapter.append(frames[:, :, 12 * 32 :].mean())
    gen = figures["terms"]["gen"]
    assert gen["base"] == pytest.approx(np.mean(base), abs=1e-5)  # R_gen is the judge's score over 10
    assert gen["adapter"] == pytest.approx(np.mean(adapter), abs=0.02) and gen["adapter"] > gen["base"] + 0.05
    assert gen["gain"] == pytest.approx(gen["adapter"] - gen["base"]) and gen["num"] == figures["num"] == 3
    assert gen["stderr"] == pytest.approx(np.std(np.subtract(adapter, base), ddof=1) / 3**0.5, abs=0.01)
    assert figures["reward"]["gain"] == pytest.approx(0.5 * gen["gain"])  # the run's control touches no validation
    grid = imageio.improps(folder / "iteration_000020" / "grid.mp4")
    assert grid.shape[1] == (3 * 8 + 2 * 4) * 8 or grid.shape[2] > grid.shape[1]
    assert not list(folder.rglob(".unfinished*")) and not list(folder.rglob("*.part"))


def test_without_an_adapter_nothing_is_gained(tmp_path: Path) -> None:
    figures = run(make(tmp_path, FakePolicy()), 1)
    assert figures["reward"]["gain"] == 0.0 and figures["reward"]["stderr"] == 0.0


def test_the_base_is_sampled_once_and_again_for_other_settings(tmp_path: Path, monkeypatch) -> None:
    true_clips, asked = validate.sample_clips, []

    def counted(*args, adapter, **kwargs):
        asked.append(adapter)
        return true_clips(*args, adapter=adapter, **kwargs)

    monkeypatch.setattr(validate, "sample_clips", counted)
    policy = bright(FakePolicy())
    first = run(make(tmp_path, policy), 2)
    assert asked.count(False) == 3
    assert run(make(tmp_path, policy), 4) == first and asked.count(False) == 3  # another process, the same figures
    (tmp_path / "validation" / "base" / "prompt_01.npz").write_bytes(b"damaged")
    assert run(make(tmp_path, policy), 4) == first and asked.count(False) == 4
    assert run(make(tmp_path, policy, num_steps=3), 6) != first and asked.count(False) == 7


def test_one_size_for_training_another_to_look_at(tmp_path: Path) -> None:
    run(make(tmp_path, FakePolicy(), height=16, width=24, num_frames=5), 2)
    size = imageio.improps(tmp_path / "validation" / "iteration_000002" / "prompt_00.mp4").shape
    assert size[1:] == (16 * 16, (24 + 4 + 24) * 16, 3)


def test_lines_of_a_later_validation_give_way(tmp_path: Path) -> None:
    validator = make(tmp_path, FakePolicy())
    for iteration in (2, 4, 6, 4):
        run(validator, iteration)
    lines = (tmp_path / "validation" / "validation.jsonl").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [1, 3]


@pytest.mark.parametrize("where", ["_write_mp4", "_write_base", "replace"])
def test_a_full_disk_is_told_once_and_costs_no_figure(tmp_path: Path, monkeypatch, where: str) -> None:
    expected = run(make(tmp_path / "whole", bright(FakePolicy())), 2)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr({"_write_mp4": video, "_write_base": validate, "replace": files.os}[where], where, full)
    said: list[str] = []
    validator = make(tmp_path / "full", bright(FakePolicy()))
    assert run(validator, 2, said) == expected
    assert len(said) == 1 and "after 2 iterations: not all files" in said[0] and "No space left" in said[0]
    left = [p for p in (tmp_path / "full").rglob("*") if p.is_file() and (p.suffix == ".part" or p.name[0] == ".")]
    assert left == []
    assert run(validator, 4) == expected  # the base is kept in memory


def test_a_clip_that_cannot_be_judged_is_left_out(tmp_path: Path, monkeypatch) -> None:
    true_clips = validate.sample_clips

    def broken(policy, batch, *args, **kwargs):
        clips = true_clips(policy, batch, *args, **kwargs)
        return clips * torch.nan if batch.prompts == [PROMPTS[1]] else clips

    monkeypatch.setattr(validate, "sample_clips", broken)
    figures = run(make(tmp_path, bright(FakePolicy())), 2)
    assert figures["num"] == 3 and figures["reward"]["num"] == 2 and figures["reward"]["gain"] > 0


def test_a_size_that_the_model_cannot_make_is_named(tmp_path: Path) -> None:
    class Strict(FakePolicy):
        def latent_shape(self, video):
            if video.height % 16:
                raise ValueError("latent_shape: video.height must be a multiple of 16")
            return super().latent_shape(video)

    with pytest.raises(ValueError, match="multiple of 16"):
        make(tmp_path, Strict(), height=24)
