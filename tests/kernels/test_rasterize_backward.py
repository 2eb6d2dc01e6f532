"""Gradients of the native rasterizer against autograd through the float64 reference, and their identities."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from worldr1_kernels import rasterization, rasterize
from worldr1_kernels._native import cpu as native_module
from worldr1_kernels.rasterize.arguments import BackwardInputs, Inputs, Settings
from worldr1_kernels.rasterize.native_impl import rasterize_backward_native, rasterize_native
from worldr1_kernels.rasterize.ops import rasterize_backward_op, rasterize_op
from worldr1_kernels.rasterize.reference import camera_centers, rasterize_reference
from worldr1_kernels.testing import GaussianScene, check_compiles, check_op, gaussian_scene, noncontiguous, poison_empty

REL_L2 = 1e-4
COSINE = 0.9999
NAMES = (*GaussianScene._fields, "backgrounds")


def scene_with_background(num: int, width: int, height: int, **options: Any) -> list[Tensor]:
    scene = gaussian_scene(num, width, height, **{"sigma_px": (1.0, 4.0), "seed": 1, **options})
    views, channels = scene.viewmats.shape[0], scene.colors.shape[-1]
    backgrounds = torch.rand(views, channels, generator=torch.Generator().manual_seed(7))
    return [*scene, backgrounds]


def gradients(
    tensors: list[Tensor], width: int, height: int, backend: str, **options: Any
) -> tuple[Tensor | None, ...]:
    """Of a fixed random weighting of colours, depth and alphas."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    out = rasterize(*leaves[:7], width, height, backgrounds=leaves[7], backend=backend, **options)
    generator = torch.Generator().manual_seed(0)
    loss = out.render_alphas.new_zeros(())
    seen = out.render_alphas.detach() > 0.05  # the quotient of ED has no gradient to compare where nothing is hit
    for image in (out.render_colors * seen, out.render_alphas):
        loss = loss + (image * torch.randn(image.shape, generator=generator).to(image)).sum()
    return torch.autograd.grad(loss, leaves, allow_unused=True)


def assert_gradients_close(actual: Any, expected: Any, names: tuple[str, ...] = NAMES) -> None:
    for name, one, other in zip(names, actual, expected, strict=True):
        if other is None:
            assert one is None or float(one.abs().max()) == 0.0, name
            continue
        one = one.double()
        norms = float(one.norm() * other.norm())
        assert norms > 0, name
        assert float((one - other).norm() / other.norm()) <= REL_L2, name
        assert float((one * other).sum()) / norms >= COSINE, name


def compare(tensors: list[Tensor], width: int, height: int, **options: Any) -> None:
    with poison_empty():
        native = gradients(tensors, width, height, "native", **options)
    reference = gradients([t.double() for t in tensors], width, height, "reference", **options)
    assert_gradients_close(native, reference)


@pytest.mark.parametrize("mode", ["RGB", "D", "ED", "MD", "FD", "RGB+D", "RGB+ED", "RGB+MD", "RGB+FD"])
@pytest.mark.parametrize(("kind", "compat"), [("classic", "gsplat-1.5"), ("antialiased", "gsplat-1.6")])
def test_every_mode(mode: str, kind: str, compat: str) -> None:
    compare(
        scene_with_background(80, 29, 19, num_views=2), 29, 19, render_mode=mode, rasterize_mode=kind, compat=compat
    )


@pytest.mark.parametrize(
    ("num", "width", "height", "sigma"),
    [(1, 1, 1, (0.5, 1.0)), (3, 8, 8, (0.5, 2.0)), (60, 9, 7, (0.3, 1.0)), (40, 33, 31, (4.0, 20.0))],
    ids=["N1-H1-W1", "N3-H8-W8", "N60-H7-W9", "N40-H31-W33-large"],
)
def test_odd_sizes(num: int, width: int, height: int, sigma: tuple[float, float]) -> None:
    tensors = scene_with_background(num, width, height, sigma_px=sigma, seed=3)
    if num == 1:
        tensors[0][0, :2] = 0.1  # on the screen
    compare(tensors, width, height, render_mode="RGB+D")


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("per_view", [False, True])
def test_spherical_harmonics(degree: int, per_view: bool) -> None:
    tensors = scene_with_background(50, 21, 18, num_views=2)
    shape = (2, 50, 25, 3) if per_view else (50, 25, 3)
    tensors[4] = 0.6 * torch.randn(shape, generator=torch.Generator().manual_seed(degree))
    compare(tensors, 21, 18, render_mode="RGB+D", sh_degree=degree)


@pytest.mark.parametrize("channels", [1, 2, 4, 9])
def test_many_channels(channels: int) -> None:
    tensors = scene_with_background(50, 20, 17, num_views=2, num_channels=channels)
    compare(tensors, 20, 17)
    tensors[4] = torch.stack([tensors[4], 1 - tensors[4]])  # a set for each view
    compare(tensors, 20, 17, render_mode="RGB+ED")


@pytest.mark.parametrize("level", ["x86-64-v2", "x86-64-v3", "x86-64-v4"])
def test_every_instruction_set(level: str) -> None:
    if not native_module().has_instruction_set(level):
        pytest.skip(f"this processor has no {level}")
    inputs, settings = flat_inputs(60, 24, 17, depth_mode=1)
    transmittance, last = rasterize_native(inputs, settings, for_backward=True, level=level)[3:5]
    generator = torch.Generator().manual_seed(0)
    grad_colors = torch.randn(1, 2, 17, 24, 4, generator=generator)
    images = BackwardInputs(None, transmittance, last, grad_colors, None)
    actual = rasterize_backward_native(inputs, settings, images, level=level)
    leaves = Inputs(*(None if t is None else t.double().requires_grad_() for t in inputs))  # type: ignore[arg-type]
    given = [t for t in leaves if t is not None]
    out = rasterize_reference(leaves, settings)
    expected = torch.autograd.grad((out.render_colors * grad_colors).sum(), given)
    native = [g for g, t in zip(actual, leaves, strict=False) if t is not None]
    names = tuple(name for name, t in leaves._asdict().items() if t is not None)
    assert_gradients_close(native, expected, names)


def flat_inputs(num: int, width: int, height: int, *, depth_mode: int) -> tuple[Inputs, Settings]:
    """Two views, in the form the ops take."""
    scene = gaussian_scene(num, width, height, num_views=2, sigma_px=(1.0, 4.0), seed=5)
    means, quats, scales, opacities, colors, viewmats, Ks = (t[None] for t in scene)
    inputs = Inputs(means, quats, scales, None, opacities, colors[:, None], viewmats, Ks, None)
    return inputs, Settings(width, height, 0.01, 1e10, 0.0, 0.3, -1, depth_mode, True, 0.99, 0.005)


def test_covariances() -> None:
    """Through covars the gradient is the reference's, and the chain from quats and scales gives the direct one."""
    tensors = scene_with_background(60, 25, 18)
    reference_leaves = [t.double().requires_grad_() for t in tensors[1:3]]

    def covars(quats: Tensor, scales: Tensor) -> Tensor:
        w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
        rows = [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
                2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
                2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]  # fmt: skip
        factor = torch.stack(rows, -1).unflatten(-1, (3, 3)) * scales[..., None, :]
        return factor @ factor.mT

    results = []
    for dtype, backend in ((torch.float32, "native"), (torch.float64, "reference")):
        leaf = covars(*tensors[1:3]).to(dtype).requires_grad_()
        given = [t.to(dtype) for t in tensors]
        out = rasterize(given[0], None, None, *given[3:7], 25, 18, covars=leaf, backend=backend)
        results.append(torch.autograd.grad((out.render_colors**2).sum(), leaf)[0])
    assert_gradients_close(results[:1], results[1:], ("covars",))

    leaves = [t.clone().requires_grad_() for t in tensors[1:3]]
    out = rasterize(tensors[0], None, None, *tensors[3:7], 25, 18, covars=covars(*leaves), backend="native")
    chained = torch.autograd.grad((out.render_colors**2).sum(), leaves)
    given = [t.double() for t in tensors]
    out = rasterize(given[0], *reference_leaves, *given[3:7], 25, 18, backend="reference")
    direct = torch.autograd.grad((out.render_colors**2).sum(), reference_leaves)
    assert_gradients_close(chained, direct, ("quats", "scales"))


def test_batched_scenes_equal_a_loop() -> None:
    scenes = [gaussian_scene(40, 19, 23, num_views=3, seed=s) for s in range(4)]
    stacked = [noncontiguous(torch.stack(t).unflatten(0, (2, 2))) for t in zip(*scenes, strict=True)]

    def run(tensors: Any) -> tuple[Tensor, ...]:
        leaves = [t.detach().clone().requires_grad_() for t in tensors]
        out = rasterize(*leaves, 19, 23, render_mode="RGB+D", backend="native")
        return torch.autograd.grad(out.render_colors.square().sum(), leaves)

    together = run(stacked)
    for index, scene in enumerate(scenes):
        for one, other in zip(together, run(scene), strict=True):
            assert torch.equal(one[index // 2, index % 2], other)


@pytest.mark.parametrize("views", [1, 3], ids=["tiles", "views"])
def test_result_does_not_depend_on_threads(views: int) -> None:
    before = torch.get_num_threads()
    tensors = scene_with_background(1500, 70, 50, num_views=views)  # more than one chunk of splats
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(gradients(tensors, 70, 50, "native", render_mode="RGB+ED"))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert one is not None and two is not None and torch.equal(one, two)


def test_saturated_pixels_get_no_gradient_from_behind() -> None:
    """A wall of four splats of opacity .99 stops every pixel: what is behind is not differentiated."""
    scene = gaussian_scene(6, 16, 16)
    means = torch.tensor([[0.0, 0, 2 + 0.1 * i] for i in range(6)])
    scene = scene._replace(
        means=means,
        scales=torch.full((6, 3), 500.0),
        opacities=torch.full((6,), 0.95),
        quats=torch.eye(4)[:1].repeat(6, 1),
    )
    colors = scene.colors.clone().requires_grad_()
    out = rasterize(*scene._replace(colors=colors), 16, 16, backend="native")
    (gradient,) = torch.autograd.grad(out.render_colors.sum(), colors)
    expected = 256 * 0.95 * 0.05 ** torch.arange(6.0)
    expected[3:] = 0.0  # .05^4 < 1e-4: the fourth would bring T to the stop
    torch.testing.assert_close(gradient, expected[:, None].expand(6, 3), rtol=1e-3, atol=1e-5)


def test_alpha_clipped_at_its_maximum_has_no_gradient() -> None:
    focal, depth = 100.0, 5.0
    opacities = torch.tensor([1.0]).requires_grad_()
    means = torch.tensor([[0.5 * depth / focal, 0.5 * depth / focal, depth]])
    K = torch.tensor([[[focal, 0, 0.0], [0, focal, 0.0], [0, 0, 1]]])
    scene = (means, torch.eye(4)[:1], torch.full((1, 3), 0.5), opacities, torch.ones(1, 3), torch.eye(4)[None], K)
    out = rasterize(*scene, 1, 1, backend="native")
    assert out.render_alphas.item() == pytest.approx(0.99, abs=1e-6)
    (gradient,) = torch.autograd.grad(out.render_alphas.sum(), opacities)
    assert gradient.item() == 0.0


def test_gradients_are_finite_beside_invalid_gaussians() -> None:
    scene = GaussianScene(*(t.clone() for t in gaussian_scene(6, 12, 12)))
    scene.means[0] = float("nan")
    scene.means[1] = 0.0  # on the camera centre
    scene.scales[2] = float("inf")
    scene.colors[3] = float("nan")
    leaves = [t.requires_grad_() for t in scene]
    out = rasterize(*scene, 12, 12, render_mode="RGB+ED", rasterize_mode="antialiased", backend="native")
    found = torch.autograd.grad(out.render_colors.sum() + out.render_alphas.sum(), leaves)
    for gradient in found:
        assert gradient.isfinite().all()
    assert found[0][:4].abs().sum() == 0 and found[0][4:].abs().sum() > 0


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_nothing_to_render(backend: str) -> None:
    for scene in (gaussian_scene(0, 10, 9, num_views=2), gaussian_scene(3, 10, 9)._replace(opacities=torch.zeros(3))):
        leaves = [t.clone().requires_grad_() for t in scene]
        out = rasterize(*leaves, 10, 9, render_mode="RGB+ED", backend=backend)
        for leaf, gradient in zip(leaves, torch.autograd.grad(out.render_colors.sum(), leaves), strict=True):
            assert gradient.shape == leaf.shape and float(gradient.abs().sum()) == 0.0


def scaled_poses(backend: str, dtype: torch.dtype, factor: float, degree: int = 2) -> tuple[Tensor, list[Tensor]]:
    """A picture from poses whose upper rows are multiplied by `factor` inside, and gradients of them and the means."""
    scene = scene_with_background(40, 21, 18, num_views=2)
    coefficients = 0.6 * torch.randn(40, (degree + 1) ** 2, 3, generator=torch.Generator().manual_seed(2))
    tensors = [t.to(dtype) for t in (*scene[:4], coefficients, *scene[5:7])]
    means, viewmats = (tensors[i].clone().requires_grad_() for i in (0, 5))
    rows = torch.tensor([factor] * 3 + [1.0], dtype=dtype)[:, None]
    out = rasterize(
        means, *tensors[1:5], viewmats * rows, tensors[6], 21, 18, near_plane=0.0, sh_degree=degree, backend=backend
    )
    loss = (
        out.render_colors * torch.linspace(-1, 1, out.render_colors.numel()).to(dtype).view_as(out.render_colors)
    ).sum()
    return out.render_colors.detach(), list(torch.autograd.grad(loss, (means, viewmats)))


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("factor", [2.0, 1e-3, 3e4])
def test_a_scale_of_the_pose_changes_nothing(backend: str, factor: float) -> None:
    """A point p and its camera coordinates s (R p + t) project to the same place; the centre is -R^-1 t at any s."""
    picture, gradients = scaled_poses(backend, torch.float32, factor)
    expected, wanted = scaled_poses("reference", torch.float64, 1.0)
    assert float((picture - expected).abs().max()) < 1e-5
    for one, other in zip(gradients, wanted, strict=True):
        assert float((one - other).norm() / other.norm()) < REL_L2


def test_camera_centre_of_any_matrix() -> None:
    """Shear and stretch: the colour is that of gsplat's torch.inverse, its gradient the reference's."""
    tensors = scene_with_background(50, 21, 18, num_views=2)
    tensors[4] = 0.6 * torch.randn(50, 9, 3, generator=torch.Generator().manual_seed(5))
    tensors[5] = tensors[5].clone()
    tensors[5][:, :3, :3] += 0.2 * torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(6))
    compare(tensors, 21, 18, render_mode="RGB+D", sh_degree=2)
    for dtype in (torch.float32, torch.float64):
        viewmats = tensors[5].to(dtype)
        torch.testing.assert_close(
            camera_centers(viewmats), torch.linalg.inv(viewmats)[..., :3, 3], rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_pose_without_an_inverse_shows_numbers(backend: str) -> None:
    tensors = scene_with_background(20, 12, 10, num_views=2)
    tensors[4] = torch.rand(20, 4, 3)
    tensors[5] = tensors[5].clone()
    tensors[5][0, 1, :3] = 0.0
    for gradient in gradients(tensors, 12, 10, backend, sh_degree=1):
        assert gradient.isfinite().all()


def test_gradient_of_the_projected_means() -> None:
    """As gsplat's densification reads it: it arrives in meta, and the inputs get what they get without it."""
    tensors = scene_with_background(40, 20, 15, num_views=2)[:7]

    def run(backend: str, meta: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Any]:
        means = tensors[0].to(dtype, copy=True).requires_grad_()
        out = rasterization(means, *(t.to(dtype) for t in tensors[1:]), 20, 15, meta=meta, backend=backend)
        if meta == "full":
            out.meta["means2d"].retain_grad()
        out.render_colors.square().sum().backward()
        return means.grad, out.meta["means2d"].grad if meta == "full" else None

    full, means2d = run("native", "full")
    minimal, _ = run("native", "minimal")
    reference, reference_means2d = run("reference", "full", torch.float64)
    assert_gradients_close((full, minimal, means2d), (reference, reference, reference_means2d), ("a", "b", "means2d"))


def test_alphas_alone() -> None:
    tensors = scene_with_background(30, 15, 12)[:7]
    results = []
    for dtype, backend in ((torch.float32, "native"), (torch.float64, "reference")):
        leaves = [t.to(dtype).requires_grad_() for t in tensors]
        alphas = rasterize(*leaves, 15, 12, backend=backend).render_alphas
        results.append(torch.autograd.grad(alphas.sum(), leaves, allow_unused=True))
    assert float(results[0][4].abs().max()) == 0.0
    assert_gradients_close(results[0][:4], results[1][:4], NAMES[:4])


def test_ops_and_compile() -> None:
    inputs, settings = flat_inputs(20, 13, 9, depth_mode=2)
    for report in (0, 1, 2):
        check_op(rasterize_op, (*inputs, *settings, "native", True, report))
    colors, alphas, _, _, transmittance, last, *_ = rasterize_op(*inputs, *settings, "native", True, 0)
    for split in (False, True):
        check_op(
            rasterize_backward_op,
            (*inputs, colors, transmittance, last, torch.ones_like(colors), torch.ones_like(alphas), *settings, split),
        )
    scene = gaussian_scene(20, 13, 9)

    def function(means: Tensor, opacities: Tensor) -> tuple[Tensor, ...]:
        out = rasterize(means * 1.0, *scene[1:3], opacities, *scene[4:], 13, 9, render_mode="RGB+ED", backend="native")
        return out.render_colors + 1.0, out.render_alphas

    def with_gradient(means: Tensor, opacities: Tensor) -> tuple[Tensor, ...]:
        means, opacities = means.detach().requires_grad_(), opacities.detach().requires_grad_()
        outputs = torch.compile(function, fullgraph=True, backend="aot_eager")(means, opacities)
        return torch.autograd.grad(sum(o.sum() for o in outputs), (means, opacities))

    leaves = (scene.means.clone().requires_grad_(), scene.opacities.clone().requires_grad_())
    check_compiles(function, leaves)
    eager = torch.autograd.grad(sum(o.sum() for o in function(*leaves)), leaves)
    for one, other in zip(with_gradient(*leaves), eager, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
        assert math.isfinite(float(one.sum()))
