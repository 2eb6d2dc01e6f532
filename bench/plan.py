"""The parts of a hardware run, most valuable first, with their shares of its time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MIN_SECONDS = 60.0
FAMILIES = ("rasterize", "noise_transport", "sde_step", "se3")


@dataclass(frozen=True)
class Part:
    """A step of the run.

    Fields: name; command, without the interpreter, in which {out}, {work} and {seconds} are filled in; share of the
    run's time, in per cent of all but the background's; needs, parts that must have passed; requires, what the machine
    must have (bench.probes); prefix, what the interpreter runs under; environment, variables set for it; background,
    runs beside the parts that follow until one that measures; measures, nothing may run beside it; always, runs again
    in a second call.
    """

    name: str
    command: tuple[str, ...]
    share: float = 5.0
    needs: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    prefix: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    background: bool = False
    measures: bool = False
    always: bool = False


def _tests(family: str) -> list[str]:
    return sorted(str(p.relative_to(ROOT)) for p in (ROOT / "tests" / "kernels").glob(f"test_{family}*.py"))


def _family_needs(family: str) -> tuple[str, ...]:
    return ("module:roma",) if family == "se3" else ()


def _family_parts(*, gpu: bool) -> tuple[list[Part], list[Part]]:
    """Tests and benchmarks, family by family. On a GPU only what needs one: CI runs the rest."""
    select = "gpu" if gpu else "not slow and not gpu"
    tests, benches = [], []
    for family in FAMILIES:
        flags = ("-m", "pytest", "-q", "-x", "-rs", "-p", "no:cacheprovider", "-m", select)
        requires = _family_needs(family)
        tests.append(Part(f"test {family}", (*flags, *_tests(family)), share=5, needs=("build",), requires=requires))
        bench = ROOT / "bench" / f"test_{family}.py"
        if bench.exists():
            on_gpu = bench.with_stem(f"{bench.stem}_gpu")  # a family whose GPU work is another than its CPU work
            only: tuple[str, ...] = ()
            if gpu and on_gpu.exists():
                bench, only = on_gpu, ("-m", "gpu")
            run = ("-m", "pytest", "-q", "-s", "-rs", "-p", "no:cacheprovider", str(bench.relative_to(ROOT)), *only)
            command = (*run, "--record", "--history", "{work}/history")
            share = 10 if family == "rasterize" else 5
            benches.append(
                Part(f"bench {family}", command, share, needs=(f"test {family}",), requires=requires, measures=True)
            )
    return tests, benches


def _sanitizer(tool: str, gpu_tests: Sequence[str]) -> Part:
    """compute-sanitizer over every GPU test. Without torch's own pool of memory each tensor is an allocation, and a
    write beyond it is seen; the tests that need the pool (allocation while a graph is captured, its statistics) are
    left out."""
    select = ("-m", "gpu and not pool")
    share = 4 if tool == "initcheck" else 6
    return Part(
        tool, ("-m", "pytest", "-v", "-p", "no:cacheprovider", *select, *gpu_tests), share=share, needs=("build",),
        requires=("gpu", "nvcc", "tool:compute-sanitizer"),
        prefix=("compute-sanitizer", "--tool", tool, "--error-exitcode", "86"),
        environment=(("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),),
    )  # fmt: skip


def parts(*, gpu: bool, wheels: Sequence[Path] = ()) -> list[Part]:
    """All parts in the order of their value: does it build, is it right, how fast is each kernel, then the loop.

    Args:
      gpu: Whether a CUDA device is there; without one the families are tested and measured on the CPU.
      wheels: Packages to install for this run alone.
    Returns:
      The parts; a part that cannot run here is among them, its `requires` says why.
    """
    tests, benches = _family_parts(gpu=gpu)
    install = ("-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--upgrade", "--target")
    gpu_tests = [path for family in FAMILIES for path in _tests(family)]
    verify = ("worldr1_kernels", "verify", "--again")
    loop = ("-m", "bench.wan_loop", "--history", "{work}/history", "--seconds", "{seconds}")
    return [
        Part("build", ("setup.py", "build_ext", "--inplace"), share=8, always=True),
        Part(
            "wheels", (*install, "{work}/site", *map(str, wheels)), share=2,
            requires=() if wheels else ("wheels",), always=True,
        ),
        Part(
            "gsplat", ("-m", "bench.gsplat_build", "--work", "{work}/gsplat"), share=12,
            requires=("gpu", "nvcc", "module:gsplat"), background=True, always=True,
        ),
        Part("verify", ("-m", *(verify if gpu else ("bench.rehearse_verify",))), share=4, needs=("build",)),
        *tests,
        Part("ceilings", ("-m", "bench.ceilings", "--history", "{work}/history"), share=2, measures=True),
        *benches,
        Part(
            "loop", loop if gpu else (*loop, "--smoke"), share=18, needs=("build",),
            requires=("module:diffusers", "module:peft", "module:tyro", *(("memory:60",) if gpu else ())),
            measures=True,
        ),
        _sanitizer("memcheck", gpu_tests),
        _sanitizer("racecheck", gpu_tests),
        _sanitizer("initcheck", gpu_tests),
        Part(
            "ncu", ("-m", "bench.profile_kernels"), share=5, needs=("build",),
            requires=("gpu", "nvcc", "tool:ncu"), measures=True,
        ),
    ]  # fmt: skip


def order(plan: Sequence[Part], only: Sequence[str]) -> list[Part]:
    """The parts whose name holds one of the words, and those that they need; all of them without words.

    Raises:
      ValueError: no part's name holds one of the words.
    """
    known = {part.name: part for part in plan}
    wanted = {name for name in known if not only or any(word in name for word in only)}
    if not wanted:
        raise ValueError(f"bench.gpu: --only must be part of one of {', '.join(known)}, got {' '.join(only)}")
    while more := {need for name in wanted for need in known[name].needs} - wanted:
        wanted |= more
    if only:
        wanted.add("wheels")  # a peer may come from there
    if "bench rasterize" in wanted:
        wanted.add("gsplat")
    return [part for part in plan if part.name in wanted]


def limit(part: Part, rest: Sequence[Part], left: float) -> float:
    """Seconds that a part may take: twice its share of what is left among the parts that still come, so that no part
    starves those after it and time that others saved is used; a minute at least, since a short run is better spent on
    the first parts than on the beginning of each.

    Args:
      part: About to run.
      rest: The parts after it that will run.
      left: Seconds until the run's end.
    """
    share = part.share / (part.share + sum(other.share for other in rest if not other.background))
    return min(left, max(2.0 * share * left, MIN_SECONDS))
