"""The harness of the hardware runs: order, needs, time limits, missing hardware, going on after a cut."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import gpu, page, plan, probes, rehearse_verify, report
from bench.gpu import Options, Runner, outcome
from bench.page import Result
from bench.plan import Part

ROOT = Path(__file__).parents[1]
SCRIPT = "import sys, pathlib; sys.exit(not pathlib.Path(sys.argv[1], 'mended').exists())"
PARTS = [
    Part("a", ("-c", "print('noise'); print('a is fine')")),
    Part("b", ("-c", SCRIPT, "{out}"), needs=("a",)),
    Part("c", ("-c", "print('c')"), needs=("b",)),
    Part("slow", ("-c", "import time; time.sleep(60)"), needs=("a",)),
]


@pytest.fixture
def small(monkeypatch):
    """Four small parts; `b` fails unless the file `mended` is in the run's folder."""
    monkeypatch.setattr(plan, "parts", lambda *, gpu, wheels=(): PARTS)


def run(out, minutes=1.0, only=(), **more):
    more = {"gpu_reason": "none here", "say": lambda _: None} | more
    return {r.part: r for r in Runner(out, Options(minutes, tuple(only)), **more).run()}


def test_a_failure_skips_what_needs_it_and_a_second_call_goes_on(tmp_path, small):
    first = run(tmp_path, minutes=0.06)
    assert [first[p].status for p in "abc"] == ["passed", "failed", "skipped"]
    assert first["a"].detail == "a is fine" and first["c"].detail == "b has not passed"
    assert first["slow"].status == "cut off" and first["slow"].seconds < 10
    text = (tmp_path / "page.md").read_text()
    assert "No GPU: none here" in text and "| b | failed |" in text and "- c: skipped, b has not passed" in text
    (tmp_path / "mended").touch()
    with (tmp_path / "parts.jsonl").open("a") as file:
        file.write('{"part": "c", "sta')  # the machine went away in the middle of a line
    second = run(tmp_path, only=["c"])
    assert {p: r.status for p, r in second.items()} == {"a": "passed", "b": "passed", "c": "passed"}
    assert second["a"] == first["a"]  # not run again
    assert [r.part for r in page.read_results(tmp_path / "parts.jsonl")][-2:] == ["b", "c"]
    assert "===== c: passed" in (tmp_path / "log.txt").read_text()
    with pytest.raises(ValueError, match="--only must be part of one of a, b, c, slow, got x"):
        run(tmp_path, only=["x"])


def test_only_five_files_are_kept_beside_the_work_folder(tmp_path, monkeypatch):
    line = '{"name": "n", "shape": "s", "dtype": "d", "backend": "b", "peers": {}, "notes": "", '
    line += '"timing": {"p20": 1, "p50": 1, "p80": 1, "cpu_p50": 1}}'
    script = f"import pathlib, sys; pathlib.Path(sys.argv[1], 'history/f.jsonl').write_text('''{line}''')"
    monkeypatch.setattr(plan, "parts", lambda *, gpu, wheels=(): [Part("m", ("-c", script, "{work}"))])
    assert run(tmp_path)["m"].status == "passed"
    assert {p.name for p in tmp_path.iterdir()} == {
        "parts.jsonl", "cases.jsonl", "facts.json", "page.md", "log.txt", "work",
    }  # fmt: skip
    assert page.cases(tmp_path)[0][0] == "f" and not list((tmp_path / "work" / "history").iterdir())


def test_a_background_part_runs_beside_the_others_until_one_measures(tmp_path, monkeypatch):
    wait = "import sys, time, pathlib; p = pathlib.Path(sys.argv[1], 'go')\nwhile not p.exists(): time.sleep(.01)"
    plans = [
        Part("build", ("-c", wait, "{out}"), background=True),
        Part("test", ("-c", "import sys, pathlib; pathlib.Path(sys.argv[1], 'go').touch()", "{out}")),
        Part("bench", ("-c", "pass"), measures=True),
    ]
    monkeypatch.setattr(plan, "parts", lambda *, gpu, wheels=(): plans)
    assert [r.status for r in run(tmp_path).values()] == ["passed"] * 3
    order = [r.part for r in page.read_results(tmp_path / "parts.jsonl")]
    assert order == ["test", "build", "bench"]  # bench began when build had ended


MISSING = {
    "gpu": ("gpu_missing", "the driver runs CUDA 12.4 at most, older than the runtime's 13.0"),
    "nvcc": ("nvcc_missing", "nvcc is not in PATH"),
    "tool:ncu": ("tool_missing", "ncu is not on PATH"),
    "module:gsplat": ("module_missing", "gsplat is not installed; bring its wheel with --wheels"),
    "memory:60": ("memory_missing", "60 GB of GPU memory must be free, got 3.0"),
}


@pytest.mark.parametrize("requirement", MISSING)
def test_what_is_missing_skips_its_part_with_the_reason_and_the_rest_runs(tmp_path, monkeypatch, requirement):
    name, reason = MISSING[requirement]
    monkeypatch.setattr(probes, name, lambda *_: reason)
    plans = [Part("needy", ("-c", "raise SystemExit(1)"), requires=(requirement,)), Part("rest", ("-c", "pass"))]
    monkeypatch.setattr(plan, "parts", lambda *, gpu, wheels=(): plans)
    results = run(tmp_path)
    assert results["needy"] == Result("needy", "skipped", 0.0, reason) and results["rest"].status == "passed"
    text = (tmp_path / "page.md").read_text()
    assert f"| needy | skipped | 0 | {reason} |" in text and f"- needy: skipped, {reason}" in text


def test_the_probe_of_the_gpu_says_why(monkeypatch):
    import torch

    def ask(*, is_there, runtime, driver):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: is_there)
        monkeypatch.setattr(probes, "runtime_cuda", lambda: runtime)
        monkeypatch.setattr(probes, "driver_cuda", lambda: driver)
        return probes.gpu_missing.__wrapped__()

    assert ask(is_there=True, runtime=(13, 0), driver=(13, 0)) is None
    assert ask(is_there=False, runtime=None, driver=None) == "torch is built without CUDA"
    assert ask(is_there=False, runtime=(13, 0), driver=None) == "there is no NVIDIA driver"
    assert ask(is_there=False, runtime=(13, 0), driver=(13, 1)) == "torch sees no CUDA device"
    older = ask(is_there=False, runtime=(13, 0), driver=(12, 8))
    assert older == "the driver runs CUDA 12.8 at most, older than the runtime's 13.0"


def test_the_other_probes(monkeypatch, tmp_path):
    assert probes.missing("tool:sh") is None and probes.missing("tool:no-such-tool") == "no-such-tool is not on PATH"
    assert probes.missing("module:torch") is None
    assert probes.missing("module:carried") == "carried is not installed; bring its wheel with --wheels"
    (tmp_path / "carried.py").touch()
    assert probes.missing("module:carried", (tmp_path,)) is None
    monkeypatch.setattr(probes, "nvidia_smi", lambda *_: "1024 MiB")
    assert probes.missing("memory:1") is None
    assert probes.missing("memory:60") == "60 GB of GPU memory must be free, got 1.1"
    monkeypatch.setenv("CUDACXX", "/no/nvcc")
    assert "CUDACXX must name an executable" in (probes.missing("nvcc") or "")


def test_how_a_part_ended():
    tests = Part("t", ("-m", "pytest"))
    assert outcome(tests, 0, 1.0, "...\n3 passed, 1 skipped in 2s\n").status == "passed"
    assert outcome(tests, 0, 1.0, "4 skipped in 2s\n").status == "skipped"  # nothing was checked
    none = outcome(tests, 5, 1.0, "SKIPPED [1] x.py: could not import 'roma'\n1 skipped\n")
    assert none.status == "skipped" and "could not import 'roma'" in none.detail
    assert outcome(tests, 1, 1.0, "E assert 1 == 2\n1 failed\n").detail == "E assert 1 == 2 | 1 failed"
    cut = outcome(tests, None, 9.0, "a.py::x PASSED\nb.py::y PASSED\n")
    assert cut.status == "cut off" and "2 tests had passed" in cut.detail
    raced = "a.py::x PASSED\n========= Error: Race reported between Write access at f\n"
    assert outcome(tests, None, 9.0, raced).status == "failed"  # cut off later, but it had found one
    assert outcome(Part("x", ("-c", "")), 86, 1.0, "========= ERROR SUMMARY: 2 errors\n").status == "failed"


@pytest.mark.parametrize("on_gpu", [False, True])
def test_the_real_plan(on_gpu):
    parts = plan.parts(gpu=on_gpu)
    names = [part.name for part in parts]
    assert names[0] == "build" and len(names) == len(set(names))
    for part in parts:
        assert all(names.index(need) < names.index(part.name) for need in part.needs)
        if part.name.startswith("bench "):  # no family is timed before its tests, nor beside another process
            assert part.needs == (f"test {part.name.removeprefix('bench ')}",) and part.measures
        on_device = part.name.startswith("test ") or part.name == "bench rasterize"
        assert ("gpu" in part.command) == (on_gpu and on_device)
        assert ("gpu and not pool" in part.command) == (part.name in ("memcheck", "racecheck", "initcheck"))
    assert {f"bench {family}" for family in plan.FAMILIES} <= set(names)
    speed = parts[names.index("bench rasterize")].command
    assert ("bench/test_rasterize_gpu.py" in speed) is on_gpu and ("bench/test_rasterize.py" in speed) is not on_gpu
    assert names.index("gsplat") < names.index("test rasterize") and parts[names.index("gsplat")].background
    assert ("--smoke" in parts[names.index("loop")].command) is not on_gpu
    assert ("bench.rehearse_verify" in parts[names.index("verify")].command) is not on_gpu
    for name in ("memcheck", "racecheck", "initcheck", "ncu", "gsplat"):
        assert "gpu" in parts[names.index(name)].requires
    families = ("rasterize", "noise_transport", "sde_step", "se3")
    order = ["build", "verify", *(f"{kind} {family}" for kind in ("test", "bench") for family in families), "loop"]
    assert [name for name in names if name in order] == order


def test_the_tests_that_need_torchs_pool_say_so():
    """Under a memory checker the pool is off: no graph that allocates can be captured, and there are no statistics."""
    found = 0
    for path in (ROOT / "tests" / "kernels").glob("test_*.py"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            body = ast.get_source_segment(text, node) if isinstance(node, ast.FunctionDef) else None
            if body and re.search(r"cuda\.(graph|max_memory_allocated)\(", body):
                found += 1
                marks = [ast.unparse(decorator) for decorator in node.decorator_list]
                assert "pytest.mark.pool" in marks, f"{path.name}: {node.name}"
    assert found >= 3


def test_the_wheels_of_the_bundle_are_those_that_the_parts_require():
    lines = [line.split("#")[0].strip() for line in (plan.ROOT / "bench" / "gpu-wheels.txt").read_text().splitlines()]
    pinned = dict(line.split("==") for line in lines if line)
    required = {r for part in plan.parts(gpu=True) for r in part.requires if r.startswith("module:")}
    assert required and {r.removeprefix("module:") for r in required} <= set(pinned)


def test_limits_leave_time_for_what_follows():
    parts = [Part(str(i), (), share=share) for i, share in enumerate((10, 30, 60))]
    assert plan.limit(parts[0], parts[1:], 1000.0) == pytest.approx(200.0)
    assert plan.limit(parts[1], parts[2:], 900.0) == pytest.approx(600.0)
    assert plan.limit(parts[0], parts[1:], 100.0) == 60.0  # a short run is spent on the first parts
    assert plan.limit(parts[2], [], 30.0) == 30.0  # the last one may use all that is left
    for on_gpu in (False, True):  # if each takes its share, all get a turn
        front = [part for part in plan.parts(gpu=on_gpu) if not part.background]
        assert sum(part.share for part in front) == pytest.approx(100.0)
        left = 540.0
        for i, part in enumerate(front):
            assert plan.limit(part, front[i + 1 :], left) >= 5.39 * part.share
            left -= 5.4 * part.share


def test_only_brings_what_it_needs():
    chosen = [part.name for part in plan.order(plan.parts(gpu=True), ["bench rasterize"])]
    assert chosen == ["build", "wheels", "gsplat", "test rasterize", "bench rasterize"]


def test_plan_prints_and_runs_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(probes, "gpu_missing", lambda: "there is no NVIDIA driver")
    assert gpu.main(["--plan", "--minutes", "3", "--out", str(tmp_path / "never")]) == 0
    lines = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "skipped: there is no NVIDIA driver" in lines["memcheck"]
    assert "at most" in lines["test rasterize"] and "tests/kernels/test_rasterize.py" in lines["test rasterize"]
    assert not (tmp_path / "never").exists()


def test_wheels_that_are_still_to_be_installed_count(tmp_path, monkeypatch):
    import zipfile

    wheel = tmp_path / "peer-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("peer_of_nobody/__init__.py", "")
    parts = [Part("late", ("-c", "pass"), requires=("module:peer_of_nobody",))]
    monkeypatch.setattr(plan, "parts", lambda *, gpu, wheels=(): parts)
    runner = Runner(tmp_path, Options(1.0, wheels=(wheel,)), gpu_reason="none", say=lambda _: None)
    assert "late" in runner.describe() and "skipped" not in runner.describe()
    assert "is not installed" in (runner.reason_to_skip(parts[0]) or "")  # until it is
    assert gpu.main(["--wheels", str(tmp_path / "none"), "--out", str(tmp_path / "o")]) == 2


def test_clocks_are_only_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(report, "_output", lambda *command: asked.append(command) or "1980 MHz\nsecond GPU")
    assert report.nvidia_smi("clocks.sm") == "1980 MHz"
    assert asked == [("nvidia-smi", "--query-gpu=clocks.sm", "--format=csv,noheader")]


def test_nothing_on_the_way_needs_packages_that_a_gpu_machine_may_lack():
    """Imports of the harness, of every benchmark and of the kernels' GPU tests, with those packages forbidden."""
    script = """
import importlib, os, pathlib, sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"diffusers", "peft", "nvtx", "lpips", "gsplat", "roma", "tyro", "ftfy", "imageio"}:
            raise ImportError(f"No module named {name!r}")
sys.meta_path.insert(0, Forbid())
import pytest
for path in sorted([*pathlib.Path("bench").glob("*.py"), *pathlib.Path("tests/kernels").glob("test_*gpu*.py")]):
    name = ".".join(path.with_suffix("").parts)
    if name == "bench.test_loop":  # no part of the run: it opens a diffusers folder, on a CPU
        continue
    try:
        importlib.import_module(name)
    except (pytest.skip.Exception, ImportError) as error:
        # The parts of se3 require its peer roma, and the loop's part tyro, which worldr1's settings import.
        wanted = "roma" if "se3" in name else "tyro" if "wan_" in name else "nothing"
        assert wanted in str(error), (name, error)
print("imported")
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "worldr1")])}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout.startswith("imported"), done.stderr[-2000:]


def test_the_verifier_is_rehearsed_with_the_cpu_in_the_devices_place(capsys, monkeypatch):
    from worldr1_kernels.verify import gate, target
    from worldr1_kernels.verify.checks import se3

    monkeypatch.setattr(gate, "TARGET", gate.TARGET)
    monkeypatch.setenv("WORLDR1_CACHE", "")
    monkeypatch.setattr(rehearse_verify, "command", SimpleNamespace(main=lambda asked: found.append(asked) or 0))
    found = []
    assert rehearse_verify.main() == 0 and found == [["--device", "cpu", "--again"]]
    made = target.load(gate.TARGET, "cpu")
    assert made.backends("se3") == {"native": None} and made.checks("se3") is se3.CHECKS
