"""Judges from their folders."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from worldr1.config import PhaseConfig, RewardConfig, TrainConfig
from worldr1.rewards import build_rewards
from worldr1.rewards.judges.micro_geo import MicroGeo
from worldr1.rewards.judges.micro_images import MicroAesthetic, MicroCritic, MicroPerceptual
from worldr1.rewards.judges.registry import load_judge


def test_embedded_judges_fill_their_roles_and_are_frozen():
    stack = build_rewards(TrainConfig(), device="cpu")
    assert isinstance(stack.reconstructor, MicroGeo) and isinstance(stack.critic, MicroCritic)
    assert isinstance(stack.aesthetic, MicroAesthetic) and isinstance(stack.perceptual, MicroPerceptual)
    judges = (stack.reconstructor, stack.critic, stack.aesthetic, stack.perceptual)
    assert not any(p.requires_grad for judge in judges for p in judge.parameters())


def test_only_the_judges_with_a_weight_are_loaded(tmp_path: Path):
    nowhere = RewardConfig(
        weight_recon=0, weight_meta=0, weight_gen=0, critic=tmp_path, aesthetic=tmp_path, perceptual=tmp_path
    )
    config = replace(TrainConfig(), reward=nowhere, phase=PhaseConfig(dynamic_iterations=0))
    stack = build_rewards(config, device="cpu")
    assert stack.critic is None and stack.aesthetic is None and stack.perceptual is None
    with pytest.raises(ValueError, match="must be a folder of MicroAesthetic.*, which is no kind"):
        build_rewards(replace(config, phase=PhaseConfig()), device="cpu")


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "must be JSON"),
        ("[]", "which is no kind that is known;"),
        (json.dumps({"architecture": "MicroCritic"}), "folder of MicroGeo.*, got .*, which is MicroCritic .critic."),
        (json.dumps({"model_type": "qwen3_vl"}), "which is QwenCritic .critic.; docs/rewards.md"),
        (json.dumps({"model_type": "t5"}), "config.json says 't5'"),
    ],
)
def test_a_folder_that_does_not_fill_the_role_is_refused(tmp_path: Path, text: str, message: str):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_judge(tmp_path, role="reconstructor", device=torch.device("cpu"))
