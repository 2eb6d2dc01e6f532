"""What a training sample costs: transformer passes counted from the settings, FLOPs measured on the meta device.

python -m worldr1.flops              # Wan2.1-1.3B at 480x832x81, this package's recipes against the official release's
python -m worldr1.flops --model 14b
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from worldr1.config import ModelConfig, TrainConfig, VideoConfig

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
    reference: float  # forward without the adapter, no graph: for the KL
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


def passes_per_sample(config: TrainConfig) -> Passes:
    """Transformer passes that one training sample takes: rollout, reference of the KL, training.

    A shared prefix counts 1 / G of its steps. The deferred update takes its graph from the rollout's own pass; with a
    KL it needs two backward passes, one for each part of its gradient.

    Args:
      config: schedule, rollout and update.
    """
    s, r, u = config.schedule, config.rollout, config.update
    per_step = 1 if r.guidance_scale == 1.0 else 2
    first, last = s.window_range
    prefix = (first + last - s.window_size) / 2 if r.share_initial_noise else 0.0  # mean steps before the window
    rollout = s.num_steps - prefix * (1.0 - 1.0 / r.group_size)
    reference = s.window_size if u.kl_beta > 0 else 0
    forward = backward = u.updates_per_rollout * s.window_size
    if u.deferred:
        rollout -= s.window_size
        backward = s.window_size * (2 if u.kl_beta > 0 else 1)
    return Passes(*(per_step * n for n in (rollout, reference, forward, backward)))


def sample_flops(passes: Passes, model: ModelFlops) -> float:
    """FLOPs of a training sample in the transformer; the VAE, the text encoder and the rewards are not counted."""
    return passes.forwards * model.forward + passes.backward * model.backward


def describe(config: TrainConfig) -> str:
    """The passes of a run's settings, in one line."""
    p = passes_per_sample(config)
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

    with torch.device("meta"):
        net: Any = WanTransformer3DModel(**transformer)
    add_lora(net, rank=model.lora_rank, alpha=model.lora_alpha, ffn=model.lora_ffn)
    if model.gradient_checkpointing:
        net.enable_gradient_checkpointing()
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
    """The rows of the table: the official release's recipe, and ours from the slowest to the leanest."""
    from worldr1.presets import compat, wan2_1_1_3b

    ours = wan2_1_1_3b()
    with_kl = replace(ours, update=replace(ours.update, kl_beta=0.004))
    once = replace(with_kl, update=replace(with_kl.update, updates_per_rollout=1))
    plain = replace(ours, rollout=replace(ours.rollout, guidance_scale=1.0))
    plain_once = replace(plain, update=replace(plain.update, updates_per_rollout=1))

    def shared(config: TrainConfig) -> TrainConfig:
        return replace(config, rollout=replace(config.rollout, share_initial_noise=True))

    return {
        "official release": compat(),
        "preset wan2.1-1.3b": ours,
        "CFG, KL, 2 updates": with_kl,
        "CFG, KL, 2 updates, shared prefix": shared(with_kl),
        "CFG, KL, 1 update": once,
        "CFG, KL, 1 update, shared prefix": shared(once),
        "no CFG, no KL, 2 updates, shared prefix": shared(plain),
        "no CFG, no KL, 1 update": plain_once,
        "no CFG, no KL, deferred": replace(plain_once, update=replace(plain_once.update, deferred=True)),
        "no CFG, no KL, deferred, shared prefix": shared(
            replace(plain_once, update=replace(plain_once.update, deferred=True))
        ),
    }


def table(model: ModelFlops) -> str:
    """Passes, PFLOP per sample and the share of the official release's, one recipe a line."""
    rows = recipes()
    whole = sample_flops(passes_per_sample(rows["official release"]), model)
    lines = [f"{'per sample':40} {'rollout':>8} {'ref.':>6} {'forward':>8} {'backward':>9} {'PFLOP':>7} {'share':>7}"]
    for name, config in rows.items():
        p = passes_per_sample(config)
        cost = sample_flops(p, model)
        passes = f"{p.rollout:8.2f} {p.reference:6.2f} {p.forward:8.2f} {p.backward:9.2f}"
        lines.append(f"{name:40} {passes} {cost / 1e15:7.2f} {cost / whole:7.1%}")
    return "\n".join(lines)


@dataclass(frozen=True)
class FlopsConfig:
    """Print the cost of a training sample, by recipe, against the official release's."""

    model: Literal["1.3b", "14b"] = "1.3b"
    """Published Wan2.1-T2V transformer."""
    transformer_config: Path | None = None
    """A transformer/config.json to read in its place."""
    height: int = 480
    """Of the video, in pixels."""
    width: int = 832
    """Of the video, in pixels."""
    num_frames: int = 81
    """4 k + 1."""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    import tyro

    config = tyro.cli(FlopsConfig, args=None if argv is None else list(argv), prog="python -m worldr1.flops")
    transformer = WAN[config.model]
    if config.transformer_config is not None:
        read = json.loads(config.transformer_config.read_text(encoding="utf-8"))
        transformer = {k: v for k, v in read.items() if not k.startswith("_")}
    ours = recipes()["preset wan2.1-1.3b"]
    video = VideoConfig(height=config.height, width=config.width, num_frames=config.num_frames)
    cost = model_flops(transformer, ours.model, video)
    print(
        f"{cost.num_tokens:,} tokens; forward {cost.forward / 1e12:,.0f} TFLOP, backward {cost.backward / 1e12:,.0f} "
        f"TFLOP (LoRA rank {ours.model.lora_rank}, gradient checkpointing)"
    )
    print(table(cost))
    return 0


if __name__ == "__main__":
    sys.exit(main())
