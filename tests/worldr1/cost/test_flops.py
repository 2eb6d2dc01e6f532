"""The cost table: passes against a real iteration, FLOPs against the arithmetic of a transformer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fakes import brightness, fake_config

from worldr1.camera.noise import initial_noise
from worldr1.config import (
    ForwardConfig,
    ModelConfig,
    RolloutConfig,
    ScheduleConfig,
    TrainConfig,
    UpdateConfig,
    VideoConfig,
)
from worldr1.cost.__main__ import main
from worldr1.cost.flops import (
    WAN,
    describe,
    model_flops,
    passes_per_sample,
    recipe_flops,
    recipes,
    sample_flops,
    training_costs,
)
from worldr1.learn.advantage import group_advantage
from worldr1.learn.forward import forward_step, running_means
from worldr1.learn.update import make_optimizer, policy_step, sample_gradients
from worldr1.models.ema import Ema
from worldr1.models.wan import load_policy
from worldr1.presets import preset
from worldr1.prompts.sampler import prompt_batch
from worldr1.rollout.sample import sample
from worldr1.rollout.schedule import rollout_sigmas, sde_window

TINY = dict(
    patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=32,
    freq_dim=32, ffn_dim=48, num_layers=2, rope_max_seq_len=64,
)  # fmt: skip


@pytest.mark.parametrize(
    ("share", "scale", "kl_beta", "updates", "deferred"),
    [
        (0, 1.0, 0.0, 1, False),
        (1, 3.0, 0.1, 2, False),
        (2, 3.0, 0.1, 2, False),
        (1, 3.0, 0.1, 2, True),
        (0, 1.0, 0.0, 1, True),
    ],
    ids=["plain", "prefix-cfg-kl-2", "first-step-cfg-kl-2", "prefix-cfg-kl-2-deferred", "deferred"],
)
def test_passes_are_those_of_a_real_iteration(
    tiny_wan: Path, share: int, scale: float, kl_beta: float, updates: int, deferred: bool
) -> None:
    """Sample by sample, over all starts of the window."""
    config = fake_config(
        model=ModelConfig(path=tiny_wan, lora_rank=2, adapter_sigma_min=0.0),
        schedule=ScheduleConfig(
            num_steps=6, window_size=2, window_range=(0, 5), window_mode="sliding", window_interval=1
        ),
        rollout=RolloutConfig(
            group_size=4,
            prompts_per_iteration=1,
            micro_batch=4,
            guidance_scale=scale,
            share_initial_noise=share > 0,
            share_first_step=share > 1,
        ),
        update=UpdateConfig(updates_per_rollout=updates, kl_beta=kl_beta, deferred=deferred),
    )
    policy = load_policy(config.model, device="cpu")
    params = policy.adapter_parameters()
    learner = policy, make_optimizer(params, config.update), Ema(params, decay=0.0)
    seen = {"plain": 0, "graph": 0, "backward": 0}

    def count(module: object, args: object, kwargs: dict, output: tuple) -> None:
        seen["graph" if torch.is_grad_enabled() else "plain"] += len(kwargs["hidden_states"])
        if output[0].requires_grad:
            output[0].register_hook(lambda g: seen.__setitem__("backward", seen["backward"] + len(g)))

    policy.transformer.register_forward_hook(count, with_kwargs=True)
    for iteration in range(4):
        batch = prompt_batch(["push in"], config=config, iteration=iteration, dynamic=False, rank=0, world_size=1)
        noise = initial_noise(batch, policy.latent_shape(config.video), config=config)
        buffers = sample_gradients(params, batch, config) if deferred else None
        steps = sde_window(config.schedule, seed=0, iteration=iteration)
        sigmas = rollout_sigmas(config.schedule)
        rollout = sample(policy, batch, noise, sigmas=sigmas, steps=steps, config=config, gradients=buffers)
        advantage = group_advantage(brightness(rollout), group_size=4, config=config.advantage)
        policy_step(*learner, rollout, advantage, config=config, lr=1e-4, gradients=buffers)
    passes = passes_per_sample(config)
    assert seen["plain"] / 16 == passes.rollout + passes.reference
    assert seen["graph"] / 16 == passes.forward and seen["backward"] / 16 == passes.backward
    assert (
        f"{passes.forwards:.3g} forward" in describe(config) and passes.forwards * 16 == seen["plain"] + seen["graph"]
    )


@pytest.mark.parametrize(("kl", "mean", "updates"), [(0.02, 0.3, 2), (0.0, 0.0, 3), (0.0, 0.3, 1)])
def test_passes_of_the_forward_estimator_are_those_of_a_real_iteration(
    tiny_wan: Path, kl: float, mean: float, updates: int
) -> None:
    config = fake_config(
        model=ModelConfig(path=tiny_wan, lora_rank=2, adapter_sigma_min=0.5),
        rollout=RolloutConfig(group_size=4, prompts_per_iteration=1, micro_batch=2, guidance_scale=3.0),
        update=UpdateConfig(estimator="forward", updates_per_rollout=updates),
        forward=ForwardConfig(kl=kl, mean=mean),
    )
    policy = load_policy(config.model, device="cpu")
    params = policy.adapter_parameters()
    seen = {"plain": 0, "graph": 0, "backward": 0}

    def count(module: object, args: object, kwargs: dict, output: tuple) -> None:
        seen["graph" if torch.is_grad_enabled() else "plain"] += len(kwargs["hidden_states"])
        if output[0].requires_grad:
            output[0].register_hook(lambda g: seen.__setitem__("backward", seen["backward"] + len(g)))

    policy.transformer.register_forward_hook(count, with_kwargs=True)
    batch = prompt_batch(["push in"], config=config, iteration=0, dynamic=False, rank=0, world_size=1)
    noise = initial_noise(batch, policy.latent_shape(config.video), config=config)
    rollout = sample(policy, batch, noise, sigmas=rollout_sigmas(config.schedule), steps=(), config=config)
    advantage = group_advantage(brightness(rollout), group_size=4, config=config.advantage)
    forward_step(
        policy, make_optimizer(params, config.update), Ema(params, decay=0.0), batch, rollout, advantage,
        means=running_means(policy, config), config=config, lr=1e-4,
    )  # fmt: skip
    passes = passes_per_sample(config)
    assert passes.rollout == 16 and passes.forward == passes.backward == updates
    assert seen["plain"] / 4 == passes.rollout + passes.reference
    assert seen["graph"] / 4 == passes.forward and seen["backward"] / 4 == passes.backward


def test_forward_is_the_arithmetic_of_its_layers() -> None:
    video = VideoConfig(height=64, width=32, num_frames=5)
    got = model_flops(TINY, ModelConfig(lora_rank=2), video)
    tokens, text, width, ffn, rank = 2 * 4 * 2, 512, 24, 48, 2  # latents 2 x 8 x 4, patches of 1 x 2 x 2
    assert got.num_tokens == tokens

    def linear(rows: int, inside: int, outside: int) -> int:
        return 2 * rows * inside * outside

    def adapted(rows: int) -> int:
        return linear(rows, width, width) + linear(rows, width, rank) + linear(rows, rank, width)

    block = 4 * adapted(tokens) + 4 * tokens * tokens * width  # self-attention: q, k, v, out; scores and their product
    block += 2 * adapted(tokens) + 2 * adapted(text) + 4 * tokens * text * width  # cross-attention
    block += 2 * linear(tokens, width, ffn)
    around = linear(tokens, 4 * 4, width) + linear(tokens, width, 4 * 4)  # patches in and out
    around += linear(text, 32, width) + linear(text, width, width)  # text
    around += linear(1, 32, width) + linear(1, width, width) + linear(1, width, 6 * width)  # time
    assert got.forward == 2 * block + around
    assert 1.5 * got.forward < got.backward + got.forward  # a LoRA's backward pass: no gradient of the frozen weights
    again = model_flops(TINY, ModelConfig(lora_rank=2, gradient_checkpointing=True), video)
    assert again.forward == got.forward and 0.9 < (again.backward - got.backward) / (2 * block) <= 1.0
    kept = model_flops(TINY, ModelConfig(lora_rank=2, gradient_checkpointing=True, checkpoint_keep="products"), video)
    small = 4 * 2 * linear(tokens, width, rank) + 2 * 2 * (linear(tokens, width, rank) + linear(text, width, rank))
    assert kept.backward - got.backward == 2 * small  # the adapter's own products, and nothing of the base


@pytest.mark.slow
def test_shares_of_the_official_recipe_on_wan() -> None:
    """The targets, by torch's FLOP counter on the published 1.3B configuration at 480x832x81."""
    rows = recipes()
    costs = recipe_flops(WAN["1.3b"], rows["official release"].video)
    model = costs["nothing"]
    assert model.num_tokens == 32_760 and 283e12 < model.forward < 285e12
    assert {cost.forward for cost in costs.values()} == {model.forward}
    whole = sample_flops(passes_per_sample(rows["official release"]), model)
    share = {
        name: sample_flops(passes_per_sample(config), costs[config.model.checkpoint_keep]) / whole
        for name, config in rows.items()
    }
    # With two updates a rollout, whether a group shares its noise (as Flow-GRPO-Fast does) or not.
    assert share["CFG, KL, 2 updates, shared first step"] <= 0.16 < share["CFG, KL, 2 updates, shared prefix"] <= 0.22
    assert share["CFG, KL, 2 updates, attention kept"] <= 0.22 < share["CFG, KL, 2 updates"]
    assert share["no CFG, no KL, 2 updates, shared first step"] <= 0.09 < share["no CFG, no KL, 2 updates"]
    assert share["no CFG, no KL, 2 updates, deferred, products kept"] <= 0.09
    assert share["CFG, KL, 1 update"] <= 0.22 and share["no CFG, no KL, 1 update"] <= 0.09
    assert rows["preset wan2.1-1.3b"].rollout.guidance_scale > 1 and rows["preset wan2.1-1.3b"].update.kl_beta > 0
    assert share["preset wan2.1-1.3b"] <= 0.15
    # By hand: 50 steps of 2 passes, 24 trained steps of 2 passes with their reference and backward passes.
    assert whole == pytest.approx((100 + 48 + 48) * model.forward + 48 * model.backward, rel=1e-12)
    # 20 steps, of which 4 on average before a window of 2 in [0, 10): with its first step, 5 are taken once for 8.
    shared = sample_flops(passes_per_sample(rows["no CFG, no KL, 2 updates, shared first step"]), model)
    window = 1 + 1 / 8
    assert shared == pytest.approx((15 + 5 / 8 + 2 * window) * model.forward + 2 * window * model.backward, rel=1e-12)
    # Keeping attention spares its scores and values: 4 T^2 d in each of 30 blocks, and the small one to the text.
    spared = 30 * 4 * 32_760 * (32_760 + 512) * 1536
    assert model.backward - costs["attention"].backward == spared


@pytest.mark.parametrize("first_too", [False, True])
def test_passes_of_the_settings(first_too: bool) -> None:
    config = replace(TrainConfig(), rollout=replace(TrainConfig().rollout, share_first_step=first_too))
    micro = passes_per_sample(config)
    s, g = config.schedule, config.rollout.group_size
    starts = range(s.window_range[0], s.window_range[1] - s.window_size + 1)
    saved = 1 - 1 / g  # of a step that a group takes once
    shared = sum(s.num_steps - i * saved for i in starts) / len(starts) - first_too * saved
    assert micro.rollout == pytest.approx(shared) and micro.reference == s.window_size - first_too * saved
    guided = replace(config, rollout=replace(config.rollout, guidance_scale=5.0))
    assert passes_per_sample(guided) == pytest.approx([2 * n for n in micro])


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import json

    tiny = TINY | {"_class_name": "WanTransformer3DModel", "in_channels": 16, "out_channels": 16}
    (tmp_path / "config.json").write_text(json.dumps(tiny))
    arguments = ["--transformer-config", str(tmp_path / "config.json"), "--height", "32", "--width", "32"]
    assert main([*arguments, "--num-frames", "9", "--ranks", "3"]) == 0
    printed = capsys.readouterr().out
    first, *_ = printed.split("\n\n")
    assert first.startswith("12 tokens") and len(first.splitlines()) == 2 + len(recipes())
    assert "official release" in printed and "100.0%" in printed
    assert "on 3 ranks of 400 TFLOP/s" in printed and "480x832x49" in printed and "<- peak" in printed
    assert main([*arguments, "--ranks", "7"]) == 2 and main(["--transformer-config", str(tmp_path / "none.json")]) == 2
    assert "must be a multiple of the 7 ranks" in capsys.readouterr().err


def test_minutes_of_an_iteration_are_counted_from_the_samples_of_a_rank() -> None:
    small = preset("wan2.1-1.3b")
    costs = training_costs(TINY, small, num_ranks=48, tflops=400.0)
    flops = sample_flops(passes_per_sample(small, world_size=48), model_flops(TINY, small.model, costs[1].video))
    assert costs[1].petaflop == pytest.approx(flops / 1e15, rel=1e-12)
    assert costs[1].minutes == pytest.approx(8 * flops / 400e12 / 60, rel=1e-12)
    half = training_costs(
        TINY, small, num_ranks=96, tflops=400.0
    )  # four samples a rank: a pass serves fewer of a group
    assert 0.5 * costs[1].minutes < half[1].minutes < 0.6 * costs[1].minutes


@pytest.mark.slow
@pytest.mark.parametrize(("model", "ranks", "minutes"), [("1.3b", 48, 2.1), ("14b", 96, 7.1)])
def test_the_presets_stay_within_their_cost(model: str, ranks: int, minutes: float) -> None:
    """With guidance and KL at most 15 % of the official release's FLOP a sample, the iteration of 1.3B in 4 minutes."""
    config = preset(f"wan2.1-{model}")
    assert config.rollout.guidance_scale > 1 and config.update.kl_beta > 0
    costs = training_costs(WAN[model], config, num_ranks=ranks, tflops=400.0)
    (trained,) = [c for c in costs if c.video.num_frames == config.video.num_frames]
    assert trained.share <= 0.15 and trained.minutes <= minutes
