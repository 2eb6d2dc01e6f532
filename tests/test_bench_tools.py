"""Other programs of the hardware run: gsplat's sources narrowed for the compiler, Nsight Compute's table read."""

import re
from pathlib import Path

import pytest

from bench import gsplat_build, profile_kernels


def test_only_other_channel_counts_leave_gsplats_sources(tmp_path):
    gsplat = pytest.importorskip("gsplat")
    package = Path(gsplat.__file__).parent
    files = gsplat_build.write_sources(package, tmp_path)
    assert [path.name for path in files] == [*gsplat_build.SOURCES, "bindings.cpp"]
    dropped = {}
    for name in gsplat_build.SOURCES:
        before = (package / "cuda" / "csrc" / name).read_text().splitlines()
        after = (tmp_path / name).read_text().splitlines()
        gone = [line.strip() for line in before if line not in set(after)]
        assert len(before) - len(after) == len(gone)
        dropped[name] = gone
    assert all(re.fullmatch(r"__(INS|LAUNCH_KERNEL)__\(\d+\)", line) for gone in dropped.values() for line in gone)
    counts = {int(line[line.index("(") + 1 : -1]) for line in dropped["RasterizeToPixels3DGSBwd.cu"]}
    assert counts == {8, 9, 16, 17, 32, 33, 64, 65, 128, 129, 256, 257, 512, 513}
    assert not dropped["IntersectTile.cu"]


def test_the_bindings_are_what_gsplat_binds():
    gsplat = pytest.importorskip("gsplat")
    own = (Path(gsplat.__file__).parent / "cuda" / "ext.cpp").read_text()
    for name in gsplat_build.FUNCTIONS:
        assert f"&gsplat::{name}" in own and f'm.def("{name}", &gsplat::{name});' in gsplat_build.bindings()


HEAD = '"ID","Process ID","Kernel Name","Context","Metric Name","Metric Unit","Metric Value"\n'


def line(launch, kernel, metric, unit, value):
    return f'"{launch}","7","{kernel}","1","{profile_kernels.METRICS[metric]}","{unit}","{value}"\n'


def test_the_hottest_kernels_come_first():
    text = "==PROF== Connected\n" + HEAD
    text += line(0, "blend(int)", "ns", "us", "1,250.5") + line(0, "blend(int)", "memory", "%", "40.5")
    text += line(1, "sort", "ns", "nsecond", "900") + line(1, "sort", "registers", "register/thread", "32")
    text += line(2, "blend(int)", "ns", "ms", "2") + line(2, "blend(int)", "memory", "%", "61")
    blend, sort = profile_kernels.read(text)
    assert (blend.name, blend.launches, blend.ns) == ("blend(int)", 2, pytest.approx(3_250_500.0))
    assert blend.figures["memory"] == 61.0  # of its longest launch
    assert sort.ns == 900.0
    rows = profile_kernels.table([blend, sort]).splitlines()
    assert "3250.5" in rows[1] and "61.0%" in rows[1] and "32" in rows[2]
    with pytest.raises(ValueError, match="ncu printed no table: ==ERROR== no counters"):
        profile_kernels.read("==ERROR== no counters")


def test_without_ncu_the_part_fails_with_its_reason(monkeypatch, capsys):
    monkeypatch.setattr(profile_kernels.shutil, "which", lambda _: None)
    assert profile_kernels.main([]) == 1 and "ncu must be on PATH" in capsys.readouterr().err
