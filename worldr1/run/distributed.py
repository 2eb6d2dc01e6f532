"""Ranks: start-up from torchrun's environment, and the few collectives that the loop needs.

The adapter is tiny, so there is no DDP wrapper: gradients travel as one flat all_reduce per optimizer step. With one
rank no process group is made and every function here is the identity.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """This process among the ranks of the run."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes files and speaks."""
        return self.rank == 0


def world_from_environment() -> tuple[int, int]:
    """(rank, world size) that torchrun set, or (0, 1). Needs no process group, so it can run before torch starts."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def init(device: Literal["auto", "cpu", "cuda"]) -> World:
    """Join the process group that torchrun describes (gloo on CPU, nccl on CUDA), or be alone.

    Args:
      device: `auto` is CUDA where there is a device.
    Returns:
      World(rank, size, local_rank, device).
    Raises:
      RuntimeError: CUDA was asked for by name and there is none, or more ranks than devices.
    """
    rank, size = world_from_environment()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("distributed: device must be available, got cuda and no CUDA device; use --device cpu")
    on_cuda = device != "cpu" and torch.cuda.is_available()
    if on_cuda and local_rank >= torch.cuda.device_count():
        raise RuntimeError(
            f"distributed: each rank needs its own device, got local rank {local_rank} and "
            f"{torch.cuda.device_count()} devices; lower --nproc_per_node"
        )
    where = torch.device("cuda", local_rank) if on_cuda else torch.device("cpu")
    if on_cuda:
        torch.cuda.set_device(where)
    if size > 1 and not dist.is_initialized():
        # Long: one rank may verify kernels or wait for a judge, for minutes, while the others stand at a collective.
        wait = timedelta(minutes=30)
        dist.init_process_group("nccl" if on_cuda else "gloo", rank=rank, world_size=size, timeout=wait)
    return World(rank=rank, size=size, local_rank=local_rank, device=where)


def agree_on_kernels(world: World) -> dict[str, str]:
    """Before anything runs: the kernels that all ranks take, verified on their GPUs (docs/kernels.md).

    Returns:
      Family of worldr1_kernels -> backend; nothing on CPUs, or where WORLDR1_BACKEND decides.
    Raises:
      RuntimeError: WORLDR1_BACKEND differs between the ranks.
      ValueError: it names no backend.
    """
    from worldr1_kernels.verify import agree

    return agree(world.device)


def shutdown() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This rank; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for every rank."""
    if dist.is_initialized():
        dist.barrier()


def gather(x: Tensor) -> Tensor:
    """Values of all ranks, in rank order: [n, ...] on each rank -> [world * n, ...] on every rank.

    Raises:
      RuntimeError: shapes differ between the ranks (from the backend).
    """
    if not dist.is_initialized():
        return x
    flat = x.contiguous().to(torch.uint8) if x.dtype == torch.bool else x.contiguous()  # gloo gathers no bool
    if dist.get_backend() == "nccl":  # which moves nothing that lies on the CPU
        flat = flat.cuda()
    parts = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, flat)
    return torch.cat(parts).to(x)


def gather_objects(value: Any) -> list[Any]:
    """Small picklable values of all ranks, in rank order, on every rank."""
    if not dist.is_initialized():
        return [value]
    out: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(out, value)
    return out


def any_rank(flag: bool) -> bool:
    """True on every rank if `flag` is true on at least one."""
    return any(gather_objects(bool(flag)))


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Overwrite the tensors with those of rank 0, in place."""
    if not dist.is_initialized():
        return
    with torch.no_grad():
        for tensor in tensors:
            buffer = tensor.detach().contiguous()
            dist.broadcast(buffer, src=0)
            tensor.copy_(buffer)


def total(x: Tensor) -> Tensor:
    """Sum over the ranks, the same bits on every rank."""
    if not dist.is_initialized():
        return x
    out = x.clone()
    dist.all_reduce(out)
    return out


def average_gradients(params: Sequence[Tensor]) -> None:
    """Replace each gradient by its mean over the ranks, with one flat all_reduce. A missing gradient counts as 0."""
    for p in params:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    if not dist.is_initialized() or not params:
        return
    flat = torch.cat([p.grad.reshape(-1) for p in params if p.grad is not None])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    start = 0
    for p in params:
        assert p.grad is not None
        p.grad.copy_(flat[start : start + p.numel()].view_as(p))
        start += p.numel()
