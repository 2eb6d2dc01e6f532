"""The Wan policy against diffusers' own pipeline: embeddings, velocity, decoding, LoRA files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from worldr1.config import ModelConfig, VideoConfig
from worldr1.models.wan import WanPolicy, clean_prompt, load_adapted_policy, load_policy

PROMPTS = ["the camera pans left on a green floor", "a red ball", "  Push &amp;amp; pull\n in "]


@pytest.fixture(scope="module")
def pipeline(tiny_wan: Path) -> Iterator:
    from diffusers import WanPipeline

    pipe = WanPipeline.from_pretrained(tiny_wan, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    yield pipe


@pytest.fixture()
def policy(tiny_wan: Path) -> WanPolicy:
    return load_policy(ModelConfig(path=tiny_wan, lora_rank=4, lora_alpha=12), device="cpu")


def test_a_prompt_is_split_where_the_text_encoder_stops(policy: WanPolicy) -> None:
    assert policy.split_at_limit("  A red &amp; green\nball") == ("A red & green ball", "")
    limit = policy.max_sequence_length
    full = " ".join(["ball"] * (limit - 1))  # with the end of the text as many as it takes
    assert policy.split_at_limit(full) == (full, "")
    assert policy.split_at_limit(full + " pan left") == (full, " pan left")
    assert torch.equal(policy.encode_prompts([full]), policy.encode_prompts([full + " pan left"]))


def _stir(policy: WanPolicy, seed: int = 3) -> None:
    """An adapter that does something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.adapter_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def _inputs(policy: WanPolicy, n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    sample = torch.randn(n, 4, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return sample, policy.encode_prompts(PROMPTS[:n])


def test_prompts_are_cleaned_as_the_pipeline_cleans_them() -> None:
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    for text in [*PROMPTS, "caf\u00c3\u00a9 &lt;b&gt;  x\t y", ""]:
        assert clean_prompt(text) == prompt_clean(text)


def test_embeddings_are_those_of_the_pipeline(policy: WanPolicy, pipeline) -> None:
    expected, _ = pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False, max_sequence_length=16)
    got = policy.encode_prompts(PROMPTS)
    assert got.shape == expected.shape == (3, 16, 32)
    assert (got - expected).abs().max() < 5e-6 * expected.abs().max()
    length = len(pipeline.tokenizer(clean_prompt(PROMPTS[1])).input_ids)
    assert got[1, length:].abs().max() == 0 and got[1, length - 1].abs().max() > 0


def test_an_embedding_does_not_depend_on_its_neighbours(policy: WanPolicy, tiny_wan: Path) -> None:
    alone = load_policy(ModelConfig(path=tiny_wan), device="cpu").encode_prompts(PROMPTS[1:2])
    assert torch.equal(policy.encode_prompts(PROMPTS)[1:2], alone)
    assert torch.equal(policy.encode_prompts([PROMPTS[1]] * 2), alone.repeat(2, 1, 1))


def test_velocity_is_the_transformer_at_a_thousand_sigma(policy: WanPolicy, pipeline) -> None:
    sample, embeds = _inputs(policy)
    for sigma in (1.0, 0.4375):
        expected = pipeline.transformer(sample, torch.full((3,), 1000 * sigma), embeds, return_dict=False)[0]
        assert torch.equal(policy.velocity(sample, sigma, embeds), expected)  # a fresh adapter changes nothing


def test_adapter_off_is_the_base_bit_for_bit(policy: WanPolicy, pipeline) -> None:
    sample, embeds = _inputs(policy)
    _stir(policy)
    expected = pipeline.transformer(sample, torch.full((3,), 500.0), embeds, return_dict=False)[0]
    off = policy.velocity(sample, 0.5, embeds, adapter=False)
    on = policy.velocity(sample, 0.5, embeds)
    assert torch.equal(off, expected) and not off.requires_grad
    assert (on - off).abs().max() > 1e-2 and on.requires_grad


def test_adapter_acts_only_in_its_sigma_range(tiny_wan: Path) -> None:
    policy = load_policy(ModelConfig(path=tiny_wan, adapter_sigma_min=0.65), device="cpu")
    _stir(policy)
    sample, embeds = _inputs(policy)
    for sigma, acts in ((1.0, True), (0.65, True), (0.6499, False), (0.1, False)):
        on, off = (policy.velocity(sample, sigma, embeds, adapter=a) for a in (True, False))
        assert torch.equal(on, off) != acts and on.requires_grad == acts


def test_a_sigma_for_each_sample(tiny_wan: Path) -> None:
    policy = load_policy(ModelConfig(path=tiny_wan, adapter_sigma_min=0.65), device="cpu")
    _stir(policy)
    sample, embeds = _inputs(policy)
    table = [1.0, 0.65, 0.8571428571428571]
    mixed = policy.velocity(sample, torch.tensor(table, dtype=torch.float64), embeds)
    for n, sigma in enumerate(table):  # the bits of a call with one for all
        assert torch.equal(mixed[n], policy.velocity(sample, sigma, embeds)[n])
    assert not torch.equal(mixed[0], policy.velocity(sample, 0.65, embeds)[0]) and mixed.requires_grad
    partly = torch.tensor([1.0, 0.6499, 0.8], dtype=torch.float64)
    with pytest.raises(ValueError, match="velocity: the adapter must act at every sigma, .* 0.65, got 0.650"):
        policy.velocity(sample, partly, embeds)
    off = policy.velocity(sample, partly, embeds, adapter=False)
    assert torch.equal(off[1], policy.velocity(sample, 0.6499, embeds)[1]) and not off.requires_grad


def test_switching_off_in_between_keeps_earlier_gradients(policy: WanPolicy) -> None:
    """peft clears requires_grad of a disabled adapter; a backward of an earlier graph must not notice."""
    _stir(policy)
    sample, embeds = _inputs(policy)
    policy.velocity(sample, 0.5, embeds).square().sum().backward()
    expected = [p.grad.clone() for p in policy.adapter_parameters()]
    for p in policy.adapter_parameters():
        p.grad = None
    loss = policy.velocity(sample, 0.5, embeds).square().sum()
    policy.velocity(sample, 0.5, embeds, adapter=False)
    loss.backward()
    for p, grad in zip(policy.adapter_parameters(), expected, strict=True):
        assert torch.equal(p.grad, grad) and grad.abs().max() > 0


def test_only_the_adapter_trains(policy: WanPolicy) -> None:
    named = dict(policy.transformer.named_parameters())
    trainable = [n for n, p in named.items() if p.requires_grad]
    # 2 blocks x (self, cross) x (q, k, v, out) x (A, B)
    assert len(trainable) == len(policy.adapter_parameters()) == 2 * 2 * 4 * 2
    assert all("lora" in n and "attn" in n for n in trainable)
    assert not any(p.requires_grad for m in (policy.vae, policy.text_encoder) for p in m.parameters())


def test_feed_forward_layers_on_request(tiny_wan: Path) -> None:
    policy = load_policy(ModelConfig(path=tiny_wan, lora_ffn=True), device="cpu")
    assert len(policy.adapter_parameters()) == 2 * (2 * 4 + 2) * 2


def test_the_fresh_adapter_is_the_same_on_every_rank(tiny_wan: Path) -> None:
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        states.append(load_policy(ModelConfig(path=tiny_wan), device="cpu").adapter_state())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert all((v == 0).all() == ("lora_B" in k) for k, v in states[0].items())


def test_bfloat16_base_keeps_a_float32_adapter(tiny_wan: Path, policy: WanPolicy) -> None:
    half = load_policy(ModelConfig(path=tiny_wan, dtype="bfloat16", lora_rank=4, lora_alpha=12), device="cpu")
    assert {p.dtype for p in half.adapter_parameters()} == {torch.float32}
    sample, embeds = _inputs(policy)
    velocity = half.velocity(sample, 0.5, half.encode_prompts(PROMPTS))
    expected = policy.velocity(sample, 0.5, embeds)
    assert velocity.dtype == torch.bfloat16
    assert (velocity.float() - expected).norm() / expected.norm() < 0.05
    velocity.float().square().sum().backward()
    assert max(float(p.grad.abs().max()) for p in half.adapter_parameters()) > 0


def test_checkpointing_gives_the_same_velocity_and_gradients(tiny_wan: Path, policy: WanPolicy) -> None:
    model = ModelConfig(path=tiny_wan, lora_rank=4, lora_alpha=12, gradient_checkpointing=True)
    saving = load_policy(model, device="cpu")
    grads = []
    for p in (policy, saving):
        _stir(p)
        sample, embeds = _inputs(p)
        loss = p.velocity(sample, 0.5, embeds).square().sum()
        p.velocity(sample, 0.5, embeds, adapter=False)  # between forward and recomputation
        loss.backward()
        grads.append([loss.item()] + [x.grad for x in p.adapter_parameters()])
    assert grads[0][0] == grads[1][0]
    assert all(torch.equal(a, b) for a, b in zip(grads[0][1:], grads[1][1:], strict=True))


def test_latent_shape_is_that_of_the_pipeline(policy: WanPolicy, pipeline) -> None:
    for height, width, frames in ((16, 24, 9), (8, 8, 5), (32, 16, 1)):
        latents = pipeline.prepare_latents(1, 4, height, width, frames, torch.float32, torch.device("cpu"))
        video = VideoConfig(height=height, width=width, num_frames=frames)
        assert policy.latent_shape(video) == tuple(latents.shape[1:])


@pytest.mark.parametrize("change", [{"height": 12}, {"width": 9}, {"num_frames": 8}, {"height": 0}])
def test_latent_shape_refuses_what_the_model_cannot_make(policy: WanPolicy, change: dict) -> None:
    with pytest.raises(ValueError, match=f"latent_shape: video.{next(iter(change))}"):
        policy.latent_shape(replace(VideoConfig(height=16, width=16, num_frames=9), **change))


def test_decoding_is_that_of_the_pipeline(policy: WanPolicy, pipeline) -> None:
    latents = torch.randn(2, 4, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    zero = {"num_inference_steps": 1, "height": 16, "width": 16, "num_frames": 9, "guidance_scale": 1.0}
    kept = {}

    def swap(pipe, i, t, values):
        kept["latents"] = latents
        return {"latents": latents}

    expected = pipeline(
        prompt=["a", "a"], latents=latents, output_type="pt", max_sequence_length=16, callback_on_step_end=swap, **zero
    ).frames  # fmt: skip
    video = policy.decode(latents)
    assert kept and video.shape == (2, 9, 3, 16, 16) and video.dtype == torch.float32
    assert (video - expected).abs().max() < 1e-5  # another memory format on the CPU
    assert 0 <= float(video.min()) and float(video.max()) <= 1 and float(video.std()) > 0


def test_adapter_state_round_trip_and_refusals(policy: WanPolicy, tiny_wan: Path) -> None:
    _stir(policy)
    state = policy.adapter_state()
    sample, embeds = _inputs(policy)
    other = load_policy(ModelConfig(path=tiny_wan, lora_rank=4, lora_alpha=12), device="cpu")
    other.load_adapter_state(state)
    assert torch.equal(policy.velocity(sample, 0.5, embeds), other.velocity(sample, 0.5, embeds))
    name = next(iter(state))
    with pytest.raises(ValueError, match="missing"):
        other.load_adapter_state({k: v for k, v in state.items() if k != name})
    with pytest.raises(ValueError, match="shape"):
        other.load_adapter_state({**state, name: state[name][:1]})


def test_saved_lora_gives_the_same_velocity_in_the_pipeline_and_here(tiny_wan: Path, tmp_path: Path) -> None:
    """alpha != rank: were it lost on the way, the reloaded update would be a third of the trained one."""
    from diffusers import WanPipeline

    model = ModelConfig(path=tiny_wan, lora_rank=4, lora_alpha=12, lora_ffn=True, adapter_sigma_min=0.6)
    policy = load_policy(model, device="cpu")
    _stir(policy)
    policy.save_lora(tmp_path / "adapter")
    sample, embeds = _inputs(policy)
    expected = policy.velocity(sample, 0.7, embeds)

    pipe = WanPipeline.from_pretrained(tiny_wan, local_files_only=True)
    pipe.load_lora_weights(tmp_path / "adapter", local_files_only=True)
    reloaded = pipe.transformer(sample, torch.full((3,), 700.0), embeds, return_dict=False)[0]
    assert torch.equal(reloaded, expected)

    again = load_adapted_policy(tiny_wan, tmp_path / "adapter")
    assert again.model == model
    assert torch.equal(again.velocity(sample, 0.7, embeds), expected)
    assert torch.equal(again.velocity(sample, 0.5, embeds), policy.velocity(sample, 0.5, embeds, adapter=False))


def test_reading_a_broken_adapter_says_what_is_wrong(policy: WanPolicy, tiny_wan: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is missing"):
        load_adapted_policy(tiny_wan, tmp_path)
    policy.save_lora(tmp_path)
    (tmp_path / "adapter.json").write_text('{"rank": 4}')
    with pytest.raises(ValueError, match="must hold rank"):
        load_adapted_policy(tiny_wan, tmp_path)
    (tmp_path / "adapter.json").write_text('{"rank": 4, "alpha": 12, "ffn": true, "sigma_min": 0.0}')
    with pytest.raises(ValueError, match="another model"):
        load_adapted_policy(tiny_wan, tmp_path)


def test_what_is_not_a_wan_folder_is_refused(tmp_path: Path) -> None:
    def refuse(match: str) -> None:
        with pytest.raises(ValueError, match=match):
            load_policy(ModelConfig(path=tmp_path), device="cpu")

    refuse("no model_index.json")
    index = tmp_path / "model_index.json"
    index.write_text("{")
    refuse("must be JSON")
    index.write_text(json.dumps({"_class_name": "CogVideoXPipeline"}))
    refuse("CogVideoXPipeline")
    index.write_text(json.dumps({"_class_name": "WanPipeline", "transformer_2": ["diffusers", "X"]}))
    refuse("Wan2.2")
    index.write_text(json.dumps({"_class_name": "WanPipeline", "transformer_2": [None, None]}))
    refuse("tokenizer, text_encoder, transformer, vae missing")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_adapter_is_the_adapter_to_rounding_and_leaves_no_trace(tiny_wan: Path, dtype: str) -> None:
    model = ModelConfig(path=tiny_wan, dtype=dtype, lora_rank=4, lora_alpha=12, lora_ffn=True, merge_lora=True)  # type: ignore[arg-type]
    policy = load_policy(replace(model, adapter_sigma_min=0.4), device="cpu")
    _stir(policy)
    sample, embeds = _inputs(policy)
    before = {name: p.detach().clone() for name, p in policy.transformer.named_parameters()}
    exact = policy.velocity(sample, 0.5, embeds).detach()
    with torch.no_grad():
        merged = policy.velocity(sample, 0.5, embeds, exact=False)
    off = policy.velocity(sample, 0.5, embeds, adapter=False)
    drift = float((merged.float() - exact.float()).norm() / exact.float().norm())
    assert drift < (1e-5 if dtype == "float32" else 2e-2) and not torch.equal(merged, off)
    assert dtype == "float32" or drift > 1e-4  # it did merge
    assert float((merged - off).float().norm()) > 0.1 * float(off.float().norm())
    after = dict(policy.transformer.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(policy.velocity(sample, 0.5, embeds), exact)
    # Where the adapter does not act there is nothing to merge.
    assert torch.equal(policy.velocity(sample, 0.3, embeds, exact=False), policy.velocity(sample, 0.3, embeds))


def test_an_attention_kernel_by_name(tiny_wan: Path, policy: WanPolicy) -> None:
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    default = _AttentionBackendRegistry._active_backend
    sample, embeds = _inputs(policy)
    expected = policy.velocity(sample, 0.5, embeds)
    for name, exact in (("native", True), ("math", False)):
        own = load_policy(replace(policy.model, attention=name), device="cpu")  # type: ignore[arg-type]
        found = own.velocity(sample, 0.5, embeds)
        assert (found - expected).norm() < 1e-5 * expected.norm() and (not exact or torch.equal(found, expected))
        assert {b.attn1.processor._attention_backend.value for b in own.transformer.blocks} == {
            "native" if exact else "_native_math"
        }
    assert _AttentionBackendRegistry._active_backend == default  # other models attend as before
    with pytest.raises(
        ValueError, match=r"model.attention must be one that works here \(auto, native, .*math\), got 'cud"
    ):
        load_policy(replace(policy.model, attention="cudnn"), device="cpu")
