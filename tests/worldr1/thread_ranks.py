"""Ranks as threads of one process: what many ranks compute, without processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from worldr1.run import distributed


class ThreadRanks:
    """The collectives of `run.distributed`, between the threads of `run`."""

    def __init__(self, world_size: int) -> None:
        self.size = world_size
        self._own = threading.local()
        self._barrier = threading.Barrier(world_size, timeout=60.0)
        self._slots: list[Any] = [None] * world_size

    def run(self, job: Callable[[], Any]) -> list[Any]:
        """What `job` returns on each rank; raises what a rank raised."""

        def work(rank: int) -> Any:
            self._own.rank = rank
            try:
                return job()
            except BaseException:
                self._barrier.abort()  # or the others would wait
                raise

        functions = ("rank", "world_size", "gather", "gather_objects", "total", "average_gradients")
        with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(self.size) as pool:
            for name in functions:
                patch.setattr(distributed, name, getattr(self, name))
            results = [pool.submit(work, rank) for rank in range(self.size)]
            errors = [r.exception() for r in results if r.exception() is not None]
            for error in errors:
                if not isinstance(error, threading.BrokenBarrierError):
                    raise error
            return [r.result() for r in results]

    def rank(self) -> int:
        return self._own.rank

    def world_size(self) -> int:
        return self.size

    def gather_objects(self, value: Any) -> list[Any]:
        self._slots[self._own.rank] = value
        self._barrier.wait()
        out = list(self._slots)
        self._barrier.wait()
        return out

    def gather(self, x: Tensor) -> Tensor:
        return torch.cat(self.gather_objects(x))

    def total(self, x: Tensor) -> Tensor:
        return torch.stack(self.gather_objects(x)).sum(0)

    def average_gradients(self, params: Sequence[Tensor]) -> None:
        own = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in params]
        every = self.gather_objects(own)
        for p, grads in zip(params, zip(*every, strict=True), strict=True):
            p.grad = torch.stack(grads).mean(0)
