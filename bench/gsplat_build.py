"""Compiles the CUDA kernels of an installed gsplat 1.5.3, the rasterizer's peer.

`python -m bench.gsplat_build --work DIR`

Only what `gsplat.rasterization` calls, for one architecture, all sources at once. The kernels are as they were
released; what is left out are other projections, 2D splats and channel counts above `CHANNELS`, whose instantiations
are most of the compile time. The module goes to gsplat/csrc*.so beside gsplat's own files, where gsplat looks first.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

from worldr1_kernels.build import CUDA_FOLDER, find_nvcc

VERSION = "1.5.3"
CHANNELS = (1, 2, 3, 4, 5)
"""RGB with depth has four; gsplat pads to the next count it has."""
SOURCES = (
    "Projection.cpp", "Rasterization.cpp", "Intersect.cpp", "SphericalHarmonics.cpp", "ProjectionEWA3DGSFused.cu",
    "ProjectionEWA3DGSPacked.cu", "IntersectTile.cu", "RasterizeToPixels3DGSFwd.cu", "RasterizeToPixels3DGSBwd.cu",
    "SphericalHarmonicsCUDA.cu",
)  # fmt: skip
FUNCTIONS = (
    "spherical_harmonics_fwd", "spherical_harmonics_bwd", "intersect_tile", "intersect_offset",
    "projection_ewa_3dgs_fused_fwd", "projection_ewa_3dgs_fused_bwd", "projection_ewa_3dgs_packed_fwd",
    "projection_ewa_3dgs_packed_bwd", "rasterize_to_pixels_3dgs_fwd", "rasterize_to_pixels_3dgs_bwd",
)  # fmt: skip
_WIDTH = re.compile(r"^\s*__(?:INS|LAUNCH_KERNEL)__\((\d+)\)\s*$")


def folder() -> Path:
    """Of the installed package.

    Raises:
      RuntimeError: gsplat is not installed, or in another version.
    """
    spec = importlib.util.find_spec("gsplat")
    if spec is None or spec.origin is None:
        raise RuntimeError(f"gsplat_build: gsplat {VERSION} must be installed, it is not")
    found = importlib.metadata.version("gsplat")
    if found != VERSION:
        raise RuntimeError(f"gsplat_build: gsplat must be {VERSION}, got {found}")
    return Path(spec.origin).parent


def unavailable() -> str | None:
    """None when gsplat's CUDA kernels are compiled, else the reason. Imports nothing."""
    try:
        package = folder()
    except RuntimeError as error:
        return str(error)
    built = any((package / f"csrc{suffix}").exists() for suffix in importlib.machinery.EXTENSION_SUFFIXES)
    return None if built else f"gsplat's kernels are not compiled in {package}: python -m bench.gsplat_build --work DIR"


def narrowed(source: str) -> str:
    """A source without the instantiations and launches of other channel counts; nothing else changes."""
    kept = []
    for line in source.splitlines(keepends=True):
        width = _WIDTH.match(line)
        if width is None or int(width.group(1)) in CHANNELS:
            kept.append(line)
    return "".join(kept)


def bindings() -> str:
    """C++ of the module: the functions of `FUNCTIONS` and the enumeration that they take."""
    models = "".join(f'.value("{name}", gsplat::CameraModelType::{name})' for name in ("PINHOLE", "ORTHO", "FISHEYE"))
    functions = "".join(f'  m.def("{name}", &gsplat::{name});\n' for name in FUNCTIONS)
    return (
        '#include <torch/extension.h>\n#include "Ops.h"\n#include "Cameras.h"\n'
        "PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {\n"
        f'  py::enum_<gsplat::CameraModelType>(m, "CameraModelType"){models};\n{functions}}}\n'
    )


def write_sources(package: Path, work: Path) -> list[Path]:
    """Copies what is compiled to `work`, narrowed, and writes the bindings; returns the files to compile."""
    origin = package / "cuda" / "csrc"
    work.mkdir(parents=True, exist_ok=True)
    for header in (*origin.glob("*.h"), *origin.glob("*.cuh")):
        shutil.copyfile(header, work / header.name)
    paths = []
    for name in SOURCES:
        (work / name).write_text(narrowed((origin / name).read_text(encoding="utf-8")), encoding="utf-8")
        paths.append(work / name)
    (work / "bindings.cpp").write_text(bindings(), encoding="utf-8")
    return [*paths, work / "bindings.cpp"]


def compile_module(package: Path, work: Path, *, arch: str) -> Path:
    """Compiles and links with torch's build of extensions, which runs ninja over all sources.

    Args:
      package: From `folder`.
      work: For sources and objects; what is up to date there is kept.
      arch: Compute capability, as "9.0".
    Returns:
      The shared library, beside gsplat's own files.
    """
    # Read by torch when the next line imports it.
    os.environ["TORCH_CUDA_ARCH_LIST"] = arch
    nvcc = find_nvcc(os.environ)
    if nvcc is None:
        raise RuntimeError("gsplat_build: nvcc must be in $CUDACXX, $CUDA_HOME/bin, PATH or /usr/local/cuda/bin")
    # nvcc on PATH may be a script that calls the real one.
    homes = (Path(nvcc).resolve().parents[1], Path(CUDA_FOLDER))
    home = next((home for home in homes if (home / "include" / "cuda_runtime.h").exists()), homes[0])
    os.environ.setdefault("CUDA_HOME", str(home))
    from torch.utils import cpp_extension

    sources = write_sources(package, work / "src")
    # The headers of CUDA's libraries may come with nvcc or with the wheels that torch depends on.
    wheels = sorted(Path(sysconfig.get_paths()["purelib"]).glob("nvidia/cu*/include"))
    includes = [package / "cuda" / "include", package / "cuda" / "csrc" / "third_party" / "glm", work / "src"]
    includes += [home / "include", *wheels]
    objects = work / "build"
    objects.mkdir(parents=True, exist_ok=True)
    # Host functions of kernels that are not compiled are dropped with their sections, and their symbols with them; a
    # jump table in the common read-only section would keep them.
    # fast math is gsplat's own choice.
    module = cpp_extension.load(
        "csrc", [str(path) for path in sources], build_directory=str(objects), verbose=True, with_cuda=True,
        extra_cflags=["-O3", "-w", "-ffunction-sections", "-fno-jump-tables", "-fvisibility=hidden"],
        extra_cuda_cflags=["-O3", "-w", "-use_fast_math"], extra_ldflags=["-Wl,--gc-sections"],
        extra_include_paths=[str(path) for path in includes],
    )  # fmt: skip
    missing = [name for name in (*FUNCTIONS, "CameraModelType") if not hasattr(module, name)]
    if missing:
        raise RuntimeError(f"gsplat_build: the module must have {', '.join(missing)}")
    target = package / f"csrc{sysconfig.get_config_var('EXT_SUFFIX')}"
    shutil.copyfile(Path(module.__file__ or ""), target)
    return target


def _arch() -> str:
    """Of the first GPU, else Hopper's."""
    import torch

    if not torch.cuda.is_available():
        return "9.0"
    return "{}.{}".format(*torch.cuda.get_device_capability(0))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; the last line of the output says what was built and how long it took."""
    parser = argparse.ArgumentParser(prog="python -m bench.gsplat_build", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for sources and objects")
    parser.add_argument("--arch", help="compute capability; default the GPU's, else 9.0")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    try:
        arch = options.arch or _arch()
        target = compile_module(folder(), options.work.resolve(), arch=arch)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"gsplat {VERSION}: {len(SOURCES)} sources for {arch} in {time.monotonic() - started:.0f} s, {target.name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
