"""A policy whose flow is known in closed form: the exact velocity of a Gaussian mixture in the plane."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from worldr1.datatypes import PromptBatch


class Mixture:
    """sum_k weight_k N(mean_k, std_k^2 I) in the plane, and the marginal velocity of the flow that ends in it."""

    def __init__(self, weights: Sequence[float], means: Sequence[tuple[float, float]], stds: Sequence[float]) -> None:
        self.weights = torch.tensor(weights, dtype=torch.float64)
        self.means = torch.tensor(means, dtype=torch.float64)  # [K, 2]
        self.stds = torch.tensor(stds, dtype=torch.float64)

    def velocity(self, x: Tensor, sigma: float) -> Tensor:
        """E[eps - x0 | x_sigma = x], [n, 2]."""
        weights, means, stds = (t.to(x) for t in (self.weights, self.means, self.stds))
        variance = (1.0 - sigma) ** 2 * stds**2 + sigma**2  # [K]
        centred = x[:, None] - (1.0 - sigma) * means  # [n, K, 2]
        logits = weights.log() - variance.log() - centred.square().sum(2) / (2.0 * variance)  # [n, K]
        x0 = means + centred * ((1.0 - sigma) * stds**2 / variance)[:, None]
        eps = centred * (sigma / variance)[:, None]
        return (logits.softmax(1)[..., None] * (eps - x0)).sum(1)

    def cdf(self, values: Tensor, direction: Tensor) -> Tensor:
        """P(x . direction <= value) for a unit direction, [n]."""
        z = (values.double()[:, None] - self.means @ direction.double()) / self.stds
        return (self.weights * 0.5 * (1.0 + torch.erf(z / math.sqrt(2.0)))).sum(1)


class MixturePolicy:
    """The mixture's velocity; at step i of the grid the adapter adds x W_i + b_i, zero at the start.

    Latents are [n, 2, 1, 1, 1], and a "video" is its latent beside a zero. A reward is a function of `x0()`: the bytes
    of a rollout's video could not say it.
    """

    def __init__(self, mixture: Mixture, sigmas: Sequence[float]) -> None:
        self.device = torch.device("cpu")
        self.mixture, self.sigmas = mixture, list(sigmas)
        self.w = nn.Parameter(torch.zeros(len(sigmas) - 1, 2, 2))
        self.b = nn.Parameter(torch.zeros(len(sigmas) - 1, 2))
        self._decoded: list[Tensor] = []

    def x0(self) -> Tensor:
        """What was decoded since the last call, [N, 2]."""
        out = torch.cat(self._decoded).flatten(1)
        self._decoded.clear()
        return out

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        return torch.zeros(len(prompts), 1, 1)

    def velocity(
        self, sample: Tensor, sigma: float | Tensor, prompt_embeds: Tensor, *, adapter: bool = True, exact: bool = True
    ) -> Tensor:
        if isinstance(sigma, Tensor):
            out = torch.zeros_like(sample)
            for one in sigma.unique():
                rows = (sigma == one).nonzero()[:, 0]
                out = out.index_copy(0, rows, self.velocity(sample[rows], float(one), prompt_embeds, adapter=adapter))
            return out
        x = sample.flatten(1)  # [n, 2]
        v = self.mixture.velocity(x, sigma)
        if adapter:
            i = self.sigmas.index(sigma)
            v = v + x @ self.w[i] + self.b[i]
        return v.view(sample.shape)

    def decode(self, latents: Tensor) -> Tensor:
        self._decoded.append(latents)
        return torch.nn.functional.pad(latents, (0, 0, 0, 0, 0, 0, 0, 1)).transpose(1, 2)  # [n, 1, 3, 1, 1]

    def adapter_parameters(self) -> list[nn.Parameter]:
        return [self.w, self.b]


def plane_batch(num_groups: int, group_size: int) -> PromptBatch:
    """Groups without prompts or cameras."""
    return PromptBatch(
        prompts=[""] * num_groups,
        group_size=group_size,
        tokens=[()] * num_groups,
        viewmats=torch.eye(4).expand(num_groups, 1, 4, 4),
        sample_ids=torch.arange(num_groups * group_size),
        dynamic=False,
        group_ids=torch.arange(0, num_groups * group_size, group_size),
    )
