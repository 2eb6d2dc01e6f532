"""The Triton transport in Triton's interpreter, against the reference. On a device it has never run."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

_SCRIPT = """
import torch
from worldr1_kernels.noise_transport import noise_transport, plan_transport
from worldr1_kernels.testing import assert_close_two_errors, noncontiguous, normal, poison_empty

y, x = torch.meshgrid(torch.arange(8.0) - 3.5, torch.arange(10.0) - 4.5, indexing="ij")
cases, seen = 0, torch.zeros(5, dtype=torch.bool)
for amount, shift in ((0.2, 0.8), (-0.25, 0.8), (0.0, 3.0)):
    flow = torch.stack([amount * x + shift, amount * y]).expand(2, -1, -1, -1)
    plan = plan_transport(flow, capture=2)
    for channels, reduce in ((1, 1), (6, 2), *([(64, 2)] if shift == 3.0 else [])):
        noise, ids = noncontiguous(normal((2, channels, 8, 10), 1)), torch.tensor([7, 2**32 - 1])
        options = dict(seed=2**62 + 5, sample_ids=ids, capture=2, reduce=reduce)
        with poison_empty():
            got = noise_transport(noise, plan, backend="triton", **options)
        plain = noise_transport(noise, plan, backend="reference", **options)
        exact = noise_transport(noise.double(), plan, backend="reference", **options)
        assert_close_two_errors(got, plain, exact)
        cases += 1
    seen = seen | (plan.offsets[-1] > 0)
assert bool(seen.all())  # fresh, groups, members, merges, hits
noise = normal((1, 3, 8, 10), 2)
still = noise_transport(noise, torch.zeros(2, 2, 8, 10), seed=1, backend="triton")
assert torch.equal(still, noise[:, :, None].expand(-1, -1, 3, -1, -1))
try:
    noise_transport(noise.double(), plan, seed=0, capture=2, backend="triton")
except TypeError as error:
    cases += "backend 'triton' takes float32, got float64" in str(error)
print(cases)
"""

# Compiles for sm_90 what the launcher would launch, with a stand-in for the driver.
_COMPILE = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from worldr1_kernels.noise_transport import plan_transport, triton_impl, triton_kernels

class Target:
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)
    def get_current_device(self):
        return 0
    def get_current_stream(self, device):
        return 0

class Recorder:
    def __init__(self, kernel):
        self.kernel = kernel
    def __getitem__(self, grid):
        def launch(*args, **options):
            compiled = self.kernel.warmup(*args, grid=grid, **options)
            compiled.asm["cubin"]
            print(self.kernel.fn.__name__, ".local" in compiled.asm["ptx"])
        return launch

driver.set_active(Target())
for name in ("draw_kernel", "share_kernel", "merge_kernel", "reduce_kernel"):
    setattr(triton_kernels, name, Recorder(getattr(triton_kernels, name)))
x = torch.arange(8.0) - 3.5
for flow in (torch.stack([0.3 * x + 4, 0 * x]), torch.stack([-0.3 * x, 0 * x])):
    plan = plan_transport(flow[None, :, None])
    for seed in (1, 2**62):
        triton_impl.transport(torch.zeros(1, 5, 1, 8), plan, torch.arange(1), seed, 1, 1)
"""


def _run(script: str, **environment: str) -> list[str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "WORLDR1_BACKEND")}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=inherited | environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.splitlines()


def test_interpreted_kernels_equal_the_reference() -> None:
    assert _run(_SCRIPT, TRITON_INTERPRET="1") == ["8"]


def test_kernels_compile_for_sm_90_without_local_memory(tmp_path: Path) -> None:
    lines = _run(_COMPILE, TRITON_CACHE_DIR=str(tmp_path))
    assert {line.split()[0] for line in lines} == {"draw_kernel", "share_kernel", "merge_kernel", "reduce_kernel"}
    assert all(line.endswith(" False") for line in lines)
