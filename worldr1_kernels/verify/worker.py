"""Runs the checks of one family on one backend, and writes what they found: in a process of its own, because a kernel
that reaches for a wrong address takes its process with it.

`python -m worldr1_kernels.verify.worker SPEC DEVICE FAMILY BACKEND FILE SECONDS`; judge.py starts it and reads FILE.
"""

import faulthandler
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from worldr1_kernels.verify.target import Target, load
from worldr1_kernels.verify.trial import Trial

TEMPORARY = ("out of memory", "busy or unavailable", "cudaerrormemoryallocation", "cudaerrordevicesunavailable")
"""What a device that others use says, in lower case: it tells nothing of the kernels."""


def is_temporary(error: BaseException) -> bool:
    """Whether an exception says that the device is busy or full."""
    said = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in said for words in TEMPORARY)


def run_checks(target: Target, family: str, backend: str) -> dict[str, Any]:
    """What the checks found, as plain data; ends at the first that raises."""
    found: list[dict[str, Any]] = []
    temporary = ""
    for check in target.checks(family):
        print(f"check: {check.name}", file=sys.stderr, flush=True)  # the last line of a process that dies says where
        trial, start = Trial(target, backend), time.perf_counter()
        raised = False
        try:
            check.run(trial)
        except Exception as error:
            raised = True
            temporary = f"{check.name}: {error}" if is_temporary(error) else ""
            trial.failures.append(f"raised {type(error).__name__}: {error}")
        if not raised and (trial.comparisons == 0 or (trial.values == 0 and not check.is_empty)):
            trial.failures.append(f"compared nothing: {trial.comparisons} tensors of {trial.values} values")
        found.append({
            "name": check.name,
            "comparisons": trial.comparisons,
            "values": trial.values,
            "failures": trial.failures,
            "seconds": round(time.perf_counter() - start, 3),
        })  # fmt: skip
        if raised:
            break
    return {"family": family, "backend": backend, "checks": found, "temporary": temporary}


def main(args: list[str]) -> int:
    """Writes FILE, whole or not at all."""
    spec, device, family, backend, file, seconds = args
    faulthandler.enable()
    if hasattr(signal, "alarm"):  # whoever started this may be gone, and a kernel may never end
        signal.alarm(int(float(seconds)) + 30)
    torch.set_num_threads(max(1, min(8, torch.get_num_threads())))
    found: dict[str, Any]
    try:
        target = load(spec, device)
        found = {**run_checks(target, family, backend), "identity": target.identity()}
    except Exception as error:
        if not is_temporary(error):
            raise
        found = {"family": family, "backend": backend, "checks": [], "temporary": str(error), "identity": {}}
    path = Path(file)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(found), encoding="utf-8")
    os.replace(unfinished, path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
