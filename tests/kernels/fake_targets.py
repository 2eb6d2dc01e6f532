"""Devices that are none: kernels on the CPU, right or wrong in one way each, for the verifier to find out.

The process that verifies loads them by name, as it loads the real one. What a device says of itself comes from the
environment, which both processes see.
"""

import contextlib
import ctypes
import dataclasses
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

import worldr1_kernels
from worldr1_kernels.noise_transport import TransportPlan
from worldr1_kernels.verify.target import Check, Target

QUICK = {
    "noise_transport": ("copies", "a sample alone", "no sample"),
    "sde_step": ("given noise", "ratio of one"),
    "se3": ("distances", "no trajectory"),
    "rasterize": ("features",),
}
"""Of each family what runs in tenths of a second."""


class Right(Target):
    """The C++ of the CPU. Its index is its kind: fake:1 is another model than fake:0."""

    def __init__(self, device: str) -> None:
        super().__init__(f"cpu:{torch.device(device).index or 0}")

    def kind(self) -> dict[str, str]:
        name = os.environ.get("FAKE_NAME", f"Fake {self.device.index}")
        return {"device": name, "capability": "9.0"}

    def identity(self) -> dict[str, str]:
        told = {name: os.environ.get(f"FAKE_{name.upper()}", "1") for name in ("driver", "files")}
        return {**self.kind(), **told}

    def backends(self, family: str) -> Mapping[str, str | None]:
        return {"native": None} if family in ("se3", "rasterize") else {"native": None, "triton": "a fake has none"}

    def checks(self, family: str) -> Sequence[Check]:
        return [check for check in super().checks(family) if check.name in QUICK[family]]

    def function(self, op: str, backend: str) -> Callable[..., Any]:
        call = partial(getattr(worldr1_kernels, op), backend="native")
        return lambda *args, **settings: self.spoil(call(*args, **settings), args)

    def spoil(self, out: Any, args: Sequence[Any]) -> Any:
        """What `function` returns for what is right; the first tensor is `self.change`d."""
        if isinstance(out, Tensor):
            return self.change(out)
        if isinstance(out, TransportPlan):
            return out
        return out._replace(**{out._fields[0]: self.change(out[0])})

    def change(self, out: Tensor) -> Tensor:
        return out

    def is_capturing(self) -> bool:
        return os.environ.get("FAKE_CAPTURING") == "1"

    @contextlib.contextmanager
    def stream(self, *, aside: bool) -> Any:
        yield


class Whole(Right):
    """All the checks."""

    def checks(self, family: str) -> Sequence[Check]:
        return Target.checks(self, family)


class OneElementOff(Right):
    def change(self, out: Tensor) -> Tensor:
        off = torch.zeros(out.numel(), dtype=out.dtype)
        off[-1:] = 1e-2
        return out + off.reshape(out.shape)


class NanBeyondABlock(Right):
    def change(self, out: Tensor) -> Tensor:
        beyond = torch.arange(out.numel()).reshape(out.shape) >= 1024
        return torch.where(beyond, float("nan"), out)


class WrongPlan(Right):
    """The last pixel of the last frame points at another value."""

    def spoil(self, out: Any, args: Sequence[Any]) -> Any:
        if not isinstance(out, TransportPlan):
            return out
        slots = out.slots.clone()
        slots.view(-1)[-1] -= 1
        return dataclasses.replace(out, slots=slots)


class WrongGradient(Right):
    def spoil(self, out: Any, args: Sequence[Any]) -> Any:
        if isinstance(out, Tensor):
            return self.change(out)
        return out._replace(**{
            name: self.change(value) for name, value in out._asdict().items() if isinstance(value, Tensor)
        })  # fmt: skip

    def change(self, out: Tensor) -> Tensor:
        part = 0.05 * out
        return out + (part - part.detach())


class NotTheSameTwice(Right):
    calls = 0

    def change(self, out: Tensor) -> Tensor:
        type(self).calls += 1
        last_bit = torch.nextafter(out.detach(), torch.full_like(out, 9.0)) - out.detach()
        return out + last_bit if self.calls % 2 else out


class WritesBehind(Right):
    """One byte behind what it allocated."""

    def change(self, out: Tensor) -> Tensor:
        end = out.storage_offset() * out.element_size() + out.numel() * out.element_size()
        band = torch.tensor([], dtype=torch.uint8)
        if end < out.untyped_storage().nbytes():
            band.set_(out.untyped_storage(), end, (1,), (1,))  # type: ignore[call-overload]
            band.fill_(7)
        return out


class ReadsUnwritten(Right):
    """A part of the result is what memory happened to hold; small, as a forgotten block of zeros would be."""

    def change(self, out: Tensor) -> Tensor:
        left_out = torch.empty(1, dtype=torch.uint8).to(out.dtype) * 1e-12
        return out + left_out


class WritesItsInput(Right):
    def spoil(self, out: Any, args: Sequence[Any]) -> Any:
        given = args[0].data  # as a kernel does, behind autograd's back
        if given.numel():
            given.view(-1)[-1] += 1e-3
        return out


class NeedsContiguous(Right):
    """Reads its first input as if it were contiguous."""

    def function(self, op: str, backend: str) -> Callable[..., Any]:
        call = super().function(op, backend)
        return lambda first, *args, **settings: call(
            first.as_strided(first.shape, torch.empty(first.shape, device="meta").stride()), *args, **settings
        )


class WrongType(Right):
    def change(self, out: Tensor) -> Tensor:
        return out.half() if out.dtype == torch.float32 else out.float()


class Raises(Right):
    def change(self, out: Tensor) -> Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


class Full(Right):
    def change(self, out: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


class Aborts(Right):
    def change(self, out: Tensor) -> Tensor:
        os.abort()


class WrongAddress(Right):
    def change(self, out: Tensor) -> Tensor:
        ctypes.string_at(0)
        return out


class NeverEnds(Right):
    def change(self, out: Tensor) -> Tensor:
        time.sleep(600)
        return out


class OnceRightOnceWrong(OneElementOff):
    """Wrong as device 1 alone."""

    def change(self, out: Tensor) -> Tensor:
        return super().change(out) if self.device.index == 1 else out


class WrongByEnvironment(OneElementOff):
    """Wrong where FAKE_WRONG is 1."""

    def change(self, out: Tensor) -> Tensor:
        return super().change(out) if os.environ.get("FAKE_WRONG") == "1" else out
