"""What a part of the hardware run needs, and why it is not here: each probe returns None or the reason."""

from __future__ import annotations

import ctypes
import functools
import importlib.machinery
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.report import nvidia_smi
from worldr1_kernels.build import find_nvcc


@functools.cache
def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA that the installed driver runs, (major, minor); None without a driver. Starts nothing on it."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def runtime_cuda() -> tuple[int, int] | None:
    """The CUDA that torch was built for; None for a CPU build."""
    import torch

    if torch.version.cuda is None:
        return None
    major, minor = torch.version.cuda.split(".")[:2]
    return int(major), int(minor)


@functools.cache
def gpu_missing() -> str | None:
    """No CUDA in torch, no driver, a driver older than the runtime, or no device."""
    import torch

    if torch.cuda.is_available():
        return None
    runtime, driver = runtime_cuda(), driver_cuda()
    if runtime is None:
        return "torch is built without CUDA"
    if driver is None:
        return "there is no NVIDIA driver"
    if driver < runtime:
        return "the driver runs CUDA {}.{} at most, older than the runtime's {}.{}".format(*driver, *runtime)
    return "torch sees no CUDA device"


def nvcc_missing() -> str | None:
    """No CUDA compiler."""
    try:
        found = find_nvcc(os.environ)
    except RuntimeError as error:
        return str(error)
    return None if found else "nvcc is not in $CUDACXX, $CUDA_HOME/bin, PATH or /usr/local/cuda/bin"


def module_missing(name: str, site: Sequence[Path] = ()) -> str | None:
    """A package that is neither installed nor in one of the folders of `site`."""
    path = [str(folder) for folder in site] + sys.path
    importlib.machinery.PathFinder.invalidate_caches()
    if importlib.machinery.PathFinder.find_spec(name, path) is not None:
        return None
    return f"{name} is not installed; bring its wheel with --wheels"


def tool_missing(name: str) -> str | None:
    """A program that is not on PATH."""
    return None if shutil.which(name) else f"{name} is not on PATH"


def memory_missing(gigabytes: float) -> str | None:
    """Less free memory on the GPU than wanted; asked without a context of one's own on it."""
    words = nvidia_smi("memory.free").split()  # "143771 MiB"
    if not words:
        return None
    free = float(words[0]) * 2**20 / 1e9
    return None if free >= gigabytes else f"{gigabytes:.0f} GB of GPU memory must be free, got {free:.1f}"


def missing(requirement: str, site: Sequence[Path] = ()) -> str | None:
    """Why a requirement does not hold here: "gpu", "nvcc", "module:NAME", "tool:NAME" or "memory:GIGABYTES"."""
    kind, _, value = requirement.partition(":")
    if kind == "gpu":
        return gpu_missing()
    if kind == "nvcc":
        return nvcc_missing()
    if kind == "module":
        return module_missing(value, site)
    if kind == "tool":
        return tool_missing(value)
    if kind == "memory":
        return memory_missing(float(value))
    if kind == "wheels":
        return "no folder of wheels was given (--wheels)"
    raise AssertionError(f"unknown requirement {requirement}")
