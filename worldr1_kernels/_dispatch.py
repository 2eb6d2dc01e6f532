"""Which implementation runs: `backend=` argument, then the WORLDR1_BACKEND environment variable, then "auto".

All backends compute the same mathematics. A choice made by name is binding: if that backend cannot run here, the call
raises RuntimeError with the reason. Only "auto" may pick another.
"""

import difflib
import importlib.util
import os
from collections.abc import Callable, Mapping

import torch

BACKENDS = ("reference", "triton", "native")
ENVIRONMENT_VARIABLE = "WORLDR1_BACKEND"

# Until `pytest -m gpu tests/kernels` has passed on a device, "auto" takes the reference for CUDA tensors: a slow result
# is noticed, a wrong one trains a model. The commit that records a passed run sets this.
CUDA_HAS_RUN = False

# Answers why a backend cannot run on a device: None when it can.
Probe = Callable[[torch.device], str | None]


def always_available(device: torch.device) -> str | None:
    """Probe of the torch reference, which runs wherever torch does."""
    del device
    return None


def triton_unavailable(device: torch.device) -> str | None:
    """None when Triton kernels can run on `device`, else the reason. Does not import Triton."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (pip install 'triton>=3.6,<3.8')"
    if device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1":
        return None
    return f"triton needs a CUDA tensor, got {device.type} (with TRITON_INTERPRET=1 it runs on a CPU, slowly)"


def native_unavailable(device: torch.device) -> str | None:
    """None when the C++ module of this package can run on `device`, else the reason: for families without CUDA code."""
    if device.type != "cpu":
        return f"the native backend has no kernel for device {device.type}"
    from worldr1_kernels import _native

    return _native.cpu_unavailable()


def requested_backend(op: str, backend: str) -> str:
    """Resolves `backend` against the environment, without asking what is available.

    Args:
      op: Name of the public function, for the message.
      backend: "auto" or one of `BACKENDS`, as the caller gave it.
    Returns:
      `backend`, or the value of WORLDR1_BACKEND when `backend` is "auto" and the variable is set and not empty.
    Raises:
      ValueError: the name is unknown.
    """
    source = "backend"
    if backend == "auto":
        from_environment = os.environ.get(ENVIRONMENT_VARIABLE, "")
        if from_environment:
            backend, source = from_environment, ENVIRONMENT_VARIABLE
    if backend != "auto" and backend not in BACKENDS:
        near = difflib.get_close_matches(str(backend), (*BACKENDS, "auto"), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"{op}: {source} must be one of {('auto', *BACKENDS)}, got {backend!r}{hint}")
    return backend


def resolve_backend(op: str, backend: str, device: torch.device, probes: Mapping[str, Probe]) -> str:
    """Chooses the implementation of `op` for tensors on `device`.

    Args:
      op: Name of the public function, for the message.
      backend: "auto" or one of `BACKENDS`; "auto" gives way to WORLDR1_BACKEND when that is set.
      device: Where the inputs are.
      probes: The op's implementations in order of preference, each with its probe. "auto" takes the first that can run.
    Returns:
      One key of `probes`.
    Raises:
      ValueError: unknown backend name.
      RuntimeError: the backend chosen by name has no implementation of `op`, or cannot run here; the message says why.
    """
    chosen = requested_backend(op, backend)
    if chosen == "auto":
        reasons = []
        for name, probe in probes.items():
            reason = probe(device)
            if reason is None and device.type == "cuda" and name != "reference" and not CUDA_HAS_RUN:
                reason = "its kernels have not run on a device yet; ask for it by name"
            if reason is None:
                return name
            reasons.append(f"{name}: {reason}")
        raise RuntimeError(f"{op}: no backend can run on {device.type}: {'; '.join(reasons)}")
    if chosen not in probes:
        raise RuntimeError(f"{op}: backend {chosen!r} has no implementation, it must be one of {tuple(probes)}")
    reason = probes[chosen](device)
    if reason is not None:
        raise RuntimeError(f"{op}: backend {chosen!r} is not available: {reason}")
    return chosen
