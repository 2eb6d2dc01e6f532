"""Identities of the policy gradient, checked on the real model before the first update: each failure is a lost run.

They take one micro-batch's rollout and a handful of forwards, on small videos where the run's are large: none of the
identities depends on the size. Seconds, then, where one micro-batch at 81x480x832 would take minutes. What may depend
on it, the choice of kernels, shows in ratio_first_deviation of the first iteration.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from worldr1.camera.noise import initial_noise
from worldr1.config import TrainConfig, VideoConfig, to_json
from worldr1.datatypes import PromptBatch, Rollout
from worldr1.learn.update import sample_gradients
from worldr1.models.base import VideoPolicy
from worldr1.models.ema import Ema, holding
from worldr1.prompts.sampler import prompt_batch
from worldr1.rollout.sample import batch_rows, reference_velocity, sample, window_rows, window_step
from worldr1.rollout.schedule import forward_steps, rollout_sigmas, rollout_steps, step_weights
from worldr1.run import distributed

NUM_WINDOWS = 64
"""Iterations whose window the ranks compare."""
MAX_FRAMES, MAX_SIDE = 9, 128
"""Largest video of the tests, where the model can make it: a latent of some hundred tokens."""


class SelfTest(NamedTuple):
    """One identity: a deviation that must not exceed its limit."""

    name: str
    deviation: float
    limit: float
    meaning: str  # of a failure


def self_test_video(policy: VideoPolicy, video: VideoConfig) -> VideoConfig:
    """The size that the self-tests run at: the run's own, cut to MAX_FRAMES and MAX_SIDE where the model allows it."""
    small = replace(
        video, num_frames=min(video.num_frames, MAX_FRAMES), height=min(video.height, MAX_SIDE),
        width=min(video.width, MAX_SIDE),
    )  # fmt: skip
    try:
        policy.latent_shape(small)
    except ValueError:
        return video
    return small


def run_self_tests(policy: VideoPolicy, *, prompts: Sequence[str], config: TrainConfig) -> list[SelfTest]:
    """Check the identities with the adapter moved a little away from its start, then put it back.

    Args:
      policy: The model in training; unchanged at the end.
      prompts: Of the main phase.
      config: The run's settings; the video is that of `self_test_video`.
    Returns:
      The tests, all passed.
    Raises:
      RuntimeError: one failed on any rank; its name, its figure and what it means. Every rank must call this, and all
        stop: one that went on would wait for the others.
    """
    tests = [_ranks_agree(policy, config)]
    config = replace(config, video=self_test_video(policy, config.video))
    batch = _small_batch(prompts, config)
    sigmas = rollout_sigmas(config.schedule)
    steps = rollout_steps(config, iteration=0)
    sigma = sigmas[steps[0] if steps else 0]  # the forward estimator draws from the first on
    noise = initial_noise(batch, policy.latent_shape(config.video), config=config).to(policy.device)
    rows = next(batch_rows(batch.num_samples, config.rollout.micro_batch))
    before = _velocity(policy, batch, noise, rows, sigma=sigma, adapter=False)
    as_it_was = _velocity(policy, batch, noise, rows, sigma=sigma, adapter=True)
    params = policy.adapter_parameters()
    own = [p.detach().clone() for p in params]
    # At its start the adapter is the identity (B = 0), which would hide every fault: test it away from there.
    with _moved(params):
        off = _velocity(policy, batch, noise, rows, sigma=sigma, adapter=False)
        on = _velocity(policy, batch, noise, rows, sigma=sigma, adapter=True)
        tests.append(_adapter_off_is_base(before, off, on))
        if config.update.estimator == "forward":
            tests.append(_sigma_of_each_sample(policy, batch, noise, rows, sigmas, config))
            with holding(params, own):
                old = _velocity(policy, batch, noise, rows, sigma=sigma, adapter=True)
            again = _velocity(policy, batch, noise, rows, sigma=sigma, adapter=True)
            tests.append(_old_is_the_sampler(as_it_was, old, on, again))
        else:
            rollout = sample(policy, batch, noise, sigmas=sigmas, steps=steps, config=config)
            tests += _log_prob_tests(policy, rollout, config)
        if config.update.deferred:
            tests.append(_deferred_is_two_pass(policy, batch, noise, sigmas, steps, config))
    tests.append(_ema_moves(policy, config))
    # The worst of the ranks; a NaN stays one.
    worst = distributed.gather(torch.tensor([[t.deviation for t in tests]], dtype=torch.float64)).amax(0)
    tests = [t._replace(deviation=d) for t, d in zip(tests, worst.tolist(), strict=True)]
    for test in tests:
        if not test.deviation <= test.limit:  # a NaN fails too
            raise RuntimeError(
                f"self-test {test.name}: deviation must be <= {test.limit:g}, got {test.deviation:g}. {test.meaning} "
                "--no-self-test trains all the same."
            )
    return tests


def _small_batch(prompts: Sequence[str], config: TrainConfig) -> PromptBatch:
    """Whole pieces that fill one micro-batch, or all samples of this rank if they are fewer."""
    world = distributed.world_size()
    batch = prompt_batch(prompts, config=config, iteration=0, dynamic=False, rank=distributed.rank(), world_size=world)
    alike = batch.group_size if config.rollout.share_first_step else 1  # samples that one latent stands for
    pieces = min(len(batch.prompts), -(-config.rollout.micro_batch * alike // batch.group_size))
    return replace(
        batch,
        prompts=batch.prompts[:pieces],
        tokens=batch.tokens[:pieces],
        viewmats=batch.viewmats[:pieces],
        sample_ids=batch.sample_ids[: pieces * batch.group_size],
        group_ids=batch.group_ids[:pieces],
        asked=None if batch.asked is None else batch.asked[:pieces],
    )


@torch.no_grad()
def _velocity(
    policy: VideoPolicy, batch: PromptBatch, noise: Tensor, rows: slice, *, sigma: float | Tensor, adapter: bool
) -> Tensor:
    embeds = batch.repeat(policy.encode_prompts(batch.prompts))
    return policy.velocity(noise[rows], sigma, embeds[rows], adapter=adapter)


@contextmanager
def _moved(params: Sequence[nn.Parameter]) -> Iterator[None]:
    """Inside, every parameter has seeded noise of size 0.02 added."""
    own = [p.detach().clone() for p in params]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in params:
            p.add_(0.02 * torch.randn(p.shape, generator=generator).to(p))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(params, own, strict=True):
                p.copy_(old)


def _ranks_agree(policy: VideoPolicy, config: TrainConfig) -> SelfTest:
    windows = [rollout_steps(config, iteration=i) for i in range(NUM_WINDOWS)]
    adapter = hashlib.sha256()
    for name, value in sorted(policy.adapter_state().items()):
        adapter.update(name.encode() + value.contiguous().numpy().tobytes())
    mine = (windows, json.dumps(to_json(config), sort_keys=True), adapter.hexdigest())
    other = sum(theirs != mine for theirs in distributed.gather_objects(mine))
    return SelfTest(
        "ranks_agree", float(other), 0.0,
        "Ranks differ in their settings, their adapter, or which steps are stochastic: their gradients belong to "
        "different problems.",
    )  # fmt: skip


def _adapter_off_is_base(before: Tensor, off: Tensor, on: Tensor) -> SelfTest:
    # An adapter that does not act when on would pass the comparison, so its effect is asked for in the same test.
    acts = not torch.equal(off, on)
    return SelfTest(
        "adapter_off_is_base", float((before - off).abs().max()) if acts else float("inf"), 0.0,
        "With the adapter off the model is not its base: the KL has no anchor, and `before` in the study is wrong. "
        "Infinity: the adapter does not act in the window at all.",
    )  # fmt: skip


def _sigma_of_each_sample(
    policy: VideoPolicy, batch: PromptBatch, noise: Tensor, rows: slice, sigmas: tuple[float, ...], config: TrainConfig
) -> SelfTest:
    """A call with many sigmas against one call for each."""
    steps = torch.tensor(forward_steps(sigmas, config.model.adapter_sigma_min))
    own = steps[torch.arange(len(noise[rows])) % len(steps)]
    table = torch.tensor(sigmas, dtype=torch.float64)
    mixed, worst = _velocity(policy, batch, noise, rows, sigma=table[own], adapter=True), 0.0
    for step in own.unique().tolist():
        alone = _velocity(policy, batch, noise, rows, sigma=sigmas[step], adapter=True)
        its = (own == step).to(mixed.device)
        worst = max(worst, float((mixed[its] - alone[its]).norm() / alone[its].norm()))
    return SelfTest(
        "sigma_of_each_sample", worst, 1e-5,
        "A sample's velocity depends on the sigmas of the samples beside it: the loss is taken at other points than "
        "it was drawn for.",
    )  # fmt: skip


def _old_is_the_sampler(start: Tensor, old: Tensor, on: Tensor, again: Tensor) -> SelfTest:
    return SelfTest(
        "old_is_the_sampler", float(max((old - start).abs().max(), (again - on).abs().max())), 0.0,
        "With the rollout's adapter put back the model is not the one that sampled, or the trained one is lost by it: "
        "later updates pull away from the wrong policy.",
    )  # fmt: skip


def _log_prob_tests(policy: VideoPolicy, rollout: Rollout, config: TrainConfig) -> list[SelfTest]:
    ratio_deviation, density_deviation = 0.0, 0.0
    for s in range(len(rollout.steps)):
        rows = next(window_rows(rollout, s, config))
        finite = rollout.finite[rows]
        out = window_step(policy, rollout, index=s, rows=rows, config=config)  # with gradient, as in training
        log_prob = out.log_prob.detach()
        ratio = (log_prob - rollout.log_prob[rows, s]).double().exp()
        std = out.std.double().view(-1, *[1] * (rollout.samples.ndim - 2))
        density = Normal(out.prev_sample_mean.detach().double(), std).log_prob(rollout.prev_samples[s, rows].double())
        ratio_deviation = max(ratio_deviation, _largest((ratio - 1.0)[finite]))
        density_deviation = max(density_deviation, _largest((density.flatten(1).mean(1) - log_prob.double())[finite]))
    return [
        SelfTest(
            "ratio_is_one", ratio_deviation, 1e-6,
            "The update scores a sample otherwise than the rollout did, before any change of the policy: other batch "
            "shape, kernels, precision or inputs. The clip then acts on noise.",
        ),
        SelfTest(
            "log_prob_is_density", density_deviation, 1e-5,
            "log_prob is not the log-density of the Gaussian that the step draws from: the gradient points elsewhere.",
        ),
    ]  # fmt: skip


def _deferred_is_two_pass(
    policy: VideoPolicy,
    batch: PromptBatch,
    noise: Tensor,
    sigmas: tuple[float, ...],
    steps: tuple[int, ...],
    config: TrainConfig,
) -> SelfTest:
    """The gradient that the rollout left behind against one of forward and backward passes of its own."""
    params = policy.adapter_parameters()
    buffers = sample_gradients(params, batch, config)
    rollout = sample(policy, batch, noise, sigmas=sigmas, steps=steps, config=config, gradients=buffers)
    signs = torch.ones(batch.num_samples, device=policy.device)
    signs[1::2] = -1.0
    kl_beta, finite = config.update.kl_beta, rollout.finite
    buffers.write(signs, finite, kl_beta=kl_beta, scale=1.0)
    deferred = _taken(params)
    for s, weight in enumerate(step_weights(sigmas, steps, config.schedule).weights):
        for rows in window_rows(rollout, s, config):
            reference = None
            if kl_beta > 0:
                reference = reference_velocity(policy, rollout, index=s, rows=rows, config=config)
            out = window_step(policy, rollout, index=s, rows=rows, config=config, velocity_ref=reference)
            loss = -signs[rows] * out.log_prob if out.kl is None else kl_beta * out.kl - signs[rows] * out.log_prob
            (weight * torch.where(finite[rows], loss, 0.0).sum()).backward()
    expected = _taken(params)
    return SelfTest(
        "deferred_is_two_pass", float((deferred - expected).norm() / expected.norm()), 1e-4,
        "The gradient taken inside the rollout is not that of the loss: do without update.deferred.",
    )  # fmt: skip


def _taken(params: Sequence[nn.Parameter]) -> Tensor:
    """The gradients, which are removed, as one vector."""
    taken = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in params])
    for p in params:
        p.grad = None
    return taken


def _largest(values: Tensor) -> float:
    """max |x|; NaN if any is, or if there are none."""
    return float(values.abs().max()) if len(values) else float("nan")


def _ema_moves(policy: VideoPolicy, config: TrainConfig) -> SelfTest:
    params = policy.adapter_parameters()
    ema = Ema(params, decay=config.update.ema_decay)
    start = [s.clone() for s in ema.shadow]
    with _moved(params), torch.no_grad():
        ema.step()
        deviation = max(
            float((shadow - (old + (1.0 - ema.decay) * (p - old))).abs().max())
            for shadow, old, p in zip(ema.shadow, start, params, strict=True)
        )
        still = all(torch.equal(shadow, old) for shadow, old in zip(ema.shadow, start, strict=True))
    return SelfTest(
        "ema_moves", float("inf") if still else deviation, 1e-6,
        "The average of the adapter does not follow it, so evaluation and export would show the untrained model.",
    )  # fmt: skip
