"""What the machine can do at best: copy bandwidth and bf16 matrix products. `python -m bench.ceilings`.

Every percentage of a benchmark is of a ceiling measured on the same device, never of a data sheet.
"""

import torch

from bench.timing import measure


def copy_bandwidth(device: str, *, num_bytes: int = 2**28) -> float:
    """Bytes read plus written per second by a copy of `num_bytes`, in GB/s."""
    source = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    timing = measure({"copy": lambda: target.copy_(source)}, device=device)["copy"]
    return 2.0 * num_bytes / timing.decisive / 1e6


def matmul_rate(device: str, *, size: int) -> float:
    """bf16 product of two [size, size] matrices, in TFLOP/s."""
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    timing = measure({"matmul": lambda: a @ b}, device=device)["matmul"]
    return 2.0 * size**3 / timing.decisive / 1e9


def main() -> None:
    """Prints the device and one line for each ceiling."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name(0) if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    rate = matmul_rate(device, size=8192 if device == "cuda" else 512)
    print(f"{name}: copy {copy_bandwidth(device):.0f} GB/s, bf16 matmul {rate:.2f} TFLOP/s")


if __name__ == "__main__":
    main()
