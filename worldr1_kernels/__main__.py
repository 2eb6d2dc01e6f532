"""`python -m worldr1_kernels`: versions, the backends that are here, why the others are not, and what was verified.

`python -m worldr1_kernels verify` runs the GPU kernels against the CPU's; see --help.
"""

import importlib.metadata
import os
import platform
import sys

import torch

from worldr1_kernels import __version__, _dispatch, _native
from worldr1_kernels.verify import command


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _say(reason: str | None, detail: str = "") -> str:
    return f"no: {reason}" if reason is not None else f"yes{detail}"


def _chosen() -> str:
    """How a backend is chosen here. Raises ValueError where the environment names one that there is not."""
    name = _dispatch.ENVIRONMENT_VARIABLE
    from_environment = _dispatch.requested_backend("worldr1_kernels", "auto")
    if from_environment == "auto":
        is_set = f" ({name}={os.environ[name]})" if os.environ.get(name) else ""
        return f"backend= argument, else {name}{is_set}, else the fastest that can run, on a GPU if verified there"
    if from_environment == _dispatch.FASTEST:
        return f"backend= argument, else the fastest that can run, by {name}: verified or not"
    return f"backend= argument, else {from_environment}, by {name}: where an op has none or it cannot run, the next"


def report() -> str:
    """The text of the report: one line a fact. Runs nothing on a device. Raises ValueError as `_chosen`."""
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    native = _native.cpu_unavailable()
    detail = "" if native is not None else f" ({_native.cpu().instruction_set()}, {torch.get_num_threads()} threads)"
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = [torch.cuda.get_device_name(i) for i in range(num_gpus)]
    rows = [
        ("worldr1_kernels", __version__),
        ("python", f"{platform.python_version()} on {platform.machine()}"),
        ("torch", torch.__version__),
        ("triton", _version("triton")),
        ("GPU", ", ".join(gpus) or "none seen by torch"),
        ("reference", "yes (torch, every device)"),
        ("native, CPU", _say(native, detail)),
        ("native, CUDA", _say(_native.cuda_unavailable())),
        ("triton, CPU", _say(_dispatch.triton_unavailable(cpu), " (interpreter)")),
        ("triton, CUDA", _say(_dispatch.triton_unavailable(cuda) if gpus else "no GPU")),
        *command.rows(),
        ("chosen", _chosen()),
    ]
    return "\n".join(f"{name:16} {value}" for name, value in rows)


def main() -> int:
    """Prints the report, or verifies; 2 and a line on stderr where the environment names no backend."""
    if sys.argv[1:2] == ["verify"]:
        return command.main(sys.argv[2:])
    try:
        print(report())
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
