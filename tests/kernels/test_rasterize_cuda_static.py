"""What the sm_90a build of the CUDA rasterizer must show: no spills, no local memory, few registers."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from bench.static_sm90 import OWN_STAGES, Kernel, compile_stage, find_cuobjdump, hot_loop, page, readable
from worldr1_kernels.build import CSRC, find_nvcc

# name: registers, instructions of the hot loop (0: none around an exponential), instructions of the listing. Loops as
# counted, listings with 5 % to spare.
LIMITS = {
    "project_kernel": (64, 0, 3657),
    "count_pairs_kernel": (16, 0, 34),
    "emit_pairs_kernel<unsigned short>": (24, 0, 140),
    "emit_pairs_kernel<unsigned int>": (24, 0, 140),
    "find_ranges_kernel<unsigned short>": (24, 0, 70),
    "find_ranges_kernel<unsigned int>": (24, 0, 70),
    "blend_kernel<1, 0>": (32, 30, 416),
    "blend_kernel<3, 0>": (32, 32, 494),
    "blend_kernel<4, 0>": (32, 33, 531),
    "blend_kernel<4, 1>": (32, 38, 592),
    "blend_kernel<4, 2>": (40, 34, 552),
    "fill_colors_kernel": (32, 0, 497),
    "replay_kernel": (64, 111, 1077),
    "sum_partials_kernel": (32, 0, 401),
    "project_gradients_kernel<0>": (104, 0, 2875),
    "project_gradients_kernel<1>": (168, 0, 3819),
    "project_gradients_kernel<2>": (128, 0, 4295),
    "camera_gradients_kernel": (84, 0, 851),
}
NVCC, CUOBJDUMP = find_nvcc(os.environ), find_cuobjdump()


@pytest.mark.skipif(NVCC is None or CUOBJDUMP is None, reason="needs nvcc and cuobjdump")
def test_kernels_as_compiled() -> None:
    assert NVCC is not None and CUOBJDUMP is not None
    kernels = {k.name: k for source in OWN_STAGES for k in compile_stage(source, NVCC, CUOBJDUMP)[0]}
    assert set(kernels) == set(LIMITS)
    for kernel in kernels.values():
        registers, loop, instructions = LIMITS[kernel.name]
        assert kernel.spill_bytes == 0 and kernel.stack_bytes == 0 and kernel.counts["local"] == 0, kernel
        assert kernel.counts["fp64"] == 0 or kernel.name == "camera_gradients_kernel", kernel
        assert kernel.registers <= registers and kernel.instructions <= instructions, kernel
        assert kernel.loop <= loop and (kernel.loop > 0) == (loop > 0), kernel
    for name in ("blend_kernel<1, 0>", "blend_kernel<3, 0>", "blend_kernel<4, 0>"):
        assert kernels[name].shared_bytes == 2 * 256 * 48 and kernels[name].warps == 64  # full occupancy
    assert kernels["project_kernel"].warps == 32 and kernels["replay_kernel"].warps == 32
    # Colour rows go through shared memory: per float one access to global memory a warp, not one a lane.
    assert kernels["project_kernel"].counts["global"] <= 128
    assert kernels["project_gradients_kernel<2>"].counts["global"] <= 128


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
