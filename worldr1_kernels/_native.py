"""Access to the compiled modules `_C_cpu` and `_C_cuda`, and why when they are not there. Nothing compiles here."""

import functools
import importlib
import re
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

OLDEST = (8, 0)
"""Compute capability of the first devices that copy to shared memory asynchronously."""
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


def compiled_for(capability: tuple[int, int]) -> str | None:
    """None when the CUDA module holds code for a device of this compute capability, else the reason.

    Machine code runs on its own capability and on later ones of the same major number; that of a name with "a" on its
    own alone, with "f" as without. PTX ("120+PTX") runs on every later capability. A module that does not say what it
    was compiled for is believed.
    """
    architectures = getattr(_load_cuda()[0], "architectures", None)
    if architectures is None:
        return None
    names = [str(name) for name in architectures()]
    major, minor = capability
    if capability < OLDEST:
        return f"worldr1_kernels._C_cuda needs compute capability 8.0 or later, this device has {major}.{minor}"
    for name in names:
        number, is_ptx = re.search(r"\d+", name), name.lower().endswith("ptx")
        if number is None:
            continue
        own_major, own_minor = int(number[0][:-1]), int(number[0][-1])
        if "a" in name.lower().removesuffix("ptx"):
            fits = (major, minor) == (own_major, own_minor)
        elif is_ptx:
            fits = (major, minor) >= (own_major, own_minor)
        else:
            fits = major == own_major and minor >= own_minor
        if fits:
            return None
    return (
        f"worldr1_kernels._C_cuda is compiled for {', '.join(names) or 'nothing'}, and not for this device's "
        f"{major}.{minor}; build it with WORLDR1_CUDA_ARCHS={major}{minor}"
    )


@functools.cache
def _not_compiled(device: torch.device) -> str:
    return compiled_for(torch.cuda.get_device_capability(device)) or "" if torch.cuda.is_available() else ""


def _cuda_reason(device: torch.device | None) -> str:
    return _load_cuda()[1] or ("" if device is None else _not_compiled(device))


# torch.compile must not trace the import and the question to the driver: the answer is a constant of the process. What
# torch.compiler.assume_constant_result does, without its import of the compiler.
_cuda_reason._dynamo_marked_constant = True  # type: ignore[attr-defined]


def cuda_unavailable(device: torch.device | None = None) -> str | None:
    """None when the CUDA module is built, sees a device and holds code for this one, if one is given; else the reason.
    The first call asks the driver."""
    return _cuda_reason(device) or None


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
        return cuda_unavailable(device)
    return f"the native backend has no kernel for device {device.type}"


def address(tensor: Tensor | None) -> int:
    """Where the data of `tensor` begin, as the modules take it; 0, their null, without a tensor or without elements."""
    return 0 if tensor is None else tensor.data_ptr()
