"""Gradients of an adapter, one per sample: the backward pass can run before the advantages are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook


class SampleGradients:
    """Per sample n: the gradients of its weighted log_prob and KL, summed over the stochastic steps.

        g_n = sum_s w_s d log_prob_ns / d adapter,    k_n = sum_s w_s d kl_ns / d adapter

    While the policy is the one that samples, the loss is linear in the advantages, so that its gradient is
    sum_n (beta k_n - A_n g_n) / (samples x steps): the same as that of a second forward and backward pass.

    Memory: 4 bytes x parameters x samples, twice that with the KL, on the policy's device. A LoRA of rank 32 on the
    attention of Wan2.1-1.3B has 23.6 M parameters: 94 MB a sample, 4.5 GB for 48 samples a rank.

    Args:
      params: The adapter's parameters, each the weight of a linear layer without bias (a LoRA).
      num_samples: N of this rank.
      num_steps: S.
      with_kl: Keep k_n too.
    """

    def __init__(self, params: Sequence[nn.Parameter], *, num_samples: int, num_steps: int, with_kl: bool) -> None:
        self.params = list(params)
        size = sum(p.numel() for p in self.params)
        like = self.params[0]
        self.log_prob = torch.zeros(num_samples, size, dtype=torch.float32, device=like.device)
        self.kl = torch.zeros_like(self.log_prob) if with_kl else None
        self.kl_values = torch.zeros(num_samples, num_steps, device=like.device)  # nats
        self.references: dict[tuple[int, int], Tensor] = {}  # (step, first row) -> velocity of the base
        self.means: dict[tuple[int, int], Tensor] = {}  # likewise: mean of the step's Gaussian
        self._columns: dict[int, slice] = {}
        start = 0
        for p in self.params:
            self._columns[id(p)] = slice(start, start + p.numel())
            start += p.numel()
        self._into, self._rows = self.log_prob, slice(0, num_samples)
        self._seen: set[int] = set()

    @property
    def num_bytes(self) -> int:
        """Of the buffers."""
        return self.log_prob.nbytes * (1 if self.kl is None else 2)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Forward passes inside build the graph that `add` needs; `add` must be called inside, too.

        Checkpointed layers run again during the backward pass, and must meet the same hook there.
        """

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if isinstance(module, nn.Linear) and id(module.weight) in self._columns and torch.is_grad_enabled():
                self._seen.add(id(module.weight))
                return _LinearPerSample.apply(args[0], module.weight, self, self._columns[id(module.weight)])
            return None

        handle = register_module_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    def add(self, log_prob: Tensor, kl: Tensor | None, *, rows: slice, index: int, weight: float) -> None:
        """The backward pass of one micro-batch at one stochastic step.

        Args:
          log_prob: Shape [rows], with the graph of a forward pass under `recording`.
          kl: Likewise, if the KL is kept.
          rows: Samples.
          index: The step, in [0, S).
          weight: w_s.
        Raises:
          ValueError: a parameter of the adapter was met in no linear layer.
        """
        missing = len(self._columns) - len(self._seen)
        if missing:
            raise ValueError(
                f"update.deferred: every adapter parameter must be the weight of a linear layer that the step calls, "
                f"{missing} of {len(self._columns)} are not; turn it off"
            )
        self._rows, self._into = rows, self.log_prob
        (weight * log_prob.sum()).backward(retain_graph=kl is not None)
        if kl is not None:
            assert self.kl is not None
            self._into = self.kl
            (weight * kl.sum()).backward()
            self.kl_values[rows, index] = kl.detach()

    def take(self, x: Tensor, grad: Tensor, columns: slice) -> None:
        """Adds the samples' gradients of one layer; x [n, ..., in], grad [n, ..., out]."""
        n = self._rows.stop - self._rows.start
        if len(x) != n:
            raise RuntimeError(
                f"update.deferred: a layer must see one row per sample, got {len(x)} rows for {n} samples"
            )
        if x.ndim == 2:
            x, grad = x[:, None], grad[:, None]
        per_sample = grad.flatten(1, -2).mT @ x.flatten(1, -2)  # [n, out, in]
        self._into[self._rows, columns] += per_sample.flatten(1)

    @torch.no_grad()
    def write(self, advantage: Tensor, mask: Tensor, *, kl_beta: float, scale: float) -> None:
        """Set the parameters' gradients to those of the loss; consumes the buffers of masked-out samples.

        Args:
          advantage: Shape [N].
          mask: Shape [N] bool; False leaves the gradient, whatever it holds.
          kl_beta: Weight of the KL.
          scale: 1 / (samples x steps).
        """
        self.log_prob[~mask] = 0.0  # a NaN would pass through a product with 0
        total = -(torch.where(mask, advantage, 0.0).to(self.log_prob) @ self.log_prob)
        if self.kl is not None:
            self.kl[~mask] = 0.0
            total += kl_beta * self.kl.sum(0)
        for p in self.params:
            p.grad = scale * total[self._columns[id(p)]].view_as(p)


class _LinearPerSample(torch.autograd.Function):
    """x weight^T whose backward hands the samples' gradients of the weight to a SampleGradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, gradients: SampleGradients, columns: slice) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.gradients, ctx.columns = gradients, columns
        return nn.functional.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        ctx.gradients.take(x, grad, ctx.columns)
        return grad @ weight, None, None, None
