"""What "auto" asks before it takes a kernel on a GPU, and what the ranks of a run agree on.

What has been answered for a family and a kind of device stays, as long as the process lives: its numbers never change
in the middle.
"""

import sys
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from worldr1_kernels import _dispatch
from worldr1_kernels.verify import store
from worldr1_kernels.verify.judge import verify
from worldr1_kernels.verify.target import Target, load

TARGET = "worldr1_kernels.verify.target:Target"
"""The class of what is verified, as `target.load` takes it."""

_SETTLED: dict[tuple[str, str, str], str] = {}  # family, backend, kind -> why not; "": it may run
_LOCK = threading.RLock()


def unverified(family: str, backend: str, device: torch.device, is_compiling: bool = False) -> str:
    """Why "auto" must not take a backend on a device; "" where it may. Verifies where no verdict is kept.

    Args:
      family: As in `_dispatch.FAMILIES`.
      backend: Not the reference.
      device: Of the tensors.
      is_compiling: torch.compile asks: no verification then, nor while a CUDA graph is captured.
    Returns:
      One line. Never raises but what a warning turned into an error does.
    """
    with _LOCK:
        try:
            target = load(TARGET, str(device))
            key = (family, backend, str(target.kind()))
        except Exception as error:
            return f"the device cannot be looked at: {type(error).__name__}: {error}"
        if key not in _SETTLED:
            _settle(key, target, is_compiling)
        return _SETTLED[key]


def _settle(key: tuple[str, str, str], target: Target, is_compiling: bool) -> None:
    """Answers for the rest of the process."""
    family, backend, _ = key
    name = target.kind()["device"]
    try:
        verdict = store.load(family, backend, target.identity())
        if verdict is None and (is_compiling or target.is_capturing()):
            _SETTLED[key] = (
                f"not verified on {name} yet, and not now, while a graph is made; this stays so for this "
                "process: run `python -m worldr1_kernels verify` first"
            )
            return
        if verdict is None:
            verdict = _verify_aloud(target, family, backend)
    except Exception as error:
        _SETTLED[key] = f"its kernels could not be verified on {name}: {type(error).__name__}: {error}"
        warnings.warn(f"worldr1_kernels: {family}, {backend}: {_SETTLED[key]}", RuntimeWarning, stacklevel=2)
        return
    if verdict.passed:
        _SETTLED[key] = ""
        return
    what = "could not be verified now" if verdict.temporary else "failed verification"
    _SETTLED[key] = f"{what} on {name}, report: {verdict.report or 'none, nothing can be written'}"
    warnings.warn(
        f"worldr1_kernels: the kernels of {family}, {backend}, {_SETTLED[key]}. {verdict.reason}. Another "
        "implementation is taken, the run goes on. "
        f"To try again: python -m worldr1_kernels verify --family {family} --again",
        RuntimeWarning,
        stacklevel=2,
    )


def _verify_aloud(target: Target, family: str, backend: str) -> store.Verdict:
    """Verifies, and says what, how long and with which result in one line."""
    name, result = target.kind()["device"], "not possible"
    print(f"worldr1_kernels: verifying {family}, {backend}, on {name} ... ", end="", file=sys.stderr, flush=True)
    try:
        verdict = verify(target, family, backend)
        result = f"passed, {verdict.comparisons} comparisons" if verdict.passed else f"NOT passed: {verdict.reason}"
        result += f", {verdict.seconds:.1f} s"
        return verdict
    finally:
        print(result, file=sys.stderr, flush=True)


def agree(device: torch.device) -> dict[str, str]:
    """Settles every family for the whole run, at its start: the ranks of torch.distributed take the same backends.

    Rank 0 verifies, or looks up what is kept; ranks whose device, driver, versions and files are the same take its
    word. A rank where something differs looks for itself, and a backend is then taken only if all say yes. Every rank
    must call this, each with its own device; without a process group it settles this process alone. Does nothing for a
    CPU, nor where WORLDR1_BACKEND asks for no verdict.

    Args:
      device: Where this rank computes.
    Returns:
      Family -> backend that "auto" takes on the device.
    Raises:
      RuntimeError: ranks have different values of WORLDR1_BACKEND.
      ValueError: WORLDR1_BACKEND names no backend.
    """
    asked = _dispatch.requested_backend("agree", "auto")
    all_asked = sorted(set(_all_ranks((asked, device.type))))
    if len(all_asked) > 1:
        raise RuntimeError(
            f"agree: {_dispatch.ENVIRONMENT_VARIABLE} and the type of device must be the same on all ranks, got "
            f"{all_asked}"
        )
    if device.type not in _dispatch.VERIFIED_DEVICES or asked in ("reference", _dispatch.FASTEST):
        return {}
    target = load(TARGET, str(device))
    return {family: _agree_on(target, family, asked) for family in dict.fromkeys(_dispatch.FAMILIES.values())}


def _agree_on(target: Target, family: str, asked: str) -> str:
    """The backend of a family that every rank may take. Every rank makes the same collective calls."""
    own = target.backends(family)
    if not any(_all_ranks(own.get(asked, "it has no implementation"))):
        return asked  # by name: nobody asks for a verdict
    for backend in _from_rank_0([name for name in own if name != asked]):
        mine = own.get(backend, "it has no implementation")
        told = (target.identity(), mine or _ask(target, family, backend)) if _rank() == 0 else None
        identity, first = _from_rank_0(told)
        if _rank() == 0 or (mine is None and target.identity() == identity):
            mine = first
        else:
            mine = mine or first or _ask(target, family, backend)
        reasons = [f"rank {rank}: {why}" for rank, why in enumerate(_all_ranks(mine)) if why]
        with _LOCK:
            _SETTLED.setdefault((family, backend, str(target.kind())), mine or "; ".join(reasons[:1]))
        if not reasons:
            return backend
    return "reference"


def _ask(target: Target, family: str, backend: str) -> str:
    """As `unverified`, of a rank for all: the answer is settled once all have answered."""
    key = (family, backend, str(target.kind()))
    with _LOCK:
        if key in _SETTLED:
            return _SETTLED[key]
        _settle(key, target, is_compiling=False)
        return _SETTLED.pop(key)


def _rank() -> int:
    return torch.distributed.get_rank() if _many_ranks() else 0


def _many_ranks() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _from_rank_0(value: Any) -> Any:
    if not _many_ranks():
        return value
    held = [value]
    torch.distributed.broadcast_object_list(held, src=0)
    return held[0]


def _all_ranks(value: Any) -> Sequence[Any]:
    if not _many_ranks():
        return [value]
    out: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(out, value)
    return out
