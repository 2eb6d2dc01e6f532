"""config.json: every setting comes back with its type, or the sentence says which does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from worldr1.config import TrainConfig, to_json
from worldr1.presets import PRESETS, preset
from worldr1.run.saved_config import is_run, read_run_config


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_read_back(tmp_path: Path, name: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(to_json(preset(name))))
    assert read_run_config(file) == preset(name) and is_run(tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"seed": 1.5}, "seed must be int, got 1.5"),
        ({"seed": True}, "seed must be int"),
        ({"resume": 1}, "resume must be bool"),
        ({"output_dir": 3}, "output_dir must be Path, got 3"),
        ({"device": "tpu"}, "device must be one of auto, cpu, cuda, got 'tpu'"),
        ({"video": 5}, "video must hold settings, got 5"),
        ({"video": {"hight": 5}}, "VideoConfig has no hight"),
        ({"video": {"height": "32"}}, "video.height must be int, got '32'"),
        ({"camera": {"push": None}}, "camera.push must be float"),
        ({"camera": {"push": float("nan")}}, "camera.push must be float, got nan"),
        ({"schedule": {"window_range": [0]}}, "schedule.window_range must be"),
        ({"schedule": {"window_range": [0, "3"]}}, r"schedule.window_range\[1\] must be int"),
        ({"reward": {"extra": [1]}}, r"reward.extra\[0\] must be str"),
        ([1], "a JSON list and not an object"),
    ],
)
def test_a_value_of_another_type_is_named(tmp_path: Path, change: object, match: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(change))
    with pytest.raises(ValueError, match=f"config.json must be the config.json of a run, got {match}"):
        read_run_config(file)


def test_whole_numbers_are_floats_too(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text('{"camera": {"push": 2}, "reward": {"extra": ["a:b=1", "c:d=2"]}}')
    config = read_run_config(file)
    assert config.camera.push == 2 and config.reward.extra == ("a:b=1", "c:d=2")
    assert config.video == TrainConfig().video and not is_run(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_run_config(tmp_path / "nowhere.json")
