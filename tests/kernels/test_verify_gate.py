"""What "auto" makes of verdicts: kept, rubbish, of another device, made by two at once; and what ranks agree on."""

import functools
import json
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from tests.kernels import fake_targets
from worldr1_kernels import _dispatch, _native, trajectory_error
from worldr1_kernels.se3 import api, geodesic_distance, path_length, relative_poses, trajectory_reward
from worldr1_kernels.verify import command, gate, judge, store
from worldr1_kernels.verify.judge import Ended, verify
from worldr1_kernels.verify.target import Target, fingerprint
from worldr1_kernels.verify.worker import run_checks

CUDA = torch.device("cuda:0")
FAKES = "tests.kernels.fake_targets:"
PROBES = {"native": _dispatch.always_available, "reference": _dispatch.always_available}


class Runs(list):  # type: ignore[type-arg]
    """(class, family) of every verification, which runs here and not in a process of its own."""

    def run(self, target: Target, family: str, backend: str, seconds: float) -> Ended:
        self.append((type(target).__name__, family))
        return Ended({**run_checks(target, family, backend), "identity": target.identity()}, 0, "")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """A process that has settled nothing, with an empty cache and a right device."""
    for name in ("WORLDR1_BACKEND", "XDG_CACHE_HOME", *(f"FAKE_{n}" for n in ("NAME", "DRIVER", "FILES", "WRONG"))):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLDR1_CACHE", str(tmp_path))
    made = Runs()
    monkeypatch.setattr(judge, "_run", made.run)
    monkeypatch.setattr(gate, "TARGET", FAKES + "Right")
    fresh(monkeypatch)
    return made


def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a new process."""
    monkeypatch.setattr(gate, "_SETTLED", {})
    monkeypatch.setattr(_dispatch, "_ANSWERS", {})
    monkeypatch.setattr(_dispatch, "_SAID", set())


def resolve(device: torch.device = CUDA) -> str:
    return _dispatch.resolve_backend("trajectory_error", "auto", device, PROBES)


def verdict_file(cache: Path) -> Path:
    (path,) = (cache / "verdicts").glob("*.json")
    return path


def test_a_first_use_verifies_and_says_so_in_one_line(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resolve() == resolve() == "native"
    assert runs == [("Right", "se3")]
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("check: ")]
    assert said[0].startswith("worldr1_kernels: verifying se3, native, on Fake 0 ... ")
    assert said[-1].endswith(" s") and "passed, 25 comparisons, " in said[-1]
    kept = json.loads(verdict_file(tmp_path).read_text())
    assert kept["passed"] is True and kept["identity"]["device"] == "Fake 0" and kept["comparisons"] == 25
    fresh(monkeypatch)
    assert resolve() == "native" and len(runs) == 1 and capsys.readouterr().err == ""


def test_a_failure_takes_the_reference_loudly_and_stays(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gate, "TARGET", FAKES + "OneElementOff")
    with pytest.warns(
        RuntimeWarning, match="se3, native, failed verification on Fake 0, report: .*kernel error"
    ) as told:
        assert resolve() == "reference"
    report = verdict_file(tmp_path).with_suffix(".report.txt")
    assert str(report) in str(told[0].message) and "angle: kernel error" in report.read_text()
    assert "se3 takes reference on cuda (native: failed verification" in capsys.readouterr().err
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve() == "reference"  # said once
    monkeypatch.setattr(gate, "TARGET", FAKES + "Right")
    assert resolve() == "reference" and len(runs) == 1  # a process does not change its numbers in the middle
    fresh(monkeypatch)
    with pytest.warns(RuntimeWarning, match="failed verification"):
        assert resolve() == "reference"  # the verdict is kept
    assert len(runs) == 1


def test_the_run_goes_on_with_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """From a call to the process that verifies, and back."""
    monkeypatch.setenv("WORLDR1_CACHE", str(tmp_path))
    monkeypatch.delenv("WORLDR1_BACKEND", raising=False)
    monkeypatch.setattr(_dispatch, "VERIFIED_DEVICES", ("cpu",))
    monkeypatch.setattr(gate, "TARGET", FAKES + "Aborts")
    fresh(monkeypatch)
    monkeypatch.setattr(api.native_impl, "all_rigid", None)  # the checks of the inputs do not touch it either
    poses = torch.eye(4).repeat(2, 3, 1, 1)
    with pytest.warns(RuntimeWarning, match=f"report: {tmp_path}.*died of SIGABRT, in check: distances"):
        got = trajectory_error(poses, poses)
    assert torch.equal(got.rotation, trajectory_error(poses, poses, backend="reference").rotation)
    assert "NOT passed: its process died of SIGABRT" in capfd.readouterr().err


def test_the_checks_of_poses_go_through_the_same_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    """They asked the compiled module whatever the backend, on a device that it was not compiled for too."""
    monkeypatch.delenv("WORLDR1_BACKEND", raising=False)
    asked: list[torch.Size] = []
    monkeypatch.setattr(api.native_impl, "all_rigid", lambda matrices, tolerance: asked.append(matrices.shape) or True)
    poses, turn = torch.eye(4).repeat(2, 3, 1, 1), torch.eye(3)

    def everything(backend: Any) -> int:
        asked.clear()
        trajectory_error(poses, poses, backend=backend)
        trajectory_reward(poses, poses, median_depth=1.0, backend=backend)
        geodesic_distance(turn, turn, backend=backend)
        if backend == "auto":
            path_length(poses)
            relative_poses(poses)
        return len(asked)

    assert everything("auto") == 8 and everything("native") == 6  # the C++ of the CPU
    assert everything("reference") == 0
    monkeypatch.setenv("WORLDR1_BACKEND", "reference")
    assert everything("auto") == 0
    monkeypatch.delenv("WORLDR1_BACKEND")
    monkeypatch.setattr(_dispatch, "VERIFIED_DEVICES", ("cpu",))
    fresh(monkeypatch)
    monkeypatch.setattr(gate, "unverified", lambda *_: "not verified")
    assert everything("auto") == 0


@pytest.mark.parametrize(
    "rubbish",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe",
        b'{"passed": true}',
        "cut",
        "passed: 1",
        "format",
        "no comparison",
        "family",
    ],
    ids=str,
)
def test_rubbish_in_the_cache_is_no_verdict(
    rubbish: bytes | str, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve() == "native"
    path = verdict_file(tmp_path)
    kept = json.loads(path.read_text())
    if rubbish == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif isinstance(rubbish, bytes):
        path.write_bytes(rubbish)
    else:
        changed: dict[str, Any] = {"passed: 1": {"passed": 1}, "format": {"format": 0}}
        changed |= {"no comparison": {"comparisons": 0}, "family": {"family": "rasterize"}}
        path.write_text(json.dumps(kept | changed[rubbish]))
    fresh(monkeypatch)
    assert resolve() == "native" and len(runs) == 2
    again = json.loads(path.read_text())
    assert again | {"seconds": 0, "when": ""} == kept | {"seconds": 0, "when": ""}  # whole again


@pytest.mark.parametrize("what", ["DRIVER", "FILES", "NAME"])
def test_another_driver_binary_or_device_is_verified_again(
    what: str, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve() == "native"
    fresh(monkeypatch)
    monkeypatch.setenv(f"FAKE_{what}", "another")
    monkeypatch.setenv("FAKE_WRONG", "1")
    monkeypatch.setattr(gate, "TARGET", FAKES + "WrongByEnvironment")
    with pytest.warns(RuntimeWarning, match="failed verification"):
        assert resolve() == "reference"
    assert len(runs) == 2 and len(list((tmp_path / "verdicts").glob("*.json"))) == 2


def test_two_kinds_of_device_have_a_verdict_each(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "TARGET", FAKES + "OnceRightOnceWrong")
    assert resolve(torch.device("cuda:0")) == "native"
    with pytest.warns(RuntimeWarning, match="on Fake 1"):
        assert resolve(torch.device("cuda:1")) == "reference"
    assert resolve(torch.device("cuda:0")) == "native" and len(runs) == 2


def test_a_cache_that_cannot_be_written_costs_a_verification_a_process(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WORLDR1_CACHE", str(tmp_path / "file"))
    assert resolve() == resolve() == "native"
    assert "the verdict cannot be kept" in capsys.readouterr().err and len(runs) == 1
    fresh(monkeypatch)
    monkeypatch.setattr(gate, "TARGET", FAKES + "OneElementOff")
    with pytest.warns(RuntimeWarning, match="report: ") as told:
        assert resolve() == "reference"
    report = Path(str(told[0].message).split("report: ")[1].split(".txt")[0] + ".txt")
    assert "kernel error" in report.read_text()  # among the system's temporary files
    report.unlink()


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WORLDR1_CACHE", str(tmp_path / "named"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert store.folder() == tmp_path / "named" / "verdicts"
    monkeypatch.delenv("WORLDR1_CACHE")
    assert store.folder() == tmp_path / "xdg" / "worldr1" / "verdicts"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the standard says to ignore it
    assert store.folder() == tmp_path / "home" / ".cache" / "worldr1" / "verdicts"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(OSError, match="set WORLDR1_CACHE"):
        store.folder()
    assert store.load("se3", "native", {}) is None


def test_a_full_device_is_not_remembered(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "TARGET", FAKES + "Full")
    with pytest.warns(RuntimeWarning, match="could not be verified now on Fake 0.*out of memory"):
        assert resolve() == "reference"
    assert not list((tmp_path / "verdicts").glob("*.json"))
    monkeypatch.setattr(gate, "TARGET", FAKES + "Right")
    assert resolve() == "reference"
    fresh(monkeypatch)
    assert resolve() == "native"


def test_a_device_that_cannot_be_looked_at_gets_the_reference(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gate, "TARGET", "worldr1_kernels.verify.target:Target")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert resolve() == "reference" and runs == []
    assert "the device cannot be looked at: " in capsys.readouterr().err

    fresh(monkeypatch)

    def broken(self: Target) -> dict[str, str]:
        raise OSError("no libcuda")

    monkeypatch.setattr(gate, "TARGET", FAKES + "Right")
    monkeypatch.setattr(fake_targets.Right, "identity", broken)
    with pytest.warns(RuntimeWarning, match="could not be verified on Fake 0: OSError: no libcuda"):
        assert resolve() == "reference"


def test_no_verification_while_a_graph_is_captured(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_CAPTURING", "1")
    assert resolve() == resolve() == "reference" and runs == []
    said = capsys.readouterr().err
    assert said.count("not verified on Fake 0 yet") == 1 and "run `python -m worldr1_kernels verify` first" in said
    monkeypatch.delenv("FAKE_CAPTURING")
    assert resolve() == "reference" and runs == []  # it stays
    fresh(monkeypatch)
    assert resolve() == "native" and len(runs) == 1
    fresh(monkeypatch)
    monkeypatch.setenv("FAKE_CAPTURING", "1")
    assert resolve() == "native"  # a verdict that is kept does


def test_no_verification_under_torch_compile(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_dispatch, "VERIFIED_DEVICES", ("cpu",))
    eye = torch.eye(3).repeat(2, 1, 1)

    def compiled() -> str:
        torch._dynamo.reset()
        used = []
        backend = lambda module, _: used.append(str(module.code)) or module.forward  # noqa: E731
        torch.compile(lambda a: geodesic_distance(a, a), fullgraph=True, backend=backend)(eye)
        return "native" if "'native'" in used[0] else "reference" if "'reference'" in used[0] else used[0]

    assert compiled() == compiled() == "reference" and runs == []
    assert capsys.readouterr().err.count("not verified on Fake 0 yet") == 1
    fresh(monkeypatch)
    geodesic_distance(eye, eye)
    assert runs == [("Right", "se3")] and compiled() == "native"
    fresh(monkeypatch)
    assert compiled() == "native" and len(runs) == 1


def at_once(*calls: Callable[[], Any]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_two_processes_at_once_verify_once(runs: Runs) -> None:
    """Locks are of open files, not of processes: two threads stand for two processes."""
    one, two = fake_targets.Right("cpu"), fake_targets.Right("cpu")
    verdicts: list[store.Verdict] = []
    at_once(*[lambda t=t: verdicts.append(verify(t, "se3", "native")) for t in (one, two)])
    assert len(runs) == 1 and verdicts[0] == verdicts[1] and verdicts[0].passed


def test_a_lock_that_was_left_is_none_and_one_that_is_held_is_not_waited_for_for_ever(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = fake_targets.Right("cpu")
    path = store.path_of("se3", "native", target.identity()).with_suffix(".lock")
    path.parent.mkdir()
    path.write_text("process 1234, which is dead")
    start = time.monotonic()
    assert verify(target, "se3", "native", again=True).passed and len(runs) == 1
    monkeypatch.setattr(judge, "GRACE", 0.2 - judge.SECONDS)
    with store.lock("se3", "native", target.identity(), 0.0) as held:
        assert held
        assert verify(target, "se3", "native", again=True).passed and len(runs) == 2
    assert time.monotonic() - start < 60.0
    with store.lock("se3", "native", target.identity(), 0.0) as held:
        assert held  # let go


def test_the_command_and_what_it_leaves(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--family", "se3", "--device", "cuda:0"]) == 0
    assert "Fake 0  se3              native  passed, 25 comparisons in " in capsys.readouterr().out
    assert command.main(["--family", "se3", "--device", "cuda:0"]) == 0 and len(runs) == 1
    monkeypatch.setenv("FAKE_WRONG", "1")
    monkeypatch.setattr(gate, "TARGET", FAKES + "WrongByEnvironment")
    assert command.main(["--family", "se3", "--device", "cuda:0", "--again"]) == 1 and len(runs) == 2
    assert "FAILED: distances: " in capsys.readouterr().out
    monkeypatch.setattr(command, "devices", lambda: iter([fake_targets.Right("cuda:0"), fake_targets.Right("cuda:1")]))
    rows = command.rows()
    assert [name for name, _ in rows] == ["verdicts", *[f"  {family}" for family in fake_targets.QUICK]] * 2
    assert rows[3][1].startswith("native: FAILED: distances: ") and ".report.txt" in rows[3][1]
    assert rows[2][1] == "native: not verified yet; triton: a fake has none"
    monkeypatch.setattr(command, "devices", lambda: iter([]))
    assert command.main([]) == 2
    with pytest.raises(SystemExit):
        command.main(["--family", "se4"])


def test_the_fingerprint_is_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from worldr1_kernels.verify import target

    monkeypatch.setattr(target, "PACKAGE", tmp_path)
    seen = set()
    for name, text in (("a.py", "1"), ("_C_cuda.so", "1"), ("_C_cuda.so", "2"), ("sde_step/triton_kernels.py", "")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        fingerprint.cache_clear()
        seen.add(fingerprint())
    fingerprint.cache_clear()
    assert len(seen) == 4


class TestWhatItIsCompiledFor:
    def module(self, monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
        module = type("module", (), {"architectures": staticmethod(lambda: list(names))})
        monkeypatch.setattr(_native, "_load_cuda", lambda: (module, ""))

    def test_machine_code_and_ptx(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.module(monkeypatch, "80", "90a", "120", "120+PTX")
        runs = [(8, 0), (8, 6), (8, 9), (9, 0), (12, 0), (12, 1), (13, 0)]
        assert [c for c in runs if _native.compiled_for(c) is not None] == []
        assert [c for c in ((7, 5), (10, 0)) if _native.compiled_for(c) is None] == []
        assert _native.compiled_for((10, 0)) == (
            "worldr1_kernels._C_cuda is compiled for 80, 90a, 120, 120+PTX, and not for this device's 10.0; build it "
            "with WORLDR1_CUDA_ARCHS=100"
        )
        assert "needs compute capability 8.0 or later, this device has 7.5" in str(_native.compiled_for((7, 5)))

    def test_names_with_a_letter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.module(monkeypatch, "90a", "100f", "110aPTX")
        can = [c for c in ((8, 9), (9, 0), (9, 1), (10, 0), (10, 3), (11, 0), (12, 0)) if not _native.compiled_for(c)]
        assert can == [(9, 0), (10, 0), (10, 3), (11, 0)]

    def test_a_probe_knows_its_device_also_under_torch_compile(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.module(monkeypatch, "90a")
        monkeypatch.setattr(
            _native, "_not_compiled", functools.cache(lambda device: _native.compiled_for((9, device.index)) or "")
        )
        good, bad = torch.device("cuda:0"), torch.device("cuda:7")
        assert _native.unavailable(good) is None and "not for this device's 9.7" in (_native.unavailable(bad) or "")

        def both(x: torch.Tensor) -> torch.Tensor:
            return x + 2 * (_native.unavailable(good) is None) + 4 * (_native.unavailable(bad) is None)

        torch._dynamo.reset()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Dynamo warns where it traces what is cached
            assert float(torch.compile(both, fullgraph=True, backend="eager")(torch.zeros(()))) == 2.0

    def test_a_module_that_does_not_say_is_believed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_native, "_load_cuda", lambda: (object(), ""))
        assert _native.compiled_for((7, 5)) is None
        self.module(monkeypatch)
        assert "compiled for nothing" in (_native.compiled_for((9, 0)) or "")


def _rank(rank: int, port: int, folder: str) -> None:
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "WORLDR1_CACHE": f"{folder}/cache",
    }  # fmt: skip
    os.environ.pop("WORLDR1_BACKEND", None)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    _dispatch.VERIFIED_DEVICES = ("cpu",)
    _dispatch.FAMILIES = {"trajectory_error": "se3", "noise_transport": "noise_transport"}
    runs = Runs()
    judge._run = runs.run  # type: ignore[assignment]
    warnings.simplefilter("ignore")
    found: dict[str, Any] = {}

    def case(name: str, target: str, kind: str, wrong: bool, backend: str = "") -> None:
        """One start of a run: what is agreed on, what was verified, and what a call then takes."""
        runs.clear()
        gate._SETTLED.clear()
        _dispatch._ANSWERS.clear()
        gate.TARGET = FAKES + target
        os.environ |= {"FAKE_NAME": kind, "FAKE_WRONG": str(int(wrong)), "WORLDR1_BACKEND": backend}
        try:
            agreed: Any = gate.agree(torch.device("cpu"))
        except RuntimeError as error:
            agreed = str(error)
        found[name] = {"agreed": agreed, "runs": list(runs)}
        if isinstance(agreed, dict):
            probes = PROBES | {"triton": _dispatch.always_available}
            found[name]["takes"] = _dispatch.resolve_backend("trajectory_error", "auto", torch.device("cpu"), probes)
        torch.distributed.barrier()

    case("alike", "Right", "one", False)
    case("kept", "Right", "one", rank == 1)
    case("wrong on rank 0 alone", "WrongByEnvironment", "two", rank == 0)
    case("another kind on rank 1", "WrongByEnvironment", f"three {rank}", False)
    case("another kind on rank 1, wrong there", "WrongByEnvironment", f"four {rank}", rank == 1)
    case("another kind on rank 1, wrong on rank 0", "WrongByEnvironment", f"five {rank}", rank == 0)
    case("by name", "Right", "six", False, "native")
    case("fastest", "OneElementOff", "seven", False, "fastest")
    case("asked for different things", "Right", "one", False, "fastest" if rank else "")
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_ranks_agree(tmp_path: Path) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(_rank, args=(port, str(tmp_path)), nprocs=2)
    zero, one = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert {name: case["agreed"] for name, case in zero.items()} == {name: case["agreed"] for name, case in one.items()}
    assert [name for name in zero if zero[name].get("takes") != one[name].get("takes")] == []
    both = {"se3": "native", "noise_transport": "native"}
    none = {"se3": "reference", "noise_transport": "reference"}
    verified = {
        "alike": (both, 2, 0),  # rank 1 takes rank 0's word
        "kept": (both, 0, 0),
        "wrong on rank 0 alone": (none, 2, 0),
        "another kind on rank 1": (both, 2, 2),
        "another kind on rank 1, wrong there": (none, 2, 2),
        "another kind on rank 1, wrong on rank 0": (none, 2, 0),
        "by name": (both, 0, 0),
        "fastest": ({}, 0, 0),
    }
    for name, (agreed, first, second) in verified.items():
        assert zero[name]["agreed"] == agreed, name
        assert (len(zero[name]["runs"]), len(one[name]["runs"])) == (first, second), name
        assert zero[name]["takes"] == (agreed.get("se3", "native")), name
    assert (
        "WORLDR1_BACKEND and the type of device must be the same on all ranks"
        in one["asked for different things"]["agreed"]
    )


def test_one_process_agrees_with_itself(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gate.agree(torch.device("cpu")) == {} and runs == []  # the C++ of a CPU needs no verdict
    monkeypatch.setattr(_dispatch, "FAMILIES", {"trajectory_error": "se3"})
    assert gate.agree(CUDA) == {"se3": "native"} and runs == [("Right", "se3")]
    monkeypatch.setenv("FAKE_CAPTURING", "1")
    assert resolve() == "native"  # settled
