"""The loop's benchmark, tiny: every row is there, in the right unit, and a sample's time is made of measured parts."""

import json
from dataclasses import replace

import pytest
import torch

from bench import report, wan_loop
from bench.timing import Timing
from bench.wan_model import TINY, build, size_of
from worldr1.cost.flops import passes_per_sample, recipes


def timing(ms):
    return Timing(ms, ms, ms, ms, 1)


def test_a_samples_time_is_passes_times_seconds():
    """Measured passes of 2 and 9 ms: 7 ms a backward pass."""
    stages = {"forward": timing(2.0), "training step, nothing kept": timing(9.0)}
    official, ours = recipes()["official release"], recipes()["no CFG, no KL, 1 update"]
    p = passes_per_sample(official)
    assert wan_loop.cost(official, stages) == pytest.approx(p.forwards * 2.0 + p.backward * 7.0)
    # A group of 8 shares the noise; decoding is each video's own.
    with_stages = stages | {"noise": timing(80.0), "decode": timing(5.0), "rewards, render": timing(1.0)}
    difference = wan_loop.cost(ours, with_stages) - wan_loop.cost(ours, stages)
    assert difference == pytest.approx(80.0 / 8 + 5.0 + 1.0)
    kept = replace(ours, model=replace(ours.model, checkpoint_keep="attention"))
    assert wan_loop.cost(kept, stages) is None  # that kind of training step was not measured


def test_the_model_is_the_published_one_in_the_right_precisions():
    size = size_of(smoke=False)
    assert size.transformer["num_layers"] == 30 and size.config.rollout.group_size == 8
    policy = build(replace(size_of(smoke=True)), "cpu")
    parameters = dict(policy.transformer.named_parameters())
    assert parameters["patch_embedding.weight"].dtype == torch.bfloat16
    assert parameters["blocks.0.scale_shift_table"].dtype == torch.float32
    assert all(p.dtype == torch.float32 and p.requires_grad for p in policy.adapter_parameters())
    assert policy.encode_prompts(["a", "bc"]).shape == (2, 512, TINY["text_dim"])
    assert torch.equal(policy.encode_prompts(["a"]), policy.encode_prompts(["a"]))


def test_every_row(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(wan_loop, "turns", lambda variants, count, device: {name: timing(3.0) for name in variants})
    monkeypatch.setattr(report, "HISTORY", tmp_path)
    assert wan_loop.main(["--smoke", "--history", str(tmp_path), "--seconds", "3600"]) == 0
    rows = {}
    for line in (tmp_path / "wan_loop.jsonl").read_text().splitlines():
        row = json.loads(line)
        rows.setdefault(row["name"], []).append(row)
    backends = [row["backend"] for row in rows["forward"]]
    assert backends == ["eager", "auto", "compile, auto"]
    for name in ("noise", "decode", "rewards, render", "rewards, S_traj", "training step, nothing kept", "iteration"):
        assert rows[name], name
    # 18 tokens: 21 FLOPs would be forgotten layers, so compare with the products of two blocks of width 24.
    width, tokens, text = 24, 18, 512
    block = 2 * (4 * tokens * width**2 + 2 * tokens * width**2 + 2 * text * width**2 + 2 * tokens * width * 48)
    block += 4 * width * tokens * (tokens + text)
    assert 2 * block < rows["forward"][0]["num_flops"] < 3 * 2 * block
    assert rows["forward"][0]["shape"] == "T18-G4"
    sample = rows["sample, no CFG, no KL, 1 update"][0]
    assert sample["peers"]["official release"]["p50"] / sample["timing"]["p50"] == pytest.approx(
        wan_loop.cost(recipes()["official release"], STAGES)
        / wan_loop.cost(recipes()["no CFG, no KL, 1 update"], STAGES)
    )
    assert "needs a GPU" in capsys.readouterr().out.splitlines()[-1]  # the CUDA graph, named in the last line


STAGES = {
    name: timing(3.0)
    for name in (
        "forward", "training step, nothing kept", "noise", "decode", "rewards, render", "rewards, S_traj",
    )
}  # fmt: skip


def test_a_row_that_would_not_fit_is_named_and_the_next_one_runs(monkeypatch, capsys):
    assert wan_loop.main(["--smoke", "--seconds", "0"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[-1].startswith("1 rows at T18-G4; skipped: training step, nothing kept (needs about")
    assert "decode: skipped, needs about 1 s, 0 left" in text


def test_the_full_size_needs_a_gpu(capsys):
    with pytest.raises(SystemExit):
        wan_loop.main([])
    assert "--smoke runs it tiny" in capsys.readouterr().err
