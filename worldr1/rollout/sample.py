"""Initial noise -> videos: Euler's grid with a window of stochastic steps whose density is known, or the ODE alone."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from worldr1.config import TrainConfig
from worldr1.datatypes import PromptBatch, Rollout
from worldr1.models.base import VideoPolicy
from worldr1.rollout.sample_gradients import SampleGradients
from worldr1.rollout.schedule import step_weights
from worldr1.rollout.solver import OdeSolver
from worldr1.rollout.videos import ByteVideos, byte_videos, decoded
from worldr1_kernels.sde_step import SdeStepOutput, sde_step

NEGATIVE_PROMPT = ""
"""What the unconditional pass of classifier-free guidance is given."""


@torch.no_grad()
def sample(
    policy: VideoPolicy,
    batch: PromptBatch,
    noise: Tensor,
    *,
    sigmas: tuple[float, ...],
    steps: tuple[int, ...],
    config: TrainConfig,
    gradients: SampleGradients | None = None,
    between: Callable[[], None] | None = None,
    take: Callable[[slice, Tensor, Tensor], None] | None = None,
) -> Rollout:
    """Sample a batch and keep what the update needs.

    Steps in `steps` draw from sde_step's Gaussian with key config.seed and counter (sample id, step); the others are
    steps of the ODE: Euler's, after the window those of `rollout.solver`. With `rollout.share_initial_noise` the steps
    before the window are run once per piece of a group, with `rollout.share_first_step` the model's passes at the first
    stochastic step, too. With `schedule.compat` every step is UniPC's, and those in `steps` are scored as if they had
    been drawn.

    With `update.estimator` forward there is no stochastic step: every step is of `rollout.solver`, and what the ODE
    ends in is kept in `Rollout.latents`.

    Args:
      policy: The model and its adapter.
      batch: This rank's samples, in P pieces of groups.
      noise: Latents at sigma = 1, [N, C, f, h, w], float32.
      sigmas: The grid, T + 1 values from 1 to 0.
      steps: Indices of the stochastic steps, rising, not the last of the grid; () with the forward estimator.
      config: schedule, rollout and seed; update.kl_beta with `gradients`.
      gradients: Filled by a backward pass right after each stochastic step (`update.deferred`).
      between: Called before each micro-batch, as often on every rank; what it raises leaves the rollout.
      take: Called with (rows, videos [rows, F, 3, H, W] uint8 on the policy's device, finite [rows]) as they are
        decoded, every sample once and in order; Rollout.video is then None, and no video is kept here.
    Returns:
      Rollout. A sample whose latent or video stopped being finite is marked in `finite`, and holds zeros instead.
    Raises:
      ValueError: noise of another shape, steps out of range or order, a shared prefix with noise that differs inside
        a group, or a stochastic step at which the adapter does not act.
    """
    _check_sample(noise, batch.num_samples, sigmas, steps, config)
    num = batch.num_samples
    scale = config.rollout.guidance_scale
    embeds = batch.repeat(policy.encode_prompts(batch.prompts))  # [N, L, D]
    negative = _negative(policy, num, scale)
    noise = noise.to(policy.device, torch.float32)
    first = 0  # the step that the per-sample loop starts with
    if config.rollout.share_initial_noise:
        noise, first = _shared_prefix(policy, batch, noise, embeds, sigmas=sigmas, until=steps[0], config=config)

    alike = batch.group_size if config.rollout.share_first_step else 1
    before = noise.new_empty(len(steps), *noise.shape)
    after = torch.empty_like(before)
    log_prob = noise.new_empty(num, len(steps))
    ids = batch.sample_ids.to(policy.device)
    videos, finite = ByteVideos(num), []
    ends = None if steps else torch.empty_like(noise)
    empty = Rollout(
        video=None, prompt_embeds=embeds, negative_embeds=negative, samples=before, prev_samples=after,
        log_prob=log_prob, steps=tuple(steps), sigmas=tuple(sigmas), alike=alike,
        finite=torch.ones(num, dtype=torch.bool),
    )  # fmt: skip
    if alike > 1:
        before[0] = noise
        drawn = [
            _draw(policy, empty, 0, rows, config=config, sample_ids=ids[rows], gradients=None)
            for rows in window_rows(empty, 0, config)
        ]
        noise, log_prob[:, 0] = torch.cat([d[0] for d in drawn]), torch.cat([d[1] for d in drawn])
        first += 1
    for rows in batch_rows(num, config.rollout.micro_batch):
        if between is not None:
            between()
        latents = noise[rows]
        solver = OdeSolver("unipc" if config.schedule.compat else "euler", sigmas)
        if not steps or first > steps[-1]:
            solver = OdeSolver(config.rollout.solver, sigmas)
        for i in range(first, len(sigmas) - 1):
            if i not in steps:
                latents = _ode(policy, solver, latents, i, embeds[rows], _rows(negative, rows), scale)
                continue
            s = steps.index(i)
            before[s, rows] = latents
            if config.schedule.compat:
                latents, log_prob[rows, s] = _walk_and_score(policy, solver, empty, s, rows, config)
                continue
            latents, log_prob[rows, s] = _draw(
                policy, empty, s, rows, config=config, sample_ids=ids[rows], gradients=gradients
            )
            if i == steps[-1]:
                solver = OdeSolver(config.rollout.solver, sigmas)
        ok = torch.isfinite(latents).flatten(1).all(1) & torch.isfinite(log_prob[rows]).all(1)
        latents = torch.where(ok[:, None, None, None, None], latents, 0.0)
        if ends is not None:
            ends[rows] = latents
        for part, made, whole in byte_videos(policy, latents):
            ok[part] &= whole
            (take or videos.keep)(slice(rows.start + part.start, rows.start + part.stop), made, ok[part])
        finite.append(ok)
    valid = torch.cat(finite)
    if not bool(valid.all()):  # zeros: a NaN would pass through any mask that multiplies
        before[:, ~valid], after[:, ~valid], log_prob[~valid] = 0.0, 0.0, 0.0
    return dataclasses.replace(empty, video=None if take else videos.video, finite=valid, latents=ends)


def window_step(
    policy: VideoPolicy,
    rollout: Rollout,
    *,
    index: int,
    rows: slice,
    config: TrainConfig,
    adapter: bool = True,
    velocity_ref: Tensor | None = None,
) -> SdeStepOutput:
    """The density that the policy of now gives to what the rollout drew: the training form of a stochastic step.

    It calls the model as `sample` did, so before the first update, and with `rows` from `window_rows`, its log_prob is
    that of the rollout.

    Args:
      policy: The policy being trained.
      rollout: What `sample` returned.
      index: Which stochastic step, in [0, S).
      rows: Samples.
      config: schedule and rollout, those of the rollout.
      adapter: False scores under the base model.
      velocity_ref: From `reference_velocity` for the same index and rows; asks for `kl`.
    Returns:
      SdeStepOutput; log_prob [rows] and kl [rows] in nats, means over elements, differentiable in the adapter.
    """
    velocity, uncond = _window_velocities(policy, rollout, index, rows, config.rollout.guidance_scale, adapter=adapter)
    return _score(velocity, uncond, rollout, index, rows, config, velocity_ref=velocity_ref)


@torch.no_grad()
def reference_velocity(
    policy: VideoPolicy, rollout: Rollout, *, index: int, rows: slice, config: TrainConfig
) -> Tensor:
    """Guided velocity of the base model (adapter off) at a stochastic step: the anchor of the KL, [rows, C, f, h, w].

    It does not change during a run's updates: compute it once per rollout.
    """
    scale = config.rollout.guidance_scale
    velocity, uncond = _window_velocities(policy, rollout, index, rows, scale, adapter=False)
    return velocity if uncond is None else uncond.float() + scale * (velocity.float() - uncond.float())


@torch.no_grad()
def generate(
    policy: VideoPolicy,
    prompts: Sequence[str],
    noise: Tensor,
    *,
    sigmas: tuple[float, ...],
    solver: Literal["euler", "multistep", "unipc"] = "euler",
    guidance_scale: float = 1.0,
    adapter: bool = True,
    micro_batch: int = 8,
    negative_prompt: str = NEGATIVE_PROMPT,
) -> Tensor:
    """Videos by the deterministic ODE: what evaluation and `worldr1.generate` show.

    Args:
      policy: The model.
      prompts: One per sample, N.
      noise: Latents at sigma = 1, [N, C, f, h, w].
      sigmas: The grid, T + 1 values from 1 to 0.
      solver: Of the ODE; `unipc` needs the grid of schedule.unipc_sigmas.
      guidance_scale: 1 runs no unconditional pass.
      adapter: False samples the base model.
      micro_batch: Samples per transformer call.
      negative_prompt: What the unconditional pass is given.
    Returns:
      Video [N, F, 3, H, W] in [0, 1], float32.
    Raises:
      ValueError: noise does not have one latent per prompt, or sigmas do not fall from 1 to 0.
    """
    _check_grid("generate", sigmas)
    if noise.ndim != 5 or len(noise) != len(prompts) or not prompts:
        raise ValueError(
            f"generate: noise must have shape [{len(prompts)} prompts >= 1, C, f, h, w], got {list(noise.shape)}"
        )
    noise = noise.to(policy.device, torch.float32)
    video: Tensor | None = None
    for rows in batch_rows(len(prompts), micro_batch):
        latents = noise[rows]
        embeds = policy.encode_prompts(prompts[rows])
        negative = _negative(policy, len(latents), guidance_scale, prompt=negative_prompt)
        ode = OdeSolver(solver, sigmas)
        for i in range(len(sigmas) - 1):
            latents = _ode(policy, ode, latents, i, embeds, negative, guidance_scale, adapter=adapter)
        for part, made in decoded(policy, latents):
            video = made.new_empty(len(prompts), *made.shape[1:]) if video is None else video
            video[rows.start + part.start : rows.start + part.stop] = made
    assert video is not None  # there is a prompt
    return video


def window_rows(rollout: Rollout, index: int, config: TrainConfig) -> Iterator[slice]:
    """The split of a rank's samples into transformer calls at a stochastic step: micro_batch latents each. Rollout and
    update use the same one, for another would change log_prob in the last digits."""
    return batch_rows(len(rollout.finite), config.rollout.micro_batch * (rollout.alike if index == 0 else 1))


def batch_rows(num_samples: int, micro_batch: int) -> Iterator[slice]:
    """Slices of at most micro_batch samples."""
    for start in range(0, num_samples, micro_batch):
        yield slice(start, min(start + micro_batch, num_samples))


def _check_grid(name: str, sigmas: tuple[float, ...]) -> None:
    if len(sigmas) < 2 or sigmas[-1] != 0.0 or any(not b < a <= 1.0 for a, b in zip(sigmas, sigmas[1:], strict=False)):
        raise ValueError(f"{name}: sigmas must fall from at most 1 to 0, got {sigmas}")


def _check_sample(
    noise: Tensor, num: int, sigmas: tuple[float, ...], steps: tuple[int, ...], config: TrainConfig
) -> None:
    _check_grid("sample", sigmas)
    if noise.ndim != 5 or len(noise) != num:
        raise ValueError(f"sample: noise must have shape [{num}, C, f, h, w], got {list(noise.shape)}")
    if config.update.estimator == "forward":
        if steps:
            raise ValueError(f"sample: steps must be () with update.estimator forward, got {steps}")
        return
    if not steps or list(steps) != sorted(set(steps)) or steps[0] < 0 or steps[-1] > len(sigmas) - 3:
        raise ValueError(
            f"sample: steps must rise within [0, {len(sigmas) - 3}] (the last step is never stochastic), got {steps}"
        )
    if sigmas[steps[-1]] < config.model.adapter_sigma_min:
        raise ValueError(
            f"sample: the adapter must act at every stochastic step, got sigma {sigmas[steps[-1]]:.3f} at step "
            f"{steps[-1]}, below model.adapter_sigma_min {config.model.adapter_sigma_min}; lower it or the window_range"
        )


def _negative(policy: VideoPolicy, num: int, guidance_scale: float, *, prompt: str = NEGATIVE_PROMPT) -> Tensor | None:
    if guidance_scale == 1.0:
        return None
    return policy.encode_prompts([prompt]).expand(num, -1, -1)


def _rows(x: Tensor | None, rows: slice) -> Tensor | None:
    return None if x is None else x[rows]


def _velocities(
    policy: VideoPolicy,
    latents: Tensor,
    sigma: float,
    embeds: Tensor,
    negative: Tensor | None,
    *,
    adapter: bool,
    exact: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Conditional and, with guidance, unconditional velocity: the one place where the policy is called."""
    texts = [embeds] if negative is None else [embeds, negative]
    velocities = [policy.velocity(latents, sigma, text, adapter=adapter, exact=exact) for text in texts]
    return velocities[0], None if negative is None else velocities[1]


def _ode(
    policy: VideoPolicy,
    solver: OdeSolver,
    latents: Tensor,
    i: int,
    embeds: Tensor,
    negative: Tensor | None,
    scale: float,
    *,
    adapter: bool = True,
) -> Tensor:
    velocity, uncond = _velocities(policy, latents, solver.sigmas[i], embeds, negative, adapter=adapter, exact=False)
    return solver.step(velocity, latents, i, velocity_uncond=uncond, guidance_scale=scale)


def _window_velocities(
    policy: VideoPolicy, rollout: Rollout, index: int, rows: slice, scale: float, *, adapter: bool
) -> tuple[Tensor, Tensor | None]:
    alike = rollout.alike if index == 0 else 1
    heads = slice(rows.start, rows.stop, alike)
    negative = None if scale == 1.0 else _rows(rollout.negative_embeds, heads)
    sigma = rollout.sigmas[rollout.steps[index]]
    velocity, uncond = _velocities(
        policy, rollout.samples[index, heads], sigma, rollout.prompt_embeds[heads], negative, adapter=adapter
    )
    if alike == 1:
        return velocity, uncond
    # Its backward sums the gradients of a group's samples, so that one backward pass of the model serves them all.
    return velocity.repeat_interleave(alike, 0), None if uncond is None else uncond.repeat_interleave(alike, 0)


def _draw(
    policy: VideoPolicy,
    rollout: Rollout,
    index: int,
    rows: slice,
    *,
    config: TrainConfig,
    sample_ids: Tensor,
    gradients: SampleGradients | None,
) -> tuple[Tensor, Tensor]:
    """A true draw of a stochastic step, and its log-density: (prev_sample [rows, ...], log_prob [rows]).

    With `gradients` the same forward pass is also differentiated, once its draw is known.
    """
    scale, step = config.rollout.guidance_scale, rollout.steps[index]
    with contextlib.ExitStack() as stack:
        if gradients is not None:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(gradients.recording())
        velocity, uncond = _window_velocities(policy, rollout, index, rows, scale, adapter=True)
        out = sde_step(
            velocity, rollout.samples[index, rows], rollout.sigmas[step], rollout.sigmas[step + 1],
            seed=config.seed, sample_ids=sample_ids, step=step, velocity_uncond=uncond,
            guidance_scale=scale, sde_type=config.schedule.sde_type,
            noise_level=config.schedule.noise_level, sigma_max=rollout.sigmas[1],
        )  # fmt: skip
        rollout.prev_samples[index, rows] = out.prev_sample
        if gradients is not None:
            with_kl = config.update.kl_beta > 0
            reference = reference_velocity(policy, rollout, index=index, rows=rows, config=config) if with_kl else None
            if reference is not None:
                gradients.references[index, rows.start] = reference
            scored = _score(velocity, uncond, rollout, index, rows, config, velocity_ref=reference)
            if config.update.updates_per_rollout > 1:
                gradients.means[index, rows.start] = scored.prev_sample_mean.detach()
            weight = step_weights(rollout.sigmas, rollout.steps, config.schedule).weights[index]
            gradients.add(scored.log_prob, scored.kl, rows=rows, index=index, weight=weight)
    return out.prev_sample, out.log_prob


def _walk_and_score(
    policy: VideoPolicy, solver: OdeSolver, rollout: Rollout, index: int, rows: slice, config: TrainConfig
) -> tuple[Tensor, Tensor]:
    """`schedule.compat`: a deterministic step, and the density of a Gaussian that it was not drawn from."""
    scale, i = config.rollout.guidance_scale, rollout.steps[index]
    velocity, uncond = _window_velocities(policy, rollout, index, rows, scale, adapter=True)
    latents = solver.step(velocity, rollout.samples[index, rows], i, velocity_uncond=uncond, guidance_scale=scale)
    rollout.prev_samples[index, rows] = latents
    return latents, _score(velocity, uncond, rollout, index, rows, config).log_prob


def _score(
    velocity: Tensor,
    uncond: Tensor | None,
    rollout: Rollout,
    index: int,
    rows: slice,
    config: TrainConfig,
    *,
    velocity_ref: Tensor | None = None,
) -> SdeStepOutput:
    """The Gaussian of a stochastic step at what the rollout holds for it."""
    step = rollout.steps[index]
    return sde_step(
        velocity, rollout.samples[index, rows], rollout.sigmas[step], rollout.sigmas[step + 1],
        prev_sample=rollout.prev_samples[index, rows], velocity_uncond=uncond,
        guidance_scale=config.rollout.guidance_scale, sde_type=config.schedule.sde_type,
        noise_level=config.schedule.noise_level, sigma_max=rollout.sigmas[1], velocity_ref=velocity_ref,
    )  # fmt: skip


def _shared_prefix(
    policy: VideoPolicy,
    batch: PromptBatch,
    noise: Tensor,
    embeds: Tensor,
    *,
    sigmas: tuple[float, ...],
    until: int,
    config: TrainConfig,
) -> tuple[Tensor, int]:
    """Steps 0 .. until - 1 once per piece, then one copy for each sample: (latents [N, C, f, h, w], until)."""
    heads = noise[:: batch.group_size]  # [P, C, f, h, w]
    if not torch.equal(torch.nan_to_num(noise), torch.nan_to_num(batch.repeat(heads))):
        raise ValueError("sample: with rollout.share_initial_noise the noise must be the same inside each group")
    scale = config.rollout.guidance_scale
    negative = _negative(policy, len(heads), scale)
    moved = []
    for rows in batch_rows(len(heads), config.rollout.micro_batch):
        latents, solver = heads[rows], OdeSolver("euler", sigmas)
        for i in range(until):
            own = embeds[:: batch.group_size][rows]
            latents = _ode(policy, solver, latents, i, own, _rows(negative, rows), scale)
        moved.append(latents)
    return batch.repeat(torch.cat(moved)), until
