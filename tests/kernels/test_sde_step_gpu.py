"""What the CUDA kernels of sde_step promise on a device beyond the numbers of test_sde_step_backends.py."""

import pytest
import torch
from torch import Tensor

from worldr1_kernels.sde_step import SdeStepOutput, sde_step
from worldr1_kernels.testing import normal

pytestmark = pytest.mark.gpu

SHAPE = (3, 4, 5, 30, 52)  # 31,200 elements: eight chunks, the last one short


def tensors() -> tuple[Tensor, Tensor, Tensor]:
    velocity, reference = (normal(SHAPE, seed, dtype=torch.bfloat16, device="cuda") for seed in range(2))
    return velocity, normal(SHAPE, 2, device="cuda"), reference


def draw(velocity: Tensor, sample: Tensor, reference: Tensor) -> SdeStepOutput:
    return sde_step(velocity, sample, 0.9, 0.86, seed=3, step=1, velocity_ref=reference, backend="native")


def assert_same(got: SdeStepOutput, expected: SdeStepOutput) -> None:
    for a, b in zip(got, expected, strict=True):
        assert a is not None and b is not None and torch.equal(a, b)


@pytest.mark.pool
def test_repeats_streams_and_replays_give_the_same_bits() -> None:
    """The counts of finished blocks are kept by stream, and by a graph for itself: they are 0 whoever ran before."""
    inputs = tensors()
    expected = draw(*inputs)
    streams = [torch.cuda.Stream() for _ in range(4)]
    torch.cuda.synchronize()
    results = []
    for _ in range(10):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(draw(*inputs))
    torch.cuda.synchronize()
    for got in results:
        assert_same(got, expected)

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = draw(*inputs)
    for _ in range(3):
        for tensor in captured[:3]:
            tensor.zero_()
        graph.replay()
        eager = draw(*inputs)
        torch.cuda.synchronize()
        assert_same(captured, expected)
        assert_same(eager, expected)


def test_draws_are_those_of_the_cpu_within_rounding() -> None:
    velocity, sample, reference = tensors()
    got = draw(velocity, sample, reference)
    expected = sde_step(
        velocity.cpu(), sample.cpu(), 0.9, 0.86, seed=3, step=1, velocity_ref=reference.cpu(), backend="native"
    )
    assert torch.equal(got.prev_sample_mean.cpu(), expected.prev_sample_mean)
    torch.testing.assert_close(got.prev_sample.cpu(), expected.prev_sample, rtol=0, atol=2e-6)
    for a, b in ((got.log_prob, expected.log_prob), (got.kl, expected.kl)):
        assert a is not None and b is not None
        torch.testing.assert_close(a.cpu(), b, rtol=1e-6, atol=1e-6)


def test_more_samples_than_a_grid_is_high() -> None:
    velocity, sample, prev = (normal((65_535 + 7, 5), seed, device="cuda") for seed in range(3))
    whole = sde_step(velocity, sample, 0.9, 0.86, prev_sample=prev, backend="native")
    last = sde_step(velocity[-9:], sample[-9:], 0.9, 0.86, prev_sample=prev[-9:], backend="native")
    assert torch.equal(whole.log_prob[-9:], last.log_prob) and torch.equal(whole.prev_sample_mean[-9:], last[1])
