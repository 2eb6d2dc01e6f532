"""Script: compiles for sm_90 what the launchers of sde_step's Triton backend would launch, without a GPU, and prints a
JSON line a kernel. The driver is a stand-in that names the target; arguments and options are the launchers' own.

A process of its own, because Triton either compiles or interprets.
"""

import collections
import functools
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from worldr1_kernels.sde_step import triton_impl, triton_kernels
from worldr1_kernels.sde_step.arguments import Draw, Score

TOOLS = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin")


class Target:
    """As much of a driver as a compilation asks for."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def dump(cubin: str, *options: str) -> str:
    return subprocess.run([f"{TOOLS}/cuobjdump", *options, cubin], capture_output=True, text=True, check=True).stdout


@functools.cache
def facts(compiled: Any) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, sass = dump(file.name, "--dump-resource-usage"), dump(file.name, "-sass")
    opcodes = re.findall(r"\b(LDG\.[\w.]+|STG\.[\w.]+|LDL[\w.]*|STL[\w.]*)\s", sass)
    return {
        **{key: int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK", "LOCAL")},  # type: ignore[index]
        "memory": collections.Counter(opcodes),
        "fused": "fma" in compiled.asm["ptx"],
        "hash": compiled.hash,
    }


class Recorder:
    """In the place of a kernel: compiles where it would launch."""

    case = ""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            compiled = self.kernel.warmup(*args, grid=grid, **options)
            print(json.dumps({"case": self.case, "kernel": self.kernel.fn.__name__, **facts(compiled)}))

        return launch


driver.set_active(Target())
for name in ("draw_kernel", "score_kernel", "finish_kernel", "backward_kernel"):
    setattr(triton_kernels, name, Recorder(getattr(triton_kernels, name)))

scalars = (2.5, 0.93, -0.11, 0.21)
for case, dtype, shape in (
    ("bf16", torch.bfloat16, (2, 12, 3, 8, 8)),
    ("f32", torch.float32, (2, 12, 3, 8, 8)),
    ("one", torch.bfloat16, (1, 1)),
):
    Recorder.case = case
    v, x, g, ids = torch.zeros(shape, dtype=dtype), torch.zeros(shape), torch.ones(shape[0]), torch.arange(shape[0])
    for seed, step in ((1, 1), (2**62 + 5, 2**32 - 1)):
        triton_impl.sample_step(Draw(v, x, None, None, None, ids, *scalars, seed, step))
    plain, guided = Score(v, x, x, None, None, *scalars), Score(v, x, x, v, v, *scalars)
    triton_impl.log_prob(guided)
    triton_impl.log_prob_backward(None, g, None, plain)
    triton_impl.log_prob_backward(x, g, g, guided)
