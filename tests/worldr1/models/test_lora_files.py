"""Adapters on the disk: the same strength whoever reads them, foreign names read, damage refused."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from worldr1.config import ModelConfig
from worldr1.models import lora_files
from worldr1.models.lora_files import ADAPTER_JSON, LORA_FILE, WAN_FILE, read_adapter
from worldr1.models.wan import WanPolicy, load_adapted_policy, load_policy

RANK, ALPHA = 4, 12


@pytest.fixture()
def policy(tiny_wan: Path) -> WanPolicy:
    policy = load_policy(ModelConfig(path=tiny_wan, lora_rank=RANK, lora_alpha=ALPHA, lora_ffn=True), device="cpu")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.adapter_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return policy


@pytest.fixture()
def adapter(policy: WanPolicy, tmp_path: Path) -> Path:
    policy.save_lora(tmp_path / "adapter")
    return tmp_path / "adapter"


def velocity(policy: WanPolicy) -> torch.Tensor:
    sample = torch.randn(2, 4, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return policy.velocity(sample, 0.7, policy.encode_prompts(["a", "pan left"])).detach()


def of_pipeline(tiny_wan: Path, source: Path, name: str, policy: WanPolicy) -> torch.Tensor:
    from diffusers import WanPipeline

    pipe = WanPipeline.from_pretrained(tiny_wan, local_files_only=True)
    pipe.load_lora_weights(source, weight_name=name, local_files_only=True)
    sample = torch.randn(2, 4, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    embeds = policy.encode_prompts(["a", "pan left"])
    return pipe.transformer(sample, torch.full((2,), 700.0), embeds, return_dict=False)[0].detach()


def test_the_pipeline_finds_its_file_in_the_folder_and_differs_by_nothing(
    policy: WanPolicy, adapter: Path, tiny_wan: Path
) -> None:
    assert {p.name for p in adapter.iterdir()} == {LORA_FILE, WAN_FILE, ADAPTER_JSON}
    assert torch.equal(of_pipeline(tiny_wan, adapter, None, policy), velocity(policy))
    # The other file has the strength in alpha: 12 / 4 goes into the weights, a rounding apart; 8 / 4 would be exact.
    got, expected = of_pipeline(tiny_wan, adapter, WAN_FILE, policy), velocity(policy)
    assert float((got - expected).norm() / expected.norm()) < 1e-6


def test_a_loader_that_knows_alpha_alone_gets_alpha_over_rank(policy: WanPolicy, adapter: Path) -> None:
    """As loaders of Wan's own names do it: W + alpha / rank * up @ down, by module."""
    tensors = load_file(adapter / WAN_FILE)
    names = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "0": "net.0.proj", "2": "net.2"}
    layers = {re.sub(r"\.(lora_up\.weight|lora_down\.weight|alpha)$", "", key) for key in tensors}
    assert len(layers) == 2 * (2 * 4 + 2)
    for layer in layers:
        _, _, block, part, name = layer.split(".")
        path = f"blocks.{block}.{ {'self_attn': 'attn1', 'cross_attn': 'attn2'}.get(part, part) }.{names[name]}"
        module = policy.transformer.get_submodule(path)
        down, up, alpha = (tensors[f"{layer}.{k}"] for k in ("lora_down.weight", "lora_up.weight", "alpha"))
        assert float(alpha) / down.shape[0] == ALPHA / RANK
        assert torch.allclose(float(alpha) / down.shape[0] * up @ down, module.get_delta_weight("default"), atol=1e-6)


def kohya(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """diffusion_model.blocks.0.self_attn.q.lora_down.weight -> lora_unet_blocks_0_self_attn_q.lora_down.weight"""

    def renamed(name: str) -> str:
        stem, kind = re.fullmatch(r"diffusion_model\.(.*?)\.(lora_\w+\.weight|alpha)", name).groups()
        return f"lora_unet_{stem.replace('.', '_')}.{kind}"

    return {renamed(name): value for name, value in tensors.items()}


def with_a_and_b(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.replace("lora_down", "lora_A").replace("lora_up", "lora_B"): v for k, v in tensors.items()}


@pytest.mark.parametrize("change", [dict, kohya, with_a_and_b])
@pytest.mark.parametrize("as_folder", [True, False])
def test_foreign_names_are_read_with_their_strength(
    policy: WanPolicy, adapter: Path, tiny_wan: Path, tmp_path: Path, change, as_folder: bool
) -> None:
    file = tmp_path / "foreign" / "some_lora.safetensors"
    file.parent.mkdir()
    save_file(change(load_file(adapter / WAN_FILE)), file)
    again = load_adapted_policy(tiny_wan, file.parent if as_folder else file)
    assert (again.model.lora_rank, again.model.lora_alpha, again.model.lora_ffn) == (RANK, RANK, True)
    assert again.model.adapter_sigma_min == 0.0
    expected = velocity(policy)
    assert float((velocity(again) - expected).norm() / expected.norm()) < 1e-6


def test_without_alpha_the_strength_is_1_and_diffusers_files_of_others_keep_theirs(
    policy: WanPolicy, adapter: Path, tiny_wan: Path, tmp_path: Path
) -> None:
    weights = load_file(adapter / WAN_FILE)
    save_file({k: v for k, v in weights.items() if "alpha" not in k}, tmp_path / "no_alpha.safetensors")
    no_alpha = velocity(load_adapted_policy(tiny_wan, tmp_path / "no_alpha.safetensors"))
    pipeline = of_pipeline(tiny_wan, tmp_path, "no_alpha.safetensors", policy)
    assert float((no_alpha - pipeline).norm() / pipeline.norm()) < 1e-6
    (adapter / ADAPTER_JSON).unlink()
    (adapter / WAN_FILE).unlink()
    expected = velocity(policy)
    assert float((velocity(load_adapted_policy(tiny_wan, adapter)) - expected).norm() / expected.norm()) < 1e-6
    assert float((no_alpha - expected).norm() / expected.norm()) > 0.1


def test_what_is_no_lora_of_this_model_is_refused(adapter: Path, tiny_wan: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    own = load_file(adapter / WAN_FILE)

    def refuse(tensors: dict[str, torch.Tensor], match: str) -> None:
        save_file(tensors, file)
        with pytest.raises(ValueError, match=f"x.safetensors must be .*{match}"):
            load_adapted_policy(tiny_wan, file)

    refuse({"unet.x.lora.down.weight": torch.ones(2, 2)}, "called unet.x.*WanPipeline.lora_state_dict")
    refuse({**own, "diffusion_model.head.head.lora_down.weight": torch.ones(4, 2)}, "do not have, diffusion_model.head")
    refuse({k: v for k, v in own.items() if ".ffn.2." not in k}, "missing")
    refuse({k: v[:2] if "blocks.0.self_attn.q.lora_down" in k else v for k, v in own.items()}, "one for all layers")
    refuse({k: v for k, v in own.items() if "blocks.0.self_attn.q.lora_up" not in k}, "blocks.0.attn1.to_q.lora_B")
    refuse({"a": torch.tensor([1])}, "whole numbers in a")
    (tmp_path / "two").mkdir()
    for name in ("a.safetensors", "b.safetensors"):
        save_file(own, tmp_path / "two" / name)
    with pytest.raises(ValueError, match="or one .safetensors file of another trainer.*has 2 of them"):
        read_adapter(tmp_path / "two")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite_is_neither_written_nor_read(
    policy: WanPolicy, adapter: Path, tiny_wan: Path, tmp_path: Path, value: float
) -> None:
    tensors = load_file(adapter / LORA_FILE)
    name = next(iter(tensors))
    tensors[name][0, 0] = value
    save_file(tensors, adapter / LORA_FILE)
    with pytest.raises(ValueError, match=f"{LORA_FILE} must be a LoRA .*, got NaN, infinity .* in {name}"):
        load_adapted_policy(tiny_wan, adapter)
    with torch.no_grad():
        policy.adapter_parameters()[3][0, 0] = value
    with pytest.raises(RuntimeError, match="save_lora: weights must be finite .*, got NaN or infinity in blocks.0"):
        policy.save_lora(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_cut_file_is_a_sentence(adapter: Path, tiny_wan: Path) -> None:
    file = adapter / LORA_FILE
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"{LORA_FILE} must be a LoRA in .safetensors, got SafetensorError: "):
        load_adapted_policy(tiny_wan, adapter)
    file.unlink()
    with pytest.raises(ValueError, match=f"{LORA_FILE} is missing"):
        load_adapted_policy(tiny_wan, adapter)


@pytest.mark.parametrize(
    "change",
    [{"rank": 8}, {"rank": 4.0}, {"rank": True}, {"alpha": -1}, {"sigma_min": 7}, {"sigma_min": "0"}, {"x": 1}],
)
def test_a_description_that_cannot_be_is_refused(adapter: Path, tiny_wan: Path, change: dict) -> None:
    description = json.loads((adapter / ADAPTER_JSON).read_text())
    (adapter / ADAPTER_JSON).write_text(json.dumps(description | change))
    with pytest.raises(ValueError, match="adapter.json"):
        load_adapted_policy(tiny_wan, adapter)


def test_colleagues_may_read_it(policy: WanPolicy, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        policy.save_lora(tmp_path / "adapter")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "adapter").iterdir()} == {0o644}


def test_names_go_there_and_back() -> None:
    names = [
        f"blocks.{i}.{layer}.lora_{m}.weight"
        for i in (0, 11)
        for layer in ("attn1.to_q", "attn2.to_out.0", "ffn.net.0.proj", "ffn.net.2")
        for m in "AB"
    ]
    weights = {name: torch.randn(2, 2) for name in names}
    wan = lora_files.in_wan_names(weights, alpha=2)
    assert "diffusion_model.blocks.11.cross_attn.o.lora_up.weight" in wan and len(wan) == len(names) * 3 // 2
    back = lora_files.from_foreign_names(wan)
    assert back.keys() == weights.keys() and all(torch.equal(back[k], weights[k]) for k in weights)
