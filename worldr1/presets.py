"""Presets: functions that return a `TrainConfig`. Flags given on the command line are laid over the preset."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from pathlib import Path

from worldr1.config import (
    EMBEDDED,
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


def micro_forward() -> TrainConfig:
    """The embedded micro world by the forward-process estimator (docs/algorithm.md), at half the cost of the default.

    rollout: noise of each sample's own, since nothing else is drawn. update: a higher rate than the score estimator's,
    falling to half. reward: more of S_recon and less of R_gen, which held pictures and contrast. No dynamic phase.
    Not the default: with shuffled rewards one of two seeds gained more than its gate allows (docs/results).
    """
    base = TrainConfig()
    return dataclasses.replace(
        base,
        max_iterations=70,
        output_dir=Path("runs/micro-forward"),
        rollout=RolloutConfig(),
        reward=dataclasses.replace(base.reward, weight_recon=0.3, weight_gen=0.1),
        update=dataclasses.replace(base.update, estimator="forward", learning_rate=1.4e-3, final_lr_fraction=0.5),
        phase=PhaseConfig(dynamic_iterations=0),
    )


def wan2_1_1_3b() -> TrainConfig:
    """Wan2.1-T2V-1.3B: 48 groups of 8 videos of 480x832 with 49 frames; validated with 81, by Wan's own sampler.

    What the article does not fix follows what docs/log.md found in the micro world; docs/scaling.md has the cost.

    video: 49 frames are 20,280 tokens instead of 32,760, half the FLOP, with the same paths.
    model: the adapter acts on exactly the steps that may be trained (sigma .786 at step 9 of the 20, .75 at step 10);
      one that acts further down than it is trained buys obedience with pictures. Attention kept: a quarter less to
      compute again for three times the kept memory, 9 GB of 141 at 81 frames.
    noise: moved on a grid 16 times finer than the latent, or slow motions round to nothing; a dither keeps the rest of
      them. A third of it fresh.
    schedule: `flow` at .7 is Flow-GRPO's (arXiv 2505.05470) and the micro world's; a window of two steps.
    rollout: one noise and one first stochastic step a group are a third less FLOP, and all that differs inside a group
      comes from draws that are trained (with own noise: 24 to 40 % of the variance of S_traj).
    reward: frames spread over the clip; the first 8 would be half a second. Renders blurred by less than usual, or with
      LPIPS a video blurred by a pixel scores above the sharp one (docs/results). The weights are the article's.
    advantage: by the group's own spread; else groups with small rewards, such as orbits, hardly count.
    update: two updates, so that the clip can act; a warm-up, for AdamW's first steps have unit size whatever the
      gradient.
    phase: the release's. evaluation: the study at the end needs an evaluator that no reward shares:
      --evaluation.num-samples 64 --evaluation.evaluator FOLDER.
    """
    return TrainConfig(
        max_iterations=450,
        output_dir=Path("runs/wan2.1-1.3b"),
        prompts=REQUIRED,
        dynamic_prompts=REQUIRED,
        eval_prompts=REQUIRED,
        checkpoint_minutes=30.0,
        validate_every=25,
        model=ModelConfig(
            path=REQUIRED, dtype="bfloat16", lora_rank=32, lora_alpha=64, adapter_sigma_min=0.78,
            gradient_checkpointing=True, checkpoint_keep="attention",
        ),
        video=VideoConfig(height=480, width=832, num_frames=49, fps=16),
        camera=CameraConfig(),
        noise=NoiseConfig(flow_scale=16, degradation=0.35, dither=True),
        schedule=ScheduleConfig(
            num_steps=20, shift=3.0, sde_type="flow", noise_level=0.7, window_size=2, window_range=(0, 10)
        ),
        rollout=RolloutConfig(
            group_size=8, prompts_per_iteration=48, guidance_scale=5.0, micro_batch=1, share_initial_noise=True,
            share_first_step=True,
        ),
        reward=RewardConfig(
            reconstructor=str(REQUIRED), critic=str(REQUIRED), aesthetic=str(REQUIRED), perceptual=str(REQUIRED),
            aesthetic_frames="spread", screen_blur=0.03,
        ),
        advantage=AdvantageConfig(std="group"),
        update=UpdateConfig(
            learning_rate=1e-4, warmup_iterations=15, final_lr_fraction=1.0, updates_per_rollout=2, ema_decay=0.99
        ),
        phase=PhaseConfig(main_iterations=100, dynamic_iterations=50),
        evaluation=EvaluationConfig(
            num_samples=0, solver="unipc", num_steps=50, labels=False, num_frames=81, num_validation=8
        ),
    )  # fmt: skip


def wan2_1_14b() -> TrainConfig:
    """Wan2.1-T2V-14B: the settings of wan2.1-1.3b, whose help says why; meant for 96 devices of 141 GB."""
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
        model=dataclasses.replace(ours.model, adapter_sigma_min=0.0, checkpoint_keep="nothing"),
        video=dataclasses.replace(ours.video, num_frames=81),
        schedule=ScheduleConfig(
            num_steps=50, shift=3.0, sde_type="linear", window_size=24, window_range=(0, 24), compat=True
        ),
        rollout=dataclasses.replace(
            ours.rollout, group_size=2, allow_small_group=True, share_initial_noise=False, share_first_step=False
        ),
        advantage=AdvantageConfig(std="global"),
        # One update: the ratio is 1 and the clip inert, whatever it is. Its KL weight of .004 stands beside a log_prob
        # that is a mean over 2,096,640 elements: here it is .004 times their root.
        update=dataclasses.replace(
            ours.update, warmup_iterations=0, learning_rate=1e-4, updates_per_rollout=1, kl_beta=5.8
        ),
    )


def rehearsal() -> TrainConfig:
    """The settings of wan2.1-1.3b, on models of a few thousand random weights: does everything run, does it all fit
    together? `python -m worldr1.rehearsal build DIR` writes them and prints the command. Scores mean nothing.

    Two iterations of 16 videos of 64x96 with 9 frames, the second one of the dynamic phase; a validation after each.
    """
    ours = wan2_1_1_3b()
    texts = EMBEDDED / "prompts"
    return dataclasses.replace(
        ours,
        max_iterations=2,
        output_dir=Path("runs/rehearsal"),
        prompts=texts / "micro_train.txt",
        dynamic_prompts=texts / "micro_dynamic.txt",
        eval_prompts=texts / "micro_heldout.txt",
        validate_every=1,
        model=dataclasses.replace(ours.model, lora_rank=4, lora_alpha=8),
        video=VideoConfig(height=64, width=96, num_frames=9, fps=8),
        rollout=dataclasses.replace(ours.rollout, prompts_per_iteration=2, micro_batch=4),
        reward=dataclasses.replace(ours.reward, reconstructor_size=98),
        phase=PhaseConfig(main_iterations=1, dynamic_iterations=1),
        evaluation=dataclasses.replace(ours.evaluation, num_frames=9, num_steps=6, num_validation=2),
    )


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    "micro": micro,
    "micro-forward": micro_forward,
    "wan2.1-1.3b": wan2_1_1_3b,
    "wan2.1-14b": wan2_1_14b,
    "compat": compat,
    "rehearsal": rehearsal,
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
