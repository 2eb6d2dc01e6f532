"""Which kernel computes a transformer's attention: one name for rollout and update alike."""

from __future__ import annotations

from typing import Any

import torch

BACKENDS = {
    "native": "native",
    "cudnn": "_native_cudnn",
    "flash": "_native_flash",
    "efficient": "_native_efficient",
    "math": "_native_math",
}
"""Our names -> diffusers': torch's own choice, and torch's kernels one by one."""


def set_attention(transformer: Any, name: str, *, device: torch.device) -> None:
    """Let `transformer` attend by the kernel of that name in every pass.

    Args:
      transformer: A diffusers model, on `device`.
      name: "auto" leaves diffusers' default, or one of BACKENDS.
    Raises:
      ValueError: the kernel does not run here, forward and backward; the message names those that do.
    """
    if name == "auto":
        return
    from diffusers.models.attention_dispatch import attention_backend

    width = transformer.config.attention_head_dim
    failures = {n: _failure(n, device=device, dtype=transformer.dtype, width=width) for n in BACKENDS}
    if failures.get(name, "no such kernel"):
        working = ", ".join(["auto", *(n for n, why in failures.items() if not why)])
        raise ValueError(
            f"model.attention must be one that works here ({working}), got {name!r}: "
            f"{failures.get(name, 'no such kernel')}"
        )
    with attention_backend("native"):  # diffusers also sets the default of all models, which this takes back
        transformer.set_attention_backend(BACKENDS[name])


def _failure(name: str, *, device: torch.device, dtype: torch.dtype, width: int) -> str:
    """Why a small cross-attention, forward and backward, does not run; empty if it does."""
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    q, k, v = (torch.zeros(1, n, 2, width, device=device, dtype=dtype, requires_grad=True) for n in (16, 8, 8))
    try:
        dispatch_attention_fn(q, k, v, backend=AttentionBackendName(BACKENDS[name])).sum().backward()
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return str(error).strip().splitlines()[0] or type(error).__name__
    return ""
