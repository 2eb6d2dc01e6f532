"""The device under test, in one object: what it is, which backends it has, and the functions that run on it."""

import contextlib
import ctypes
import functools
import hashlib
import importlib
import importlib.metadata
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

PACKAGE = Path(__file__).resolve().parents[1]


class Check(NamedTuple):
    """One thing to try, by name."""

    name: str
    run: Callable[[Any], None]  # given a trial.Trial
    is_empty: bool = False
    """All results have no elements: shapes are what is compared."""


class Target:
    """A CUDA device. Tests derive theirs from it; the process that verifies finds the class by `spec`.

    Args:
      device: As torch spells it, e.g. "cuda:0".
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)

    @property
    def spec(self) -> str:
        """module:class, for `load`."""
        return f"{type(self).__module__}:{type(self).__qualname__}"

    def kind(self) -> dict[str, str]:
        """Name and compute capability: devices of one kind share a verdict."""
        properties = torch.cuda.get_device_properties(self.device)
        return {"device": properties.name, "capability": f"{properties.major}.{properties.minor}"}

    def identity(self) -> dict[str, str]:
        """All that a verdict depends on: the kind, the driver, torch, Triton, and the files of this package."""
        versions = {"driver": _driver(), "torch": torch.__version__, "triton": _triton()}
        return {**self.kind(), **versions, "files": fingerprint()}

    def backends(self, family: str) -> Mapping[str, str | None]:
        """The family's backends but the reference, in the order of "auto", each with the reason why it cannot run."""
        found = probes(family).items()
        return {name: probe(self.device) for name, probe in found if name != "reference"}

    def function(self, op: str, backend: str) -> Callable[..., Any]:
        """A public function of the package on one backend."""
        return functools.partial(getattr(importlib.import_module("worldr1_kernels"), op), backend=backend)

    def checks(self, family: str) -> Sequence[Check]:
        """What is run for a verdict on a family, whatever the backend."""
        return importlib.import_module(f"worldr1_kernels.verify.checks.{family}").CHECKS

    def is_capturing(self) -> bool:
        """Whether a CUDA graph is being captured."""
        with torch.cuda.device(self.device):
            return torch.cuda.is_current_stream_capturing()

    @contextlib.contextmanager
    def stream(self, *, aside: bool) -> Any:
        """Inside, work goes to a stream of its own, or to the usual one; at the end all of it is done."""
        with torch.cuda.device(self.device):
            if not aside:
                yield
            else:
                stream = torch.cuda.Stream()
                stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(stream):
                    yield
            torch.cuda.synchronize()


def load(spec: str, device: str) -> Target:
    """The target of a class that is named module:class."""
    module, _, name = spec.partition(":")
    made = getattr(importlib.import_module(module), name)(device)
    if not isinstance(made, Target):
        raise TypeError(f"verify: {spec} must name a Target, got {type(made).__name__}")
    return made


def probes(family: str) -> Mapping[str, Callable[[torch.device], str | None]]:
    """A family's backends in the order of "auto", each with its probe."""
    if family == "noise_transport":
        from worldr1_kernels.noise_transport.ops import TRANSPORT_PROBES

        return TRANSPORT_PROBES
    return importlib.import_module(f"worldr1_kernels.{family}.ops").PROBES


@functools.cache
def fingerprint() -> str:
    """A hash of this package's Python files, Triton kernels among them, and of its compiled modules."""
    whole = hashlib.sha256()
    for path in sorted([*PACKAGE.rglob("*.py"), *PACKAGE.glob("_C_*")]):
        whole.update(f"{path.relative_to(PACKAGE)}\0{path.stat().st_size}\0".encode())
        whole.update(path.read_bytes())
    return whole.hexdigest()


def _triton() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _driver() -> str:
    """Version of the driver, and of the CUDA that it speaks: what there is of the two."""
    found = []
    with contextlib.suppress(OSError):
        found = re.findall(r"Module.*?\s(\d+\.[\d.]+)\s", Path("/proc/driver/nvidia/version").read_text())[:1]
    number = ctypes.c_int()
    with contextlib.suppress(OSError, AttributeError):
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number)) == 0:
            found.append(f"CUDA {number.value}")
    return ", ".join(found) or "unknown"
