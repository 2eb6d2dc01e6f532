"""What the sm_90a build of the CUDA rasterizer must show: no spills, no local memory, few registers."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from bench.static_sm90 import OWN_STAGES, Kernel, compile_stage, find_cuobjdump, hot_loop, page, readable
from worldr1_kernels.build import CSRC, find_nvcc

FORWARD = ("blend_kernel<1, 0>", "blend_kernel<3, 0>", "blend_kernel<4, 0>")
NVCC, CUOBJDUMP = find_nvcc(os.environ), find_cuobjdump()


@pytest.mark.skipif(NVCC is None or CUOBJDUMP is None, reason="needs nvcc and cuobjdump")
def test_kernels_as_compiled() -> None:
    assert NVCC is not None and CUOBJDUMP is not None
    kernels = {k.name: k for source in OWN_STAGES for k in compile_stage(source, NVCC, CUOBJDUMP)[0]}
    assert {"project_kernel", "blend_kernel<4, 0>", "emit_pairs_kernel<unsigned short>"} <= set(kernels)
    for kernel in kernels.values():
        assert kernel.spill_bytes == 0 and kernel.stack_bytes == 0 and kernel.counts["local"] == 0, kernel
        assert kernel.counts["fp64"] == 0 or kernel.name == "camera_gradients_kernel", kernel
        if kernel.source == "rasterize_backward.cu":
            assert kernel.registers <= 128, kernel
        elif kernel.name == "project_kernel":  # waits for memory, and has enough of it under way
            assert kernel.registers <= 64 and kernel.warps >= 32, kernel
        else:
            assert kernel.registers <= 48 and kernel.warps >= 40, kernel
        if kernel.name in FORWARD:
            assert kernel.registers <= 32 and kernel.warps == 64, kernel  # full occupancy
            assert kernel.shared_bytes == 2 * 256 * 48, kernel
            assert 20 < kernel.loop <= 40, kernel


@pytest.mark.slow
@pytest.mark.skipif(NVCC is None, reason="needs nvcc")
@pytest.mark.parametrize("arch", ["80", "100"])
def test_other_architectures_compile_without_spills(arch: str, tmp_path: Path) -> None:
    assert NVCC is not None
    target = ("-gencode", f"arch=compute_{arch},code=sm_{arch}", "-Xptxas=-v", "-cubin", "-o", str(tmp_path / "out"))
    for source in OWN_STAGES:
        command = [NVCC, "-O3", "-std=c++17", "--expt-relaxed-constexpr", *target, str(CSRC / "cuda" / source)]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        spilled = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
        assert spilled and set(spilled) == {("0", "0", "0")}, (source, log)


def test_the_hot_loop_is_the_shortest_around_the_exponential() -> None:
    code = [(0, "MOV R1"), (16, "MUFU.EX2 R2"), (32, "@P0 BRA 0x10"), (48, "@P1 BRA 0x0"), (64, "BRA 0x40")]
    assert hot_loop(code) == 2
    assert hot_loop(code[2:]) == 0


def test_names_and_page() -> None:
    assert readable("_Z12blend_kernelILi4ELi0EEvv") == "blend_kernel<4, 0>"
    kernel = Kernel(
        "rasterize_blend.cu",
        "blend_kernel<4, 0>",
        256,
        31,
        24576,
        0,
        0,
        500,
        dict.fromkeys(("fp32", "special", "global", "shared", "local", "fp64"), 3),
        37,
    )
    assert kernel.warps == 64
    text = page([kernel], [], [], {"rasterize_blend.cu": 0.8}, "nvcc 13")
    assert "**No GPU has run this code.**" in text and "| blend_kernel<4, 0> | 31 | 24576 | 0 | 0 | 64 | 500 |" in text
