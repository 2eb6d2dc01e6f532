"""The cost of a training sample, by recipe, against the official release's, and the memory of an iteration by stage.

python -m worldr1.cost              # Wan2.1-1.3B at 480x832x81
python -m worldr1.cost --model 14b --ranks 16
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from worldr1.config import VideoConfig
from worldr1.cost import memory
from worldr1.cost.flops import WAN, recipe_flops, recipes, table, training_costs
from worldr1.cost.memory import WAN_VAE, meta_policy
from worldr1.presets import preset

NUM_LATENT_CHANNELS = 16
"""Of Wan2.1's autoencoder."""


@dataclass(frozen=True)
class CostConfig:
    """Print the cost of a training sample, by recipe, and the memory of an iteration of the preset, by stage."""

    model: Literal["1.3b", "14b"] = "1.3b"
    """Published Wan2.1-T2V transformer."""
    transformer_config: Path | None = None
    """A transformer/config.json to read in its place."""
    height: int = 480
    """Of the video of the first and the last table, in pixels."""
    width: int = 832
    """Of the video, in pixels."""
    num_frames: int = 81
    """4 k + 1."""
    ranks: int = 48
    """Among which an iteration's samples are dealt: the memory is that of one."""
    tflops: float = 400.0
    """TFLOP/s that a device is taken to sustain: 40 % of an H200's peak in bfloat16."""
    micro_batch: int = 1
    """Samples per transformer call."""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    import tyro

    config = tyro.cli(CostConfig, args=None if argv is None else list(argv), prog="python -m worldr1.cost")
    try:
        show(config)
    except (ValueError, OSError) as error:  # numbers that do not fit, or no such transformer/config.json
        print(error, file=sys.stderr)
        return 2
    return 0


def show(config: CostConfig) -> None:
    """Print the tables.

    Raises:
      ValueError: a number of ranks among which the samples cannot be dealt, a size that the model cannot make.
    """
    transformer = WAN[config.model]
    if config.transformer_config is not None:
        read = json.loads(config.transformer_config.read_text(encoding="utf-8"))
        transformer = {k: v for k, v in read.items() if not k.startswith("_")}
    video = VideoConfig(height=config.height, width=config.width, num_frames=config.num_frames)
    costs = recipe_flops(transformer, video)
    plain = costs["nothing"]
    backward = ", ".join(f"{cost.backward / 1e12:,.0f} with {keep} kept" for keep, cost in costs.items())
    print(
        f"{plain.num_tokens:,} tokens; TFLOP of a forward {plain.forward / 1e12:,.0f}, of a backward {backward} "
        f"(LoRA rank {recipes()['official release'].model.lora_rank}, gradient checkpointing)"
    )
    print(table(costs))
    settings = preset(f"wan2.1-{config.model}")
    print(
        f"\npreset wan2.1-{config.model} on {config.ranks} ranks of {config.tflops:g} TFLOP/s, transformer alone:\n"
        f"{'video':16} {'PFLOP a sample':>15} {'share':>7} {'minutes an iteration':>21}"
    )
    for row in training_costs(transformer, settings, num_ranks=config.ranks, tflops=config.tflops):
        size = f"{row.video.height}x{row.video.width}x{row.video.num_frames}"
        print(f"{size:16} {row.petaflop:15.2f} {row.share:7.1%} {row.minutes:21.1f}")
    settings = replace(settings, video=video, rollout=replace(settings.rollout, micro_batch=config.micro_batch))
    if transformer["in_channels"] != NUM_LATENT_CHANNELS:
        print(
            f"\nmemory is counted beside Wan2.1's decoder of {NUM_LATENT_CHANNELS} channels: not for this transformer"
        )
        return
    policy = meta_policy(transformer, WAN_VAE, settings.model)
    print(f"\none of {config.ranks} ranks, preset wan2.1-{config.model}:")
    print(memory.table(memory.stages(policy, settings, num_ranks=config.ranks), policy))


if __name__ == "__main__":
    sys.exit(main())
