"""The micro-batch that fits a memory budget, from the bytes that one sample's passes are measured to take."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from worldr1.config import TrainConfig
from worldr1.datatypes import Rollout
from worldr1.models.base import VideoPolicy
from worldr1.rollout.sample import NEGATIVE_PROMPT, reference_velocity, window_step
from worldr1.rollout.schedule import rollout_sigmas
from worldr1.rollout.videos import videos_per_call
from worldr1.run import distributed


class SampleBytes(NamedTuple):
    """Most memory that one row of a micro-batch holds at a time, beside what is there before and after."""

    update: int  # forward and backward pass of a stochastic step; without a graph the rollout takes less
    decode: int  # latent to video; no more than videos_per_call of them at a time


def sample_bytes(policy: VideoPolicy, prompt: str, config: TrainConfig) -> SampleBytes:
    """Run one row's stochastic step, forward and backward, and its decoding, and watch the memory.

    On CUDA the allocator is asked, which also sees what kernels allocate inside; elsewhere the tensors are counted.

    Args:
      policy: The model; unchanged, its gradients are cleared.
      prompt: Any prompt of the run.
      config: video, schedule, rollout and update.
    """
    # Of a group that is split over ranks a call expands fewer: a whole one bounds it.
    alike = config.rollout.group_size if config.rollout.share_first_step else 1
    step = config.schedule.window_range[0]
    is_forward = config.update.estimator == "forward"
    latent = torch.zeros(1, alike, *policy.latent_shape(config.video), device=policy.device)
    guided = config.rollout.guidance_scale != 1.0

    def text(prompt: str) -> Tensor:
        return policy.encode_prompts([prompt]).expand(alike, -1, -1)

    rollout = Rollout(
        video=latent.new_empty(0), prompt_embeds=text(prompt), samples=latent, prev_samples=latent.clone(),
        negative_embeds=text(NEGATIVE_PROMPT) if guided else None, log_prob=latent.new_zeros(alike, 1), steps=(step,),
        sigmas=rollout_sigmas(config.schedule), finite=torch.ones(alike, dtype=torch.bool), alike=alike,
    )  # fmt: skip

    def update() -> None:
        rows, reference = slice(0, alike), None
        if is_forward:  # conditional velocities alone, at any sigma where the adapter acts
            with torch.no_grad():
                base = policy.velocity(latent[0], 1.0, rollout.prompt_embeds, adapter=False).float()
            (policy.velocity(latent[0], 1.0, rollout.prompt_embeds).float() - base).square().mean().backward()
            return
        if config.update.kl_beta > 0:
            reference = reference_velocity(policy, rollout, index=0, rows=rows, config=config)
        out = window_step(policy, rollout, index=0, rows=rows, config=config, velocity_ref=reference)
        (out.log_prob if out.kl is None else out.log_prob + out.kl).sum().backward()

    try:
        taken = peak_bytes(update, policy.device)
    finally:
        for p in policy.adapter_parameters():
            p.grad = None
    return SampleBytes(taken, peak_bytes(lambda: policy.decode(latent[0, :1]), policy.device))


def fit_micro_batch(policy: VideoPolicy, prompt: str, config: TrainConfig, *, num_samples: int) -> TrainConfig:
    """The settings with the largest micro_batch whose passes fit `rollout.memory_budget_gib`.

    Rows share what does not depend on them, so that n rows take at most n times what one takes. Every rank must call
    this: all take the smallest of their micro-batches.

    Args:
      policy, prompt, config: As for `sample_bytes`.
      num_samples: Of this rank in an iteration.
    Returns:
      config with another rollout.micro_batch, a divisor of num_samples.
    Raises:
      ValueError: one row does not fit, on any rank.
    """
    budget = config.rollout.memory_budget_gib * 2**30
    need = sample_bytes(policy, prompt, config)
    together = videos_per_call(policy.latent_shape(config.video))
    fitting = [
        n for n in range(1, num_samples + 1)
        if num_samples % n == 0 and max(n * need.update, min(n, together) * need.decode) <= budget
    ]  # fmt: skip
    chosen = int(distributed.gather(torch.tensor([max(fitting, default=0)])).min())
    if not chosen:
        raise ValueError(
            f"rollout.memory_budget_gib must be at least {max(need) / 2**30:.3g} for one sample (update "
            f"{need.update / 2**30:.3g}, decoder {need.decode / 2**30:.3g}), got {config.rollout.memory_budget_gib:g}; "
            "raise it, or turn on --model.gradient-checkpointing"
        )
    return replace(config, rollout=replace(config.rollout, micro_batch=chosen))


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Most memory that tensors made during `call` held at a time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with _LiveBytes() as live:
        call()
    return live.peak


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages from the operator that makes them until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in _storages((args, kwargs)):
            self._seen.setdefault(storage)  # was there before, or is counted already
        out = func(*args, **(kwargs or {}))
        for storage in _storages(out):
            if storage not in self._seen:
                self._seen[storage] = None
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def _freed(self, num_bytes: int) -> None:
        self.now -= num_bytes


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [x.untyped_storage() for x in tree_leaves(tree) if isinstance(x, Tensor)]
