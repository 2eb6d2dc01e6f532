"""What only the C++ backend promises on a CPU: the same bits on any instruction set and thread count; when "auto" takes
it."""

import pytest
import torch
from torch import Tensor

from worldr1_kernels import _dispatch, _native
from worldr1_kernels._dispatch import resolve_backend
from worldr1_kernels.sde_step import native_impl, reference, sde_step
from worldr1_kernels.sde_step.arguments import Draw, Score
from worldr1_kernels.sde_step.ops import FLOAT64_PROBES, PROBES
from worldr1_kernels.testing import normal
from worldr1_kernels.verify import gate

LEVELS = ("x86-64-v2", "x86-64-v3", "x86-64-v4", "baseline")
SCALARS = (2.5, 0.93, -0.11, 0.21)


def everything(shape: tuple[int, ...], dtype: torch.dtype, level: str) -> list[Tensor]:
    v, u, r = (normal(shape, seed, dtype=dtype) for seed in range(3))
    x, p, g = (normal(shape, seed) for seed in range(3, 6))
    weight = normal((shape[0],), 6)
    ids = torch.arange(shape[0])
    given = Score(v, x, p, u, r, *SCALARS)
    drawn = native_impl.sample_step(Draw(v, x, u, r, None, ids, *SCALARS, 11, 5), level=level)
    scored = native_impl.log_prob(given, level=level)
    back = native_impl.log_prob_backward(g, weight, weight, given, level=level)
    return [*drawn, *scored, *back]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_instruction_sets_agree_bit_for_bit(dtype: torch.dtype) -> None:
    levels = [level for level in LEVELS if _native.cpu().has_instruction_set(level)]
    best = everything((3, 777), dtype, "")
    assert levels
    for level in levels:
        for got, expected in zip(everything((3, 777), dtype, level), best, strict=True):
            assert torch.equal(got, expected), level
    with pytest.raises(RuntimeError, match="cannot run instruction set x86-64-v9"):
        everything((1, 1), dtype, "x86-64-v9")


def test_threads_and_rows_do_not_move_a_bit() -> None:
    """Large enough for threads, and for several chunks of a sample, the last one short."""
    shape = (3, 50_001)
    alone = everything(shape, torch.float32, "")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        together = everything(shape, torch.float32, "")
    finally:
        torch.set_num_threads(threads)
    for got, expected in zip(together, alone, strict=True):
        assert torch.equal(got, expected)
    v, x, p = (normal(shape, seed) for seed in range(3))
    whole = native_impl.log_prob(Score(v, x, p, None, None, *SCALARS))[1]
    row = native_impl.log_prob(Score(v[2:], x[2:], p[2:], None, None, *SCALARS))[1]
    assert torch.equal(row, whole[2:])


def test_bfloat16_gradients_round_as_torch_does() -> None:
    """Halfway cases, zeros, denormals, infinities and NaN through the backward of mean, whose factor is 1 here."""
    bits = [0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0, -(2**31), 1, 0x7F7FFFFF, 0x7F800000, 0x7F800001]
    grad = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
    v = torch.zeros_like(grad, dtype=torch.bfloat16)
    x = torch.zeros_like(grad)
    got, _ = native_impl.log_prob_backward(grad, None, None, Score(v, x, x, None, None, 1.0, 1.0, 1.0, 1.0))
    torch.testing.assert_close(got, grad.bfloat16(), rtol=0, atol=0, equal_nan=True)
    assert got.isnan().sum() == 1


def test_mixed_dtypes() -> None:
    """Each velocity may have its own dtype; gradients come back in it."""
    v, u, r = normal((2, 37), 0, dtype=torch.float16), normal((2, 37), 1, dtype=torch.bfloat16), normal((2, 37), 2)
    x, p, weight = normal((2, 37), 3).bfloat16(), normal((2, 37), 4), torch.ones(2)
    for name in ("log_prob", "log_prob_backward"):
        grads = (None, weight, weight) if name.endswith("backward") else ()
        given = Score(v, x, p, u, r, *SCALARS)
        got = getattr(native_impl, name)(*grads, given)
        for k, t in zip(got, getattr(reference, name)(*grads, *given), strict=True):
            assert k.dtype == t.dtype
            torch.testing.assert_close(k, t, rtol=3e-7 if k.dim() == 1 else 0, atol=0)


def test_auto_takes_native_on_a_cpu_and_the_reference_for_float64(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WORLDR1_BACKEND", raising=False)
    monkeypatch.setattr(_dispatch, "_SAID", set())
    assert resolve_backend("sde_step", "auto", torch.device("cpu"), PROBES) == "native"
    for why, taken in (("", "native"), ("not verified", "reference")):
        monkeypatch.setattr(gate, "unverified", lambda *a, why=why: why)
        with monkeypatch.context() as here:
            here.setitem(PROBES, "native", lambda device: None)
            assert resolve_backend("sde_step", "auto", torch.device("cuda"), PROBES) == taken
            here.setattr(_dispatch, "_ANSWERS", {})
            here.setitem(PROBES, "native", lambda device: "not built")
            taken = "reference" if why else "triton"
            assert resolve_backend("sde_step", "auto", torch.device("cuda"), PROBES) == taken
    assert resolve_backend("sde_step", "auto", torch.device("cpu"), FLOAT64_PROBES) == "reference"
    v, x = normal((2, 9), 0), normal((2, 9), 1)
    auto, named = (sde_step(v, x, 0.8, 0.7, seed=1, backend=b) for b in ("auto", "native"))
    assert torch.equal(auto.prev_sample, named.prev_sample)
    with pytest.raises(RuntimeError, match="backend 'native' is not available: it computes in float32"):
        sde_step(v.double(), x, 0.8, 0.7, seed=1, backend="native")
    monkeypatch.setenv("WORLDR1_BACKEND", "native")  # for a whole run: the next, and a line
    assert sde_step(v.double(), x, 0.8, 0.7, seed=1).prev_sample.dtype == torch.float64
    assert "sde_step takes reference on cpu (native: it computes in float32" in capsys.readouterr().err
