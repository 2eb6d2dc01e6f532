"""Embeddings on disk: the same bits, encoded once, and never another model's."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from worldr1.config import ModelConfig
from worldr1.models import text_cache, wan
from worldr1.models.text_cache import TextCache
from worldr1.models.wan import load_policy

PROMPTS = ["the camera pans left", "a red ball", ""]


def cached(model: Path, folder: Path):
    settings = ModelConfig(path=model, lora_rank=2)
    return load_policy(settings, device="cpu", text_cache=TextCache(folder, model=model, dtype="float32"))


def test_the_second_run_reads_what_the_first_wrote(tiny_wan: Path, tmp_path: Path) -> None:
    plain = load_policy(ModelConfig(path=tiny_wan, lora_rank=2), device="cpu").encode_prompts(PROMPTS)
    first = cached(tiny_wan, tmp_path / "cache")
    assert torch.equal(first.encode_prompts(PROMPTS), plain)
    assert len(list((tmp_path / "cache").iterdir())) == 3  # whole files, nothing left beside them
    second = cached(tiny_wan, tmp_path / "cache")
    assert torch.equal(second.encode_prompts(PROMPTS), plain)
    assert "text_encoder" in vars(first) and "text_encoder" not in vars(second)  # with every prompt there, never read
    assert second.encode_prompts([]).shape == (0, *plain.shape[1:]) and "text_encoder" not in vars(second)
    second.encode_prompts(["never seen"])
    assert "text_encoder" in vars(second)


def test_another_encoder_or_precision_has_other_files(tiny_wan: Path, tmp_path: Path) -> None:
    own = TextCache(tmp_path, model=tiny_wan, dtype="float32")
    own["a"] = torch.arange(6.0).view(3, 2)
    assert "a" in own and "b" not in own and "a" in TextCache(tmp_path, model=tiny_wan, dtype="float32")
    assert "a" not in TextCache(tmp_path, model=tiny_wan, dtype="bfloat16")
    other = shutil.copytree(tiny_wan, tmp_path / "other")
    (other / "tokenizer" / "tokenizer_config.json").write_text("{}")
    assert "a" not in TextCache(tmp_path, model=other, dtype="float32")


def test_a_damaged_file_is_named(tiny_wan: Path, tmp_path: Path) -> None:
    own = TextCache(tmp_path, model=tiny_wan, dtype="float32")
    own["a"] = torch.ones(1, 2)
    own.path("a").write_bytes(b"half")
    with pytest.raises(ValueError, match="TextCache: .*must be the embedding.*header too small; delete it"):
        TextCache(tmp_path, model=tiny_wan, dtype="float32")["a"]


@pytest.mark.parametrize("on_disk", [False, True])
def test_the_text_encoder_leaves_when_all_prompts_are_encoded(tiny_wan: Path, tmp_path: Path, on_disk: bool) -> None:
    settings = ModelConfig(path=tiny_wan, lora_rank=2)
    expected = load_policy(settings, device="cpu").encode_prompts([*PROMPTS, "never seen"])
    policy = cached(tiny_wan, tmp_path / "cache") if on_disk else load_policy(settings, device="cpu")
    reads, read = [], policy._read_text_encoder
    policy._read_text_encoder = lambda: reads.append(1) or read()
    policy.free_text_encoder()
    assert policy.keep_prompts([*PROMPTS, *PROMPTS]) == 3 and len(reads) == 1
    assert "text_encoder" not in vars(policy)
    assert torch.equal(policy.encode_prompts(PROMPTS), expected[:3]) and len(reads) == 1
    assert policy.keep_prompts(PROMPTS[:2]) == 0 and len(reads) == 1
    assert torch.equal(policy.encode_prompts(["never seen"]), expected[3:]) and len(reads) == 2  # read when asked for
    for prompt in PROMPTS:  # on the host, without the padding
        kept = policy._embeds[prompt]
        assert kept.device.type == "cpu" and 0 < len(kept) < expected.shape[1] and kept._base is None


@pytest.mark.parametrize("on_disk", [False, True])
def test_no_more_than_so_many_embeddings_are_in_memory(
    tiny_wan: Path, tmp_path: Path, on_disk: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ModelConfig(path=tiny_wan, lora_rank=2)
    policy = cached(tiny_wan, tmp_path / "cache") if on_disk else load_policy(settings, device="cpu")
    expected = policy.encode_prompts(PROMPTS)
    other = cached(tiny_wan, tmp_path / "cache") if on_disk else load_policy(settings, device="cpu")
    for module in (text_cache, wan):
        monkeypatch.setattr(module, "MAX_KEPT_PROMPTS", 2)
    assert torch.equal(other.encode_prompts(PROMPTS), expected)  # more at once than are kept
    memory = other._embeds._memory if on_disk else other._embeds
    assert list(memory) == PROMPTS[1:]
    assert torch.equal(other.encode_prompts(PROMPTS[:1]), expected[:1])
    assert ("text_encoder" in vars(other)) != on_disk
    with pytest.raises(ValueError, match="keep_prompts: at most 2 prompts are kept, got 3"):
        other.keep_prompts(PROMPTS)
