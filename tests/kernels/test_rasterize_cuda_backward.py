"""Gradients of the CUDA rasterizer without a device: its kernels, run thread by thread, against autograd in float64."""

import pytest
import torch

from worldr1_kernels.rasterize import cuda_impl, ops
from worldr1_kernels.rasterize.arguments import (
    EXPECTED_DEPTH,
    NO_DEPTH,
    WEIGHTED_DEPTH,
    BackwardInputs,
    Inputs,
    Settings,
)
from worldr1_kernels.rasterize.cuda_impl import rasterize_backward_emulated, rasterize_emulated
from worldr1_kernels.rasterize.native_impl import rasterize_backward_native, rasterize_native
from worldr1_kernels.rasterize.reference import rasterize_reference
from worldr1_kernels.testing import gaussian_scene, normal, poison_empty, uniform


def inputs_of(num: int, width: int, height: int, num_views: int = 2, **options: object) -> Inputs:
    means, quats, scales, opacities, colors, viewmats, Ks = (
        t[None] for t in gaussian_scene(num, width, height, num_views=num_views, **options)
    )
    return Inputs(means, quats, scales, None, opacities, colors[:, None], viewmats, Ks, None)


def settings_of(width: int, height: int, **changes: object) -> Settings:
    return Settings(width, height, 0.01, 1e10, 0.0, 0.3, -1, NO_DEPTH, False, 0.99, 0.005)._replace(**changes)


def reference_gradients(
    inputs: Inputs, settings: Settings, grad_colors: torch.Tensor, grad_alphas: torch.Tensor
) -> list[torch.Tensor | None]:
    leaves = [None if t is None else t.double().requires_grad_() for t in inputs]
    out = rasterize_reference(Inputs(*leaves), settings)
    loss = (out.render_colors * grad_colors.double()).sum() + (out.render_alphas * grad_alphas.double()).sum()
    given = [t for t in leaves if t is not None]
    found = iter(torch.autograd.grad(loss, given, allow_unused=True))
    return [None if t is None else next(found) for t in leaves]


def check(inputs: Inputs, settings: Settings, *, seed: int = 0, **options: object) -> tuple[torch.Tensor, ...]:
    """Relative L2 distance of every gradient from the reference's, and from the C++ kernels', below 1e-4; 1e-6 is
    usual, but a splat may cross a threshold in float32."""
    output = rasterize_emulated(inputs, settings, for_backward=True, seed=seed, **options)
    plain = rasterize_emulated(inputs, settings)
    assert torch.equal(output.render_colors, plain.render_colors)
    grad_colors, grad_alphas = normal(output.render_colors.shape, 1), normal(output.render_alphas.shape, 2)
    with poison_empty():
        actual = rasterize_backward_emulated(inputs, settings, output, grad_colors, grad_alphas, seed=seed, **options)
    expected = reference_gradients(inputs, settings, grad_colors, grad_alphas)
    native = rasterize_native(inputs, settings, for_backward=True)
    images = BackwardInputs(native[0], native[3], native[4], grad_colors, grad_alphas)
    compared, cpu = 0, rasterize_backward_native(inputs, settings, images)
    for name, value, other, reference in zip(Inputs._fields, actual[:-1], cpu[:-1], expected, strict=True):
        if reference is None:
            continue
        if name == "backgrounds" and settings.depth_mode != NO_DEPTH:  # the zeros under the depth are a constant
            value, other, reference = value[..., :-1], other[..., :-1], reference[..., :-1]
        assert float((value - other).norm()) <= 1e-4 * float(other.norm()), name
        distance = float((value.double() - reference).norm())
        assert distance <= 1e-4 * float(reference.norm()), f"{name}: {distance} of {float(reference.norm())}"
        compared += int(reference.norm() > 0)
    assert compared >= 6
    return actual


@pytest.mark.parametrize("depth_mode", [NO_DEPTH, WEIGHTED_DEPTH, EXPECTED_DEPTH])
@pytest.mark.parametrize("antialiased", [False, True])
def test_gradients(depth_mode: int, antialiased: bool) -> None:
    inputs = inputs_of(60, 21, 18)
    backgrounds = torch.cat([uniform((1, 2, 3), 1), torch.zeros(1, 2, int(depth_mode != NO_DEPTH))], -1)
    check(inputs._replace(backgrounds=backgrounds), settings_of(21, 18, depth_mode=depth_mode, antialiased=antialiased))


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4])
def test_spherical_harmonics(degree: int) -> None:
    colors = 0.3 * normal((1, 2 if degree % 2 else 1, 40, 25, 3), degree)
    inputs = inputs_of(40, 17, 15)._replace(colors=colors)
    check(inputs, settings_of(17, 15, sh_degree=degree, depth_mode=WEIGHTED_DEPTH))


def test_camera_centre_of_any_matrix() -> None:
    """-R^-1 t where R is no rotation: scaled, sheared."""
    inputs = inputs_of(40, 17, 15)
    viewmats = inputs.viewmats.clone()
    viewmats[0, 0, :3] *= 3.0
    viewmats[0, 1, :3, :3] += 0.2 * normal((3, 3), 1)
    inputs = inputs._replace(colors=0.3 * normal((1, 1, 40, 9, 3), 2), viewmats=viewmats)
    check(inputs, settings_of(17, 15, sh_degree=2, depth_mode=WEIGHTED_DEPTH))


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 8, 80])
def test_channels_in_passes(channels: int) -> None:
    """80 are more than shared memory takes in a row."""
    num = 40 if channels < 80 else 10
    check(inputs_of(num, 17, 15, num_channels=channels), settings_of(17, 15, depth_mode=EXPECTED_DEPTH))


@pytest.mark.parametrize("num_coefficients", [9, 16, 30])
@pytest.mark.parametrize("per_view", [False, True])
def test_coefficients_beyond_the_degree_and_views_in_chunks(num_coefficients: int, per_view: bool) -> None:
    """Rows of odd and even length, and longer than shared memory takes; the last warp has a Gaussian alone; the second
    chunk adds to what the first stored."""
    colors = 0.3 * normal((1, 3 if per_view else 1, 33, num_coefficients, 3), 1)
    inputs = inputs_of(33, 15, 14, num_views=3)._replace(colors=colors)
    settings = settings_of(15, 14, sh_degree=2, depth_mode=WEIGHTED_DEPTH)
    whole = check(inputs, settings)
    assert bool((whole[5][..., 9:, :] == 0).all())
    chunked = check(inputs, settings, memory_budget=1)
    for one, other in zip(whole, chunked, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_covariances_and_views_in_chunks() -> None:
    inputs = inputs_of(40, 20, 17, num_views=3)
    factor = normal((1, 40, 3, 3), 4) * 0.05
    rows, columns = torch.triu_indices(3, 3)
    covars = (factor @ factor.transpose(-1, -2))[..., rows, columns]
    inputs = inputs._replace(quats=None, scales=None, covars=covars)
    whole = check(inputs, settings_of(20, 17))
    single = check(inputs, settings_of(20, 17), memory_budget=1)
    for one, other in zip(whole, single, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_projected_means_apart() -> None:
    inputs, settings = inputs_of(50, 20, 17), settings_of(20, 17)
    output = rasterize_emulated(inputs, settings, for_backward=True)
    grads = (normal(output.render_colors.shape, 1), normal(output.render_alphas.shape, 2))
    together = rasterize_backward_emulated(inputs, settings, output, *grads)
    apart = rasterize_backward_emulated(inputs, settings, output, *grads, split_means2d=True)
    # u = fx x/z + cx: the part of Ks that comes through the projected mean.
    means2d = apart[-1]
    assert together[-1].numel() == 0 and means2d.shape == (1, 2, 50, 2)
    centre = together[7][..., :2, 2] - apart[7][..., :2, 2]
    torch.testing.assert_close(centre, means2d.sum(2), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[4], apart[4], rtol=0, atol=0)


@pytest.mark.parametrize(("seed", "num"), [(1, 120), (2, 270), (3, 120)])
def test_no_order_of_threads_changes_a_bit(seed: int, num: int) -> None:
    inputs, settings = inputs_of(num, 20, 17, sigma_px=(2.0, 8.0)), settings_of(20, 17, depth_mode=WEIGHTED_DEPTH)
    inputs = inputs._replace(colors=0.3 * normal((1, 1, num, 9, 3), seed))
    settings = settings._replace(sh_degree=2)
    inputs.opacities.mul_(0.2)
    expected, actual = check(inputs, settings), check(inputs, settings, seed=seed)
    for one, other in zip(expected, actual, strict=True):
        assert torch.equal(one, other)


def test_invalid_gaussians_have_no_gradient_and_nothing_has_none() -> None:
    inputs, settings = inputs_of(40, 17, 15), settings_of(17, 15)
    inputs.means[0, 3, 0] = float("nan")
    inputs.colors[0, 0, 5, 1] = float("inf")
    output = rasterize_emulated(inputs, settings, for_backward=True)
    grads = rasterize_backward_emulated(inputs, settings, output, torch.ones_like(output.render_colors), None)
    assert all(bool(g.isfinite().all()) for g in grads)
    assert float(grads[0][0, [3, 5]].abs().sum()) == 0 and float(grads[0].abs().sum()) > 0
    none = rasterize_backward_emulated(inputs, settings, output, None, None)
    assert all(float(g.abs().sum()) == 0 for g in none)
    empty = Inputs(*(None if t is None else t[:, :0] for t in inputs[:5]), inputs.colors[:, :, :0], *inputs[6:])
    output = rasterize_emulated(empty, settings, for_backward=True)
    grads = rasterize_backward_emulated(empty, settings, output, torch.ones_like(output.render_colors), None)
    assert grads[0].shape == (1, 0, 3) and float(grads[6].abs().sum()) == 0


@pytest.mark.slow
@pytest.mark.parametrize("may_wait", [True, False])
def test_what_fits_in_the_forward_fits_in_the_backward(may_wait: bool) -> None:
    """1,100 splats over 1,560 tiles of one view, none in the other: 1.7 million pairs, more than the 2^20 of a view in
    a graph. Two views a chunk would have room, one would not, and the backward takes more memory a view."""
    scene = gaussian_scene(1100, 832, 480, num_views=2)
    scene.means[:] = torch.tensor([0.0, 0.0, 5.0])
    scene.scales.fill_(60.0)
    scene.opacities.fill_(0.99)
    scene.viewmats[0] = torch.eye(4)
    scene.viewmats[1] = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0]))  # looks away
    means, quats, scales, opacities, colors, viewmats, Ks = (t[None] for t in scene)
    inputs = Inputs(means, quats, scales, None, opacities, colors[:, None], viewmats, Ks, None)
    settings, limits = settings_of(832, 480), {"may_wait": may_wait, "memory_budget": 64 << 20}
    output = rasterize_emulated(inputs, settings, for_backward=True, **limits)
    is_whole = not bool(output.overflow.any())
    assert bool(output.render_colors.isfinite().all()) == is_whole and (is_whole or not may_wait)
    for chunks in (output.chunks, ()):  # as after a forward, and from sizes alone
        grads = rasterize_backward_emulated(
            inputs, settings, output._replace(chunks=chunks), torch.ones_like(output.render_colors), None, **limits
        )
        assert bool(grads[0].isfinite().all()) == is_whole


@pytest.mark.parametrize("keeps", [True, False])
def test_gradients_are_nan_where_the_pairs_of_a_graph_do_not_fit(keeps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, settings = inputs_of(40, 33, 20), settings_of(33, 20)
    monkeypatch.setattr(cuda_impl, "_plan", lambda *args: (2, 10))
    output = rasterize_emulated(inputs, settings, for_backward=True, may_wait=False)
    assert int(output.overflow.min()) > 0 and bool(output.render_colors.isnan().all())
    output = output if keeps else output._replace(chunks=())
    grads = rasterize_backward_emulated(
        inputs, settings, output, torch.ones_like(output.render_colors), None, may_wait=False
    )
    seen = grads[0].isnan().all(-1)
    assert int(seen.sum()) > 30 and bool((grads[0][~seen] == 0).all())  # those that are culled have none


def test_forward_and_backward_plan_their_chunks_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    plan = cuda_impl._plan
    monkeypatch.setattr(cuda_impl, "_plan", lambda *args: asked.append(args) or plan(*args))
    inputs, settings = inputs_of(5, 9, 8), settings_of(9, 8)
    output = rasterize_emulated(inputs, settings, for_backward=True, may_wait=False)
    grad = torch.ones_like(output.render_colors)
    rasterize_backward_emulated(inputs, settings, output._replace(chunks=()), grad, None, may_wait=False)
    assert len(asked) == 2 and asked[0] == asked[1]


@pytest.mark.parametrize("budget", [1, 10_000, 1 << 30], ids=["none", "some", "all"])
def test_kept_lists_and_those_built_again_give_the_same_bits(budget: int) -> None:
    inputs, settings = (
        inputs_of(40, 15, 14, num_views=3, num_channels=6),
        settings_of(15, 14, depth_mode=WEIGHTED_DEPTH),
    )
    output = rasterize_emulated(inputs, settings, for_backward=True, memory_budget=budget)
    kept = [chunk.kept is not None for chunk in output.chunks]
    assert kept == {1: [False] * 3, 10_000: [True, False, False], 1 << 30: [True]}[budget]
    grad = normal(output.render_colors.shape, 1)
    first = rasterize_backward_emulated(inputs, settings, output, grad, None, memory_budget=budget)
    assert all(bool(g.isfinite().all()) for g in first)
    for again in (output, output._replace(chunks=())):  # a second time, which finds what the first left; from nothing
        second = rasterize_backward_emulated(inputs, settings, again, grad, None, memory_budget=budget)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("keeps", [True, False])
def test_autograd_hands_the_lists_to_the_backward(keeps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device, with the interpreter in its place."""
    given: list[tuple[cuda_impl.Chunk, ...]] = []

    def forward(inputs: Inputs, settings: Settings, *, for_backward: bool) -> cuda_impl.TiledOutput:
        budget = cuda_impl.MEMORY_BUDGET if keeps else 1
        return rasterize_emulated(inputs, settings, for_backward=for_backward, memory_budget=budget)

    def backward(
        inputs: Inputs,
        settings: Settings,
        images: BackwardInputs,
        *,
        chunks: tuple[cuda_impl.Chunk, ...],
        split_means2d: bool,
    ) -> tuple[torch.Tensor, ...]:
        given.append(chunks)
        output = rasterize_emulated(inputs, settings, for_backward=True)
        output = output._replace(transmittance=images.transmittance, last=images.last, chunks=chunks)
        return rasterize_backward_emulated(
            inputs, settings, output, images.grad_colors, images.grad_alphas, split_means2d=split_means2d
        )

    monkeypatch.setattr(ops, "_keeps_lists", lambda means: True)
    monkeypatch.setattr(cuda_impl, "rasterize_cuda", forward)
    monkeypatch.setattr(cuda_impl, "rasterize_backward_cuda", backward)
    inputs, settings = inputs_of(40, 17, 15, num_views=3), settings_of(17, 15)
    leaves = [None if t is None else t.clone().requires_grad_() for t in inputs]
    colors, alphas = ops.Rasterize.apply(settings, None, None, *leaves)[:2]
    grads = normal(colors.shape, 1), normal(alphas.shape, 2)
    loss = (colors * grads[0]).sum() + (alphas * grads[1]).sum()
    found = torch.autograd.grad(loss, [t for t in leaves if t is not None])
    expected = [g for g in reference_gradients(inputs, settings, *grads) if g is not None]
    for value, reference in zip(found, expected, strict=True):
        assert float((value.double() - reference).norm()) <= 1e-4 * float(reference.norm())
    assert [chunk.kept is not None for chunk in given[0]] == ([True] if keeps else [False] * 3)
