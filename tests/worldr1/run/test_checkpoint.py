import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from fakes import fake_config, fake_iteration, fake_learner

from worldr1.config import UpdateConfig
from worldr1.run import checkpoint


def equal_tensors(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_resume_is_exact(tmp_path):
    config = fake_config(max_iterations=4)
    straight = fake_learner(config)
    figures = [fake_iteration(straight, config, iteration=i) for i in range(4)]

    first = fake_learner(config)
    for i in range(2):
        fake_iteration(first, config, iteration=i)
    checkpoint.save(tmp_path, *first, iteration=2, config=config)
    torch.rand(7)  # torch's generator moves on in between
    second = fake_learner(config, seed=5)  # other start values: all must come from the checkpoint
    second.policy.base.copy_(first.policy.base)
    found = checkpoint.latest(tmp_path)
    assert checkpoint.load(found, *second) == 2
    assert equal_tensors(first.ema.shadow, second.ema.shadow)
    assert equal_tensors(first.ema.params, second.ema.params)
    resumed = [fake_iteration(second, config, iteration=i) for i in (2, 3)]
    assert json.dumps(resumed) == json.dumps(figures[2:])
    assert equal_tensors(straight.ema.params, second.ema.params)
    assert equal_tensors(straight.ema.shadow, second.ema.shadow)


def test_torch_generator_is_restored(tmp_path):
    config = fake_config()
    learner = fake_learner(config)
    torch.manual_seed(3)
    folder = checkpoint.save(tmp_path, *learner, iteration=0, config=config)
    expected = torch.rand(3)
    checkpoint.load(folder, *learner)
    assert torch.equal(torch.rand(3), expected)


def test_old_checkpoints_go_and_unfinished_ones_do_not_count(tmp_path):
    config = fake_config(keep_checkpoints=2)
    learner = fake_learner(config)
    (tmp_path / "checkpoints" / ".unfinished_iteration_000099").mkdir(parents=True)
    for i in (1, 2, 3):
        checkpoint.save(tmp_path, *learner, iteration=i, config=config)
    names = sorted(p.name for p in (tmp_path / "checkpoints").iterdir() if not p.name.startswith("."))
    assert names == ["iteration_000002", "iteration_000003"]
    assert checkpoint.latest(tmp_path).name == "iteration_000003"
    assert checkpoint.latest(tmp_path / "nowhere") is None


def _full_disk_file(tensors, path, **_):
    Path(path).write_bytes(b"half a fi")
    raise OSError(errno.ENOSPC, "No space left on device")


def _full_disk_safetensors(tensors, path, **_):
    Path(path).write_bytes(b"half a fi")
    raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("fail", [_full_disk_file, _full_disk_safetensors])
def test_disk_full_leaves_the_older_checkpoint(tmp_path, monkeypatch, fail):
    config = fake_config()
    learner = fake_learner(config)
    old = checkpoint.save(tmp_path, *learner, iteration=1, config=config)
    before = {p.name: p.read_bytes() for p in old.iterdir()}
    fake_iteration(learner, config, iteration=0)
    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(RuntimeError, match="No space left on device.*newest whole checkpoint is .*iteration_000001"):
        checkpoint.save(tmp_path, *learner, iteration=2, config=config)
    assert checkpoint.latest(tmp_path) == old
    assert {p.name: p.read_bytes() for p in old.iterdir()} == before
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["iteration_000001"]


def test_our_own_mistakes_are_not_called_a_full_disk(tmp_path, monkeypatch):
    def wrong(tensors, path, **_):
        raise TypeError("a bug")

    config = fake_config()
    monkeypatch.setattr(safetensors.torch, "save_file", wrong)
    with pytest.raises(TypeError, match="a bug"):
        checkpoint.save(tmp_path, *fake_learner(config), iteration=1, config=config)


def test_changed_settings_are_named(tmp_path):
    config = fake_config()
    folder = checkpoint.save(tmp_path, *fake_learner(config), iteration=1, config=config)
    checkpoint.check_same_run(folder, replace(config, max_iterations=999, resume=True, checkpoint_every=3))
    changed = replace(config, seed=3, update=UpdateConfig(learning_rate=0.5, ema_decay=0.5))
    with pytest.raises(ValueError) as caught:
        checkpoint.check_same_run(folder, changed)
    text = str(caught.value)
    assert "seed: 0 -> 3" in text and "update.learning_rate: 0.01 -> 0.5" in text and "ema_decay" not in text


def test_what_the_user_put_there_stays(tmp_path):
    """Copies and folders of other names survive, block nothing and are not taken for the newest."""
    config = fake_config(keep_checkpoints=1)
    learner = fake_learner(config)
    folder = tmp_path / "checkpoints"
    checkpoint.save(tmp_path, *learner, iteration=1, config=config)
    shutil.copytree(folder / "iteration_000001", folder / "iteration_000001_best")
    (folder / "iteration_backup").mkdir()
    (folder / "iteration_zzz").write_text("a note")
    (folder / "iteration_000000").mkdir()  # of our name, with nothing of ours in it
    assert checkpoint.latest(tmp_path).name == "iteration_000001"
    for i in (2, 3):
        checkpoint.save(tmp_path, *learner, iteration=i, config=config)
    names = sorted(p.name for p in folder.iterdir())
    assert names == [
        "iteration_000000",
        "iteration_000001_best",
        "iteration_000003",
        "iteration_backup",
        "iteration_zzz",
    ]
    assert checkpoint.load(folder / "iteration_000001_best", *learner) == 1
    (folder / "iteration_000004").mkdir()
    (folder / "iteration_000004" / "mine.txt").write_text("mine")
    with pytest.raises(RuntimeError, match="iteration_000004 must be free, got something that no run wrote"):
        checkpoint.save(tmp_path, *learner, iteration=4, config=config)
    assert (folder / "iteration_000004" / "mine.txt").read_text() == "mine"


def test_a_million_iterations_are_more_than_999999(tmp_path):
    config = fake_config(keep_checkpoints=2)
    learner = fake_learner(config)
    for i in (999_998, 999_999, 1_000_000):
        checkpoint.save(tmp_path, *learner, iteration=i, config=config)
    assert checkpoint.latest(tmp_path).name == "iteration_1000000"
    names = {p.name for p in (tmp_path / "checkpoints").iterdir()}
    assert names == {"iteration_999999", "iteration_1000000"}
    assert checkpoint.load(checkpoint.latest(tmp_path), *learner) == 1_000_000


def test_the_umask_gives_the_mode(tmp_path):
    config = fake_config()
    before = os.umask(0o022)
    try:
        folder = checkpoint.save(tmp_path, *fake_learner(config), iteration=1, config=config)
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o644}


def test_one_changed_byte_of_the_tensors_is_found(tmp_path):
    """A number with another bit is a number: only the digest knows. Checkpoints of earlier versions have none."""
    config = fake_config()
    learner = fake_learner(config)
    folder = checkpoint.save(tmp_path, *learner, iteration=1, config=config)
    file = folder / "tensors.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-100] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ValueError, match="tensors.safetensors must be as it was written.*; remove the folder"):
        checkpoint.load(folder, *learner)
    state = json.loads((folder / "state.json").read_text())
    del state["sha256"]
    (folder / "state.json").write_text(json.dumps(state))
    assert checkpoint.load(folder, *learner) == 1


def test_a_checkpoint_of_another_model_changes_nothing(tmp_path):
    config = fake_config()
    learner = fake_learner(config)
    fake_iteration(learner, config, iteration=0)
    folder = checkpoint.save(tmp_path, *learner, iteration=1, config=config)
    tensors = safetensors.torch.load_file(folder / "tensors.safetensors")
    state = json.loads((folder / "state.json").read_text())
    del state["sha256"]
    (folder / "state.json").write_text(json.dumps(state))
    for change, match in (
        ({"exp_avg.1": torch.ones(1)}, r"exp_avg.1 of shape \[1\] for a parameter of \[2, 4\]"),
        ({"ema.0": torch.ones(4, 3)}, "ema.0 of shape"),
        ({"torch_rng": torch.ones(3)}, "TypeError|RuntimeError"),
        ({"ema.2": None}, "KeyError: 'ema.2'"),
    ):
        changed = {k: v for k, v in (tensors | change).items() if v is not None}
        safetensors.torch.save_file(changed, folder / "tensors.safetensors")
        with pytest.raises(
            ValueError, match=f"iteration_000001 must be a checkpoint of this model and adapter.*({match})"
        ):
            checkpoint.load(folder, *learner)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": 1}', '{"format": 1, "iteration": -1, "optimizer_steps": 0, "config": {}}',
     '{"format": 1, "iteration": true, "optimizer_steps": 0, "config": {}}',
     '{"format": 1, "iteration": 1, "optimizer_steps": 0, "config": []}', "[" * 10**5],
)  # fmt: skip
def test_a_damaged_state_is_named(tmp_path, text):
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(ValueError, match=f"checkpoint: .*{tmp_path.name}"):
        checkpoint.read_state(tmp_path)


def test_damaged_checkpoints_are_errors_of_the_user(tmp_path):
    config = fake_config()
    learner = fake_learner(config)
    folder = checkpoint.save(tmp_path, *learner, iteration=1, config=config)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "tensors.safetensors").write_bytes(b"x" * 50)
    with pytest.raises(ValueError, match="tensors.safetensors"):
        checkpoint.load(copy, *learner)
    (copy / "state.json").write_text('{"format": 0}')
    with pytest.raises(ValueError, match="format 1, got 0"):
        checkpoint.load(copy, *learner)
    (copy / "state.json").unlink()
    with pytest.raises(ValueError, match="state.json"):
        checkpoint.load(copy, *learner)
