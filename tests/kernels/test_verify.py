"""The verifier finds what is wrong with a device, whatever it is, and says that it is right where it is."""

import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kernels import fake_targets
from tests.kernels.fake_targets import QUICK, Right
from worldr1_kernels.testing import guard_bands
from worldr1_kernels.verify import judge
from worldr1_kernels.verify.judge import Ended, verify
from worldr1_kernels.verify.target import Check, Target, load
from worldr1_kernels.verify.trial import Trial, same_bits, spoilt, two_errors
from worldr1_kernels.verify.worker import run_checks

FAMILIES = tuple(QUICK)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WORLDR1_CACHE", str(tmp_path))
    return tmp_path


def failures(target: Target, family: str) -> list[str]:
    found = run_checks(target, family, "native")
    return [f"{check['name']}: {failure}" for check in found["checks"] for failure in check["failures"]]


@pytest.mark.parametrize("family", FAMILIES)
def test_right_kernels_pass(family: str) -> None:
    found = run_checks(Right("cpu"), family, "native")
    assert [check["name"] for check in found["checks"]] == list(QUICK[family])
    assert [check["failures"] for check in found["checks"]] == [[]] * len(QUICK[family])
    assert all(check["comparisons"] > 0 for check in found["checks"])


WRONG = {
    "OneElementOff": ("", FAMILIES),
    "NanBeyondABlock": ("finite|values differ", FAMILIES),
    "WrongGradient": ("gradient", ("se3",)),
    "NotTheSameTwice": ("of a second run: ", ("noise_transport", "sde_step", "se3")),
    "WritesBehind": ("guard bands: 1 bytes were written behind a tensor float", ("se3", "sde_step")),
    "ReadsUnwritten": ("of a second run: ", ("se3",)),
    "WritesItsInput": ("input 0 after the call: ", ("sde_step", "se3")),
    "NeedsContiguous": ("of a second run: ", ("sde_step", "noise_transport")),
    "WrongType": ("must be torch.float", ("sde_step", "se3")),
    "Raises": ("raised RuntimeError: CUDA error: an illegal memory access", ("se3",)),
}


@pytest.mark.parametrize(("fault", "family"), [(name, family) for name, (_, of) in WRONG.items() for family in of])
def test_what_is_wrong_is_found_and_said(fault: str, family: str) -> None:
    found = failures(getattr(fake_targets, fault)("cpu"), family)
    assert found
    said = WRONG[fault][0]
    assert any(any(part in failure for part in said.split("|")) for failure in found), found[:5]


def test_a_wrong_gradient_of_each_family_that_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks that are too slow for every fault, cut down to their first cases."""
    from worldr1_kernels.verify.checks import rasterize, sde_step

    monkeypatch.setattr(sde_step, "SHAPES", sde_step.SHAPES[:2])
    for family, run in (("sde_step", sde_step.densities_and_gradients), ("rasterize", rasterize.many_gradients)):
        monkeypatch.setattr(Right, "checks", lambda self, _, run=run: [Check("gradients", run)])
        monkeypatch.setattr(rasterize, "scene", lambda *a, _made=rasterize.scene, **k: _made(400, 320, 240, 1))
        assert failures(Right("cpu"), family) == []
        found = failures(fake_targets.WrongGradient("cpu"), family)
        assert found and all("gradient" in failure for failure in found)
        monkeypatch.undo()


def test_a_plan_made_on_the_device_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    from worldr1_kernels.verify.checks import noise_transport

    monkeypatch.setattr(Right, "checks", lambda self, _: [Check("plans", noise_transport.plans)])
    assert failures(Right("cpu"), "noise_transport") == []
    found = failures(fake_targets.WrongPlan("cpu"), "noise_transport")
    assert len(found) == 12 and all(": slots: 1 of " in failure for failure in found)


class TestNothingPassesSilently:
    """A verifier that does not look is worse than none."""

    def with_check(self, monkeypatch: pytest.MonkeyPatch, check: Check) -> list[str]:
        monkeypatch.setattr(Right, "checks", lambda self, family: [check])
        return failures(Right("cpu"), "se3")

    def test_no_comparison(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = self.with_check(monkeypatch, Check("idle", lambda trial: None))
        assert found == ["idle: compared nothing: 0 tensors of 0 values"]

    def test_nothing_but_empty_tensors(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def run(trial: Trial) -> None:
            trial.compare(
                "N0", "geodesic_distance", lambda f, a: [f(a, a)], torch.zeros(0, 3, 3), names=["a"], rules=[same_bits]
            )

        assert self.with_check(monkeypatch, Check("empty", run)) == ["empty: compared nothing: 1 tensors of 0 values"]
        assert self.with_check(monkeypatch, Check("empty", run, is_empty=True)) == []

    def test_a_rule_that_lets_everything_pass(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def run(trial: Trial) -> None:
            eye = torch.eye(3).repeat(2, 1, 1)
            trial.compare("N2", "geodesic_distance", lambda f, a: [f(a, a)], eye, names=["a"], rules=[lambda *_: ""])

        (found,) = self.with_check(monkeypatch, Check("blind", run))
        assert found == "blind: N2: a: the comparison itself is wrong: it lets a spoilt value pass"

    def test_a_name_too_few(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def run(trial: Trial) -> None:
            eye = torch.eye(3).repeat(2, 1, 1)
            trial.compare("N2", "geodesic_distance", lambda f, a: [f(a, a), a], eye, names=["a"], rules=[two_errors()])

        (found,) = self.with_check(monkeypatch, Check("short", run))
        assert "1 tensors are named, the body returned 2" in found

    def test_what_a_process_wrote_is_not_taken_at_its_word(self) -> None:
        target = Right("cpu")
        right = {**run_checks(target, "se3", "native"), "identity": target.identity()}
        assert _judged(right) == judge.Finding([], "", sum(check["comparisons"] for check in right["checks"]))
        first, *others = right["checks"]
        for change, said in (
            ({"checks": others}, "distances: did not run"),
            ({"checks": []}, "distances: did not run"),
            ({"checks": [{**first, "comparisons": 0}, *others]}, "distances: compared nothing"),
            ({"checks": [{**first, "values": 0}, *others]}, "distances: compared nothing"),
            ({"checks": [{**first, "failures": ["x"]}, *others]}, "distances: x"),
            ({"checks": None}, "its process wrote rubbish: TypeError"),
            ({"checks": [{}]}, "its process wrote rubbish: KeyError"),
            ({"family": "rasterize"}, "the checks of rasterize native ran"),
        ):
            assert _judged({**right, **change}).failures[0].startswith(said)
        assert _judged({**right, "identity": {}}).temporary.startswith("the checks saw another device")
        for rubbish in (None, [], "yes", {}):
            finding = _judged(rubbish)
            assert finding.failures or finding.temporary

    def test_how_a_process_ended_counts(self) -> None:
        target = Right("cpu")
        right = {**run_checks(target, "se3", "native"), "identity": target.identity()}
        stderr = "check: distances\nFatal Python error: Aborted\n"
        for code, said in (
            (None, "its process had not ended after 7 s, in check: distances"),
            (-6, "its process died of SIGABRT, in check: distances"),
            (-11, "its process died of SIGSEGV, in check: distances"),
            (-250, "its process died of signal 250, in check: distances"),
        ):
            assert _judged(right, code, stderr).failures == [said]
        assert "killed" in _judged(right, -9, stderr).temporary  # by a system without memory: tells nothing
        assert "could not run: Fatal Python error" in _judged(right, 1, stderr).temporary

    @pytest.mark.slow
    def test_under_python_O(self) -> None:
        code = (
            "from tests.kernels.fake_targets import OneElementOff\n"
            "from worldr1_kernels.verify.worker import run_checks\n"
            "print(sum(len(c['failures']) for c in run_checks(OneElementOff('cpu'), 'se3', 'native')['checks']))"
        )
        command = [sys.executable, "-O", "-c", code]
        assert int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) >= 6


def _judged(found: Any, code: int | None = 0, stderr: str = "") -> judge.Finding:
    return judge.judge(Ended(found, code, stderr), Right("cpu"), "se3", "native", 7.0)


def test_guard_bands_see_a_byte_on_either_side() -> None:
    for shape, dtype, byte in (((3, 5), torch.float32, 60), ((7,), torch.uint8, 7), ((2, 2), torch.float64, 32)):
        for place, where in ((byte, "behind"), (-1, "before")):
            with guard_bands() as bands:
                made = torch.empty(shape, dtype=dtype)
                assert made.shape == shape and made.data_ptr() % 16 == 0
                assert bytes(made.view(-1).view(torch.uint8).tolist()) == b"\xcd" * byte
                assert bands.broken() == []
                band = torch.tensor([], dtype=torch.uint8)
                band.set_(made.untyped_storage(), bands.MARGIN + place, (1,), (1,))  # type: ignore[call-overload]
                band.fill_(0)
                assert bands.broken() == [
                    f"1 bytes were written {where} a tensor {str(dtype).removeprefix('torch.')} {list(shape)}"
                ]
    with guard_bands() as bands:
        assert torch.zeros(4).tolist() == [0.0] * 4 and torch.empty(0).numel() == 0
        assert torch.empty(3, 4).t().new_empty(2, dtype=torch.int64).tolist() == [-0x3232323232323233] * 2


@pytest.mark.parametrize("last", [0.0, 3e38, float("nan"), float("inf")])
def test_a_spoilt_value_is_another(last: float) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        values = torch.tensor([[1.0, float("nan")], [-5.0, last]], dtype=dtype).mT
        made = spoilt(values)
        assert same_bits(made, values, values).startswith("1 of 4 values differ, the first at [1, 1]")
    assert spoilt(torch.tensor([2, 7])).tolist() == [2, 8] and spoilt(torch.tensor([True])).tolist() == [False]


def test_a_target_is_found_by_its_name() -> None:
    made = load(Right("cpu").spec, "cpu:1")
    assert type(made).__name__ == "Right" and made.kind()["device"] == "Fake 1"
    with pytest.raises(TypeError, match="must name a Target, got str"):
        load("builtins:str", "cpu")


def run_all(*cases: tuple[str, float]) -> list[Any]:
    """Verdicts of fakes on se3, each in its own process, at once."""
    verdicts: dict[int, Any] = {}

    def one(index: int, name: str, seconds: float) -> None:
        verdicts[index] = verify(getattr(fake_targets, name)(f"cpu:{index}"), "se3", "native", seconds=seconds)

    threads = [threading.Thread(target=one, args=(i, *case)) for i, case in enumerate(cases)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [verdicts[i] for i in range(len(cases))]


def test_processes_that_pass_that_abort_and_that_do_not_end(cache: Path) -> None:
    right, aborts, endless = run_all(("Right", 120.0), ("Aborts", 120.0), ("NeverEnds", 3.0))
    assert (right.passed, right.reason, right.report) == (True, "", "") and right.comparisons >= 18
    assert not aborts.passed and aborts.reason == "its process died of SIGABRT, in check: distances"
    report = Path(aborts.report).read_text()
    assert "Fatal Python error: Aborted" in report and "fake_targets.py" in report  # where
    assert not endless.passed and endless.reason.startswith("its process had not ended after 3 s")
    assert sorted(path.suffix for path in (cache / "verdicts").iterdir()) == sorted(
        [".json"] * 3 + [".lock"] * 3 + [".txt"] * 2
    )


@pytest.mark.slow
def test_processes_that_reach_for_a_wrong_address_raise_or_find_the_device_full(cache: Path) -> None:
    address, raises, full, off = run_all(
        ("WrongAddress", 120.0), ("Raises", 120.0), ("Full", 120.0), ("OneElementOff", 120.0)
    )
    assert address.reason == "its process died of SIGSEGV, in check: distances"
    assert raises.reason == (
        "distances: raised RuntimeError: CUDA error: an illegal memory access was encountered (and 1 more)"
    )
    assert full.temporary and not full.passed and "out of memory" in full.reason
    assert len(list((cache / "verdicts").glob("*.json"))) == 3  # of the full device nothing is kept
    report = Path(off.report).read_text()
    assert "distances: 1 torch.float32: angle: kernel error" in report and "device: Fake 3" in report


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_all_checks_pass_on_the_cpu(family: str) -> None:
    found = run_checks(fake_targets.Whole("cpu"), family, "native")
    assert [check["failures"] for check in found["checks"]] == [[]] * len(Target("cpu").checks(family))
    assert len(found["checks"]) >= 5


def names(checks: Sequence[Check]) -> list[str]:
    return [check.name for check in checks]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_has_an_empty_check_and_the_quick_ones(family: str) -> None:
    checks = Target("cpu").checks(family)
    assert len(set(names(checks))) == len(checks) and set(QUICK[family]) <= set(names(checks))
    assert sum(check.is_empty for check in checks) == 1
