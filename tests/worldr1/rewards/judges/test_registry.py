"""Judges from their folders."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from worldr1.config import PhaseConfig, RewardConfig, TrainConfig
from worldr1.config_checks import JUDGE_ROLES
from worldr1.rewards import build_rewards
from worldr1.rewards.judges import registry
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


class Loudness:
    """Somebody else's aesthetic judge: a folder with loudness.txt."""

    role = "aesthetic"

    def __init__(self, *, device: torch.device, level: float = 1.0) -> None:
        self.device, self.level = device, level

    @classmethod
    def recognises(cls, folder: Path, config: dict) -> bool:
        return (folder / "loudness.txt").is_file()

    @classmethod
    def licence(cls, folder: Path) -> str:
        return "mine"

    @classmethod
    def load(cls, folder: Path, *, device: torch.device, config: RewardConfig) -> "Loudness":
        return cls(device=device, level=float((folder / "loudness.txt").read_text()))


def test_a_package_brings_a_kind_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "loudness.txt").write_text("0.5")
    with pytest.raises(ValueError, match="which is no kind that is known;"):
        load_judge(tmp_path, role="aesthetic", device=torch.device("cpu"))

    class Point:
        def load(self) -> type:
            return Loudness

    asked = []
    monkeypatch.setattr(registry, "entry_points", lambda group: asked.append(group) or [Point()])
    judge = load_judge(tmp_path, role="aesthetic", device=torch.device("cpu"))
    assert isinstance(judge, Loudness) and judge.level == 0.5 and set(asked) == {"worldr1.rewards.judges"}
    with pytest.raises(ValueError, match="reward.critic must be .* which is Loudness .aesthetic."):
        load_judge(tmp_path, role="critic", device=torch.device("cpu"))


def test_a_judge_by_its_dotted_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "mine.py").write_text("def calm(*, device):\n    return ('calm', str(device))\n")
    monkeypatch.syspath_prepend(tmp_path)
    cpu = torch.device("cpu")
    assert load_judge("mine:calm", role="reconstructor", device=cpu) == ("calm", "cpu")
    with pytest.raises(ValueError, match="mine has no loud"):
        load_judge("mine:loud", role="reconstructor", device=cpu)
    with pytest.raises(ValueError, match="no module not_mine"):
        load_judge("not_mine:calm", role="reconstructor", device=cpu)
    with pytest.raises(ValueError, match="reward.aesthetic must be a folder or module:name, got http://"):
        load_judge("http://host:8000/v1", role="aesthetic", device=cpu)


def test_every_kind_has_its_role_and_a_licence(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    found = [(kind.__name__, kind.role, kind.licence(tmp_path)) for kind in registry.kinds()]
    assert len(found) == len(registry.KINDS) == 8
    assert {role for _, role, _ in found} == set(JUDGE_ROLES) and all(licence for _, _, licence in found)
