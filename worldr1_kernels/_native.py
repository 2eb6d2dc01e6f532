"""Access to the compiled modules `_C_cpu` and `_C_cuda`, and why when they are not there. Nothing compiles here."""

import functools
import importlib
from types import ModuleType
from typing import Any

import torch

_BUILD_HINT = "build it with `pip install -e .` (needs a C++17 compiler)"


@functools.cache
def _load(name: str) -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module(f"worldr1_kernels.{name}"), ""
    except ImportError as error:
        return None, str(error)


# Constant for torch.compile: it must not trace through an import.
@torch.compiler.assume_constant_result
def cpu_unavailable() -> str | None:
    """None when the C++ module for the CPU is importable, else the reason."""
    module, reason = _load("_C_cpu")
    return None if module is not None else f"worldr1_kernels._C_cpu cannot be imported ({reason}); {_BUILD_HINT}"


def cpu() -> Any:
    """The module `_C_cpu`.

    Raises:
      RuntimeError: it is not built.
    """
    module, _ = _load("_C_cpu")
    if module is None:
        raise RuntimeError(f"worldr1_kernels: {cpu_unavailable()}")
    return module


@torch.compiler.assume_constant_result
def cuda_unavailable() -> str | None:
    """None when the CUDA module is built and sees a device, else the reason (not built, no driver, no device)."""
    module, reason = _load("_C_cuda")
    if module is None:
        return f"worldr1_kernels._C_cuda is not built ({reason})"
    count, why = module.device_count()
    return None if count > 0 else f"worldr1_kernels._C_cuda is built, but there is no device: {why}"


def cuda() -> Any:
    """The module `_C_cuda`.

    Raises:
      RuntimeError: it is not built, or there is no device.
    """
    reason = cuda_unavailable()
    if reason is not None:
        raise RuntimeError(f"worldr1_kernels: {reason}")
    return _load("_C_cuda")[0]
