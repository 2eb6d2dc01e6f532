"""The forward-process update: advantages weigh the flow-matching loss of noised samples; nothing has a density.

DiffusionNFT's loss with beta 1, in the form that needs one pass with a graph:

    x = (1 - s) x0 + s eps,   target = eps - x0,   D = v - v_old
    loss = mean_elements[-2 A D (target - v_old) + prox D^2 + kl (v - v_base)^2 + 2 mean (v - v_base) m_s]

v_old is the policy that sampled x0, m_s a running mean over samples of v - v_base at sigma s. The minimum over v of the
first two terms is v_old + A (target - v_old) / prox: towards a sample that is better than its group, away from a worse.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from worldr1.config import ForwardConfig, TrainConfig
from worldr1.datatypes import PromptBatch, Rollout
from worldr1.learn.advantage import Advantage
from worldr1.learn.update import StepsTaken, needed_rows, optimizer_step, set_rate
from worldr1.models.base import VideoPolicy
from worldr1.models.ema import Ema, holding
from worldr1.rollout.sample import batch_rows
from worldr1.rollout.schedule import forward_steps, rollout_sigmas
from worldr1.run import distributed
from worldr1.run.metrics import Metrics
from worldr1_kernels.philox import philox4x32, philox_normal

_STREAM_SIGMA, _STREAM_EPS = 20 << 16, 21 << 16
"""Counter words of the two draws, apart from the streams of the kernels, of the window and of the noise."""
MEANS = "drift"
"""Name of the running means among what a checkpoint holds."""


class Draws(NamedTuple):
    """What the loss of n samples is taken at."""

    steps: Tensor  # [n] int64 on the host: indices into the grid
    eps: Tensor  # [n, C, f, h, w] float32


def running_means(policy: VideoPolicy, config: TrainConfig) -> dict[str, Tensor]:
    """Zeros that `forward_step` moves: {"drift": [K, C, f, h, w]}, of v - v_base at each of the K sigmas that may be
    drawn. A checkpoint must hold them. Empty where nothing asks for them.
    """
    if config.update.estimator != "forward" or config.forward.mean == 0:
        return {}
    num = len(forward_steps(rollout_sigmas(config.schedule), config.model.adapter_sigma_min))
    return {MEANS: torch.zeros(num, *policy.latent_shape(config.video), device=policy.device)}


def draw(
    ids: Tensor, latent_shape: tuple[int, ...], *, steps: tuple[int, ...], seed: int, update: int, device: torch.device
) -> Draws:
    """Step and noise of each sample, a function of (seed, id, update) alone: samples with one id share them.

    Args:
      ids: [n] int64 in [0, 2^32) on the host; sample and group ids never come again in a run.
      latent_shape: (C, f, h, w).
      steps: What is drawn from, uniformly.
      seed: Of the run.
      update: Which one since the rollout.
      device: Of the noise.
    """
    zero, which = torch.zeros((), dtype=torch.int64), torch.tensor(update)
    word = philox4x32(ids, which, zero, torch.tensor(_STREAM_SIGMA), seed=seed)[0]
    chosen = torch.tensor(steps)[word * len(steps) >> 32]
    own, place = ids.unique(return_inverse=True)  # a group's noise is drawn once
    size = math.prod(latent_shape)
    quads = torch.arange(-(-size // 4), device=device)
    words = (own.to(device)[:, None], which.to(device), quads, torch.tensor(_STREAM_EPS, device=device))
    normal = philox_normal(*words, seed=seed).flatten(1)[:, :size]  # [distinct, D]
    return Draws(chosen, normal[place.to(device)].unflatten(1, latent_shape))


def forward_loss(
    velocity: Tensor,
    *,
    old: Tensor,
    target: Tensor,
    advantage: Tensor,
    config: ForwardConfig,
    base: Tensor | None = None,
    mean: Tensor | None = None,
) -> Tensor:
    """The loss of each sample; see the module.

    Args:
      velocity: Of the policy in training, [n, ...]. Differentiable.
      old: Of the policy that sampled; a constant, as all that follow.
      target: eps - x0.
      advantage: [n].
      config: prox, kl, mean.
      base: Of the model without its adapter; None: neither `kl` nor `mean`.
      mean: m_s of each sample's sigma, [n, ...]; None: no `mean`.
    Returns:
      [n]: a mean over elements, so that nothing depends on their number but through rounding.
    Source: Zheng et al. 2025 (DiffusionNFT), arXiv 2509.16117, equation 5 with beta 1 and r = (1 + A) / 2, less what
      does not depend on v; the first gradient is that of Xue et al. 2025 (AWM), arXiv 2509.25050, but for its scale.
      The penalty on the mean is ours.
    """
    moved = velocity - old
    weight = advantage.view(-1, *[1] * (velocity.ndim - 1))
    terms = config.prox * moved.square() - 2.0 * weight * moved * (target - old)
    if base is not None:
        away = velocity - base
        terms = terms + config.kl * away.square()
        if mean is not None:
            terms = terms + 2.0 * config.mean * away * mean
    return terms.flatten(1).mean(1)


def forward_step(
    policy: VideoPolicy,
    optimizer: torch.optim.AdamW,
    ema: Ema,
    batch: PromptBatch,
    rollout: Rollout,
    advantage: Advantage,
    *,
    means: dict[str, Tensor],
    config: TrainConfig,
    lr: float,
) -> Metrics:
    """updates_per_rollout optimizer steps, each on fresh draws of sigma and noise for all masked-in samples.

    Sigmas are those of the grid at which the adapter acts, never that of the last step. v_old is the policy at the
    first update, whose D is 0; later ones run it once more, with the rollout's adapter. Velocities are conditional,
    without guidance. m_s is that of earlier updates: it moves after the step, by the mean over the samples of all ranks
    that drew s. Of what is masked out, of no sample left and of gradients that are not finite, see `policy_step`: the
    means, too, are then as they were.

    Every rank must call this.

    Args:
      policy: Its adapter is trained in place.
      optimizer: Of the adapter's parameters, in the order of `ema.params`.
      ema: Stepped once per optimizer step.
      batch: The rollout's: keys of the draws.
      rollout: From `rollout.sample` without stochastic steps, this rank's samples.
      advantage: From `group_advantage` for the same samples.
      means: From `running_means`; moved in place.
      config: update, forward, rollout, model.
      lr: Learning rate of this iteration.
    Returns:
      The figures of metrics.jsonl (see metrics.py), the same on all ranks.
    """
    assert rollout.latents is not None, "the rollout is one of the score estimator"
    params, f = ema.params, config.forward
    set_rate(optimizer, lr)
    steps = forward_steps(rollout.sigmas, config.model.adapter_sigma_min)
    tally = _Tally(len(steps))
    if advantage.num_active:
        mask = advantage.mask.to(policy.device) & rollout.finite.to(policy.device)
        latents = torch.where(mask.view(-1, 1, 1, 1, 1), rollout.latents.to(policy.device), 0.0)  # a NaN passes masks
        signed = torch.where(mask, advantage.advantage.to(policy.device), 0.0)
        rows_of_calls = list(batch_rows(len(mask), config.rollout.micro_batch))
        (pieces,) = needed_rows([rows_of_calls], mask)
        ids = batch.repeat(batch.group_ids) if f.share_draw else batch.sample_ids
        sampled = [p.detach().clone() for p in params]
        # Each rank averages over the samples of all ranks; average_gradients divides by their number once more.
        per_sample = distributed.world_size() / advantage.num_active
        for update in range(config.update.updates_per_rollout):
            optimizer.zero_grad(set_to_none=True)
            sums = _Sums(len(steps), latents[0] if MEANS in means else None)
            for rows in pieces:
                drawn = draw(
                    ids[rows].cpu(), tuple(latents.shape[1:]), steps=steps, seed=config.seed, update=update,
                    device=policy.device,
                )  # fmt: skip
                _accumulate(
                    policy, drawn, latents[rows], rollout.prompt_embeds[rows], signed[rows], mask[rows], sums=sums,
                    sigmas=rollout.sigmas, sampled=sampled if update else None, means=means.get(MEANS), config=config,
                    scale=per_sample,
                )  # fmt: skip
            sums.over_ranks()
            if optimizer_step(params, optimizer, ema, config.update.max_grad_ratio, tally.taken):
                tally.add(sums)
                if MEANS in means:
                    sums.move(means[MEANS], f.mean_decay)
        optimizer.zero_grad(set_to_none=True)
    return tally.metrics(steps, means.get(MEANS), config)


def _accumulate(
    policy: VideoPolicy,
    drawn: Draws,
    latents: Tensor,
    embeds: Tensor,
    advantage: Tensor,
    mask: Tensor,
    *,
    sums: _Sums,
    sigmas: tuple[float, ...],
    sampled: list[Tensor] | None,
    means: Tensor | None,
    config: TrainConfig,
    scale: float,
) -> None:
    """Adds one micro-batch's gradient and figures; sampled: the rollout's adapter, where the policy has moved on."""
    f = config.forward
    sigma = torch.tensor(sigmas, dtype=torch.float64)[drawn.steps]  # [n] on the host
    s = sigma.to(latents).view(-1, 1, 1, 1, 1)
    x, target = (1.0 - s) * latents + s * drawn.eps, drawn.eps - latents
    base = old = None
    with torch.no_grad():
        if f.kl > 0 or f.mean > 0:
            base = policy.velocity(x, sigma, embeds, adapter=False).float()
        if sampled is not None:
            with holding(policy.adapter_parameters(), sampled):
                old = policy.velocity(x, sigma, embeds).float()
    velocity = policy.velocity(x, sigma, embeds).float()
    now = velocity.detach()
    old = now if old is None else old
    where = drawn.steps.to(latents.device)  # the first of the grid may be drawn: indices are those of means, too
    loss = forward_loss(
        velocity, old=old, target=target, advantage=advantage, config=f, base=base,
        mean=None if means is None else means[where],
    )  # fmt: skip
    (scale * torch.where(mask, loss, 0.0).sum()).backward()
    sums.add(where, mask, loss.detach(), now - old, None if base is None else now - base)


class _Sums:
    """Sums over the masked-in samples of one update, by step."""

    def __init__(self, num_steps: int, latent: Tensor | None) -> None:
        self.figures = torch.zeros(num_steps, 4, dtype=torch.float64)  # samples, loss, D^2, (v - v_base)^2
        self.away = None if latent is None else latent.new_zeros(num_steps, *latent.shape)  # v - v_base

    def add(self, steps: Tensor, mask: Tensor, loss: Tensor, moved: Tensor, away: Tensor | None) -> None:
        one = torch.ones_like(loss)
        squares = [torch.zeros_like(loss) if d is None else d.square().flatten(1).mean(1) for d in (moved, away)]
        rows = torch.stack([one, loss, *squares], 1).double()
        self.figures.index_add_(0, steps[mask].cpu(), rows[mask].cpu())
        if self.away is not None and away is not None:
            self.away.index_add_(0, steps[mask], away[mask])

    def over_ranks(self) -> None:
        """Every rank must call this."""
        self.figures = distributed.gather(self.figures[None]).sum(0)
        if self.away is not None:
            self.away = distributed.total(self.away)

    def move(self, means: Tensor, decay: float) -> None:
        """The running means of the steps that were drawn."""
        assert self.away is not None
        count = self.figures[:, 0].to(means).view(-1, *[1] * (means.ndim - 1))
        moved = decay * means + (1.0 - decay) * self.away / count.clamp(min=1.0)
        means.copy_(torch.where(count > 0, moved, means))


class _Tally:
    """Figures of an iteration; the same on all ranks."""

    def __init__(self, num_steps: int) -> None:
        self.figures = torch.zeros(num_steps, 4, dtype=torch.float64)
        self.taken = StepsTaken()

    def add(self, sums: _Sums) -> None:
        self.figures += sums.figures

    def metrics(self, steps: tuple[int, ...], means: Tensor | None, config: TrainConfig) -> Metrics:
        f, none = config.forward, math.nan
        total = self.figures.sum(0)

        def mean(value: Tensor, over: Tensor) -> float:
            return float(value / over) if over else none

        has_base = f.kl > 0 or f.mean > 0
        drift = [none] * len(steps) if means is None else means.double().square().flatten(1).mean(1).tolist()
        out: Metrics = {
            "ratio_mean": none,
            "ratio_max_deviation": none,
            "ratio_first_deviation": none,
            "clip_fraction": none,
            "approx_kl": none,
            "kl": mean(total[3], total[0]) if has_base else none,
            **self.taken.metrics(planned=config.update.updates_per_rollout),
            "prox": mean(total[2], total[0]),
            "drift": sum(drift) / len(drift),
        }
        out["steps"] = {
            str(step): {
                "num": int(row[0]), "loss": mean(row[1], row[0]), "kl": mean(row[3], row[0]) if has_base else none,
                "drift": apart,
            }
            for step, row, apart in zip(steps, self.figures, drift, strict=True)
        }  # fmt: skip
        return out
