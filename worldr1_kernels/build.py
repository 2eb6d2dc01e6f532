"""Builds the native modules: finds the compilers, writes build.ninja, runs ninja. Used by setup.py, never at import.

Standard library only, and nothing from this package: setup.py loads this file by path, in an isolated environment
without torch. The build folder lies in the source tree and is named by the interpreter's ABI tag, because pip's own
temporary folder changes from run to run and would rebuild everything.

Environment variables:
  WORLDR1_BUILD: "auto" (default) builds the CUDA module where nvcc is found, "cpu" never, "cuda" fails without nvcc.
  WORLDR1_CUDA_ARCHS: architectures for nvcc, separated by ";" or ",", e.g. "80+PTX;90a": code for those, and with +PTX
    also what the driver of a later GPU compiles for itself. "all" for `ALL_ARCHS`. Default: `DEFAULT_ARCHS`, which
    every GPU from compute capability 8.0 on can run, and those of the GPUs that nvidia-smi names here.
  CXX, CUDACXX, CUDA_HOME: the usual meaning.
"""

import filecmp
import os
import platform
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

CSRC = Path(__file__).resolve().parents[1] / "csrc"
CUDA_FOLDER = "/usr/local/cuda"
BUILD_MODES = ("auto", "cpu", "cuda")
# cp.async needs 8.0; the PTX of an architecture with a letter runs on no other.
OLDEST_ARCH = 80
DEFAULT_ARCHS = ("80+PTX", "90a")
ALL_ARCHS = ("80", "86", "89", "90a", "100", "120+PTX")

COMMON_FLAGS = ("-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-function", "-Wno-psabi")
# Not -ffast-math: it deletes the rounding trick of the exponential and flushes denormals for the whole process.
SIMD_FLAGS = ("-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
ISA_LEVELS = ("v2", "v3", "v4")


@dataclass(frozen=True)
class Module:
    """One shared library: its objects as (source, flags, rule), relative to csrc/, and the rule that links it."""

    name: str
    objects: tuple[tuple[str, str, str], ...]
    link_rule: str


@dataclass(frozen=True)
class Plan:
    """What will be built, with which compilers, and one line for the user on CUDA."""

    modules: tuple[Module, ...]
    cxx: str
    nvcc: str | None
    archs: tuple[str, ...] = field(default=())
    message: str = ""


def find_nvcc(environment: Mapping[str, str]) -> str | None:
    """Path of nvcc: $CUDACXX, $CUDA_HOME/bin, PATH, then CUDA's usual folder. None when there is none.

    Raises:
      RuntimeError: CUDACXX is set and is not an executable.
    """
    named = environment.get("CUDACXX")
    if named:
        found = shutil.which(named, path=environment.get("PATH"))
        if found is None:
            raise RuntimeError(f"build: CUDACXX must name an executable, got {named!r}")
        return found
    home = environment.get("CUDA_HOME")
    folders = [f"{home}/bin"] if home else []
    folders += [environment.get("PATH", os.defpath), f"{CUDA_FOLDER}/bin"]
    return next((found for folder in folders if (found := shutil.which("nvcc", path=folder))), None)


def find_cxx(environment: Mapping[str, str]) -> str:
    """The C++ compiler: $CXX, else g++, c++ or clang++ from PATH.

    Raises:
      RuntimeError: there is none.
    """
    candidates = [environment["CXX"]] if environment.get("CXX") else ["g++", "c++", "clang++"]
    for candidate in candidates:
        found = shutil.which(candidate, path=environment.get("PATH"))
        if found:
            return found
    tried = ", ".join(candidates)
    raise RuntimeError(f"build: a C++17 compiler must be on PATH (tried {tried}), install g++ or set CXX")


def gpus_here(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Architectures of the GPUs that nvidia-smi names, e.g. ("89",); none where it is missing or fails."""
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    path = shutil.which(command[0], path=environment.get("PATH"))
    if path is None:
        return ()
    try:
        done = subprocess.run([path, *command[1:]], capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = sorted(set(re.findall(r"^(\d+)\.(\d)$", done.stdout, re.MULTILINE)), key=lambda v: (int(v[0]), v[1]))
    return tuple("90a" if v == ("9", "0") else "".join(v) for v in found)


def parse_archs(text: str, here: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Splits "80+PTX;90a" into ("80+PTX", "90a"); "all" and "" as the module's docstring says.

    Args:
      text: The environment variable.
      here: Architectures of this machine's GPUs.
    Raises:
      ValueError: an entry is not a compute capability, or one before 8.0.
    """
    if text.strip() == "all":
        return ALL_ARCHS
    archs = tuple(part.strip() for part in re.split("[;,]", text) if part.strip())
    for arch in archs:
        number = re.fullmatch(r"(\d{2,3})[af]?(\+PTX)?", arch)
        if number is None:
            raise ValueError(f"build: WORLDR1_CUDA_ARCHS must look like '80+PTX;90a', got {text!r}")
        if int(number[1]) < OLDEST_ARCH:
            raise ValueError(f"build: WORLDR1_CUDA_ARCHS must be {OLDEST_ARCH} or later, got {arch!r}")
    known = {arch.removesuffix("+PTX") for arch in DEFAULT_ARCHS}
    return archs or DEFAULT_ARCHS + tuple(a for a in here if a not in known and int(a.rstrip("a")) >= OLDEST_ARCH)


def gencode(arch: str) -> str:
    """nvcc's options for one entry of `parse_archs`."""
    number = arch.removesuffix("+PTX")
    codes = f"[sm_{number},compute_{number}]" if arch != number else f"sm_{number}"
    return f"-gencode='arch=compute_{number},code={codes}'"


def _sources(folder: str, suffixes: tuple[str, ...]) -> list[str]:
    """Files of csrc/<folder> with one of the suffixes, in alphabetical order, relative to csrc/."""
    return sorted(f"{folder}/{path.name}" for path in (CSRC / folder).iterdir() if path.suffix in suffixes)


def _cpu_module(machine: str) -> Module:
    """Every .cpp of csrc/cpu; a *_simd.cpp once for each instruction set."""
    levels = ISA_LEVELS if machine in ("x86_64", "AMD64") else ("baseline",)
    objects = []
    for source in _sources("cpu", (".cpp",)):
        if source.endswith("_simd.cpp"):
            for level in levels:
                march = f"-march=x86-64-{level} " if level in ISA_LEVELS else ""
                objects.append((source, f"{' '.join(SIMD_FLAGS)} {march}-DWR_ISA={level}", "cxx"))
        else:
            objects.append((source, "-O2" if source.endswith("bindings.cpp") else "-O3", "cxx"))
    return Module("_C_cpu", tuple(objects), "link")


def _cuda_module(archs: tuple[str, ...]) -> Module:
    """Every .cu and .cpp of csrc/cuda; the module can say what it was compiled for."""
    flags = {"cuda/bindings.cpp": f"-DWR_CUDA_ARCHS={':'.join(archs)}"}  # nvcc would split at a comma
    sources = _sources("cuda", (".cpp", ".cu"))
    return Module("_C_cuda", tuple((source, flags.get(source, ""), "nvcc") for source in sources), "nvlink")


def make_plan(environment: Mapping[str, str], machine: str | None = None) -> Plan:
    """Decides what to build.

    Args:
      environment: Environment variables, see the module's docstring.
      machine: Processor name, by default this one's.
    Returns:
      The plan; nothing has been run.
    Raises:
      ValueError: WORLDR1_BUILD or WORLDR1_CUDA_ARCHS is malformed.
      RuntimeError: no C++ compiler, or WORLDR1_BUILD=cuda without nvcc.
    """
    mode = environment.get("WORLDR1_BUILD") or "auto"
    if mode not in BUILD_MODES:
        raise ValueError(f"build: WORLDR1_BUILD must be one of {BUILD_MODES}, got {mode!r}")
    modules = [_cpu_module(machine or platform.machine())]
    cxx = find_cxx(environment)
    nvcc = None if mode == "cpu" else find_nvcc(environment)
    if nvcc is None:
        if mode == "cuda":
            raise RuntimeError("build: WORLDR1_BUILD=cuda needs nvcc in $CUDACXX, $CUDA_HOME/bin or PATH, found none")
        why = "WORLDR1_BUILD=cpu" if mode == "cpu" else "nvcc not found"
        message = f"worldr1_kernels: no CUDA module ({why}); CUDA tensors use Triton, CPU tensors the C++ module"
        return Plan(tuple(modules), cxx, None, (), message)
    named = environment.get("WORLDR1_CUDA_ARCHS", "")
    archs = parse_archs(named, () if named else gpus_here(environment))
    modules.append(_cuda_module(archs))
    message = f"worldr1_kernels: CUDA module for sm_{', sm_'.join(archs)} with {nvcc}"
    return Plan(tuple(modules), cxx, nvcc, archs, message)


def build_folder(root: Path) -> Path:
    """build/<ABI tag of this interpreter> under the source tree."""
    return root / "build" / (sysconfig.get_config_var("SOABI") or "unknown-abi")


def _copy_headers(source: Path, target: Path) -> None:
    """Copies headers whose content differs: in an isolated build their path and time change at every run, and ninja
    would rebuild everything."""
    for header in sorted(source.rglob("*.h")):
        copy = target / header.relative_to(source)
        if not copy.exists() or not filecmp.cmp(header, copy, shallow=False):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(header, copy)


def ninja_text(plan: Plan, root: Path, folder: Path) -> str:
    """The text of build.ninja for `plan`; outputs are named relative to `folder`."""
    includes = f"-isystem {folder / 'include'} -isystem {sysconfig.get_paths()['include']}"
    targets = " ".join(gencode(arch) for arch in plan.archs)
    lines = [
        "ninja_required_version = 1.5",
        "",
        "rule cxx",
        f"  command = {plan.cxx} {' '.join(COMMON_FLAGS)} $flags {includes} -MMD -MF $out.d -c $in -o $out",
        "  deps = gcc",
        "  depfile = $out.d",
        "rule link",
        f"  command = {plan.cxx} -shared -pthread $in -o $out",
    ]
    if plan.nvcc is not None:
        host = f"-ccbin {plan.cxx} -Xcompiler -fPIC,-fvisibility=hidden"
        lines += [
            "rule nvcc",
            f"  command = {plan.nvcc} -O3 -std=c++17 --expt-relaxed-constexpr -lineinfo -Xptxas=-v {targets} {host} "
            f"$flags {includes} -MD -MF $out.d -c $in -o $out",
            "  deps = gcc",
            "  depfile = $out.d",
            "rule nvlink",
            f"  command = {plan.nvcc} -shared --cudart=static {targets} {host} -Xlinker --exclude-libs,ALL $in -o $out",
        ]
    for module in plan.modules:
        outputs = []
        for index, (source, flags, rule) in enumerate(module.objects):
            output = f"{module.name}/{index}_{Path(source).stem}.o"
            outputs.append(output)
            lines += [f"build {output}: {rule} {root / 'csrc' / source}", f"  flags = {flags}"]
        lines.append(f"build {module.name}.so: {module.link_rule} {' '.join(outputs)}")
    return "\n".join(lines) + "\n"


def run(root: Path, environment: Mapping[str, str]) -> dict[str, Path]:
    """Builds everything that is out of date.

    Args:
      root: The source tree.
      environment: Environment variables.
    Returns:
      {module name: path of its shared library}.
    Raises:
      RuntimeError: a compiler is missing, or the build failed (the compiler's messages are on the terminal).
    """
    import ninja
    import pybind11

    plan = make_plan(environment)
    print(plan.message, flush=True)
    folder = build_folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    _copy_headers(Path(pybind11.get_include()), folder / "include")
    text = ninja_text(plan, root, folder)
    script = folder / "build.ninja"
    if not script.exists() or script.read_text() != text:
        script.write_text(text)
    command = [str(Path(ninja.BIN_DIR) / "ninja"), "-C", str(folder)]
    status = subprocess.run(command, env=dict(environment), check=False).returncode
    if status != 0:
        hint = "; WORLDR1_BUILD=cpu leaves the CUDA module out" if plan.nvcc else ""
        raise RuntimeError(f"build: ninja failed with status {status} in {folder}{hint}")
    return {module.name: folder / f"{module.name}.so" for module in plan.modules}


def module_names(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Names of the modules that `run` would build here."""
    return tuple(module.name for module in make_plan(os.environ if environment is None else environment).modules)
