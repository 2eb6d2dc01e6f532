"""Embeddings on disk: the same bits, encoded once, and never another model's."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from worldr1.config import ModelConfig
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
    with pytest.raises(ValueError, match="TextCache: .*must hold an embedding.*delete it"):
        TextCache(tmp_path, model=tiny_wan, dtype="float32")["a"]
