"""What must hold of the settings of a run, looked at before any model is loaded."""

from __future__ import annotations

import math
from pathlib import Path

from worldr1.config import TrainConfig

FASTEST = 1.5
"""Magnitude of a fast motion, the largest that camera words give."""

JUDGE_ROLES = ("reconstructor", "critic", "aesthetic", "perceptual")
"""Settings of RewardConfig that name a judge."""


def judges_asked(config: TrainConfig) -> tuple[str, ...]:
    """Roles of the judges that a run asks: those whose terms have a weight in any of its phases."""
    w = config.reward
    asked = (
        max(w.weight_traj, w.weight_recon, w.weight_meta) > 0,
        w.weight_meta > 0,
        w.weight_gen > 0 or config.phase.dynamic_iterations > 0,
        w.weight_recon > 0,
    )
    return tuple(role for role, yes in zip(JUDGE_ROLES, asked, strict=True) if yes)


def validate(config: TrainConfig, *, world_size: int = 1) -> None:
    """Check what can be checked before any model is loaded.

    Args:
      config: The run's settings.
      world_size: Number of ranks; the samples of an iteration must divide among them.
    Raises:
      ValueError: what must hold, what was given, how to mend it; all findings at once.
    """
    c, bad = config, []

    def must(ok: bool, text: str) -> None:
        if not ok:
            bad.append(text)

    r, s, n, u, e = c.rollout, c.schedule, c.noise, c.update, c.evaluation
    for name, value, least in (
        ("max_iterations", c.max_iterations, 0), ("seed", c.seed, 0), ("num_threads", c.num_threads, 0),
        ("checkpoint_every", c.checkpoint_every, 1), ("checkpoint_minutes", c.checkpoint_minutes, 0),
        ("keep_checkpoints", c.keep_checkpoints, 1), ("validate_every", c.validate_every, 0),
        ("phase.main_iterations", c.phase.main_iterations, 1),
        ("phase.dynamic_iterations", c.phase.dynamic_iterations, 0), ("evaluation.num_samples", e.num_samples, 0),
        ("evaluation.num_steps", e.num_steps, 0), ("evaluation.num_validation", e.num_validation, 1),
        ("rollout.prompts_per_iteration", r.prompts_per_iteration, 1), ("rollout.guidance_scale", r.guidance_scale, 1),
        ("rollout.memory_budget_gib", r.memory_budget_gib, 0), ("schedule.num_steps", s.num_steps, 2),
        ("schedule.window_interval", s.window_interval, 1), ("noise.flow_scale", n.flow_scale, 1),
        ("update.warmup_iterations", u.warmup_iterations, 0), ("update.kl_beta", u.kl_beta, 0),
        ("reward.num_aesthetic_frames", c.reward.num_aesthetic_frames, 1),
        ("update.updates_per_rollout", u.updates_per_rollout, 1),
    ):  # fmt: skip
        must(value >= least, f"{name} must be >= {least}, got {value}")
    v = c.video
    must(v.num_frames >= 5 and v.num_frames % 4 == 1, f"video.num_frames must be 4 k + 1 and >= 5, got {v.num_frames}")
    must(v.height >= 8 and v.width >= 8, f"video.height and video.width must be >= 8, got {v.height}x{v.width}")
    must(r.group_size >= 2, f"rollout.group_size must be >= 2, got {r.group_size}")
    must(
        r.group_size >= 4 or r.allow_small_group,
        f"rollout.group_size must be >= 4, got {r.group_size}; --rollout.allow-small-group accepts it",
    )
    samples = r.prompts_per_iteration * r.group_size
    near = sorted((n for n in range(1, samples + 1) if samples % n == 0), key=lambda n: abs(n - world_size))[:2]
    must(
        samples % world_size == 0,
        f"rollout.prompts_per_iteration x group_size must be a multiple of the {world_size} ranks, "
        f"got {r.prompts_per_iteration} x {r.group_size} = {samples}; start {' or '.join(map(str, near))} ranks",
    )
    samples //= world_size
    must(
        r.memory_budget_gib > 0 or r.micro_batch >= 1 and samples % min(r.micro_batch, max(1, samples)) == 0,
        f"rollout.micro_batch must divide the {samples} samples of a rank, got {r.micro_batch}",
    )
    must(s.shift > 0, f"schedule.shift must be > 0, got {s.shift}")
    must(
        not s.compat or (r.solver == "euler" and not r.share_initial_noise),
        "schedule.compat brings its own solver and has no shared prefix: leave rollout.solver and share_initial_noise",
    )
    must(
        not r.share_first_step or (r.share_initial_noise and not c.update.deferred),
        "rollout.share_first_step needs rollout.share_initial_noise (else the latents differ), and update.deferred off "
        "(it needs a pass for each sample)",
    )
    must(0 < s.noise_level < 10, f"schedule.noise_level must be in (0, 10), got {s.noise_level}")
    first, last = s.window_range
    must(
        0 <= first < last <= s.num_steps - 1,
        f"schedule.window_range must satisfy 0 <= first < last <= num_steps - 1 = {s.num_steps - 1}, "
        f"got {(first, last)}",
    )
    must(
        1 <= s.window_size <= last - first,
        f"schedule.window_size must be in [1, {last - first}] to fit window_range {(first, last)}, got {s.window_size}",
    )
    must(c.camera.depth > 0 and 0 <= c.camera.ease < 1, "camera.depth must be > 0 and camera.ease in [0, 1)")
    step = _longest_step(c)
    must(
        n.mode == "plain" or c.camera.depth > step,
        f"camera.depth must exceed the longest step of a fast motion between two of the {v.num_frames} frames, "
        f"{step:.3g}, for noise to be moved along it, got {c.camera.depth:g}; give lengths of one scale, or "
        "--noise.mode plain",
    )
    must(0 <= n.degradation <= 1, f"noise.degradation must be in [0, 1], got {n.degradation}")
    m = c.model
    must(
        m.lora_rank >= 1 and m.lora_alpha >= 1,
        f"model.lora_rank and lora_alpha must be >= 1, got {m.lora_rank}, {m.lora_alpha}",
    )
    must(0 <= m.adapter_sigma_min <= 1, f"model.adapter_sigma_min must be in [0, 1], got {m.adapter_sigma_min}")
    must(u.learning_rate > 0, f"update.learning_rate must be > 0, got {u.learning_rate}")
    must(
        not u.deferred or (u.surrogate == "clip" and not s.compat),
        "update.deferred must be off with the guard surrogate and with schedule.compat",
    )
    must(
        not (u.deferred and u.kl_beta > 0) or m.checkpoint_keep == "nothing",
        f"model.checkpoint_keep must be nothing with update.deferred and a KL (two backward passes through one graph), "
        f"got {m.checkpoint_keep}",
    )
    must(0 < u.clip_range < 1, f"update.clip_range must be in (0, 1), got {u.clip_range}")
    must(u.max_grad_ratio > 0, f"update.max_grad_ratio must be > 0, got {u.max_grad_ratio}")
    must(0 <= u.ema_decay < 1, f"update.ema_decay must be in [0, 1), got {u.ema_decay}")
    w = c.reward
    weights = (w.weight_traj, w.weight_recon, w.weight_meta, w.weight_gen)
    must(min(weights) >= 0 and max(weights) > 0, f"reward weights must be >= 0 and not all 0, got {weights}")
    for name, side in (("height", e.height), ("width", e.width), ("num_frames", e.num_frames)):
        right = side == 0 or (side >= 5 and side % 4 == 1 if name == "num_frames" else side >= 8)
        must(right, f"evaluation.{name} must be 0 or what video.{name} may be, got {side}")

    must(m.path.is_dir(), f"model.path must be a diffusers WanPipeline folder, got {m.path} (no such folder)")
    for role in judges_asked(c):
        source = str(getattr(w, role))
        server = source.startswith(("http://", "https://"))
        must(
            role == "critic" if server else ":" in source or Path(source).is_dir(),
            f"reward.{role} must be a model folder{', a server' if role == 'critic' else ''} or module:name, "
            f"got {source}{'' if server else ' (no such folder)'}",
        )
    for term in w.extra:
        name, _, weight = term.partition("=")
        must(
            ":" in name and _number(weight) > 0, f"reward.extra must be module:function=weight, weight > 0, got {term}"
        )
    must(
        w.device in ("", "cpu") or w.device.removeprefix("cuda:").isdigit(),
        f"reward.device must be empty, cpu or cuda:K, got {w.device}",
    )
    must(w.reconstructor_size >= 14, f"reward.reconstructor_size must be >= 14, got {w.reconstructor_size}")
    must(w.critic_timeout > 0, f"reward.critic_timeout must be > 0, got {w.critic_timeout}")
    if e.num_samples:
        must(e.evaluator.is_dir(), f"evaluation.evaluator must be a model folder, got {e.evaluator} (no such folder)")
    if bad:
        raise ValueError("configuration:\n  - " + "\n  - ".join(bad))


def _number(text: str) -> float:
    """A finite number, or NaN."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _longest_step(config: TrainConfig) -> float:
    """Travel between two frames at cruising speed, scene units, of the longest motion."""
    c = config.camera
    longest = max(c.push, c.move, math.hypot(c.pull_back, c.pull_side), c.orbit_radius * math.radians(c.orbit_deg))
    return FASTEST * longest / max(1, config.video.num_frames - 1) / max(1e-3, 1.0 - c.ease)
