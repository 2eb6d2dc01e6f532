"""What the machine can do at best: copy bandwidth and bf16 matrix products. `python -m bench.ceilings [--history DIR]`.

Every percentage of a benchmark is of a ceiling measured on the same device, never of a data sheet.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from bench import report
from bench.report import Case, print_table, record
from bench.timing import measure

FILE = "ceilings"


def copy_case(device: str, *, num_bytes: int = 2**28) -> Case:
    """A copy of `num_bytes`; it reads and writes as many."""
    source = torch.randn(num_bytes // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    timing = measure({"copy": lambda: target.copy_(source)}, device=device)["copy"]
    return Case("copy", f"{num_bytes}", "float32", "torch", timing, num_bytes=2 * num_bytes)


def matmul_case(device: str, *, size: int) -> Case:
    """bf16 product of two [size, size] matrices of random numbers: zeros would run faster."""
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    timing = measure({"matmul": lambda: a @ b}, device=device)["matmul"]
    return Case("matmul", f"{size}x{size}x{size}", "bfloat16", "torch", timing, num_flops=2 * size**3)


def rate(case: Case) -> float:
    """Bytes or FLOPs of a case per second."""
    return 1e3 * (case.num_bytes or case.num_flops) / case.timing.decisive


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the device and one line for each ceiling."""
    parser = argparse.ArgumentParser(prog="python -m bench.ceilings", description=__doc__)
    parser.add_argument("--history", type=Path, help="folder to append the figures to; default: they are not kept")
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    copy, matmul = copy_case(device), matmul_case(device, size=8192 if device == "cuda" else 512)
    print_table([copy, matmul])
    if options.history is not None:
        report.HISTORY = options.history
        record([copy, matmul], FILE)
    name = report.device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}: copy {rate(copy) / 1e9:.0f} GB/s, bf16 matmul {rate(matmul) / 1e12:.2f} TFLOP/s")


if __name__ == "__main__":
    main()
