"""Which implementation runs: `backend=` argument, then the WORLDR1_BACKEND environment variable, then "auto".

All backends compute the same mathematics. A choice by argument is binding: if that backend cannot run here, the call
raises RuntimeError with the reason. Everything else may pick another:

  "auto"              the first of an op's backends that can run; on a GPU it must have been verified there (verify/)
  WORLDR1_BACKEND     for a whole run. A name: that backend wherever an op has it and it can run, elsewhere as "auto",
                      said once a family. "fastest": the first that can run, verified or not.
"""

import difflib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping

import torch

BACKENDS = ("reference", "triton", "native")
FASTEST = "fastest"
ENVIRONMENT_VARIABLE = "WORLDR1_BACKEND"

FAMILIES = {
    "noise_transport": "noise_transport",
    "plan_transport": "noise_transport",
    "sde_step": "sde_step",
    "geodesic_distance": "se3",
    "relative_poses": "se3",
    "path_length": "se3",
    "trajectory_error": "se3",
    "trajectory_reward": "se3",
    "rasterize": "rasterize",
}
"""The family of each op that has a choice of backends: what is verified, and spoken of, together."""

VERIFIED_DEVICES = ("cuda",)
"""Types of device whose kernels must have been verified before "auto" takes them. The C++ of a CPU is tested by us."""

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
      `backend`, or the value of WORLDR1_BACKEND when `backend` is "auto" and the variable is set and not empty: one of
      `BACKENDS`, "fastest" or "auto".
    Raises:
      ValueError: the name is unknown.
    """
    source = "backend"
    choices: tuple[str, ...] = ("auto", *BACKENDS)
    if backend == "auto":
        from_environment = os.environ.get(ENVIRONMENT_VARIABLE, "")
        if from_environment:
            backend, source, choices = from_environment, ENVIRONMENT_VARIABLE, (*choices, FASTEST)
    if backend not in choices:
        near = difflib.get_close_matches(str(backend), choices, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"{op}: {source} must be one of {choices}, got {backend!r}{hint}")
    return backend


def resolve_backend(op: str, backend: str, device: torch.device, probes: Mapping[str, Probe]) -> str:
    """Chooses the implementation of `op` for tensors on `device`.

    Args:
      op: Name of the public function, for the message.
      backend: "auto" or one of `BACKENDS`; "auto" gives way to WORLDR1_BACKEND when that is set.
      device: Where the inputs are.
      probes: The op's implementations in order of preference, each with its probe. "auto" takes the first that can run
        and, on a GPU, is verified there; the first time, this verifies it.
    Returns:
      One key of `probes`.
    Raises:
      ValueError: unknown backend name.
      RuntimeError: the backend chosen by argument has no implementation of `op`, or cannot run here; the message says
        why. Or no implementation can run here.
    """
    chosen = requested_backend(op, backend)
    if backend != "auto":
        if backend not in probes:
            raise RuntimeError(f"{op}: backend {backend!r} has no implementation, it must be one of {tuple(probes)}")
        reason = probes[backend](device)
        if reason is not None:
            raise RuntimeError(f"{op}: backend {backend!r} is not available: {reason}")
        return backend
    reasons = []
    if chosen in BACKENDS:
        reason = probes[chosen](device) if chosen in probes else "it has no implementation"
        if reason is None:
            return chosen
        reasons.append(f"{chosen}: {reason}")
    for name, probe in probes.items():
        if name == chosen:
            continue
        reason = probe(device)
        if reason is None and device.type in VERIFIED_DEVICES and name != "reference" and chosen != FASTEST:
            reason = _unverified(op, name, device, torch.compiler.is_compiling()) or None
        if reason is None:
            if reasons and (chosen in BACKENDS or device.type in VERIFIED_DEVICES):
                _say_once(FAMILIES.get(op, op), f"{name} on {device.type}", "; ".join(reasons))
            return name
        reasons.append(f"{name}: {reason}")
    raise RuntimeError(f"{op}: no backend can run on {device.type}: {'; '.join(reasons)}")


_ANSWERS: dict[tuple[str, str, torch.device], str] = {}  # a call must not pay for what does not change
_SAID: set[tuple[str, str]] = set()


def _unverified(op: str, name: str, device: torch.device, is_compiling: bool) -> str:
    """Why "auto" must not take a backend on a GPU; "" where it may. The same for the rest of the process."""
    if op not in FAMILIES:
        return "its kernels have no check to verify them by"
    answer = _ANSWERS.get((op, name, device))
    if answer is None:
        from worldr1_kernels.verify import gate

        answer = gate.unverified(FAMILIES[op], name, device, is_compiling)
        if device.index is not None:  # else it is the current device, now this one and now that
            _ANSWERS[op, name, device] = answer
    return answer


def _say_once(family: str, taken: str, why: str) -> str:
    """One line on stderr, once a process for a family and what it takes."""
    if (family, taken) not in _SAID:
        _SAID.add((family, taken))
        print(f"worldr1_kernels: {family} takes {taken} ({why})", file=sys.stderr, flush=True)
    return ""


# torch.compile must trace neither: the answer is a constant of the process, and the line is said while tracing. What
# torch.compiler.assume_constant_result does, without its import of the compiler.
_unverified._dynamo_marked_constant = True  # type: ignore[attr-defined]
_say_once._dynamo_marked_constant = True  # type: ignore[attr-defined]
