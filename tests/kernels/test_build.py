"""The build plan: compilers found, modules chosen, the ninja file, the installed modules."""

import os
from pathlib import Path

import pytest
import torch

from worldr1_kernels import _native, build

ROOT = Path(__file__).resolve().parents[2]


def executable(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def no_cuda_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "CUDA_FOLDER", str(tmp_path / "absent"))


@pytest.mark.usefixtures("no_cuda_folder")
def test_nvcc_is_looked_for_in_order(tmp_path: Path) -> None:
    on_path = executable(tmp_path / "bin", "nvcc")
    in_home = executable(tmp_path / "cuda" / "bin", "nvcc")
    named = executable(tmp_path / "other", "my-nvcc")
    environment = {"PATH": str(on_path.parent)}
    assert build.find_nvcc(environment) == str(on_path)
    environment["CUDA_HOME"] = str(in_home.parent.parent)
    assert build.find_nvcc(environment) == str(in_home)
    environment["CUDACXX"] = str(named)
    assert build.find_nvcc(environment) == str(named)
    with pytest.raises(RuntimeError, match="build: CUDACXX must name an executable"):
        build.find_nvcc({"PATH": "", "CUDACXX": str(tmp_path / "nothing")})
    assert build.find_nvcc({"PATH": str(tmp_path)}) is None


@pytest.mark.usefixtures("no_cuda_folder")
def test_plan_with_and_without_nvcc(tmp_path: Path) -> None:
    executable(tmp_path / "host", "g++")
    nvcc = executable(tmp_path / "cuda", "nvcc")
    without = {"PATH": str(tmp_path / "host")}
    plan = build.make_plan(without)
    assert [m.name for m in plan.modules] == ["_C_cpu"] and "nvcc not found" in plan.message
    with pytest.raises(RuntimeError, match="WORLDR1_BUILD=cuda needs nvcc"):
        build.make_plan({**without, "WORLDR1_BUILD": "cuda"})
    both = {"PATH": f"{tmp_path / 'host'}:{nvcc.parent}"}
    plan = build.make_plan({**both, "WORLDR1_CUDA_ARCHS": "80;90a"})
    assert [m.name for m in plan.modules] == ["_C_cpu", "_C_cuda"] and plan.archs == ("80", "90a")
    assert [m.name for m in build.make_plan({**both, "WORLDR1_BUILD": "cpu"}).modules] == ["_C_cpu"]
    with pytest.raises(ValueError, match="build: WORLDR1_BUILD must be one of .* got 'gpu'"):
        build.make_plan({**both, "WORLDR1_BUILD": "gpu"})
    with pytest.raises(RuntimeError, match="a C\\+\\+17 compiler must be on PATH"):
        build.make_plan({"PATH": str(nvcc.parent)})


def test_architectures() -> None:
    assert build.parse_archs("") == build.DEFAULT_ARCHS == ("80+PTX", "90a")
    assert build.parse_archs("", ("80", "86", "90a", "75")) == ("80+PTX", "90a", "86")  # 7.5 is too old
    assert build.parse_archs("80; 90a,100+PTX", ("86",)) == ("80", "90a", "100+PTX")
    assert build.parse_archs("all") == build.ALL_ARCHS
    for wrong in ("sm_90", "90+ptx", "9.0"):
        with pytest.raises(ValueError, match="WORLDR1_CUDA_ARCHS must look like"):
            build.parse_archs(wrong)
    with pytest.raises(ValueError, match="WORLDR1_CUDA_ARCHS must be 80 or later, got '75'"):
        build.parse_archs("80;75")
    assert build.gencode("90a") == "-gencode='arch=compute_90a,code=sm_90a'"
    assert build.gencode("80+PTX") == "-gencode='arch=compute_80,code=[sm_80,compute_80]'"


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 9.0; echo 8.9; echo 9.0", ("89", "90a")),
        ("echo 12.0; echo 10.0", ("100", "120")),
        ("echo no devices were found; exit 6", ()),
        ("echo '[N/A]'", ()),
    ],
)
def test_gpus_of_this_machine(tmp_path: Path, script: str, expected: tuple[str, ...]) -> None:
    executable(tmp_path, "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    assert build.gpus_here({"PATH": f"{tmp_path}:{os.environ['PATH']}"}) == expected
    assert build.gpus_here({"PATH": str(tmp_path / "none")}) == ()


def test_ninja_file(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "WORLDR1_BUILD": "cpu"}
    plan = build.make_plan(environment, machine="x86_64")
    text = build.ninja_text(plan, ROOT, tmp_path)
    sources = list((ROOT / "csrc" / "cpu").glob("*.cpp"))
    simd = [path for path in sources if path.name.endswith("_simd.cpp")]
    assert text.count(": cxx ") == len(sources) + 2 * len(simd) and text.count("-march=x86-64-v") == 3 * len(simd)
    assert len(simd) >= 1
    assert "-ffast-math" not in text and "fopenmp" not in text and "torch" not in text.replace(str(ROOT), "")
    other = build.ninja_text(build.make_plan(environment, machine="aarch64"), ROOT, tmp_path)
    assert "-march" not in other and other.count(": cxx ") == len(sources)
    for module in plan.modules:
        for source, _, _ in module.objects:
            assert (ROOT / "csrc" / source).is_file()


def test_headers_are_copied_once(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "x.h").write_text("1")
    build._copy_headers(source, target)
    copied = target / "deep" / "x.h"
    os.utime(copied, (1, 1))
    (source / "deep" / "x.h").touch()
    build._copy_headers(source, target)
    assert copied.stat().st_mtime == 1
    (source / "deep" / "x.h").write_text("2")
    build._copy_headers(source, target)
    assert copied.read_text() == "2"


def test_installed_modules_answer() -> None:
    assert _native.cpu_unavailable() is None
    assert _native.cpu().instruction_set() in ("x86-64-v2", "x86-64-v3", "x86-64-v4", "baseline")
    module = _native._load("_C_cuda")[0]
    if module is not None:
        assert build.parse_archs(";".join(module.architectures()))
    reason = _native.cuda_unavailable()
    if reason is not None:
        assert "not built" in reason or "there is no device" in reason
        with pytest.raises(RuntimeError, match="worldr1_kernels: "):
            _native.cuda()


def test_an_address_is_null_where_there_are_no_elements() -> None:
    tensor = torch.zeros(4, 3)
    assert _native.address(tensor) == tensor.data_ptr() != 0
    assert _native.address(tensor[2:]) == tensor.data_ptr() + 2 * 3 * tensor.element_size()
    for empty in (None, torch.empty(0), tensor[2:2], tensor[:, :0].contiguous()):
        assert _native.address(empty) == 0


def test_sources_include_no_torch_header() -> None:
    for path in (ROOT / "csrc").rglob("*"):
        if path.suffix in (".h", ".cpp", ".cu"):
            assert "#include <torch" not in path.read_text() and "ATen" not in path.read_text()
