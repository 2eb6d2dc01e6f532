"""What must hold of the settings of a run, looked at before any model is loaded."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

from worldr1.config import ForwardConfig, TrainConfig
from worldr1.ranges import ranges_of

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
    for name, value, bounds in ranges_of(c):
        must(bounds.holds(value), f"{name} must be in {bounds.interval}, got {value}")
    if bad:  # what follows computes with them
        raise ValueError("configuration:\n  - " + "\n  - ".join(bad))
    cores = os.cpu_count() or 1
    must(c.num_threads <= cores, f"num_threads must be at most the {cores} cores, got {c.num_threads}; 0 shares them")
    v = c.video
    must(v.num_frames % 4 == 1, f"video.num_frames must be 4 k + 1, got {v.num_frames}")
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
        r.memory_budget_gib > 0 or samples % min(r.micro_batch, max(1, samples)) == 0,
        f"rollout.micro_batch must divide the {samples} samples of a rank, got {r.micro_batch}",
    )
    must(
        not s.compat or (r.solver == "euler" and not r.share_initial_noise),
        "schedule.compat brings its own solver and has no shared prefix: leave rollout.solver and share_initial_noise",
    )
    must(
        not r.share_first_step or (r.share_initial_noise and not c.update.deferred),
        "rollout.share_first_step needs rollout.share_initial_noise (else the latents differ), and update.deferred off "
        "(it needs a pass for each sample)",
    )
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
    step = _longest_step(c)
    must(
        n.mode == "plain" or c.camera.depth > step,
        f"camera.depth must exceed the longest step of a fast motion between two of the {v.num_frames} frames, "
        f"{step:.3g}, for noise to be moved along it, got {c.camera.depth:g}; give lengths of one scale, or "
        "--noise.mode plain",
    )
    m = c.model
    must(
        not u.deferred or (u.surrogate == "clip" and not s.compat),
        "update.deferred must be off with the guard surrogate and with schedule.compat",
    )
    must(
        not (u.deferred and u.kl_beta > 0) or m.checkpoint_keep == "nothing",
        f"model.checkpoint_keep must be nothing with update.deferred and a KL (two backward passes through one graph), "
        f"got {m.checkpoint_keep}",
    )
    bad += _refused_by_estimator(c)
    w = c.reward
    weights = (w.weight_traj, w.weight_recon, w.weight_meta, w.weight_gen)
    must(max(weights) > 0 or bool(w.extra), f"a reward weight must be above 0, got {weights}")
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
    if e.num_samples:
        source = str(e.evaluator)
        must(
            ":" in source or Path(source).is_dir(),
            f"evaluation.evaluator must be a model folder or module:name, got {source} (no such folder)",
        )
    if bad:
        raise ValueError("configuration:\n  - " + "\n  - ".join(bad))


def _refused_by_estimator(config: TrainConfig) -> list[str]:
    """Settings that update.estimator has no use for, where leaving them would mislead."""
    u, f = config.update, config.forward
    if u.estimator == "score":
        usual = ForwardConfig()
        return [
            f"forward.{field.name} must be {getattr(usual, field.name)} unless update.estimator is forward, "
            f"got {getattr(f, field.name)}"
            for field in dataclasses.fields(f)
            if getattr(f, field.name) != getattr(usual, field.name)
        ]
    wrong = {
        "rollout.share_initial_noise": config.rollout.share_initial_noise,  # all samples of a group would be one
        "rollout.share_first_step": config.rollout.share_first_step,
        "update.deferred": u.deferred,
        "schedule.compat": config.schedule.compat,
    }
    out = [f"{name} must be off with update.estimator forward" for name, on in wrong.items() if on]
    if u.surrogate != "clip":
        out.append(f"update.surrogate must be left at clip with update.estimator forward, got {u.surrogate}")
    return out


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
