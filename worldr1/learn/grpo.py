"""The policy-gradient loss of one stochastic step: clipped surrogate plus KL to the reference; pure functions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from worldr1_kernels.sde_step import grpo_loss


class StepLoss(NamedTuple):
    """Loss of a micro-batch at one stochastic step, and sums over its masked-in samples for the metrics."""

    loss: Tensor  # scalar; add over micro-batches and steps, then step the optimizer
    sums: Tensor  # [6] float64: samples, ratio - 1, clipped, approx KL to the old policy, KL to the reference, loss
    max_deviation: Tensor  # scalar float64: largest |ratio - 1|


def centred_log_ratio(mean: Tensor, mean_old: Tensor, prev_sample: Tensor, *, std: Tensor) -> Tensor:
    """Log-ratio of a step's densities that means the same at every size: centred, and scaled by sqrt(D).

        sqrt(D) (log_prob - log_prob_old + b),  b = mean_elements[(mean - mean_old)^2] / (2 std^2)
          = sum_elements[(mean - mean_old) (prev_sample - mean_old)] / (std^2 sqrt(D))

    With log_prob a mean over D elements the log-ratio of a policy that moved every element by rho standard deviations
    spreads as rho / sqrt(D) about -rho^2 / 2: gradient, clip and their balance with the KL would depend on the size of
    the video, and a large one would be clipped on one side alone. This one is N(0, rho^2) whatever D. The second form
    needs no difference of two close numbers.

    Args:
      mean: Of the step's Gaussian under the policy in training. Shape [n, ...], D elements a sample. Differentiable.
      mean_old: Under the policy that sampled; a constant.
      prev_sample: What was drawn.
      std: Of the Gaussian, shape [n].
    Returns:
      Shape [n]; 0 with gradient sum_elements[z d mean] / (std sqrt(D)) where mean is mean_old and z the drawn noise:
      sqrt(D) times that of log_prob.
    Source: the centring is that of GRPO-Guard, arXiv 2510.22319; the scale is ours.
    """
    elements = mean[0].numel()
    inner = ((mean - mean_old) * (prev_sample - mean_old)).flatten(1).sum(1)
    return inner / (std.square() * elements**0.5)


def step_loss(
    log_ratio: Tensor,
    *,
    advantage: Tensor,
    mask: Tensor,
    kl: Tensor | None,
    clip_range: float,
    kl_beta: float,
    scale: float,
) -> StepLoss:
    """Clipped surrogate and KL of n samples at one step, summed over the masked-in samples.

        loss = scale * sum_masked-in [max(-A ratio, -A clip(ratio, 1 - e, 1 + e)) + kl_beta * kl]

    Args:
      log_ratio: Of the policy in training to the one that sampled. Shape [n]. Differentiable.
      advantage: Shape [n].
      mask: Shape [n] bool; False leaves the loss, its gradient and the sums.
      kl: To the reference policy, shape [n], nats; None without one. Differentiable.
      clip_range: e.
      kl_beta: Weight of `kl`.
      scale: Weight of a sample: the step's weight / (samples x steps of the whole iteration).
    Returns:
      StepLoss(loss, sums [6], max_deviation).
    Source: PPO, arXiv 1707.06347; Flow-GRPO, arXiv 2505.05470.
    """
    surrogate = grpo_loss(log_ratio, torch.zeros_like(log_ratio), advantage, clip_range=clip_range, valid=mask)
    count = mask.sum()
    total = surrogate.loss * count  # grpo_loss gives the mean
    kl_sum = torch.where(mask, kl, 0.0).sum() if kl is not None else torch.zeros_like(total)
    loss = scale * (total + kl_beta * kl_sum)
    with torch.no_grad():
        deviation = torch.where(mask, surrogate.ratio.double() - 1.0, 0.0)
        values = (count, deviation.sum(), surrogate.clip_fraction * count, surrogate.approx_kl * count, kl_sum, loss)
        sums = torch.stack([v.detach().double() for v in values])
        return StepLoss(loss, sums, deviation.abs().amax())
