"""What the sm_90a build of the CUDA noise transport must show: no spills, short segments, nothing fused in a plan."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from bench.static_sm90 import FLAGS, NOISE_STAGES, compile_stage, find_cuobjdump, segment
from worldr1_kernels.build import CSRC, find_nvcc

NVCC, CUOBJDUMP = find_nvcc(os.environ), find_cuobjdump()
PLAN = {
    *(f"{name}_kernel" for name in ("begin", "readers", "count", "sum", "place", "gather", "order", "merge", "tree")),
    "normalize_kernel", "round_kernel<float>", "round_kernel<double>",
}  # fmt: skip


@pytest.mark.skipif(NVCC is None or CUOBJDUMP is None, reason="needs nvcc and cuobjdump")
def test_kernels_as_compiled() -> None:
    assert NVCC is not None and CUOBJDUMP is not None
    kernels = {k.name: k for source in NOISE_STAGES for k in compile_stage(source, NVCC, CUOBJDUMP)[0]}
    transports = {f"transport_kernel<{reduce}>" for reduce in (0, 1, 8, 16)}
    assert set(kernels) == transports | PLAN
    for name, kernel in kernels.items():
        assert kernel.spill_bytes == 0 and kernel.stack_bytes == 0 and kernel.counts["local"] == 0, kernel
        assert kernel.registers <= 80 and kernel.warps >= 24, kernel  # three blocks on a multiprocessor
        # The plan's 32-bit kernels are short and light; two hold many numbers at once.
        assert name in transports or name in ("sum_kernel", "tree_kernel") or kernel.registers <= 40, kernel
        assert name not in transports or kernel.counts["fp64"] <= 4, kernel  # a hit's weight becomes float32
    # 8 rows of 32 columns are 4 KB of values: at most 70 instructions for one, of which 4 loads and 8 additions.
    assert 128 < kernels["transport_kernel<8>"].loop <= 280
    assert kernels["transport_kernel<1>"].loop == 0


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
@pytest.mark.parametrize("arch", ["80", "100"])
def test_other_architectures_compile_without_spills(arch: str, tmp_path: Path) -> None:
    assert NVCC is not None
    flags = [flag for flag in FLAGS if not flag.startswith("-gencode")]
    target = (f"-gencode=arch=compute_{arch},code=sm_{arch}", "-cubin", "-o", str(tmp_path / "out"))
    for source in NOISE_STAGES:
        command = [NVCC, *flags, *target, str(CSRC / "cuda" / source)]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        spilled = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
        assert spilled and set(spilled) == {("0", "0", "0")}, (source, log)


@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
def test_the_plan_fuses_no_multiplication(tmp_path: Path) -> None:
    """The compiler fuses before PTX: where it does, fma.rn.f64 stands there. Divisions and roots come later."""
    assert NVCC is not None
    flags = [flag for flag in FLAGS if not flag.startswith(("-gencode", "-Xptxas"))]

    def ptx(source: Path) -> str:
        out = tmp_path / f"{source.name}.ptx"
        target = ("-gencode=arch=compute_90a,code=compute_90a", "-ptx", "-o", str(out), str(source))
        subprocess.run([str(NVCC), *flags, *target], check=True, capture_output=True)
        return out.read_text()

    plan = ptx(CSRC / "cuda" / "noise_transport_plan.cu")
    assert "mul.rn.f64" in plan and "add.rn.f64" in plan and "div.rn.f64" in plan and "fma.rn.f64" not in plan
    plain = tmp_path / "plain.cu"
    plain.write_text("__global__ void kernel(double* a) { a[0] = a[0] * a[1] + a[2]; }")
    assert "fma.rn.f64" in ptx(plain)


def test_a_segment_ends_at_its_store() -> None:
    code = [
        (0, "@P0 BRA 0x80"), (16, "@P1 BRA 0x30"), (32, "STS.128 [R1], R4"), (48, "LDS R2, [R1]"),
        (64, "STG.E [R8.64], R2"), (80, "EXIT"), (128, "EXIT"),
    ]  # fmt: skip
    assert segment(code) == 4
    assert segment(code[3:]) == 0
