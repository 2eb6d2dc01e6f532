"""Presets: functions that return a `TrainConfig`. Flags given on the command line are laid over the preset."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from pathlib import Path

from worldr1.config import (
    AdvantageConfig,
    CameraConfig,
    EvaluationConfig,
    ModelConfig,
    NoiseConfig,
    PhaseConfig,
    RewardConfig,
    RolloutConfig,
    ScheduleConfig,
    TrainConfig,
    UpdateConfig,
    VideoConfig,
)

REQUIRED = Path("REQUIRED")
"""Stands in a preset where only the user can know the path; `missing_paths` names the flags."""


def micro() -> TrainConfig:
    """The embedded micro world: minutes on two CPU cores."""
    return TrainConfig()


def wan2_1_1_3b() -> TrainConfig:
    """Wan2.1-T2V-1.3B at 480x832x81, 48 groups of 8: the published recipe's scale."""
    return TrainConfig(
        max_iterations=450,
        output_dir=Path("runs/wan2.1-1.3b"),
        prompts=REQUIRED,
        dynamic_prompts=REQUIRED,
        model=ModelConfig(path=REQUIRED, dtype="bfloat16", lora_rank=32, lora_alpha=64, gradient_checkpointing=True),
        video=VideoConfig(height=480, width=832, num_frames=81, fps=16),
        camera=CameraConfig(),
        noise=NoiseConfig(flow_scale=16, degradation=0.35, dither=True),
        schedule=ScheduleConfig(num_steps=20, shift=3.0, sde_type="linear", window_size=2, window_range=(0, 10)),
        rollout=RolloutConfig(group_size=8, prompts_per_iteration=48, guidance_scale=5.0, micro_batch=1),
        reward=RewardConfig(reconstructor=REQUIRED, critic=REQUIRED, aesthetic=REQUIRED, perceptual=REQUIRED),
        advantage=AdvantageConfig(),
        update=UpdateConfig(
            learning_rate=1e-4,
            final_lr_fraction=1.0,
            updates_per_rollout=2,
            kl_beta=0.0,
            ema_decay=0.99,
        ),
        phase=PhaseConfig(main_iterations=100, dynamic_iterations=50),
        evaluation=EvaluationConfig(num_samples=0),  # the study reads micro-world captions
    )


def wan2_1_14b() -> TrainConfig:
    """Wan2.1-T2V-14B: the settings of the 1.3B model."""
    return dataclasses.replace(wan2_1_1_3b(), output_dir=Path("runs/wan2.1-14b"))


def compat() -> TrainConfig:
    """The official World-R1 release's sampler and update, for an honest comparison alone: its gradient is biased.

    A deterministic UniPC rollout of 50 steps, whose first 24 are then scored by a Gaussian that never drew them; groups
    of two. Rewards, noise and prompts stay those of this package.
    """
    ours = wan2_1_1_3b()
    return dataclasses.replace(
        ours,
        output_dir=Path("runs/compat"),
        schedule=ScheduleConfig(
            num_steps=50, shift=3.0, sde_type="linear", window_size=24, window_range=(0, 24), compat=True
        ),
        rollout=dataclasses.replace(ours.rollout, group_size=2, allow_small_group=True),
        update=dataclasses.replace(
            ours.update, learning_rate=1e-4, updates_per_rollout=1, clip_range=1e-3, kl_beta=0.004
        ),
    )


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    "micro": micro,
    "wan2.1-1.3b": wan2_1_1_3b,
    "wan2.1-14b": wan2_1_14b,
    "compat": compat,
}


def preset(name: str) -> TrainConfig:
    """The settings of a preset.

    Raises:
      ValueError: no such preset; the message names the nearest.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name.lower(), PRESETS, n=1, cutoff=0.0)[0]
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, got {name!r}; the nearest is {near!r}")
    return PRESETS[name]()
