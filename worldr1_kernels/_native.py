"""Access to the compiled modules `_C_cpu` and `_C_cuda`, and why when they are not there. Nothing compiles here."""

import functools
import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_BUILD_HINT = "build it with `pip install -e .` (needs a C++17 compiler)"


def _load(name: str) -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module(f"worldr1_kernels.{name}"), ""
    except ImportError as error:
        return None, str(error)


# At import, not at the first call: torch.compile traces the functions below and cannot trace an import. It only maps
# a small library.
_CPU, _CPU_REASON = _load("_C_cpu")


def cpu_unavailable() -> str | None:
    """None when the C++ module for the CPU is importable, else the reason."""
    if _CPU is not None:
        return None
    return f"worldr1_kernels._C_cpu cannot be imported ({_CPU_REASON}); {_BUILD_HINT}"


def cpu() -> Any:
    """The module `_C_cpu`.

    Raises:
      RuntimeError: it is not built.
    """
    if _CPU is None:
        raise RuntimeError(f"worldr1_kernels: {cpu_unavailable()}")
    return _CPU


@functools.cache
def _load_cuda() -> tuple[ModuleType | None, str]:
    module, reason = _load("_C_cuda")
    if module is None:
        return None, f"worldr1_kernels._C_cuda is not built ({reason})"
    count, why = module.device_count()
    if count == 0:
        return None, f"worldr1_kernels._C_cuda is built, but there is no device: {why}"
    return module, ""


def _cuda_reason() -> str:
    return _load_cuda()[1]


# torch.compile must not trace the import and the question to the driver: the answer is a constant of the process. What
# torch.compiler.assume_constant_result does, without its import of the compiler.
_cuda_reason._dynamo_marked_constant = True  # type: ignore[attr-defined]


def cuda_unavailable() -> str | None:
    """None when the CUDA module is built and sees a device, else the reason: not built, no driver, no device. The
    first call asks the driver."""
    return _cuda_reason() or None


def cuda() -> Any:
    """The module `_C_cuda`.

    Raises:
      RuntimeError: it is not built, or there is no device.
    """
    module, reason = _load_cuda()
    if module is None:
        raise RuntimeError(f"worldr1_kernels: {reason}")
    return module


def unavailable(device: torch.device) -> str | None:
    """None when the compiled module for `device` can run, else the reason: for families with C++ and CUDA code."""
    if device.type == "cpu":
        return cpu_unavailable()
    if device.type == "cuda":
        return cuda_unavailable()
    return f"the native backend has no kernel for device {device.type}"


def address(tensor: Tensor | None) -> int:
    """Where the data of `tensor` begin, as the modules take it; 0, their null, without a tensor or without elements."""
    return 0 if tensor is None else tensor.data_ptr()
