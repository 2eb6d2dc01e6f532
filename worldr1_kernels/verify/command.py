"""`python -m worldr1_kernels verify`, and the lines that `python -m worldr1_kernels` has of what is kept."""

import argparse
import sys
from collections.abc import Iterator, Sequence

import torch

from worldr1_kernels import _dispatch
from worldr1_kernels.verify import gate, store
from worldr1_kernels.verify.judge import verify
from worldr1_kernels.verify.store import Verdict
from worldr1_kernels.verify.target import Target, load

DESCRIPTION = """\
Runs every GPU kernel of this package on the devices of this machine, each family and backend in a process of its own,
and compares values and gradients with the C++ of the CPU and with float64. "auto" takes a kernel only where this has
passed, and does it by itself at a first use; verdicts are kept by device, driver, torch, Triton and this package's
files. Exit code 0: all passed; 1: some did not; 2: nothing to verify."""


def main(args: Sequence[str]) -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m worldr1_kernels verify", description=DESCRIPTION, formatter_class=argparse.RawTextHelpFormatter
    )
    families = list(dict.fromkeys(_dispatch.FAMILIES.values()))
    parser.add_argument("--family", choices=families, help="this one alone")
    parser.add_argument("--device", help="cuda:0, for example; without it one device of each kind")
    parser.add_argument("--again", action="store_true", help="also what has a verdict")
    asked = parser.parse_args(list(args))
    try:
        targets = [load(gate.TARGET, asked.device)] if asked.device else list(devices())
        verdicts = [_told(target, family, asked.again) for target in targets for family in families
                    if asked.family in (None, family)]  # fmt: skip
    except (RuntimeError, ValueError, AssertionError) as error:  # what torch raises for a device that there is not
        print(f"verify: {asked.device or 'the devices'} cannot be looked at: {error}", file=sys.stderr)
        return 2
    found = [verdict for of_family in verdicts for verdict in of_family]
    if not found:
        print("verify: no GPU kernel can run here; `python -m worldr1_kernels` says why", file=sys.stderr)
        return 2
    return 0 if all(verdict.passed for verdict in found) else 1


def devices() -> Iterator[Target]:
    """One target for each kind of CUDA device that torch sees."""
    seen = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        target = load(gate.TARGET, f"cuda:{index}")
        if target.kind() not in seen:
            seen.append(target.kind())
            yield target


def _told(target: Target, family: str, again: bool) -> list[Verdict]:
    """Verifies the backends of a family, a line each."""
    verdicts = []
    for backend, reason in target.backends(family).items():
        print(f"{target.kind()['device']}  {family:16} {backend:7}", end=" ", flush=True)
        if reason is not None:
            print(f"cannot run: {reason}")
            continue
        verdict = verify(target, family, backend, again=again)
        verdicts.append(verdict)
        print(sentence(verdict), flush=True)
    return verdicts


def sentence(verdict: Verdict) -> str:
    """A verdict in one line."""
    if verdict.passed:
        return f"passed, {verdict.comparisons} comparisons in {verdict.seconds:.1f} s, {verdict.when}"
    what = "could not be verified" if verdict.temporary else "FAILED"
    return f"{what}: {verdict.reason}; report: {verdict.report or 'none, nothing can be written'}"


def rows() -> list[tuple[str, str]]:
    """Of the devices of this machine: what is kept of each family. Runs nothing."""
    found = []
    for target in devices():
        kind = target.kind()
        found.append(("verdicts", f"{kind['device']}, {kind['capability']} (python -m worldr1_kernels verify --help)"))
        for family in dict.fromkeys(_dispatch.FAMILIES.values()):
            said = []
            for backend, reason in target.backends(family).items():
                verdict = store.load(family, backend, target.identity()) if reason is None else None
                said.append(f"{backend}: {sentence(verdict) if verdict else reason or 'not verified yet'}")
            found.append((f"  {family}", "; ".join(said)))
    return found
