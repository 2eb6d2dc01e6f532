"""What the compiler says of the CUDA kernels without a device: `python -m bench.static_sm90 [--write]`.

Compiles csrc/cuda/rasterize_*.cu, se3.cu, sde_step.cu and noise_transport*.cu for sm_90a, reads registers, spills and
shared memory from ptxas, and counts instructions in the disassembly. `--write` renews docs/results/sm90_static.md. None
of this is a speed: nothing runs.
"""

import argparse
import datetime
import os
import re
import resource
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.report import _git
from worldr1_kernels.build import CSRC, find_nvcc

PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "sm90_static.md"
OWN_STAGES = ("rasterize_project.cu", "rasterize_pairs.cu", "rasterize_blend.cu", "rasterize_backward.cu")
SE3_STAGES = ("se3.cu",)
SDE_STAGES = ("sde_step.cu",)
NOISE_STAGES = ("noise_transport.cu", "noise_transport_plan.cu")
LIBRARY_STAGES = ("rasterize_sort.cu",)  # CUB's kernels
THREADS_PER_BLOCK = {
    **dict.fromkeys((*OWN_STAGES, *SDE_STAGES, *NOISE_STAGES), 256),
    **dict.fromkeys(SE3_STAGES, 64),
}
FLAGS = ("-O3", "-std=c++17", "--expt-relaxed-constexpr", "-gencode=arch=compute_90a,code=sm_90a", "-Xptxas=-v")
# Hopper: per multiprocessor.
REGISTERS, THREADS, SHARED_BYTES, SHARED_PER_BLOCK, BLOCKS = 65_536, 2_048, 233_472, 1_024, 32
GROUPS = {
    "fp32": r"(FFMA|FMUL|FADD|FMNMX|FSETP|FSEL|FCHK)\b",
    "special": r"MUFU",
    "global": r"(LDG|STG|LDGSTS|ATOMG|REDG|RED|ATOM)\b",
    "shared": r"(LDS|STS|LDSM|ATOMS)\b",
    "local": r"(LDL|STL)\b",
    "fp64": r"(DADD|DMUL|DFMA|DSETP|MUFU\.\w*64H)\b",
}


@dataclass(frozen=True)
class Kernel:
    """One kernel as compiled; `threads` is 0 where launch bounds are not known here (CUB)."""

    source: str
    name: str
    threads: int
    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_bytes: int
    instructions: int
    counts: dict[str, int]
    loop: int  # instructions around the exponential, for 8 elements of sde_step, for a segment of noise; or 0

    @property
    def warps(self) -> int:
        """Warps that fit on one multiprocessor."""
        if self.threads == 0:
            return 0
        registers = -(-self.registers // 8) * 8 * self.threads
        shared = SHARED_BYTES // (self.shared_bytes + SHARED_PER_BLOCK)
        return min(REGISTERS // registers, shared, THREADS // self.threads, BLOCKS) * self.threads // 32


def find_cuobjdump() -> str | None:
    """cuobjdump from PATH, beside nvcc, or from the triton package."""
    found = shutil.which("cuobjdump")
    if found is None:
        try:
            import triton

            found = shutil.which("cuobjdump", path=str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin"))
        except ImportError:
            return None
    return found


def readable(mangled: str) -> str:
    """`name<arguments>` of a kernel, without namespaces and parameters."""
    name = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout.strip()
    name = re.sub(r"\(worldr1::[\w()\s:]*::\w+\)", "", name)  # the type of an enumerator
    cub = re.search(r"Device\w*Kernel|static_kernel|EmptyKernel|\w+_kernel", name)
    assert cub is not None, f"a kernel's name must end in Kernel or _kernel, got {name}"
    arguments = re.match(r"<([\w ,]*)>", name[cub.end() :])
    types = re.findall(r"unsigned (?:short|int)", name) if "cub::" in name else []
    suffix = f"<{arguments[1]}>" if arguments else f" ({types[0]} keys)" if types else ""
    return cub[0] + suffix.replace("(bool)", "")


def hot_loop(code: list[tuple[int, str]]) -> int:
    """Instructions of the shortest loop, by its backward branch, that holds an EX2."""
    exponentials = [address for address, text in code if "MUFU.EX2" in text]
    sizes = []
    for address, text in code:
        branch = re.search(r"\bBRA (?:`\(\.L_\S+\)|0x([0-9a-f]+))", text)
        if branch and branch[1] and int(branch[1], 16) <= address:
            first = int(branch[1], 16)
            if any(first <= e <= address for e in exponentials):
                sizes.append((address - first) // 16 + 1)
    return min(sizes, default=0)


def stream_loop(code: list[tuple[int, str]]) -> int:
    """Instructions of the shortest loop that stores, and stores nothing but whole vectors: of sde_step, two quads."""
    sizes = []
    for address, text in code:
        branch = re.search(r"\bBRA 0x([0-9a-f]+)", text)
        if branch and int(branch[1], 16) <= address:
            first = int(branch[1], 16)
            stores = [t for a, t in code if first <= a <= address and "STG" in t]
            if stores and all(re.search(r"STG\.E\.(64|128) ", t) for t in stores):
                sizes.append((address - first) // 16 + 1)
    return min(sizes, default=0)


def segment(code: list[tuple[int, str]]) -> int:
    """Instructions that a warp of the noise transport executes for 32 columns of a row of blocks: from the branch that
    skips them to the store of their sums, which go through shared memory in between."""
    through = next((i for i, (_, text) in enumerate(code) if "STS.128" in text), None)
    if through is None:
        return 0
    store = next(i for i in range(through, len(code)) if "STG" in code[i][1])
    for i in range(through, -1, -1):
        branch = re.search(r"\bBRA 0x([0-9a-f]+)", code[i][1])
        if branch and int(branch[1], 16) > code[store][0]:
            return store - i
    raise AssertionError("a segment must begin with a branch over it")


def compile_stage(source: str, nvcc: str, cuobjdump: str) -> tuple[list[Kernel], float]:
    """Kernels of one source, and the processor seconds that compiling it took."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "stage.cubin"
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [nvcc, *FLAGS, "-cubin", str(CSRC / "cuda" / source), "-o", str(cubin)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"static_sm90: {source} must compile, nvcc said:\n{done.stderr}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        sass = subprocess.run([cuobjdump, "-sass", str(cubin)], capture_output=True, text=True, check=True).stdout
    code = {}
    for function in sass.split("Function : ")[1:]:
        lines = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+([^;/]+);", function)
        code[function.split("\n", 1)[0].strip()] = [(int(a, 16), text.strip()) for a, text in lines]
    loop_of = {**dict.fromkeys(SDE_STAGES, stream_loop), **dict.fromkeys(NOISE_STAGES, segment)}
    kernels = []
    for part in done.stderr.split("Compiling entry function ")[1:]:
        mangled = part.split("'")[1]
        stack, stores, loads = map(int, re.search(r"(\d+) bytes stack frame, (\d+) .*?, (\d+) ", part).groups())  # type: ignore[union-attr]
        registers = re.search(r"Used (\d+) registers", part)
        shared = re.search(r"(\d+) bytes smem", part)
        assert registers is not None
        text = [instruction for _, instruction in code[mangled] if not re.search(r"\bNOP\b", instruction)]
        counts = Counter(
            {group: sum(bool(re.search(rf"\b{pattern}", t)) for t in text) for group, pattern in GROUPS.items()}
        )
        kernels.append(
            Kernel(
                source,
                readable(mangled),
                THREADS_PER_BLOCK.get(source, 0),
                int(registers[1]),
                int(shared[1]) if shared else 0,
                stack,
                stores + loads,
                len(text),
                dict(counts),
                loop_of.get(source, hot_loop)(code[mangled]),
            )
        )
    return kernels, seconds


def table(kernels: Sequence[Kernel]) -> str:
    """Markdown rows of kernels."""
    head = ["kernel", "registers", "shared B", "stack B", "spills B", "warps/SM", "instructions", *GROUPS, "hot loop"]
    rows = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for k in kernels:
        cells = [k.name, k.registers, k.shared_bytes, k.stack_bytes, k.spill_bytes, k.warps or "", k.instructions]
        rows.append("| " + " | ".join(str(c) for c in [*cells, *(k.counts[g] for g in GROUPS), k.loop or ""]) + " |")
    return "\n".join(rows)


def page(
    own: list[Kernel],
    se3: list[Kernel],
    library: list[Kernel],
    seconds: dict[str, float],
    compiler: str,
    sde: Sequence[Kernel] = (),
    noise: Sequence[Kernel] = (),
) -> str:
    """The text of docs/results/sm90_static.md."""
    times = ", ".join(f"{source} {value:.1f}" for source, value in seconds.items())
    commit = _git("rev-parse", "--short", "HEAD") + (" (changed)" if _git("status", "--porcelain", "csrc") else "")
    return f"""# CUDA kernels: what the sm_90a build shows without a device

**No GPU has run this code.** These are counts from the compiler, not speeds.

Command: `python -m bench.static_sm90 --write`. Compiler: {compiler}. Commit: {commit}. Date: {datetime.date.today()}.
Success: no spills, no stack, no fp64 instruction but in the sums over a camera, in the trajectories and in the density
of the noise; forward blending with registers for full occupancy; at most 390 instructions for 8 elements of a draw;
registers, loops and listings no larger than the tables in the tests say. Asserted wherever nvcc is, by
`tests/kernels/test_*_cuda_static.py`.

## The rasterizer's kernels
256 threads a block. Instructions are counted in the listing, not in execution. Warps/SM: what registers and shared
memory admit, of 64; project_kernel and project_gradients_kernel take dynamic shared memory too, 27 and 54 KB at SH
degree 2, which admits as many. Of the latter <0> is for features, <1> for harmonics whose coefficients are read as they
lie, <2> for those that go through shared memory. Hot loop: what a warp executes for one splat that its culling let
through, over its 8x4 pixels.

{table(own)}

## The trajectory kernels
64 threads a block, two trajectories. All arithmetic is fp64, so a number takes two registers.

{table(se3)}

## The SDE step's kernels
256 threads a block, 4096 elements of one sample. `unsigned short` is bfloat16. Second argument of forward: 0 draws by
Philox, 1 takes noise as given, 2 scores. Options: 1 guidance, 2 a reference velocity, 4 (backward) other gradients than
that of log_prob. Hot loop: two quads, that is 8 elements, of a chunk that is whole and aligned.

{table(sde)}

## The kernels of noise transport and of its plan
256 threads a block (sum_kernel 192). Hot loop: what a warp executes for 32 columns of a row of r x r blocks, 512 r
bytes of values; r is the template's argument, 0 any. The plan's fp64 is the density, no multiplication fused.

{table(list(noise))}

## CUB's kernels (two sorts, one sum)
{table(library)}

## Compile time
Processor seconds of nvcc: {times}.

## Not shown here
Speed, achieved occupancy, caches, correctness on a device. The logic of the rasterizer's kernels is tested on the
CPU by an interpreter (`csrc/common/simt_host.h`, `tests/kernels/test_rasterize_cuda.py`). What that cannot show: the
device's memory model, its rounding (fused multiply-adds, `ex2.approx`), CUB, CUDA graphs. `pytest -m gpu tests/kernels`
is ready for these.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="renew docs/results/sm90_static.md")
    write = parser.parse_args().write
    nvcc, cuobjdump = find_nvcc(os.environ), find_cuobjdump()
    if nvcc is None or cuobjdump is None:
        raise RuntimeError("static_sm90: nvcc and cuobjdump (CUDA, or the triton package) must be there")
    stages = (*OWN_STAGES, *SE3_STAGES, *SDE_STAGES, *NOISE_STAGES, *LIBRARY_STAGES)
    compiled = {source: compile_stage(source, nvcc, cuobjdump) for source in stages}
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release [\d.]+, V[\d.]+", version)
    text = page(
        [k for source in OWN_STAGES for k in compiled[source][0]],
        [k for source in SE3_STAGES for k in compiled[source][0]],
        [k for source in LIBRARY_STAGES for k in compiled[source][0]],
        {source: seconds for source, (_, seconds) in compiled.items()},
        f"nvcc {release[0] if release else version}",
        sde=[k for source in SDE_STAGES for k in compiled[source][0]],
        noise=[k for source in NOISE_STAGES for k in compiled[source][0]],
    )
    print(text)
    if write:
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
