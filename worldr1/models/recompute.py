"""Gradient checkpointing of a diffusers transformer: what its blocks keep for the backward pass, and what they redo."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from worldr1.config import Keep

# Fused attention of each device; bmm is what it falls apart into without a fused kernel, as on the meta device.
_ATTENTION = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_flash_attention_for_cpu",
    "bmm",
)
# Layers with a bias, which is every frozen one of Wan; the adapter's have none: they are cheap, and wide in float32.
_PRODUCTS = (*_ATTENTION, "addmm")


def checkpoint_blocks(transformer: Any, *, keep: Keep) -> None:
    """Recompute the blocks of `transformer` in the backward pass (non-reentrant), but for what they keep.

    Per block and sample, in the base's dtype, of T tokens, width d and feed-forward width f:

        nothing    T d               the block's input
        attention  3 T d             and the results of its two attentions
        products   (10 d + f) T      and those of the frozen layers

    Args:
      transformer: A diffusers model with enable_gradient_checkpointing.
      keep: What is not computed twice. Anything but `nothing` allows one backward pass a graph.
    """
    if keep == "nothing":
        transformer.enable_gradient_checkpointing()
        return
    kept = {getattr(torch.ops.aten, name).default for name in (_ATTENTION if keep == "attention" else _PRODUCTS)}

    def policy(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if op in kept else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = functools.partial(create_selective_checkpoint_contexts, policy)

    def run(block: nn.Module, *args: Any) -> Any:
        return checkpoint(block, *args, use_reentrant=False, context_fn=contexts)

    transformer.enable_gradient_checkpointing(run)
