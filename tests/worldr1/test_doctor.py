"""The doctor: green with the command, or the next thing to do."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from worldr1 import cli, doctor
from worldr1.config import EMBEDDED, TrainConfig

REPOSITORY = Path(__file__).parents[2]


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, list[str]]:
    code = doctor.main(list(args))
    return code, capsys.readouterr().out.splitlines()


def found(lines: list[str]) -> dict[str, tuple[bool, str]]:
    """What -> whether it is good, and the text; of several the last."""
    return {line[7:21].strip(): (line.startswith("ok"), line[22:]) for line in lines if line[:5] in ("ok   ", "TO DO")}


def test_the_micro_world_is_ready_and_the_command_is_the_one_that_was_asked_about(capsys) -> None:
    code, lines = run(capsys, "--seed", "3", "--output-dir", "runs/a b", "--ranks=2")
    assert code == 0
    findings = found(lines)
    assert all(good for good, _ in findings.values()), findings
    assert {"settings", "packages", "device", "prompts", "model", "disk", "memory"} <= findings.keys()
    for role, kind in (("reconstructor", "MicroGeo"), ("critic", "MicroCritic"), ("perceptual", "MicroPerceptual")):
        assert findings[role][1].startswith(f"{kind}, ") and "licence: Apache-2.0" in findings[role][1]
    clips = [line for line in lines if line.startswith("ok     clip, ")]
    assert len(clips) == 4 and all(re.search(r"[\d.]+ s to load, [\d.]+ s a clip", line) for line in clips)
    command = shlex.split(lines[-1])
    assert command[:5] == ["torchrun", "--nproc_per_node", "2", "--shutdown-timeout", "600"]
    script = command.index("worldr1/train.py")
    assert (REPOSITORY / command[script]).is_file()
    config = cli.parse(command[script + 1 :])
    assert config.seed == 3 and config.output_dir == Path("runs/a b")


def test_a_preset_without_paths_says_what_each_is_and_where_to_get_it(capsys) -> None:
    code, lines = run(capsys, "--preset", "wan2.1-1.3b", "--ranks", "8")
    assert code == 1
    todo = [line for line in lines if line.startswith("TO DO  settings")]
    config = cli.parse(["--preset", "wan2.1-1.3b"])
    flags = [line.split()[3] for line in todo]
    assert flags == cli.missing_paths(config) and set(flags) == set(doctor.PAGES)
    assert lines[-1].endswith(todo[0].split("settings", 1)[1].strip())
    for page in re.findall(r"docs/[\w./-]+\.md", " ".join(doctor.PAGES.values())):
        assert (REPOSITORY / page).is_file(), page


def test_a_judge_without_a_weight_is_not_asked_about(capsys) -> None:
    code, lines = run(capsys, "--reward.weight-meta", "0", "--reward.critic", "/nowhere", "--no-clip")
    assert code == 0 and "critic" not in found(lines)


@pytest.mark.parametrize(
    ("flags", "what", "text"),
    [
        (["--prompts", "/nowhere.txt"], "prompts", "/nowhere.txt"),
        (["--reward.critic", str(EMBEDDED / "microgeo")], "critic", "which is MicroGeo .reconstructor."),
        (["--model.path", str(EMBEDDED / "microgeo")], "model", "has no model_index.json"),
        (["--video.height", "480", "--video.width", "832", "--video.num-frames", "81"], "device", "need a GPU"),
        (["--rollout.micro-batch", "5"], "settings", "micro_batch must divide the 64 samples"),
    ],
)
def test_what_is_wrong_is_said_where_it_is_found(capsys, flags: list[str], what: str, text: str) -> None:
    code, lines = run(capsys, "--no-clip", *flags)
    good, said = found(lines)[what]
    assert code == 1 and not good and re.search(text, said), lines


def test_a_missing_shard_and_an_empty_folder(tmp_path: Path) -> None:
    folder = tmp_path / "transformer"
    folder.mkdir()
    with pytest.raises(ValueError, match="must hold weights, it has none"):
        doctor._weights_size(folder)
    (folder / "model-1.safetensors").write_bytes(b"12345")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    with pytest.raises(ValueError, match="must hold model-2.safetensors, model.safetensors.index.json names it"):
        doctor._weights_size(folder)
    (folder / "model-2.safetensors").write_bytes(b"123")
    assert doctor._weights_size(folder) == 8
    index.write_text("{")
    with pytest.raises(ValueError, match="must be JSON with a weight_map"):
        doctor._weights_size(folder)


@pytest.mark.slow
def test_where_memory_is_short_the_change_that_helps_is_named(monkeypatch) -> None:
    config = TrainConfig()
    monkeypatch.setattr(doctor, "_room", lambda config, ranks: ("a small device", doctor._Room(True, room)))
    room = 1e12
    good = doctor._memory(config, 1)
    assert isinstance(good, str) and "a small device" in good
    assert good.startswith("0.229 GB of a rank in update")
    for num_bytes, change in (  # the judges' weights are 2.2 MB, 32 clips go through the update together
        (228e6, "--reward.offload"),
        (60e6, "--reward.offload --model.checkpoint-keep nothing --rollout.micro-batch 1"),
    ):
        room = num_bytes
        finding = doctor._memory(config, 1)
        assert isinstance(finding, doctor.Finding) and not finding.good
        assert f"too little; {change} would fit" in finding.text
    room = 1e3
    finding = doctor._memory(config, 1)
    assert isinstance(finding, doctor.Finding) and "neither offloading nor recomputing" in finding.text


def test_disk(monkeypatch, tmp_path: Path) -> None:
    config = replace(TrainConfig(), output_dir=tmp_path / "not" / "there")
    assert str(tmp_path) in doctor._disk(config)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(ValueError, match="a run may take .* has 5e-06 MB; choose --output-dir"):
        doctor._disk(config)


def test_more_ranks_than_devices_are_more_machines(monkeypatch) -> None:
    """A run of 48 on a machine of 8: six of them, and the command says so."""
    config = TrainConfig()
    monkeypatch.setattr(doctor, "_num_devices", lambda: 8)
    command = doctor.start_command(48, ["--seed", "3"], config)
    words = shlex.split(command.splitlines()[0])
    assert words[words.index("--nproc_per_node") + 1] == "8" and words[words.index("--nnodes") + 1] == "6"
    assert words[-2:] == ["--seed", "3"] and command.endswith("on each of 6 machines like this one")
    assert doctor._ranks(config, 48) == "48, 8 of them here" and doctor._ranks(config, 8) is None
    finding = doctor._ranks(config, 20)
    assert isinstance(finding, doctor.Finding) and "the same number on each machine, here 8 fit" in finding.text
    assert "--nnodes" not in doctor.start_command(4, [], config)
    # Judges on the upper half of the devices leave half of them to the ranks.
    halved = replace(config, reward=replace(config.reward, device="cuda:4"))
    assert shlex.split(doctor.start_command(48, [], halved).splitlines()[0])[2] == "4"
    assert "--nnodes" not in doctor.start_command(48, [], replace(config, device="cpu"))


def test_its_own_flags(capsys) -> None:
    assert doctor.main(["--help"]) == 0 and "--no-clip" in capsys.readouterr().out
    assert doctor.main(["--ranks", "none"]) == 2 and "--ranks must be a number" in capsys.readouterr().err
    assert doctor.main(["--preset", "micr"]) == 2 and "the nearest is 'micro'" in capsys.readouterr().err
