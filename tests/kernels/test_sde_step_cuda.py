"""The CUDA kernels of sde_step without a GPU: their own source under the interpreter of csrc/common/simt_host.h, where
the order of threads and blocks and the moment at which unfenced stores land follow a seed. That they agree with the
other backends is in test_sde_step_backends.py; here is what only they promise."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from worldr1_kernels import _native
from worldr1_kernels.sde_step import native_impl, reference
from worldr1_kernels.sde_step.arguments import Draw, Score
from worldr1_kernels.sde_step.coefficients import StepConstants, step_constants
from worldr1_kernels.testing import normal, poison_empty

SCALARS = (2.5, 0.93, -0.11, 0.21)
CHUNK = 4096  # elements of a block, csrc/cuda/sde_step.h


def everything(tensors: list[Tensor], emulated: int) -> list[Tensor]:
    """Draw by seed, score and backward of (velocity, uncond, ref, sample, prev_sample, grad_mean, weights [N])."""
    v, u, r, x, p, g, weight = tensors
    given = Score(v, x, p, u, r, *SCALARS)
    ids = torch.arange(len(v)) + 7
    with poison_empty():
        drawn = native_impl.sample_step(Draw(v, x, u, r, None, ids, *SCALARS, 11, 5), emulated=emulated)
        scored = native_impl.log_prob(given, emulated=emulated)
        back = native_impl.log_prob_backward(g, weight, weight, given, emulated=emulated)
    return [*drawn, *scored, *back]


def inputs(shape: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    velocities = [normal(shape, seed, dtype=dtype) for seed in range(3)]
    return [*velocities, *(normal(shape, seed) for seed in range(3, 6)), normal(shape[:1], 6)]


def assert_same(got: list[Tensor], expected: list[Tensor]) -> None:
    for k, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert torch.equal(a, b), k


@pytest.mark.parametrize("num_elements", [2 * CHUNK, 2 * CHUNK + 4, 3 * CHUNK - 1], ids=["whole", "quads", "odd"])
def test_no_order_of_threads_or_blocks_moves_a_bit(num_elements: int) -> None:
    """Several chunks a sample and two launches. A missing barrier or fence, and a count that is not reset (every launch
    with a seed uses the same counts), would show."""
    tensors = inputs((4, num_elements), torch.bfloat16)
    expected = everything(tensors, emulated=0)
    v, u, r, x, p, _, _ = tensors
    mean, log_prob, kl = reference.log_prob(v, x, p, u, r, *SCALARS)
    assert torch.equal(expected[4], mean)
    torch.testing.assert_close(expected[5], log_prob, rtol=2e-7, atol=2e-7)
    torch.testing.assert_close(expected[6], kl, rtol=2e-7, atol=2e-7)
    for seed in (0, 1, 2, 3):
        assert_same(everything(tensors, emulated=seed), expected)


def test_the_float64_sum_over_chunks_has_one_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """To its last bit, which a density in float32 does not show: here it is the difference from the sum itself. Squares
    of like size would add up exactly in any order; these differ by many powers of two."""
    v, x, p = (normal((1, 33 * CHUNK), seed) for seed in range(3))
    p *= torch.exp(3.0 * normal((1, 33 * CHUNK), 3))

    def beyond(shift: float, seed: int) -> float:
        def constants(*args: Any) -> StepConstants:
            return step_constants(*args)._replace(log_prob_scale=1.0, log_prob_shift=shift)

        monkeypatch.setattr(native_impl, "step_constants", constants)
        return float(native_impl.log_prob(Score(v, x, p, None, None, 1.0, *SCALARS[1:]), emulated=seed)[1])

    total = 0.0
    for _ in range(3):
        total += beyond(total, 0)
    assert {beyond(total, seed) for seed in range(1, 8)} == {beyond(total, 0)}
    assert abs(beyond(total, 0)) < 1e-14 * total


def test_normals_of_later_chunks_follow_their_definition() -> None:
    zero, ids = torch.zeros(2, 2 * CHUNK + 5), torch.tensor([9, 2**32 - 1])
    drawn = native_impl.sample_step(Draw(zero, zero, None, None, None, ids, 1.0, 1.0, 1.0, 1.0, 3, 4), emulated=2)[0]
    exact = reference.step_noise((2, 2 * CHUNK + 5), ids, seed=3, step=4, dtype=torch.float64)
    ulp = torch.nextafter(exact.float().abs(), torch.tensor(math.inf)).double() - exact.float().abs().double()
    assert float(((drawn - exact).abs() / ulp).max()) <= 4.0


def test_a_row_alone_is_the_row_of_a_batch() -> None:
    tensors = inputs((5, CHUNK + 12), torch.float32)
    whole = everything(tensors, emulated=2)
    v, u, r, x, p, g, weight = (t[3:4] for t in tensors)
    scored = native_impl.log_prob(Score(v, x, p, u, r, *SCALARS), emulated=2)
    assert_same(list(scored), [t[3:4] for t in whole[4:7]])
    ids = torch.tensor([3 + 7])
    drawn = native_impl.sample_step(Draw(v, x, u, r, None, ids, *SCALARS, 11, 5), emulated=2)
    assert_same(list(drawn), [t[3:4] for t in whole[:4]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("shape", [(2, CHUNK + 8), (1, CHUNK + 3), (3, 5)], ids=str)
def test_any_alignment_gives_the_same_bits(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Each tensor in turn one element behind an aligned address, then all of them."""
    tensors = inputs(shape, dtype)
    expected = everything(tensors, emulated=0)

    def shifted(tensor: Tensor) -> Tensor:
        out = tensor.new_empty(tensor.numel() + 1)[1:].view(tensor.shape)
        return out.copy_(tensor)

    for k in range(len(tensors)):
        moved = [shifted(t) if i == k else t for i, t in enumerate(tensors)]
        assert_same(everything(moved, emulated=0), expected)
    assert_same(everything([shifted(t) for t in tensors], emulated=0), expected)


def test_counts_are_kept_by_stream_and_left_at_zero() -> None:
    """Once for a stream, and again where a batch is larger."""
    native_impl._arrivals.clear()
    v, x, p = (normal((3, 2 * CHUNK), seed) for seed in range(3))
    given = Score(v, x, p, None, None, 1.0, *SCALARS[1:])
    first = native_impl.log_prob(given, emulated=4)
    ((key, kept),) = native_impl._arrivals.items()
    assert key == (x.device, 4) and kept.dtype == torch.int32 and not kept.any()
    assert_same(list(native_impl.log_prob(given, emulated=4)), list(first))
    assert native_impl._arrivals[key] is kept and not kept.any()
    many = Score(*(normal((kept.numel() + 1, 1), seed) for seed in range(3)), None, None, 1.0, *SCALARS[1:])
    native_impl.log_prob(many, emulated=4)
    assert native_impl._arrivals[key].numel() > kept.numel() and not native_impl._arrivals[key].any()


def test_velocities_of_several_dtypes() -> None:
    """Widened where they differ; gradients come back in the dtype of each."""
    v, u, r = normal((2, 37), 0, dtype=torch.float16), normal((2, 37), 1, dtype=torch.bfloat16), normal((2, 37), 2)
    x, p, weight = normal((2, 37), 3).bfloat16(), normal((2, 37), 4), torch.ones(2)
    given = Score(v, x, p, u, r, *SCALARS)
    for name, grads in (("log_prob", ()), ("log_prob_backward", (None, weight, weight))):
        got = getattr(native_impl, name)(*grads, given, emulated=2)
        for k, t in zip(got, getattr(reference, name)(*grads, *given), strict=True):
            assert k.dtype == t.dtype
            torch.testing.assert_close(k, t, rtol=3e-7 if k.dim() == 1 else 0, atol=0)


def test_single_gradients() -> None:
    """Any of the three gradients, and none at all."""
    v, u, r, x, p, g, weight = inputs((2, 45), torch.float32)
    for guided in (u, None):
        given = Score(v, x, p, guided, r, 2.5 if guided is not None else 1.0, *SCALARS[1:])
        for kept in itertools.product((True, False), repeat=3):
            grads = [t if keep else None for t, keep in zip((g, weight, weight), kept, strict=True)]
            got = native_impl.log_prob_backward(*grads, given, emulated=2)
            assert_same(list(got), list(reference.log_prob_backward(*grads, *given)))


def test_sizes_beyond_a_grid_are_refused_before_a_launch() -> None:
    settings: dict[str, Any] = dict(
        sample=0, prev_sample=0, guidance_scale=1.0, coef_sample=1.0, coef_velocity=1.0, std=1.0, log_prob_scale=1.0,
        log_prob_shift=0.0, kl_scale=1.0, grad_log_prob_scale=1.0, grad_kl_scale=1.0,
    )  # fmt: skip
    run = _native.cpu().sde_step_emulated
    with pytest.raises(ValueError, match="fewer than 2\\^43 elements"):
        run("score", velocity=(0, False), num_samples=1, num_elements=2**43, **settings)
    with pytest.raises(ValueError, match="must share a dtype"):
        run("score", velocity=(0, False), velocity_uncond=(64, True), num_samples=0, num_elements=1, **settings)
    run("draw", velocity=(0, False), num_samples=0, num_elements=2**42, **settings)
    assert _native.cpu().sde_step_chunks(2**42 + 1) == 2**30 + 1
