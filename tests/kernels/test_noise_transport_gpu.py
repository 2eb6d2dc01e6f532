"""Noise transport on a device. Written without one: these tests have never run."""

from typing import Any

import pytest
import torch

from worldr1_kernels.noise_transport import noise_transport, plan_transport
from worldr1_kernels.noise_transport.native_impl import transport
from worldr1_kernels.noise_transport.plan import LISTS, TENSORS
from worldr1_kernels.noise_transport.reference import transport as transport_torch
from worldr1_kernels.testing import assert_close_two_errors, normal, poison_empty

pytestmark = pytest.mark.gpu


def zoom(frames: int, height: int, width: int, amount: float) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(height) - height / 2, torch.arange(width) - width / 2, indexing="ij")
    return (amount * torch.stack([x, y]).double() + 0.6).expand(frames - 1, -1, -1, -1)


@pytest.mark.parametrize("amount", [0.15, -0.2], ids=["in", "out"])
@pytest.mark.parametrize("shape", [(7, 9, 1), (48, 64, 1), (48, 64, 2), (48, 64, 16)])
def test_cuda_equals_its_scalar_twin(shape: tuple[int, int, int], amount: float) -> None:
    """The scalar code on the CPU runs the same lines; only fused multiplications differ."""
    height, width, reduce = shape
    plan = plan_transport(zoom(9, height, width, amount), capture=4)
    for batch, channels in ((1, 1), (3, 7), (2, 16)):
        noise, ids = normal((batch, channels, height, width), 1), torch.arange(batch) + 5
        twin = transport(noise, plan, ids, 9, 4, reduce, scalar=True)
        exact = transport_torch(noise.double(), plan, ids, 9, 4, reduce)
        with poison_empty():
            got = transport(noise.cuda(), plan.to("cuda"), ids.cuda(), 9, 4, reduce)
        assert_close_two_errors(got.cpu(), twin, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("amount", [0.15, -0.2, 0.003], ids=["in", "out", "slow"])
@pytest.mark.parametrize("size", [(7, 9), (33, 65), (480, 832)])
def test_the_plan_made_there_is_that_of_cpp(size: tuple[int, int], amount: float, dtype: torch.dtype) -> None:
    """Bit for bit, densities and weights too: no multiplication is fused."""
    flow = zoom(9, *size, amount).to(dtype)
    expected = plan_transport(flow, capture=4, backend="native")
    for _ in range(2):
        got = plan_transport(flow.cuda(), capture=4, backend="native")
        assert got.num_slots == expected.num_slots and got.slots.is_cuda and got.density.is_cuda
        for name, a, b in zip(TENSORS, got.tensors(), expected.tensors(), strict=True):
            assert torch.equal(a.cpu(), b), name


def test_a_plan_made_there_of_a_bad_flow() -> None:
    flow = torch.zeros(3, 2, 8, 8, device="cuda")
    flow[1, 0, 3, 3] = float("nan")
    with pytest.raises(ValueError, match=r"flow\[1\] must be finite, got 1 of 128 values"):
        plan_transport(flow, backend="native")
    with pytest.raises(ValueError, match=r"flow\[1\] must be on cuda:0 like flow\[0\], got cpu"):
        plan_transport([flow[0], flow[0].cpu()], backend="native")
    with pytest.raises(ValueError, match=r"plan must be on cuda:0 like noise, got cpu: use plan.to"):
        noise_transport(normal((1, 1, 8, 8), 1).cuda(), plan_transport(flow[:1].cpu()), seed=0, backend="native")


def test_copies_are_bit_exact_and_draws_repeat() -> None:
    noise = normal((2, 5, 33, 65), 2).cuda()
    still = noise_transport(noise, torch.zeros(3, 2, 33, 65, device="cuda"), seed=0, backend="native")
    assert torch.equal(still, noise[:, :, None].expand(-1, -1, 4, -1, -1))
    plan = plan_transport(zoom(6, 33, 65, 0.1)).to("cuda")
    first = noise_transport(noise, plan, seed=1, backend="native")
    assert torch.equal(first, noise_transport(noise, plan, seed=1, backend="native"))
    row = noise_transport(noise[1:], plan, seed=1, sample_ids=torch.tensor([1], device="cuda"), backend="native")
    assert torch.equal(row, first[1:])


@pytest.mark.pool
@pytest.mark.parametrize("backend", ["native", "triton"])
def test_a_graph_replays_it_without_synchronising(backend: Any) -> None:
    plan, ids = plan_transport(zoom(9, 64, 64, 0.1), capture=4).to("cuda"), torch.arange(2, device="cuda")
    options: dict[str, Any] = {"seed": 7, "sample_ids": ids, "capture": 4, "reduce": 8, "backend": backend}
    noise = normal((2, 8, 64, 64), 3).cuda()
    expected = noise_transport(noise, plan, **options)
    held = torch.empty_like(noise)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = noise_transport(held, plan, **options)
    held.copy_(noise)
    graph.replay()
    assert torch.equal(out, expected)


@pytest.mark.pool
@pytest.mark.parametrize("backend", ["native", "triton"])
def test_memory_is_the_output_and_one_state(backend: Any) -> None:
    plan = plan_transport(zoom(9, 480, 832, 0.009), capture=4).to("cuda")
    noise = torch.randn(2, 16, 480, 832, device="cuda")
    options: dict[str, Any] = {"seed": 1, "capture": 4, "reduce": 8, "backend": backend}
    noise_transport(noise, plan, **options)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = noise_transport(noise, plan, **options)
    state = 2 * 16 * 4 * plan.num_slots
    assert state < 1.1 * noise.nbytes
    members = plan.offsets[:, LISTS.index("member")].diff().max().item()
    normals = 2 * 2 * 16 * 4 * members if backend == "native" else 0  # of two frames
    assert state <= torch.cuda.max_memory_allocated() - before <= 1.5 * out.nbytes + state + normals


def test_float64_on_cuda_is_refused() -> None:
    noise = normal((1, 1, 4, 4), 4, dtype=torch.float64).cuda()
    with pytest.raises(TypeError, match="backend 'native' on CUDA takes float32, got float64"):
        noise_transport(noise, torch.zeros(1, 2, 4, 4, device="cuda"), seed=0, backend="native")
