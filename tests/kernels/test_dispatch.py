"""Choice of backend, argument checks, the oracles themselves."""

import os
import subprocess
import sys

import pytest
import torch

from worldr1_kernels import __main__ as report
from worldr1_kernels import (
    _checks,
    _dispatch,
    _library,
    noise_transport,
    rasterize,
    relative_poses,
    sde_step,
    trajectory_error,
)
from worldr1_kernels.noise_transport.ops import FLOAT64_PROBES
from worldr1_kernels.testing import (
    assert_close_two_errors,
    assert_images_two_errors,
    gaussian_scene,
    noncontiguous,
    normal,
    poison_empty,
    two_errors,
    uniform,
)
from worldr1_kernels.verify import gate

CPU = torch.device("cpu")


def unavailable(device: torch.device) -> str | None:
    return f"needs a thing that {device.type} lacks"


PROBES = {"native": unavailable, "reference": _dispatch.always_available}


def test_auto_takes_the_first_that_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLDR1_BACKEND", raising=False)
    assert _dispatch.resolve_backend("f", "auto", CPU, PROBES) == "reference"
    with pytest.raises(RuntimeError, match="f: no backend can run on cpu: native: needs a thing"):
        _dispatch.resolve_backend("f", "auto", CPU, {"native": unavailable})


def test_on_cuda_auto_takes_what_is_verified_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And says once why not the first; test_verify_gate.py has how that is found out."""
    monkeypatch.delenv("WORLDR1_BACKEND", raising=False)
    monkeypatch.setattr(_dispatch, "_SAID", set())
    cuda, probes = torch.device("cuda"), {"native": _dispatch.always_available, "reference": _dispatch.always_available}
    why = {"native": "it failed here"}
    monkeypatch.setattr(gate, "unverified", lambda family, name, device, is_compiling: why[name])
    for _ in range(2):
        assert _dispatch.resolve_backend("rasterize", "auto", cuda, probes) == "reference"
    assert capsys.readouterr().err == "worldr1_kernels: rasterize takes reference on cuda (native: it failed here)\n"
    assert _dispatch.resolve_backend("rasterize", "native", cuda, probes) == "native"
    with pytest.raises(RuntimeError, match="no backend can run on cuda: native: it failed here"):
        _dispatch.resolve_backend("rasterize", "auto", cuda, {"native": _dispatch.always_available})
    why["native"] = ""
    assert _dispatch.resolve_backend("rasterize", "auto", cuda, probes) == "native"
    assert _dispatch.resolve_backend("f", "auto", cuda, probes) == "reference"  # nobody can verify it
    assert "native: its kernels have no check to verify them by" in capsys.readouterr().err


def test_a_choice_by_name_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLDR1_BACKEND", raising=False)
    with pytest.raises(RuntimeError, match="f: backend 'native' is not available: needs a thing that cpu lacks"):
        _dispatch.resolve_backend("f", "native", CPU, PROBES)
    with pytest.raises(RuntimeError, match="f: backend 'triton' has no implementation"):
        _dispatch.resolve_backend("f", "triton", CPU, PROBES)
    with pytest.raises(ValueError, match=r"f: backend must be one of .* \(did you mean 'native'\?\)"):
        _dispatch.resolve_backend("f", "nativ", CPU, PROBES)


def test_environment_decides_for_auto_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLDR1_BACKEND", "reference")
    runs = {"native": _dispatch.always_available, "reference": _dispatch.always_available}
    assert _dispatch.resolve_backend("f", "auto", CPU, runs) == "reference"
    assert _dispatch.resolve_backend("f", "native", CPU, runs) == "native"
    monkeypatch.setenv("WORLDR1_BACKEND", "fast")
    with pytest.raises(ValueError, match=r"f: WORLDR1_BACKEND must be one of .*'fastest'\), got 'fast' \(did you mean"):
        _dispatch.resolve_backend("f", "auto", CPU, PROBES)
    with pytest.raises(ValueError, match="f: backend must be one of"):
        _dispatch.resolve_backend("f", "fastest", CPU, PROBES)  # for a whole run, not for a call


def test_environment_for_a_whole_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where an op has no such backend, or it cannot run, the next that can, as "auto" would; a line for each family."""
    monkeypatch.setattr(_dispatch, "_SAID", set())
    asked: list[str] = []
    monkeypatch.setattr(gate, "unverified", lambda family, name, device, is_compiling: asked.append(name) or "no")
    monkeypatch.setenv("WORLDR1_BACKEND", "native")
    for _ in range(3):
        assert _dispatch.resolve_backend("f", "auto", CPU, PROBES) == "reference"
    assert (
        capsys.readouterr().err == "worldr1_kernels: f takes reference on cpu (native: needs a thing that cpu lacks)\n"
    )
    cuda, runs = torch.device("cuda"), _dispatch.always_available
    sde, se3 = {"native": unavailable, "triton": runs, "reference": runs}, {"native": runs, "reference": runs}
    assert _dispatch.resolve_backend("trajectory_error", "auto", cuda, se3) == "native" and asked == []  # by name
    assert _dispatch.resolve_backend("sde_step", "auto", cuda, sde) == "reference" and asked == ["triton"]
    monkeypatch.setenv("WORLDR1_BACKEND", "triton")
    assert _dispatch.resolve_backend("sde_step", "auto", cuda, sde) == "triton" and asked == ["triton"]
    assert _dispatch.resolve_backend("rasterize", "auto", cuda, se3) == "reference" and asked == ["triton", "native"]
    assert "rasterize takes reference on cuda (triton: it has no implementation; native: no)" in capsys.readouterr().err
    monkeypatch.setenv("WORLDR1_BACKEND", "fastest")
    assert _dispatch.resolve_backend("trajectory_error", "auto", cuda, se3) == "native"
    assert _dispatch.resolve_backend("sde_step", "auto", cuda, sde) == "triton" and len(asked) == 2  # no verdict


def test_noise_in_float64_goes_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton and CUDA take float32; a choice for a whole run must not make them refuse."""
    monkeypatch.setattr(_dispatch, "_SAID", set())
    noise, flow = normal((1, 1, 4, 6), 0, dtype=torch.float64), torch.zeros(1, 2, 4, 6)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("WORLDR1_BACKEND", "triton")
    assert torch.equal(noise_transport(noise, flow, seed=0)[:, :, 1], noise)
    for device, taken in ((CPU, "native"), (torch.device("cuda"), "reference")):
        assert _dispatch.resolve_backend("noise_transport", "auto", device, FLOAT64_PROBES) == taken


@pytest.mark.parametrize("backend", ["fastest", "reference", "native", "triton"])
def test_every_family_runs_whatever_the_environment_names(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "_SAID", set())
    results = []
    for value in ("", backend):
        monkeypatch.setenv("WORLDR1_BACKEND", value)
        noise, poses = normal((1, 1, 4, 6), 0), torch.eye(4).repeat(1, 2, 1, 1)
        scene = gaussian_scene(5, 8, 8)
        stepped = sde_step(noise, noise, 0.8, 0.7, seed=1)
        results.append([
            noise_transport(noise, torch.ones(1, 2, 4, 6), seed=1),
            noise_transport(noise.double(), torch.ones(1, 2, 4, 6), seed=1).float(),
            stepped.prev_sample,
            sde_step(noise.double(), noise, 0.8, 0.7, seed=1).prev_sample.float(),
            trajectory_error(poses, poses).rotation,
            relative_poses(poses),
            rasterize(*scene, 8, 8).render_colors,
            rasterize(*(t.double() for t in scene), 8, 8).render_colors.float(),
        ])  # fmt: skip
    for auto, named in zip(*results, strict=True):
        torch.testing.assert_close(named, auto, rtol=1e-5, atol=1e-5)


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
        assert torch.empty(3, dtype=torch.uint8).tolist() == [0xCD] * 3  # a workspace: 0 would look like a fresh one
        assert x.new_empty(1, dtype=torch.int64).item() == -(2**63) and torch.zeros(2).tolist() == [0.0, 0.0]
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


@pytest.mark.parametrize("backend", ["", "auto", "fastest", "reference", "foo"])
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
    assert ("else reference, by WORLDR1_BACKEND: where an op has none" in chosen) == (backend == "reference")
    assert ("by WORLDR1_BACKEND: verified or not" in chosen) == (backend == "fastest")
    assert ("(WORLDR1_BACKEND=auto)" in chosen) == (backend == "auto")


def test_import_loads_neither_triton_nor_worldr1() -> None:
    code = "import sys, worldr1_kernels; print([m for m in ('triton', 'worldr1', 'diffusers') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
