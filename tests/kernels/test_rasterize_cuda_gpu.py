"""The CUDA rasterizer on a device. Written without one: these tests have never run."""

import pytest
import torch

from worldr1_kernels import rasterize
from worldr1_kernels.rasterize.arguments import (
    EXPECTED_DEPTH,
    MEDIAN_DEPTH,
    NO_DEPTH,
    WEIGHTED_DEPTH,
    BackwardInputs,
    Inputs,
    Settings,
)
from worldr1_kernels.rasterize.cuda_impl import (
    TiledOutput,
    rasterize_backward_cuda,
    rasterize_cuda,
    rasterize_emulated,
)
from worldr1_kernels.rasterize.native_impl import rasterize_backward_native, rasterize_native
from worldr1_kernels.rasterize.reference import rasterize_reference
from worldr1_kernels.testing import assert_images_two_errors, gaussian_scene, normal, poison_empty

pytestmark = pytest.mark.gpu


def scene_inputs(num: int, width: int, height: int, num_views: int = 1, **options: object) -> Inputs:
    means, quats, scales, opacities, colors, viewmats, Ks = (
        t[None] for t in gaussian_scene(num, width, height, num_views=num_views, **options)
    )
    return Inputs(means, quats, scales, None, opacities, colors[:, None], viewmats, Ks, None)


def settings_of(width: int, height: int, **changes: object) -> Settings:
    return Settings(width, height, 0.01, 1e10, 0.0, 0.3, -1, NO_DEPTH, False, 0.99, 0.005)._replace(**changes)


def on_gpu(inputs: Inputs) -> Inputs:
    return Inputs(*(None if t is None else t.cuda() for t in inputs))


def check(
    output: TiledOutput, inputs: Inputs, settings: Settings, *, scale: float = 1.0, device: str = "cpu"
) -> TiledOutput:
    """As near to the float64 reference, computed on `device`, as torch in float32 is, and as the C++ path."""
    single = Inputs(*(None if t is None else t.to(device) for t in inputs))
    expected = rasterize_reference(Inputs(*(None if t is None else t.double() for t in single)), settings)
    plain, native = rasterize_reference(single, settings), rasterize_native(inputs, settings)
    for name, size in (("render_colors", scale), ("render_alphas", 1.0)):
        value, reference = getattr(output, name).cpu(), getattr(expected, name).cpu()
        for other in (getattr(plain, name).cpu(), native[name == "render_alphas"]):
            assert_images_two_errors(value, other, reference, name=name, scale=size)
    assert torch.equal(output.num_invalid.cpu(), expected.num_invalid.cpu()) and int(output.overflow.sum()) == 0
    return output


@pytest.mark.parametrize("depth_mode", [NO_DEPTH, WEIGHTED_DEPTH, EXPECTED_DEPTH, MEDIAN_DEPTH])
@pytest.mark.parametrize(
    ("num", "width", "height", "views"),
    [(0, 20, 18, 2), (1, 1, 1, 1), (800, 77, 51, 2), (3000, 130, 94, 9)],
    ids=["N0-C2", "N1-H1-W1", "N800-H51-W77-C2", "N3000-H94-W130-C9"],
)
def test_matches_the_reference_and_the_cpu(num: int, width: int, height: int, views: int, depth_mode: int) -> None:
    inputs, settings = scene_inputs(num, width, height, views), settings_of(width, height, depth_mode=depth_mode)
    with poison_empty():
        output = rasterize_cuda(on_gpu(inputs), settings)
    check(output, inputs, settings, scale=12.0)


@pytest.mark.parametrize("degree", [0, 2, 4])
@pytest.mark.parametrize("per_view", [False, True])
def test_spherical_harmonics(degree: int, per_view: bool) -> None:
    inputs = scene_inputs(500, 65, 40, 3)
    inputs = inputs._replace(colors=0.3 * normal((1, 3 if per_view else 1, 500, 25, 3), degree))
    settings = settings_of(65, 40, sh_degree=degree, depth_mode=WEIGHTED_DEPTH)
    check(rasterize_cuda(on_gpu(inputs), settings), inputs, settings, scale=6.0)


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 9])
def test_channels(channels: int) -> None:
    inputs, settings = (
        scene_inputs(300, 40, 33, 2, num_channels=channels),
        settings_of(40, 33, depth_mode=EXPECTED_DEPTH),
    )
    check(rasterize_cuda(on_gpu(inputs), settings), inputs, settings, scale=12.0)


def test_large_scene() -> None:
    """Long lists, many blocks, the projection's look-back over thousands of them, all batches of a tile."""
    inputs = scene_inputs(400_000, 832, 480, 3, sigma_px=(0.5, 2.0))
    settings = settings_of(832, 480, depth_mode=WEIGHTED_DEPTH)
    check(rasterize_cuda(on_gpu(inputs), settings), inputs, settings, scale=6.0, device="cuda")


def test_the_device_agrees_with_the_interpreter() -> None:
    inputs, settings = scene_inputs(400, 48, 40, 2), settings_of(48, 40, depth_mode=WEIGHTED_DEPTH)
    output = check(rasterize_cuda(on_gpu(inputs), settings), inputs, settings, scale=6.0)
    emulated = rasterize_emulated(inputs, settings)
    double = Inputs(*(None if t is None else t.double() for t in inputs))
    expected = rasterize_reference(double, settings).render_colors
    assert_images_two_errors(output.render_colors.cpu(), emulated.render_colors, expected, scale=6.0)


def test_twice_is_bit_equal_and_chunks_change_nothing() -> None:
    inputs, settings = on_gpu(scene_inputs(50_000, 320, 240, 12)), settings_of(320, 240, depth_mode=WEIGHTED_DEPTH)
    first = rasterize_cuda(inputs, settings)
    for budget in (1 << 30, 1 << 30, 1):
        again = rasterize_cuda(inputs, settings, memory_budget=budget)
        assert torch.equal(again.render_colors, first.render_colors)
        assert torch.equal(again.render_alphas, first.render_alphas)


@pytest.mark.parametrize("depth_mode", [NO_DEPTH, WEIGHTED_DEPTH, EXPECTED_DEPTH])
@pytest.mark.parametrize(("num", "views"), [(800, 2), (20_000, 5)], ids=["N800-C2", "N20000-C5"])
def test_gradients_match_the_cpu_and_are_bit_equal_twice(num: int, views: int, depth_mode: int) -> None:
    inputs, settings = scene_inputs(num, 130, 94, views), settings_of(130, 94, depth_mode=depth_mode)
    on_device = on_gpu(inputs)
    output = rasterize_cuda(on_device, settings, for_backward=True)
    native = rasterize_native(inputs, settings, for_backward=True)
    grads = normal(native[0].shape, 1), normal(native[1].shape, 2)
    images = BackwardInputs(output.render_colors, output.transmittance, output.last, *(g.cuda() for g in grads))
    first, second = (rasterize_backward_cuda(on_device, settings, images) for _ in range(2))
    images = BackwardInputs(native[0], native[3], native[4], *grads)
    expected = rasterize_backward_native(inputs, settings, images)
    for one, other, reference in zip(first, second, expected, strict=True):
        assert torch.equal(one, other)
        assert float((one.cpu() - reference).norm()) <= 1e-3 * float(reference.norm())


@pytest.mark.pool
def test_overflow_in_a_graph_is_nan_and_counted() -> None:
    inputs = on_gpu(scene_inputs(300_000, 640, 480, 1, sigma_px=(20.0, 40.0)))  # about 20 tiles a splat; room for 3.5
    settings = settings_of(640, 480)
    whole = rasterize_cuda(inputs, settings._replace(pairs_per_gaussian=0.0))  # counts, and has room
    assert int(whole.overflow.max()) == 0 and bool(whole.render_colors.isfinite().all())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = rasterize_cuda(inputs, settings._replace(pairs_per_gaussian=0.0))
    graph.replay()
    torch.cuda.synchronize()
    assert output.overflow.tolist() == [[whole.chunks[0].pairs - (1 << 20)]]
    assert bool(output.render_colors.isnan().all())


def test_large_splats_have_room_and_gradients() -> None:
    scene = [t.cuda() for t in gaussian_scene(300_000, 640, 480, sigma_px=(20.0, 40.0))]
    means = scene[0].requires_grad_()
    out = rasterize(*scene, 640, 480, backend="native")
    assert int(out.meta["num_overflow"].max()) == 0 and bool(out.render_alphas.isfinite().all())
    (gradient,) = torch.autograd.grad(out.render_colors.sum(), means)
    assert bool(gradient.isfinite().all()) and float(gradient.norm()) > 0


def test_lists_are_freed_when_the_backward_has_run() -> None:
    scene = [t.cuda() for t in gaussian_scene(200_000, 320, 240)]
    means = scene[0].requires_grad_()
    before = torch.cuda.memory_allocated()
    out = rasterize(*scene, 320, 240, backend="native")
    with_lists = torch.cuda.memory_allocated() - before
    torch.autograd.grad(out.render_colors.sum(), means)
    assert torch.cuda.memory_allocated() - before < with_lists - 200_000 * 56


@pytest.mark.parametrize("budget", [1, 1 << 30])
def test_kept_lists_and_those_built_again_give_the_same_bits(budget: int) -> None:
    inputs, settings = on_gpu(scene_inputs(20_000, 130, 94, 5)), settings_of(130, 94, depth_mode=WEIGHTED_DEPTH)
    output = rasterize_cuda(inputs, settings, for_backward=True, memory_budget=budget)
    assert all((chunk.kept is not None) == (budget > 1) for chunk in output.chunks)
    images = BackwardInputs(*output[:1], output.transmittance, output.last, torch.ones_like(output.render_colors), None)
    kept, again = (
        rasterize_backward_cuda(inputs, settings, images, chunks=chunks, memory_budget=budget)
        for chunks in (output.chunks, ())
    )
    assert all(torch.equal(one, other) for one, other in zip(kept, again, strict=True))


@pytest.mark.pool
def test_graph_capture_replays_on_new_values() -> None:
    inputs, settings = on_gpu(scene_inputs(5_000, 160, 120, 4)), settings_of(160, 120, depth_mode=WEIGHTED_DEPTH)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        rasterize_cuda(inputs, settings)  # asks CUB for sizes
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = rasterize_cuda(inputs, settings)
    inputs.means.add_(0.05)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured.render_colors, rasterize_cuda(inputs, settings).render_colors)


@pytest.mark.pool
def test_graph_of_forward_and_backward() -> None:
    inputs, settings = on_gpu(scene_inputs(5_000, 160, 120, 4)), settings_of(160, 120, depth_mode=WEIGHTED_DEPTH)
    grad = torch.ones(1, 4, 120, 160, 4, device="cuda")

    def both() -> tuple[torch.Tensor, ...]:
        output = rasterize_cuda(inputs, settings, for_backward=True)
        images = BackwardInputs(output.render_colors, output.transmittance, output.last, grad, None)
        return rasterize_backward_cuda(inputs, settings, images, chunks=output.chunks)

    with torch.cuda.stream(torch.cuda.Stream()):
        both()  # asks CUB for sizes
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both()
    inputs.means.add_(0.05)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(one, other) for one, other in zip(captured, both(), strict=True))


def test_runs_on_the_current_stream() -> None:
    inputs, settings = on_gpu(scene_inputs(5_000, 160, 120, 2)), settings_of(160, 120)
    expected = rasterize_cuda(inputs, settings).render_colors
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        output = rasterize_cuda(inputs, settings).render_colors
    stream.synchronize()
    assert torch.equal(output, expected)


def test_another_index_than_the_current_device() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two devices")
    inputs, settings = scene_inputs(200, 40, 30), settings_of(40, 30)
    other = Inputs(*(None if t is None else t.to("cuda:1") for t in inputs))
    output = rasterize_cuda(other, settings).render_colors
    assert torch.equal(output.cpu(), rasterize_cuda(on_gpu(inputs), settings).render_colors.cpu())
