"""The harness of the hardware runs: order, needs, time limit, going on after a cut."""

import json

import pytest

from bench import gpu
from bench.gpu import Part, Result


@pytest.fixture
def plan(monkeypatch):
    """Four small parts; `b` fails unless the file `mended` is in the run's folder."""
    script = "import sys, pathlib; sys.exit(not pathlib.Path(sys.argv[1], 'mended').exists())"
    parts = [
        Part("a", ("-c", "print('noise'); print('a is fine')")),
        Part("b", ("-c", script, "{out}"), needs=("a",)),
        Part("c", ("-c", "print('c')"), needs=("b",)),
        Part("slow", ("-c", "import time; time.sleep(60)"), needs=("a",)),
    ]
    monkeypatch.setattr(gpu, "parts", lambda *, gpu: parts)


def run(out, **more):
    more = {"minutes": 1.0, "gpu_reason": "none here", "say": lambda _: None} | more
    return {r.part: r for r in gpu.run(out, **more)}


def test_a_failure_skips_what_needs_it_and_a_second_call_goes_on(tmp_path, plan):
    first = run(tmp_path, minutes=0.04)
    assert [first[p].status for p in "abc"] == ["passed", "failed", "skipped"]
    assert first["a"].detail == "a is fine" and first["c"].detail == "b has not passed"
    assert first["slow"].status == "cut off" and first["slow"].seconds < 10
    page = (tmp_path / "table.md").read_text()
    assert "No GPU: none here" in page and "| b | failed |" in page
    (tmp_path / "mended").touch()
    with (tmp_path / "parts.jsonl").open("a") as file:
        file.write('{"part": "c", "sta')  # the machine went away in the middle of a line
    second = run(tmp_path, only=["c"])
    assert {p: r.status for p, r in second.items()} == {"a": "passed", "b": "passed", "c": "passed"}
    assert second["a"] == first["a"]  # not run again
    assert [r.part for r in gpu.read_results(tmp_path / "parts.jsonl")][-2:] == ["b", "c"]
    with pytest.raises(ValueError, match="--only must be part of one of a, b, c, slow, got x"):
        run(tmp_path, only=["x"])


def test_the_real_plan_times_no_family_before_its_tests():
    for on_gpu in (False, True):
        plan = gpu.parts(gpu=on_gpu)
        names = [part.name for part in plan]
        assert names[0] == "build" and len(names) == len(set(names))
        for part in plan:
            assert all(names.index(need) < names.index(part.name) for need in part.needs)
            if part.name.startswith("bench "):
                assert part.needs == (f"test {part.name.removeprefix('bench ')}",)
        assert "bench rasterize" in names
        assert any("gpu" == argument for part in plan for argument in part.command) == on_gpu


def test_the_table_gives_ratios_of_device_time(tmp_path):
    timing = {"p20": 1.0, "p50": 2.0, "p80": 3.0, "cpu_p50": 0.5, "calls": 9, "on_gpu": True}
    case = {"name": "x", "shape": "N2", "backend": "native", "timing": timing, "notes": "n"}
    case["peers"] = {"peer": timing | {"p50": 7.0}}
    (tmp_path / "rasterize.jsonl").write_text(json.dumps(case) + "\n")
    page = gpu.table(tmp_path, [Result("build", "passed", 1.0, "a | b")], None)
    assert "| rasterize | x N2 | native | 2.000 | peer 3.50x | n |" in page
    assert "No GPU" not in page and "| build | passed | 1 | a / b |" in page
