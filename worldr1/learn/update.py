"""The policy update: a few clipped optimizer steps on the stochastic steps of one rollout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from worldr1.config import TrainConfig, UpdateConfig
from worldr1.datatypes import PromptBatch, Rollout
from worldr1.learn.advantage import Advantage
from worldr1.learn.grpo import centred_log_ratio, step_loss
from worldr1.models.base import VideoPolicy
from worldr1.models.ema import Ema
from worldr1.rollout.sample import reference_velocity, window_rows, window_step
from worldr1.rollout.sample_gradients import SampleGradients
from worldr1.rollout.schedule import forward_steps, rollout_sigmas, step_weights
from worldr1.run import distributed
from worldr1.run.metrics import Metrics

MAX_NONFINITE_IN_A_ROW = 3
"""So many iterations in a row without one finite gradient stop the run."""


MAX_DRIFT = 2e-3
"""Alarm above this deviation of the log-ratio from 0 before the first update, in the scale of the clip: what rounding
alone makes is 2e-4 at Wan's size, and what disagrees is a part of a step's std as large as this."""

ADAM_EPS = 1e-12
"""Far below any gradient: AdamW's step then depends on the direction of the gradient and not on its size."""


class Learner(NamedTuple):
    """What an update changes, and a checkpoint holds."""

    policy: VideoPolicy
    optimizer: torch.optim.AdamW
    ema: Ema


def check_window(config: TrainConfig) -> None:
    """Every step that may be drawn for training must have an adapter to train.

    Raises:
      ValueError: the adapter does not act at a step of window_range; with the forward estimator, at no step at all.
    """
    sigmas = rollout_sigmas(config.schedule)
    if config.update.estimator == "forward":
        if not forward_steps(sigmas, config.model.adapter_sigma_min):
            raise ValueError(
                f"model.adapter_sigma_min must be at most {sigmas[0]:.3f}, the highest sigma of the grid, for the "
                f"adapter to be trained, got {config.model.adapter_sigma_min}"
            )
        return
    first, last = config.schedule.window_range
    if sigmas[last - 1] < config.model.adapter_sigma_min:
        acting = sum(s >= config.model.adapter_sigma_min for s in sigmas)
        raise ValueError(
            f"schedule.window_range must lie where the adapter acts (sigma >= {config.model.adapter_sigma_min}, "
            f"model.adapter_sigma_min), got {(first, last)} whose step {last - 1} has sigma {sigmas[last - 1]:.3f}; "
            f"end it at {acting} or lower adapter_sigma_min"
        )


def make_optimizer(params: Sequence[nn.Parameter], config: UpdateConfig) -> torch.optim.AdamW:
    """AdamW on the adapter."""
    return torch.optim.AdamW(params, lr=config.learning_rate, weight_decay=config.weight_decay, eps=ADAM_EPS)


def learning_rate(iteration: int, *, max_iterations: int, config: UpdateConfig) -> float:
    """Linear from learning_rate at iteration 0 to learning_rate * final_lr_fraction at the last one, times a linear
    rise over the first warmup_iterations."""
    share = iteration / max(1, max_iterations - 1)
    rise = min(1.0, (iteration + 1) / max(1, config.warmup_iterations))
    return config.learning_rate * rise * (1.0 - (1.0 - config.final_lr_fraction) * min(1.0, share))


def policy_step(
    policy: VideoPolicy,
    optimizer: torch.optim.AdamW,
    ema: Ema,
    rollout: Rollout,
    advantage: Advantage,
    *,
    config: TrainConfig,
    lr: float,
    gradients: SampleGradients | None = None,
) -> Metrics:
    """updates_per_rollout optimizer steps, each over all masked-in samples and all stochastic steps of the rollout.

        L = mean_{samples, steps} w_step [max(-A ratio, -A clip(ratio, 1 - e, 1 + e)) + kl_beta KL(policy | base)]
        ratio = exp(centred_log_ratio), at the first update exp(sqrt(elements) (log_prob - log_prob_old)); KL: mean nats

    Nothing in it depends on the number of elements of a latent: not the gradient, nor what is clipped, nor the balance
    with the KL. The mean is over the samples of all ranks, so the gradient does not depend on how they are dealt.
    w_step evens out the size of the gradient over the grid (schedule.step_weights) and weighs both parts. The micro-
    batches are those of the rollout: another split would change log_prob in the last digits, and with it the ratio.
    The reference does not change during the updates and is computed once. With `gradients` the first update takes no
    pass of its own: its ratio is 1 by construction and the clip inert, so its gradient is linear in the advantages. If
    no sample of any rank is left there is no update (`skipped_updates`); a gradient that is not finite leaves
    parameters, optimizer and average as they are (`nonfinite_updates`).

    Every rank must call this.

    Args:
      policy: Its adapter is trained in place.
      optimizer: Of the adapter's parameters, in the order of `ema.params`.
      ema: Stepped once per optimizer step.
      rollout: From `rollout.sample`, this rank's samples.
      advantage: From `group_advantage` for the same samples.
      config: update, schedule, rollout.
      lr: Learning rate of this iteration.
      gradients: What `rollout.sample` filled (`update.deferred`).
    Returns:
      The figures of metrics.jsonl (see metrics.py), the same on all ranks.
    """
    params = ema.params
    set_rate(optimizer, lr)
    u, num_steps = config.update, len(rollout.steps)
    weights = _loss_weights(rollout, config)
    tally = _Tally(num_steps)
    if advantage.num_active:
        mask = advantage.mask.to(policy.device) & rollout.finite.to(policy.device)
        # (step, first row) -> mean of the policy that sampled: that of the first pass, or of the rollout's own
        means: dict[tuple[int, int], Tensor] = dict(gradients.means) if gradients else {}
        pieces = needed_rows([list(window_rows(rollout, s, config)) for s in range(num_steps)], mask)
        references = gradients.references if gradients else _references(policy, rollout, pieces, config)
        # Each rank averages over the samples of all ranks; average_gradients divides by their number once more.
        per_sample = distributed.world_size() / (advantage.num_active * num_steps)
        for update in range(u.updates_per_rollout):
            optimizer.zero_grad(set_to_none=True)
            before = None
            if gradients is not None and update == 0:
                root = math.sqrt(rollout.samples[0, 0].numel())
                _weigh(
                    gradients, advantage, mask, weights, kl_beta=u.kl_beta, per_sample=per_sample, root=root,
                    tally=tally,
                )  # fmt: skip
                optimizer_step(params, optimizer, ema, u.max_grad_ratio, tally.taken)
                continue
            for s in range(num_steps):
                for rows in pieces[s]:
                    key = s, rows.start
                    mean = _accumulate(
                        policy, rollout, advantage, mask, s, rows, config=config, reference=references.get(key),
                        mean_old=means.get(key), weight=weights[s], per_sample=per_sample, tally=tally,
                        first=update == 0,
                    )  # fmt: skip
                    if u.updates_per_rollout > 1:
                        means.setdefault(key, mean)
                before = _step_norm(params, before, s, tally) if num_steps > 1 else None
            optimizer_step(params, optimizer, ema, u.max_grad_ratio, tally.taken)
        optimizer.zero_grad(set_to_none=True)
    return tally.metrics(rollout, weights, config, planned=u.updates_per_rollout)


def sample_gradients(params: Sequence[nn.Parameter], batch: PromptBatch, config: TrainConfig) -> SampleGradients:
    """Empty buffers for `rollout.sample` to fill and `policy_step` to weigh."""
    return SampleGradients(
        params, num_samples=batch.num_samples, num_steps=config.schedule.window_size,
        with_kl=config.update.kl_beta > 0,
    )  # fmt: skip


def update_alarms(metrics: Metrics) -> tuple[str, ...]:
    """Sentences for the user on the figures of an update, the same on all ranks."""
    drift = metrics["ratio_first_deviation"]  # NaN where the estimator has no ratio
    if not drift > MAX_DRIFT:
        return ()
    return (f"log-prob drift: before the first update the ratio is off by {drift:.1e}: rollout and training disagree",)


class NonFiniteGuard:
    """Counts iterations in a row whose gradients were all not finite."""

    def __init__(self) -> None:
        self.in_a_row = 0

    def check(self, metrics: Metrics) -> None:
        """Call once an iteration with the result of `policy_step`.

        Raises:
          RuntimeError: MAX_NONFINITE_IN_A_ROW such iterations in a row.
        """
        hopeless = metrics["nonfinite_updates"] > 0 and metrics["num_updates"] == 0
        self.in_a_row = self.in_a_row + 1 if hopeless else 0
        if self.in_a_row >= MAX_NONFINITE_IN_A_ROW:
            raise RuntimeError(
                f"policy_step: gradients must be finite, got NaN or infinity in {self.in_a_row} iterations in a row; "
                "lower --update.learning-rate, or go back with --resume to the last checkpoint"
            )


def set_rate(optimizer: torch.optim.AdamW, lr: float) -> None:
    """The learning rate of what follows."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def running_norm(optimizer: torch.optim.AdamW) -> float:
    """Root of the running mean of the squared gradient norm, from AdamW's second moment; infinity before its first
    step. A checkpoint holds it by holding the optimizer."""
    parts = []
    for group in optimizer.param_groups:
        for state in (optimizer.state[p] for p in group["params"] if p in optimizer.state):
            seen = 1.0 - group["betas"][1] ** float(state["step"])  # the moment starts at 0
            parts.append(state["exp_avg_sq"].double().sum() / seen)
    total = float(torch.stack(parts).sum()) if parts else 0.0
    return math.sqrt(total) if total > 0 else math.inf


class StepsTaken:
    """What became of the gradients of an iteration; the same on all ranks."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.nonfinite = self.cut = 0

    def metrics(self, *, planned: int) -> Metrics:
        """The figures of metrics.jsonl; `planned` updates, of which those without a sample were skipped."""
        return {
            "grad_norm": average(self.norms),
            "num_updates": len(self.norms),
            "nonfinite_updates": self.nonfinite,
            "cut_gradients": self.cut,
            "skipped_updates": planned - len(self.norms) - self.nonfinite,
        }


def optimizer_step(
    params: Sequence[nn.Parameter], optimizer: torch.optim.AdamW, ema: Ema, max_grad_ratio: float, taken: StepsTaken
) -> bool:
    """Averages the gradients of the ranks, clips and steps; one that is not finite changes nothing, and gives False."""
    distributed.average_gradients(params)
    limit = max_grad_ratio * running_norm(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(params, limit)
    if not bool(torch.isfinite(norm)):  # averaged, hence the same decision on all ranks
        taken.nonfinite += 1
        return False
    optimizer.step()
    ema.step()
    taken.norms.append(float(norm))
    taken.cut += float(norm) > limit
    return True


def needed_rows(rows: Sequence[Sequence[slice]], mask: Tensor) -> list[list[slice]]:
    """Of the transformer calls of each step those that are run. One without a masked-in sample is left out, but only
    where it has none on any rank: with a sharded base each pass is a meeting of all ranks, and one that comes more
    often waits for ever."""
    own = torch.tensor([[bool(mask[r].any()) for its_rows in rows for r in its_rows]])
    needed = iter(distributed.gather(own).any(0).tolist())
    return [[r for r in its_rows if next(needed)] for its_rows in rows]


def _references(
    policy: VideoPolicy, rollout: Rollout, pieces: Sequence[Sequence[slice]], config: TrainConfig
) -> dict[tuple[int, int], Tensor]:
    """(step, first row) -> velocity of the base, for each micro-batch of each step; nothing without a KL."""
    if config.update.kl_beta == 0:
        return {}
    return {
        (s, rows.start): reference_velocity(policy, rollout, index=s, rows=rows, config=config)
        for s, its_rows in enumerate(pieces)
        for rows in its_rows
    }


def _weigh(
    gradients: SampleGradients,
    advantage: Advantage,
    mask: Tensor,
    weights: Sequence[float],
    *,
    kl_beta: float,
    per_sample: float,
    root: float,
    tally: _Tally,
) -> None:
    """The first update's gradient from what the rollout left behind, and its figures; root: of the elements."""
    signed = torch.where(mask, advantage.advantage.to(mask.device), 0.0)
    gradients.write(root * signed, mask, kl_beta=kl_beta, scale=per_sample)
    for s, weight in enumerate(weights):
        kl = torch.where(mask, gradients.kl_values[:, s], 0.0).sum().double()
        loss = weight * per_sample * (kl_beta * kl - signed.sum().double())
        zero = torch.zeros_like(kl)
        tally.add(s, torch.stack([mask.sum().double(), zero, zero, zero, kl, loss]), zero)


def _loss_weights(rollout: Rollout, config: TrainConfig) -> tuple[float, ...]:
    """w_step; the log-ratio of GRPO-Guard already lacks the std, what is left of lambda is |dt|."""
    if config.update.surrogate == "guard":
        return tuple(1.0 / (rollout.sigmas[i] - rollout.sigmas[i + 1]) for i in rollout.steps)
    return step_weights(rollout.sigmas, rollout.steps, config.schedule).weights


def _accumulate(
    policy: VideoPolicy,
    rollout: Rollout,
    advantage: Advantage,
    mask: Tensor,
    index: int,
    rows: slice,
    *,
    config: TrainConfig,
    reference: Tensor | None,
    mean_old: Tensor | None,
    weight: float,
    per_sample: float,
    tally: _Tally,
    first: bool,
) -> Tensor:
    """Adds one micro-batch's gradient at one step, and its figures; returns the mean of the step's Gaussian."""
    u = config.update
    out = window_step(policy, rollout, index=index, rows=rows, config=config, velocity_ref=reference)
    mean, drawn, kl_beta = out.prev_sample_mean.detach(), rollout.prev_samples[index, rows], u.kl_beta
    if first:
        # The policy is the one that sampled: its mean is the old one, and rounding apart log_prob is the rollout's.
        root = math.sqrt(mean[0].numel())
        drift = root * (out.log_prob.detach() - rollout.log_prob[rows, index]).double().abs()
        tally.first_deviation = max(tally.first_deviation, float(torch.where(mask[rows], drift, 0.0).max()))
    # A masked sample may have had a mean that is not finite, which a zero gradient would not stop.
    kept = mask[rows].view(-1, *[1] * (mean.ndim - 1))
    old = mean if mean_old is None else torch.where(kept, mean_old, mean)
    log_ratio = centred_log_ratio(out.prev_sample_mean, old, drawn, std=out.std)
    if u.surrogate == "guard":
        log_ratio, kl_beta = log_ratio * out.std, kl_beta / weight  # 1 / |dt| is not the KL's
    result = step_loss(
        log_ratio, advantage=advantage.advantage.to(log_ratio)[rows], mask=mask[rows], kl=out.kl,
        clip_range=u.clip_range, kl_beta=kl_beta, scale=weight * per_sample,
    )  # fmt: skip
    result.loss.backward()
    tally.add(index, result.sums, result.max_deviation)
    return mean


def _step_norm(params: Sequence[nn.Parameter], before: Tensor | None, index: int, tally: _Tally) -> Tensor:
    """Notes the norm of what a step added to the gradient of all ranks; returns the gradient so far, [P]."""
    total = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in params])
    holder = nn.Parameter(torch.empty_like(total))
    holder.grad = total.clone()
    distributed.average_gradients([holder])
    tally.step_norms[index].append(float((holder.grad if before is None else holder.grad - before).norm()))
    return holder.grad


class _Tally:
    """Sums of one rank over updates, micro-batches and steps."""

    def __init__(self, num_steps: int) -> None:
        self.sums = torch.zeros(num_steps, 6, dtype=torch.float64)  # rows of StepLoss.sums
        self.max_deviation = self.first_deviation = 0.0
        self.taken = StepsTaken()
        self.step_norms: list[list[float]] = [[] for _ in range(num_steps)]

    def add(self, index: int, sums: Tensor, max_deviation: Tensor) -> None:
        self.sums[index] += sums.cpu()
        self.max_deviation = max(self.max_deviation, float(max_deviation))

    def metrics(self, rollout: Rollout, weights: Sequence[float], config: TrainConfig, *, planned: int) -> Metrics:
        sums = distributed.gather(self.sums[None]).sum(0)  # [S, 6]
        worst = distributed.gather(torch.tensor([[self.max_deviation, self.first_deviation]])).amax(0)
        total = sums.sum(0)
        count, has_reference = float(total[0]), config.update.kl_beta > 0
        lambdas = step_weights(rollout.sigmas, rollout.steps, config.schedule).lambdas

        def mean(value: Tensor, over: float) -> float:
            return float(value) / over if over else 0.0

        out: Metrics = {
            "ratio_mean": 1.0 + mean(total[1], count),
            "ratio_max_deviation": float(worst[0]),
            "ratio_first_deviation": float(worst[1]),
            "clip_fraction": mean(total[2], count),
            "approx_kl": mean(total[3], count),
            "kl": mean(total[4], count) if has_reference else math.nan,
            **self.taken.metrics(planned=planned),
        }
        out["steps"] = {
            str(step): {
                "weight": weights[s],
                "clip_fraction": mean(sums[s, 2], float(sums[s, 0])),
                "kl": mean(sums[s, 4], float(sums[s, 0])) if has_reference else math.nan,
                "ratio": 1.0 + mean(sums[s, 1], float(sums[s, 0])),
                "lambda": lambdas[s],
                # With one step it is that of the whole; the deferred update has only the sum.
                "grad_norm": average(self.taken.norms if len(rollout.steps) == 1 else self.step_norms[s]),
            }
            for s, step in enumerate(rollout.steps)
        }
        return out


def average(values: Sequence[float]) -> float:
    """Their mean; NaN of none."""
    return sum(values) / len(values) if values else math.nan
