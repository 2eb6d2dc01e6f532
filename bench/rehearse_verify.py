"""`python -m worldr1_kernels verify` where there is no GPU: the C++ of the CPU in the device's place, all checks, in
processes of their own. What it shows is that the command works, and how long it takes."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import worldr1_kernels
from worldr1_kernels.verify import command, gate
from worldr1_kernels.verify.target import Target, fingerprint


class Rehearsal(Target):
    """The CPU as a device."""

    def kind(self) -> dict[str, str]:
        return {"device": "rehearsal on a CPU", "capability": "0.0"}

    def identity(self) -> dict[str, str]:
        return {**self.kind(), "files": fingerprint()}

    def backends(self, family: str) -> Mapping[str, str | None]:
        del family
        return {"native": None}

    def function(self, op: str, backend: str) -> Callable[..., Any]:
        return partial(getattr(worldr1_kernels, op), backend=backend)

    def is_capturing(self) -> bool:
        return False

    @contextlib.contextmanager
    def stream(self, *, aside: bool) -> Iterator[None]:
        del aside
        yield


def main() -> int:
    """Verifies all families; its verdicts are not kept."""
    gate.TARGET = "bench.rehearse_verify:Rehearsal"
    with tempfile.TemporaryDirectory() as cache:
        os.environ["WORLDR1_CACHE"] = cache
        return command.main(["--device", "cpu", "--again"])


if __name__ == "__main__":
    sys.exit(main())
