"""What a training sample costs: transformer passes counted from the settings, FLOPs measured on the meta device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from worldr1.config import Keep, ModelConfig, TrainConfig, VideoConfig
from worldr1.prompts.sampler import rank_share

NUM_TEXT_TOKENS = 512
"""Of Wan's text encoder; padded to it."""
_WAN_1_3B: dict[str, Any] = dict(
    num_attention_heads=12, attention_head_dim=128, num_layers=30, ffn_dim=8960, text_dim=4096, freq_dim=256,
    in_channels=16, out_channels=16, patch_size=(1, 2, 2), cross_attn_norm=True, qk_norm="rms_norm_across_heads",
)  # fmt: skip
WAN: dict[str, dict[str, Any]] = {
    "1.3b": _WAN_1_3B,
    "14b": _WAN_1_3B | dict(num_attention_heads=40, num_layers=40, ffn_dim=13824),
}
"""Arguments of diffusers' WanTransformer3DModel, as in the published transformer/config.json of Wan2.1-T2V."""


class Passes(NamedTuple):
    """Transformer passes per training sample, mean over the windows and the group."""

    rollout: float  # forward, no graph
    reference: float  # forward, no graph, for the update: without the adapter for the KL, with the rollout's
    forward: float  # forward with a graph
    backward: float

    @property
    def forwards(self) -> float:
        """All of them."""
        return self.rollout + self.reference + self.forward


class ModelFlops(NamedTuple):
    """FLOPs of one pass of one sample; a multiplication and an addition are two."""

    forward: int
    backward: int  # of the adapter, with what gradient checkpointing recomputes
    num_tokens: int


def passes_per_sample(config: TrainConfig, *, world_size: int = 1) -> Passes:
    """Transformer passes that one training sample takes: rollout, reference of the KL, training.

    A shared prefix counts 1 / G of its steps, and a shared first step 1 / G of itself everywhere: in the rollout, the
    reference and each update; g in place of G where the ranks split groups into pieces of g. The reference does not
    change and is run once a rollout, however many updates follow. The deferred update takes its graph from the
    rollout's own pass; with a KL it needs two backward passes, one for each part of its gradient. The forward
    estimator's update takes one pass at a fresh sigma, without guidance; beside it that of the base, and from the
    second update on that of the adapter that sampled.

    Args:
      config: schedule, rollout, update and forward.
      world_size: Ranks that the samples are dealt to.
    """
    s, r, u = config.schedule, config.rollout, config.update
    per_step = 1 if r.guidance_scale == 1.0 else 2
    if u.estimator == "forward":
        updates = float(u.updates_per_rollout)
        references = updates * (max(config.forward.kl, config.forward.mean) > 0) + updates - 1
        return Passes(float(per_step * s.num_steps), references, updates, updates)
    first, last = s.window_range
    prefix = (first + last - s.window_size) / 2 if r.share_initial_noise else 0.0  # mean steps before the window
    spared = 1.0 - 1.0 / rank_share(r, world_size)[1]  # of a pass, where one serves the piece of a group
    rollout = s.num_steps - prefix * spared
    window = float(s.window_size)
    if r.share_first_step:
        rollout, window = rollout - spared, window - spared
    reference = window if u.kl_beta > 0 else 0.0
    forward = backward = u.updates_per_rollout * window
    if u.deferred:
        rollout -= window
        backward += window if u.kl_beta > 0 else 0.0
    return Passes(*(per_step * n for n in (rollout, reference, forward, backward)))


def sample_flops(passes: Passes, model: ModelFlops) -> float:
    """FLOPs of a training sample in the transformer; the VAE, the text encoder and the rewards are not counted."""
    return passes.forwards * model.forward + passes.backward * model.backward


def describe(config: TrainConfig, *, world_size: int = 1) -> str:
    """The passes of a run's settings, in one line."""
    p = passes_per_sample(config, world_size=world_size)
    return (
        f"transformer passes per sample: {p.forwards:.3g} forward ({p.rollout:.3g} rollout, {p.reference:.3g} "
        f"reference, {p.forward:.3g} training) and {p.backward:.3g} backward"
    )


def model_flops(transformer: Mapping[str, Any], model: ModelConfig, video: VideoConfig) -> ModelFlops:
    """FLOPs of one forward and one backward pass of a Wan transformer with its LoRA, counted by torch.

    The model is built on the meta device: nothing is allocated or computed.

    Args:
      transformer: Arguments of WanTransformer3DModel.
      model: LoRA and gradient checkpointing.
      video: Size, with Wan's compression of 8x8 pixels and 4 frames.
    Returns:
      ModelFlops for one sample.
    """
    import torch
    from diffusers import WanTransformer3DModel
    from torch.utils.flop_counter import FlopCounterMode

    from worldr1.models.lora import add_lora
    from worldr1.models.recompute import checkpoint_blocks

    with torch.device("meta"):
        net: Any = WanTransformer3DModel(**transformer)
    add_lora(net, rank=model.lora_rank, alpha=model.lora_alpha, ffn=model.lora_ffn)
    if model.gradient_checkpointing:
        checkpoint_blocks(net, keep=model.checkpoint_keep)
    shape = (transformer["in_channels"], (video.num_frames - 1) // 4 + 1, video.height // 8, video.width // 8)
    latent = torch.empty(1, *shape, device="meta")
    text = torch.empty(1, NUM_TEXT_TOKENS, transformer["text_dim"], device="meta")
    timestep = torch.empty(1, device="meta")
    with FlopCounterMode(display=False) as counter:
        out = net(hidden_states=latent, timestep=timestep, encoder_hidden_states=text, return_dict=False)[0]
        forward = counter.get_total_flops()
        out.sum().backward()
    patch = transformer["patch_size"]
    num_tokens = shape[1] // patch[0] * (shape[2] // patch[1]) * (shape[3] // patch[2])
    return ModelFlops(forward, counter.get_total_flops() - forward, num_tokens)


def recipes() -> dict[str, TrainConfig]:
    """The rows of the table: the official release's recipe, and ours with and without guidance and KL."""
    from worldr1.presets import compat, wan2_1_1_3b

    ours = wan2_1_1_3b()

    def vary(
        base: TrainConfig, *, updates: int = 2, share: int = 0, deferred: bool = False, keep: Keep = "nothing"
    ) -> TrainConfig:
        """`share`: 1 the prefix, 2 the first stochastic step, too."""
        return replace(
            base,
            model=replace(base.model, checkpoint_keep=keep),
            rollout=replace(base.rollout, share_initial_noise=share > 0, share_first_step=share > 1),
            update=replace(base.update, updates_per_rollout=updates, deferred=deferred),
        )

    plain = replace(ours, rollout=replace(ours.rollout, guidance_scale=1.0), update=replace(ours.update, kl_beta=0.0))
    forward = vary(ours, keep="attention")
    forward = replace(forward, update=replace(forward.update, estimator="forward"))
    return {
        "official release": compat(),
        "preset wan2.1-1.3b": ours,
        "CFG, KL, 2 updates": vary(ours),
        "CFG, KL, 2 updates, attention kept": vary(ours, keep="attention"),
        "CFG, KL, 2 updates, shared prefix": vary(ours, share=1),
        "CFG, KL, 2 updates, shared first step": vary(ours, share=2),
        "CFG, KL, 2 updates, forward estimator, attention kept": forward,
        "CFG, KL, 1 update": vary(ours, updates=1),
        "CFG, KL, 1 update, shared first step": vary(ours, updates=1, share=2),
        "no CFG, no KL, 2 updates": vary(plain),
        "no CFG, no KL, 2 updates, deferred, products kept": vary(plain, deferred=True, keep="products"),
        "no CFG, no KL, 2 updates, shared prefix": vary(plain, share=1),
        "no CFG, no KL, 2 updates, shared first step": vary(plain, share=2),
        "no CFG, no KL, 1 update": vary(plain, updates=1),
        "no CFG, no KL, 1 update, deferred": vary(plain, updates=1, deferred=True),
        "no CFG, no KL, 1 update, shared first step": vary(plain, updates=1, share=2),
    }


def recipe_flops(transformer: Mapping[str, Any], video: VideoConfig) -> dict[Keep, ModelFlops]:
    """What a pass of the recipes' model costs, by what its checkpointing keeps."""
    model = recipes()["official release"].model
    kept = {config.model.checkpoint_keep for config in recipes().values()}
    return {keep: model_flops(transformer, replace(model, checkpoint_keep=keep), video) for keep in sorted(kept)}


SIZES = ((240, 416, 33), (480, 832, 49), (480, 832, 81))
"""Height, width and frames that the presets are meant for: a first look, what they train on, what Wan makes."""


class TrainingCost(NamedTuple):
    """Of one size of video, in the transformer alone."""

    video: VideoConfig
    petaflop: float  # a sample
    share: float  # of the official release's sample, at the largest of SIZES
    minutes: float  # an iteration


def training_costs(
    transformer: Mapping[str, Any], config: TrainConfig, *, num_ranks: int, tflops: float
) -> list[TrainingCost]:
    """What training by these settings costs at each of SIZES.

    Args:
      transformer: Arguments of WanTransformer3DModel.
      config: model, schedule, rollout and update are read.
      num_ranks: Among which the samples of an iteration are dealt.
      tflops: Sustained throughput of a device, in TFLOP/s.
    """
    per_rank = config.rollout.prompts_per_iteration * config.rollout.group_size / num_ranks
    passes, rows = passes_per_sample(config, world_size=num_ranks), []
    for height, width, frames in SIZES:
        video = VideoConfig(height=height, width=width, num_frames=frames)
        rows.append((video, sample_flops(passes, model_flops(transformer, config.model, video))))
    official = recipes()["official release"]
    whole = sample_flops(passes_per_sample(official), model_flops(transformer, official.model, rows[-1][0]))
    return [TrainingCost(v, n / 1e15, n / whole, n * per_rank / tflops / 1e12 / 60) for v, n in rows]


def table(costs: Mapping[Keep, ModelFlops]) -> str:
    """Passes, PFLOP per sample and the share of the official release's, one recipe a line."""
    rows = recipes()
    total = {name: sample_flops(passes_per_sample(c), costs[c.model.checkpoint_keep]) for name, c in rows.items()}
    lines = [f"{'per sample':54} {'rollout':>8} {'ref.':>6} {'forward':>8} {'backward':>9} {'PFLOP':>7} {'share':>7}"]
    for name, config in rows.items():
        p = passes_per_sample(config)
        passes = f"{p.rollout:8.2f} {p.reference:6.2f} {p.forward:8.2f} {p.backward:9.2f}"
        lines.append(f"{name:54} {passes} {total[name] / 1e15:7.2f} {total[name] / total['official release']:7.1%}")
    return "\n".join(lines)
