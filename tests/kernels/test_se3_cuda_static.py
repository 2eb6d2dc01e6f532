"""What the sm_90a build of the CUDA trajectory kernels must show: nothing of a thread lies in memory."""

import os

import pytest

from bench.static_sm90 import SE3_STAGES, compile_stage, find_cuobjdump
from worldr1_kernels.build import find_nvcc

NVCC, CUOBJDUMP = find_nvcc(os.environ), find_cuobjdump()
TRAJECTORIES = ("error_forward", "error_backward", "reward_forward", "reward_backward")

# Instructions in the listing, a forward's look at its inputs included; about a twentieth above what was counted.
MOST = {
    "error_forward": 4600,
    "error_backward": 6700,
    "reward_forward": 2500,
    "reward_backward": 5250,
    "rotation_forward": 760,
    "rotation_backward": 470,
    "rigid": 430,
}


@pytest.mark.skipif(NVCC is None or CUOBJDUMP is None, reason="needs nvcc and cuobjdump")
def test_no_kernel_spills() -> None:
    assert NVCC is not None and CUOBJDUMP is not None
    kernels = {k.name: k for source in SE3_STAGES for k in compile_stage(source, NVCC, CUOBJDUMP)[0]}
    names = (*TRAJECTORIES, "rotation_forward", "rotation_backward", "rigid")
    assert set(kernels) == {f"{name}_kernel<{dtype}>" for name in names for dtype in ("float", "double")}
    for kernel in kernels.values():
        assert kernel.spill_bytes == 0 and kernel.stack_bytes == 0 and kernel.counts["local"] == 0, kernel
        assert kernel.threads == 64 and kernel.warps >= 8, kernel
        assert kernel.instructions <= MOST[kernel.name.split("_kernel")[0]], kernel
        if kernel.name.removesuffix("_kernel<float>").removesuffix("_kernel<double>") not in TRAJECTORIES:
            assert kernel.registers <= 80, kernel
