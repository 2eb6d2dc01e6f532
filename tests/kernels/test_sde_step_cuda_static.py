"""What the sm_90a build of the SDE step's CUDA kernels must show: counts of instructions, not speeds."""

import os
import re

import pytest

from bench.static_sm90 import SDE_STAGES, Kernel, compile_stage, find_cuobjdump
from worldr1_kernels.build import find_nvcc

NVCC, CUOBJDUMP = find_nvcc(os.environ), find_cuobjdump()
# Instructions for 8 elements: counted 380, 372; 76, 67; 73, 61. The Triton kernel's draw takes about 710.
MOST = {
    "forward_kernel<unsigned short, 0, 0>": 390,
    "forward_kernel<float, 0, 0>": 390,
    "forward_kernel<unsigned short, 2, 0>": 85,
    "forward_kernel<float, 2, 0>": 85,
    "backward_kernel<unsigned short, 0>": 85,
    "backward_kernel<float, 0>": 85,
}


@pytest.fixture(scope="module")
def kernels() -> dict[str, Kernel]:
    if NVCC is None or CUOBJDUMP is None:
        pytest.skip("needs nvcc and cuobjdump")
    return {k.name: k for source in SDE_STAGES for k in compile_stage(source, NVCC, CUOBJDUMP)[0]}


def test_nothing_of_a_thread_lies_in_memory(kernels: dict[str, Kernel]) -> None:
    assert len(kernels) == 2 * 3 * 4 + 2 * 8
    for kernel in kernels.values():
        assert kernel.spill_bytes == 0 and kernel.stack_bytes == 0 and kernel.counts["local"] == 0, kernel
        plain = re.search(r"\b0>$", kernel.name) is not None
        assert kernel.registers <= (48 if plain else 64) and kernel.warps >= (40 if plain else 32), kernel
        assert kernel.shared_bytes <= 128, kernel


def test_instructions_for_eight_elements(kernels: dict[str, Kernel]) -> None:
    for name, most in MOST.items():
        assert 0 < kernels[name].loop <= most, kernels[name]
