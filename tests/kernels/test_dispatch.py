"""Choice of backend, argument checks, the oracles themselves."""

import os
import subprocess
import sys

import pytest
import torch

from worldr1_kernels import __main__ as report
from worldr1_kernels import _checks, _dispatch, _library
from worldr1_kernels.testing import (
    assert_close_two_errors,
    assert_images_two_errors,
    noncontiguous,
    normal,
    poison_empty,
    two_errors,
    uniform,
)

CPU = torch.device("cpu")


def unavailable(device: torch.device) -> str | None:
    return f"needs a thing that {device.type} lacks"


PROBES = {"native": unavailable, "reference": _dispatch.always_available}


def test_auto_takes_the_first_that_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLDR1_BACKEND", raising=False)
    assert _dispatch.resolve_backend("f", "auto", CPU, PROBES) == "reference"
    with pytest.raises(RuntimeError, match="f: no backend can run on cpu: native: needs a thing"):
        _dispatch.resolve_backend("f", "auto", CPU, {"native": unavailable})


def test_on_cuda_auto_waits_until_the_kernels_have_run_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLDR1_BACKEND", raising=False)
    cuda, probes = torch.device("cuda"), {"native": _dispatch.always_available, "reference": _dispatch.always_available}
    assert _dispatch.resolve_backend("f", "auto", cuda, probes) == "reference"
    assert _dispatch.resolve_backend("f", "native", cuda, probes) == "native"
    with pytest.raises(RuntimeError, match="no backend can run on cuda: native: its kernels have not run on a device"):
        _dispatch.resolve_backend("f", "auto", cuda, {"native": _dispatch.always_available})
    monkeypatch.setattr(_dispatch, "CUDA_HAS_RUN", True)
    assert _dispatch.resolve_backend("f", "auto", cuda, probes) == "native"


def test_a_choice_by_name_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLDR1_BACKEND", raising=False)
    with pytest.raises(RuntimeError, match="f: backend 'native' is not available: needs a thing that cpu lacks"):
        _dispatch.resolve_backend("f", "native", CPU, PROBES)
    with pytest.raises(RuntimeError, match="f: backend 'triton' has no implementation"):
        _dispatch.resolve_backend("f", "triton", CPU, PROBES)
    with pytest.raises(ValueError, match=r"f: backend must be one of .* \(did you mean 'native'\?\)"):
        _dispatch.resolve_backend("f", "nativ", CPU, PROBES)


def test_environment_decides_for_auto_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLDR1_BACKEND", "native")
    with pytest.raises(RuntimeError, match="'native' is not available"):
        _dispatch.resolve_backend("f", "auto", CPU, PROBES)
    assert _dispatch.resolve_backend("f", "reference", CPU, PROBES) == "reference"
    monkeypatch.setenv("WORLDR1_BACKEND", "fast")
    with pytest.raises(ValueError, match="f: WORLDR1_BACKEND must be one of"):
        _dispatch.resolve_backend("f", "auto", CPU, PROBES)


def test_triton_on_a_cpu_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "needs a CUDA tensor" in (_dispatch.triton_unavailable(CPU) or "")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert _dispatch.triton_unavailable(CPU) is None


def test_shape_messages() -> None:
    flow = torch.zeros(2, 480, 832)
    with pytest.raises(ValueError) as caught:
        _checks.check_shape("noise_transport", "flow", flow, ("B", "F-1", 2, "H", "W"))
    assert str(caught.value) == "noise_transport: flow must have shape [B, F-1, 2, H, W], got [2, 480, 832]"
    assert _checks.check_shape("f", "x", flow, ("C", "H"), leading=True) == {"C": 480, "H": 832}
    with pytest.raises(ValueError, match=r"f: x must have shape \[\.\.\., N, N\] with N = 480, got \[2, 480, 832\]"):
        _checks.check_shape("f", "x", flow, ("N", "N"), leading=True)
    with pytest.raises(TypeError, match="f: x must be a torch.Tensor, got list"):
        _checks.check_shape("f", "x", [1], ("N",))  # type: ignore[arg-type]


def test_other_checks() -> None:
    x = torch.tensor([1.0, float("nan"), float("inf")])
    with pytest.raises(ValueError, match="f: x must be finite, got 2 of 3 values"):
        _checks.check_finite("f", "x", x)
    with pytest.raises(TypeError, match="f: x must have dtype float64, bfloat16, got float32"):
        _checks.check_dtype("f", "x", x, (torch.float64, torch.bfloat16))
    with pytest.raises(ValueError, match="f: y must be on cpu like x, got meta"):
        _checks.check_same_device("f", {"x": x, "none": None, "y": x.to("meta")})
    with pytest.raises(ValueError, match="f: s must be finite and > 0, got 0"):
        _checks.check_positive("f", "s", 0)


def test_needs_grad() -> None:
    leaf = torch.zeros(1, requires_grad=True)
    assert _library.needs_grad([None, leaf])
    assert not _library.needs_grad([None, torch.zeros(1)])
    with torch.no_grad():
        assert not _library.needs_grad([leaf])


def test_two_error_rule() -> None:
    exact = normal((100,), 0, dtype=torch.float64)
    plain = exact.bfloat16()
    assert_close_two_errors(plain, plain, exact)
    e_k, e_t = two_errors(exact + 0.5, plain, exact)
    assert e_k == pytest.approx(0.5) and 0 < e_t < 0.02
    with pytest.raises(AssertionError, match="kernel error"):
        assert_close_two_errors((exact + 0.5).bfloat16(), plain, exact)
    with pytest.raises(AssertionError, match="not finite"):
        assert_close_two_errors(plain * float("nan"), plain, exact)


def test_two_error_rule_of_images() -> None:
    exact = uniform((100, 100, 3), 0).double()
    plain = exact.float()
    plain[:2] += 2e-3  # 200 pixels where a splat crossed a threshold
    off = exact.float()
    off[50:54] += 2e-3
    assert_images_two_errors(off, plain, exact)
    off[54, :2] -= 2e-3  # 402 > 2 * 200 + 1
    with pytest.raises(AssertionError, match="402 of 10000 pixels differ by more than 1e-05, 200 of plain"):
        assert_images_two_errors(off, plain, exact)
    with pytest.raises(AssertionError, match="median error"):
        assert_images_two_errors(exact.float() + 5e-6, plain, exact)
    one = exact.float()
    one[3, 4, 1] += 0.01
    with pytest.raises(AssertionError, match="a pixel differs by"):
        assert_images_two_errors(one, plain, exact)
    assert_images_two_errors(one, plain, exact, scale=10.0)
    one[3, 4, 1] = float("nan")
    with pytest.raises(AssertionError, match="not finite"):
        assert_images_two_errors(one, plain, exact)


def test_input_factories() -> None:
    x = normal((3, 4), 1)
    assert torch.equal(x, normal((3, 4), 1)) and not torch.equal(x, normal((3, 4), 2))
    assert not noncontiguous(x).is_contiguous() and torch.equal(noncontiguous(x), x)
    assert uniform((50,), 0, low=2.0, high=3.0).min() >= 2.0
    with poison_empty():
        assert torch.empty(3).isnan().all() and x.new_empty(2).isnan().all() and torch.empty_like(x).isnan().all()
    assert torch.zeros(3).new_empty(0).numel() == 0


def test_report_names_every_backend() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "worldr1_kernels"]
    text = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    lines = {line[:16].strip(): line[17:] for line in text.splitlines()}
    assert lines["torch"] == torch.__version__
    assert lines["native, CPU"].startswith("yes (")
    for name in ("reference", "native, CUDA", "triton, CPU", "triton, CUDA"):
        assert lines[name].startswith(("yes", "no: "))


@pytest.mark.parametrize("backend", ["", "auto", "reference", "foo"])
def test_report_says_what_the_environment_asks_for(
    backend: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLDR1_BACKEND", backend)
    code = report.main()
    said, refused = capsys.readouterr()
    if backend == "foo":
        assert (code, said) == (2, "")
        assert refused.startswith("worldr1_kernels: WORLDR1_BACKEND must be one of") and "got 'foo'" in refused
        return
    chosen = said.splitlines()[-1]
    assert (code, refused) == (0, "") and chosen.startswith("chosen ")
    assert ("else reference, by WORLDR1_BACKEND" in chosen) == (backend == "reference")
    assert ("(WORLDR1_BACKEND=auto)" in chosen) == (backend == "auto")


def test_import_loads_neither_triton_nor_worldr1() -> None:
    code = "import sys, worldr1_kernels; print([m for m in ('triton', 'worldr1', 'diffusers') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
