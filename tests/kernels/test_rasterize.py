"""The native rasterizer against the float64 reference, and its identities."""

import math
import multiprocessing

import pytest
import torch

from worldr1_kernels import rasterize
from worldr1_kernels._native import cpu as native_module
from worldr1_kernels.rasterize.arguments import Inputs, Settings
from worldr1_kernels.rasterize.native_impl import rasterize_native
from worldr1_kernels.rasterize.ops import rasterize_op
from worldr1_kernels.testing import (
    GaussianScene,
    check_compiles,
    check_op,
    gaussian_scene,
    noncontiguous,
    pixel_aligned_scene,
    poison_empty,
)

TIGHT = 1e-5
SHARE = 1e-4  # of pixels may lie outside TIGHT, where a splat crosses a threshold
BORDERLINE = 1 / 255 + 1e-3  # what one splat at the threshold can change, per unit of its feature


def double(scene: GaussianScene) -> GaussianScene:
    return GaussianScene(*(t.double() for t in scene))


def flat_inputs(scene: GaussianScene) -> Inputs:
    """One scene in the form the op takes."""
    means, quats, scales, opacities, colors, viewmats, Ks = (t[None] for t in scene)
    return Inputs(means, quats, scales, None, opacities, colors[None], viewmats, Ks, None)


def assert_images_close(actual: torch.Tensor, expected: torch.Tensor, scale: float = 1.0) -> None:
    """|d| <= 1e-5 on all but 1 in 10,000 pixels (one at least), the rest within one borderline splat."""
    difference = (actual.double() - expected).abs().amax(-1) / scale  # [..., H, W]
    outside = int((difference > TIGHT).sum())
    assert outside <= math.ceil(SHARE * difference.numel()), f"{outside} of {difference.numel()} pixels differ"
    assert float(difference.max()) <= BORDERLINE


@pytest.mark.parametrize("mode", ["RGB", "D", "ED", "RGB+D", "RGB+ED"])
@pytest.mark.parametrize("kind", ["classic", "antialiased"])
@pytest.mark.parametrize("compat", ["gsplat-1.6", "gsplat-1.5"])
def test_native_matches_float64_reference(mode: str, kind: str, compat: str) -> None:
    width, height = 77, 51
    scene = gaussian_scene(800, width, height, num_views=2)
    options = dict(render_mode=mode, rasterize_mode=kind, compat=compat)
    with poison_empty():
        native = rasterize(*scene, width, height, **options, backend="native")
    expected = rasterize(*double(scene), width, height, **options, backend="reference")
    assert native.render_colors.shape == expected.render_colors.shape
    assert_images_close(native.render_alphas, expected.render_alphas)
    depth_scale = 6.0 if "D" in mode else 1.0
    if mode.startswith("RGB"):
        assert_images_close(native.render_colors[..., :3], expected.render_colors[..., :3])
    if mode in ("D", "RGB+D"):
        assert_images_close(native.render_colors[..., -1:], expected.render_colors[..., -1:], depth_scale)
    if mode.endswith("ED"):  # a quotient by alpha: compared where something was hit
        hit = (expected.render_alphas > 0.5).double()
        depth, expected_depth = native.render_colors[..., -1:], expected.render_colors[..., -1:]
        assert_images_close(depth * hit, expected_depth * hit, 2 * depth_scale)


@pytest.mark.parametrize(
    ("num", "width", "height", "sigma"),
    [(1, 1, 1, (0.5, 1.0)), (3, 8, 8, (0.5, 2.0)), (200, 9, 7, (0.3, 1.0)), (300, 65, 63, (2.0, 20.0))],
    ids=["N1-H1-W1", "N3-H8-W8", "N200-H7-W9", "N300-H63-W65-large"],
)
def test_native_odd_sizes(num: int, width: int, height: int, sigma: tuple[float, float]) -> None:
    scene = gaussian_scene(num, width, height, sigma_px=sigma, seed=3)
    native = rasterize(*scene, width, height, render_mode="RGB+D", backend="native")
    expected = rasterize(*double(scene), width, height, render_mode="RGB+D", backend="reference")
    assert_images_close(native.render_colors, expected.render_colors, 6.0)
    assert_images_close(native.render_alphas, expected.render_alphas)


@pytest.mark.parametrize("level", ["x86-64-v2", "x86-64-v3", "x86-64-v4"])
def test_every_instruction_set(level: str) -> None:
    if not native_module().has_instruction_set(level):
        pytest.skip(f"this processor has no {level}")
    scene = gaussian_scene(400, 40, 33, seed=5)
    settings = Settings(40, 33, 0.01, 1e10, 0.0, 0.3, -1, 1, True, 0.99, 0.005)
    inputs = flat_inputs(scene)
    colors, alphas, _ = rasterize_native(inputs, settings, level=level)[:3]
    expected = rasterize(*double(scene), 40, 33, render_mode="RGB+D", rasterize_mode="antialiased", backend="reference")
    assert_images_close(colors[0], expected.render_colors, 6.0)
    assert_images_close(alphas[0], expected.render_alphas)


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("per_view", [False, True])
def test_spherical_harmonics(degree: int, per_view: bool) -> None:
    scene = gaussian_scene(150, 33, 20, num_views=2, seed=degree)
    generator = torch.Generator().manual_seed(degree)
    shape = (2, 150, 25, 3) if per_view else (150, 25, 3)
    scene = scene._replace(colors=0.3 * torch.randn(shape, generator=generator))
    native = rasterize(*scene, 33, 20, sh_degree=degree, render_mode="RGB+D", backend="native")
    expected = rasterize(*double(scene), 33, 20, sh_degree=degree, render_mode="RGB+D", backend="reference")
    assert_images_close(native.render_colors, expected.render_colors, 6.0)


@pytest.mark.parametrize("channels", [1, 4, 5, 9])
def test_many_channels_and_background(channels: int) -> None:
    scene = gaussian_scene(60, 20, 17, num_views=2, num_channels=channels)
    backgrounds = torch.rand(2, channels, generator=torch.Generator().manual_seed(1))
    native = rasterize(*scene, 20, 17, backgrounds=backgrounds, render_mode="RGB+ED", backend="native")
    plain = rasterize(*scene, 20, 17, render_mode="RGB+ED", backend="native")
    added = plain.render_colors[..., :-1] + (1 - plain.render_alphas) * backgrounds[:, None, None]
    torch.testing.assert_close(native.render_colors[..., :-1], added, rtol=0, atol=1e-6)
    assert torch.equal(native.render_colors[..., -1], plain.render_colors[..., -1])
    # Channels do not influence each other, whatever pass they are blended in.
    last = scene._replace(colors=scene.colors[:, -1:])
    alone = rasterize(*last, 20, 17, backend="native").render_colors[..., 0]
    torch.testing.assert_close(alone, plain.render_colors[..., channels - 1], rtol=0, atol=1e-6)


def test_batched_scenes_equal_a_loop() -> None:
    scenes = [gaussian_scene(90, 19, 23, num_views=3, seed=s) for s in range(4)]
    stacked = GaussianScene(*(noncontiguous(torch.stack(t).unflatten(0, (2, 2))) for t in zip(*scenes, strict=True)))
    together = rasterize(*stacked, 19, 23, render_mode="RGB+D", backend="native")
    assert together.render_colors.shape == (2, 2, 3, 23, 19, 4)
    assert together.meta["num_invalid"].shape == (2, 2, 3)
    for index, scene in enumerate(scenes):
        alone = rasterize(*scene, 19, 23, render_mode="RGB+D", backend="native")
        assert torch.equal(together.render_colors[index // 2, index % 2], alone.render_colors)


def test_result_does_not_depend_on_threads() -> None:
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            for views in (1, 3):  # tiles in parallel, then views
                scene = gaussian_scene(300, 70, 50, num_views=views)
                results.append(rasterize(*scene, 70, 50, render_mode="RGB+D", backend="native").render_colors)
    finally:
        torch.set_num_threads(before)
    for one, other in zip(results[:2] * 2, results[2:], strict=True):
        assert torch.equal(one, other)


def _render_in_child(queue: "multiprocessing.Queue[float]") -> None:
    scene = gaussian_scene(50, 24, 24, num_views=2)
    queue.put(float(rasterize(*scene, 24, 24, backend="native").render_alphas.double().sum()))


def test_fork_after_threads_were_used() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        scene = gaussian_scene(50, 24, 24, num_views=2)
        expected = float(rasterize(*scene, 24, 24, backend="native").render_alphas.double().sum())
        context = multiprocessing.get_context("fork")
        queue = context.Queue()
        child = context.Process(target=_render_in_child, args=(queue,))
        child.start()
        assert queue.get(timeout=60) == expected
        child.join(timeout=60)
        assert child.exitcode == 0
    finally:
        torch.set_num_threads(before)


def test_one_gaussian_at_a_pixel_centre() -> None:
    """At the mean alpha is the opacity; one pixel to the side it falls by exp(-1 / (2 (s^2 + eps2d)))."""
    focal, depth, sigma_px = 100.0, 5.0, 2.0
    means = torch.tensor([[0.5 * depth / focal, 0.5 * depth / focal, depth]])
    scales = torch.full((1, 3), sigma_px * depth / focal)
    K = torch.tensor([[[focal, 0, 8.0], [0, focal, 8.0], [0, 0, 1]]])
    scene = (means, torch.tensor([[1.0, 0, 0, 0]]), scales, torch.tensor([0.7]), torch.tensor([[0.2, 0.4, 0.6]]))
    for backend in ("native", "reference"):
        out = rasterize(*scene, torch.eye(4)[None], K, 16, 16, render_mode="RGB+ED", backend=backend)
        assert out.render_alphas[0, 8, 8, 0].item() == pytest.approx(0.7, abs=1e-6)
        side = 0.7 * math.exp(-1 / (2 * (sigma_px**2 + 0.3)))
        assert out.render_alphas[0, 8, 9, 0].item() == pytest.approx(side, abs=1e-5)
        assert out.render_colors[0, 8, 8].tolist() == pytest.approx([0.14, 0.28, 0.42, depth], abs=1e-5)


@pytest.mark.parametrize("backend", ["native", "reference"])
class TestEdgeCases:
    def test_no_gaussians(self, backend: str) -> None:
        scene = gaussian_scene(0, 10, 9, num_views=2)
        backgrounds = torch.tensor([[0.1, 0.2, 0.3]]).repeat(2, 1)
        out = rasterize(*scene, 10, 9, backgrounds=backgrounds, render_mode="RGB+ED", backend=backend)
        assert torch.equal(out.render_alphas, torch.zeros(2, 9, 10, 1))
        assert torch.equal(out.render_colors[0, 3, 4], torch.tensor([0.1, 0.2, 0.3, 0.0]))

    def test_no_views_and_no_scenes(self, backend: str) -> None:
        scene = gaussian_scene(5, 10, 9)
        none = scene._replace(viewmats=scene.viewmats[:0], Ks=scene.Ks[:0])
        assert rasterize(*none, 10, 9, backend=backend).render_colors.shape == (0, 9, 10, 3)
        empty = GaussianScene(*(t[None][:0] for t in scene))
        assert rasterize(*empty, 10, 9, backend=backend).render_colors.shape == (0, 1, 9, 10, 3)

    def test_ties_go_to_the_lower_index(self, backend: str) -> None:
        scene = gaussian_scene(1, 12, 12)
        red, blue = torch.tensor([[1.0, 0, 0]]), torch.tensor([[0, 0, 1.0]])
        twice = GaussianScene(*(torch.cat([t, t]) for t in scene[:4]), torch.cat([red, blue]), *scene[5:])
        twice = twice._replace(means=torch.tensor([[0.0, 0, 3]] * 2), opacities=torch.tensor([0.9, 0.9]))
        out = rasterize(*twice, 12, 12, backend=backend).render_colors[0, 6, 6]
        assert out[0] > 4 * out[2] > 0

    def test_one_gaussian_covers_everything(self, backend: str) -> None:
        scene = gaussian_scene(1, 40, 24)
        scene = scene._replace(
            means=torch.tensor([[0.0, 0, 3]]), scales=torch.full((1, 3), 100.0), opacities=torch.tensor([1.0])
        )
        out = rasterize(*scene, 40, 24, backend=backend)
        torch.testing.assert_close(out.render_alphas, torch.full((1, 24, 40, 1), 0.99), rtol=0, atol=1e-5)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    def test_not_finite_is_dropped_and_counted(self, backend: str, bad: float) -> None:
        scene = gaussian_scene(40, 24, 16, num_views=2)
        clean = GaussianScene(*(t[5:] for t in scene[:5]), *scene[5:])
        dirty = GaussianScene(*(t.clone() for t in scene))
        dirty.means[0, 1] = bad
        dirty.quats[1, 3] = bad
        dirty.scales[2, 0] = bad
        dirty.opacities[3] = bad
        dirty.colors[4, 2] = bad
        out = rasterize(*dirty, 24, 16, render_mode="RGB+D", backend=backend)
        assert out.meta["num_invalid"].tolist() == [5, 5]
        expected = rasterize(*clean, 24, 16, render_mode="RGB+D", backend=backend)
        torch.testing.assert_close(out.render_colors, expected.render_colors, rtol=0, atol=1e-6)

    def test_colours_not_finite_in_one_view(self, backend: str) -> None:
        scene = gaussian_scene(10, 16, 16, num_views=2)
        colors = scene.colors.repeat(2, 1, 1)
        colors[1, 3, 0] = float("nan")
        means = scene.means.clone()
        means[7] = float("nan")
        out = rasterize(*scene._replace(colors=colors, means=means), 16, 16, backend=backend)
        assert out.meta["num_invalid"].tolist() == [1, 2]
        assert out.render_colors.isfinite().all()

    def test_zero_quaternion_counts_as_invalid(self, backend: str) -> None:
        scene = gaussian_scene(3, 16, 16)
        scene.quats[0] = 0.0
        assert rasterize(*scene, 16, 16, backend=backend).meta["num_invalid"].tolist() == [1]

    def test_near_far_and_radius_clip(self, backend: str) -> None:
        scene = gaussian_scene(50, 32, 32)
        near = rasterize(*scene, 32, 32, near_plane=4.0, backend=backend).render_alphas
        kept = scene.means[:, 2] > 4.0
        subset = GaussianScene(*(t[kept] for t in scene[:5]), *scene[5:])
        assert torch.equal(near, rasterize(*subset, 32, 32, backend=backend).render_alphas)
        assert rasterize(*scene, 32, 32, near_plane=7.0, backend=backend).render_alphas.sum() == 0
        assert rasterize(*scene, 32, 32, far_plane=1.0, backend=backend).render_alphas.sum() == 0
        assert rasterize(*scene, 32, 32, radius_clip=1e4, backend=backend).render_alphas.sum() == 0

    def test_alpha_stays_in_range(self, backend: str) -> None:
        scene = gaussian_scene(500, 20, 20, sigma_px=(1.0, 5.0))
        alphas = rasterize(*scene, 20, 20, backend=backend).render_alphas
        assert 0.9 < float(alphas.max()) <= 1 - 1e-4 + 1e-6
        assert float(alphas.min()) >= 0.0

    def test_behind_and_extreme_values(self, backend: str) -> None:
        scene = gaussian_scene(4, 16, 16)
        means = torch.tensor([[0.0, 0, -1], [0, 0, 0], [1e30, 0, 3], [0, 0, 3]])
        scales = scene.scales.clone()
        scales[2] = 1e30
        out = rasterize(*scene._replace(means=means, scales=scales), 16, 16, render_mode="RGB+ED", backend=backend)
        assert out.render_colors.isfinite().all()
        only = GaussianScene(*(t[3:] for t in scene._replace(means=means)[:5]), *scene[5:])
        assert torch.equal(out.render_alphas, rasterize(*only, 16, 16, backend=backend).render_alphas)


@pytest.mark.parametrize("length", [10, 100, 1000])
def test_long_splats_are_as_good_as_float32_allows(length: int) -> None:
    """A splat .5 pixels wide: its covariance holds length^2 beside 1/4, and float32 has 7 digits. See README."""
    scene = gaussian_scene(40, 96, 96, sigma_px=(0.3, 0.6), seed=1)
    scene.scales[:, 0] = length * scene.means[:, 2] / 96
    scene = scene._replace(opacities=torch.full((40,), 0.3))
    expected = rasterize(*double(scene), 96, 96, backend="reference").render_alphas
    errors = [
        float((rasterize(*scene, 96, 96, backend=backend).render_alphas - expected).abs().mean())
        for backend in ("native", "reference")
    ]
    assert errors[0] <= 2 * errors[1] + 1e-7
    assert errors[0] <= {10: 2e-7, 100: 5e-5, 1000: 5e-3}[length]


def test_moving_camera_and_scene_together_changes_nothing() -> None:
    scene = double(gaussian_scene(60, 30, 22))
    angle = 0.7
    rotation = torch.tensor(
        [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]], dtype=torch.float64
    )
    shift = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    w, x, y, z = scene.quats.unbind(-1)
    c, s = math.cos(angle / 2), math.sin(angle / 2)  # rotation about y, multiplied from the left
    quats = torch.stack([c * w - s * y, c * x + s * z, c * y + s * w, c * z - s * x], -1)
    viewmat = torch.eye(4, dtype=torch.float64)
    viewmat[:3, :3] = rotation.T
    viewmat[:3, 3] = -rotation.T @ shift
    moved = scene._replace(means=scene.means @ rotation.T + shift, quats=quats, viewmats=viewmat[None])
    before = rasterize(*scene, 30, 22, render_mode="RGB+D").render_colors
    torch.testing.assert_close(rasterize(*moved, 30, 22, render_mode="RGB+D").render_colors, before, rtol=0, atol=1e-9)


def test_op_and_compile() -> None:
    scene = gaussian_scene(30, 18, 13, num_views=2)
    settings = Settings(18, 13, 0.01, 1e10, 0.0, 0.3, -1, 2, False, 0.99, 0.005)
    inputs = flat_inputs(scene)
    for backend in ("native", "reference"):
        check_op(rasterize_op, (*inputs, *settings, backend, False, 1))

    def function(means: torch.Tensor, colors: torch.Tensor) -> torch.Tensor:
        moved = scene._replace(means=means * 1.0, colors=colors)
        return rasterize(*moved, 18, 13, render_mode="RGB+D", backend="native").render_colors + 1.0

    check_compiles(function, (scene.means, scene.colors))


class TestErrors:
    scene = gaussian_scene(4, 8, 8)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (dict(quats=torch.zeros(4, 3)), r"rasterize: quats must have shape \[N, 4\], got \[4, 3\]"),
            (dict(scales=torch.zeros(5, 3)), r"rasterize: scales must have shape \[N, 3\] with N = 4, got \[5, 3\]"),
            (dict(colors=torch.zeros(3, 4, 3)), r"rasterize: colors must have shape \[C, N, D\] with C = 1"),
            (dict(viewmats=torch.zeros(1, 3, 4)), r"rasterize: viewmats must have shape \[C, 4, 4\]"),
            (dict(Ks=torch.zeros(2, 3, 3)), r"rasterize: Ks must have shape \[C, 3, 3\] with C = 1"),
        ],
    )
    def test_shapes(self, change: dict[str, torch.Tensor], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            rasterize(*self.scene._replace(**change), 8, 8)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (dict(render_mode="RGBD"), "rasterize: render_mode must be one of .* got 'RGBD'"),
            (dict(rasterize_mode="clasic"), "did you mean 'classic'"),
            (dict(compat="gsplat-1.4"), "rasterize: compat must be one of"),
            (dict(near_plane=2.0, far_plane=1.0), "rasterize: 0 <= near_plane < far_plane must hold"),
            (dict(eps2d=float("nan")), "rasterize: eps2d must be finite and >= 0, got nan"),
            (dict(pairs_per_gaussian=-1.0), "rasterize: pairs_per_gaussian must be finite and >= 0, got -1.0"),
            (dict(backend="cuda"), "rasterize: backend must be one of"),
            (dict(sh_degree=5, colors=torch.zeros(4, 36, 3)), "rasterize: sh_degree must be None or 0 to 4, got 5"),
            (dict(sh_degree=2, colors=torch.zeros(4, 4, 3)), "colors must have K >= 9 for sh_degree 2, got 4"),
            (dict(backgrounds=torch.zeros(1, 4)), r"rasterize: backgrounds must have shape \[C, 3\], got \[1, 4\]"),
        ],
    )
    def test_options(self, options: dict[str, object], message: str) -> None:
        options = dict(options)
        scene = self.scene._replace(colors=options.pop("colors", self.scene.colors))
        with pytest.raises(ValueError, match=message):
            rasterize(*scene, 8, 8, **options)

    def test_size_and_types(self) -> None:
        with pytest.raises(ValueError, match="rasterize: width must be an integer from 1"):
            rasterize(*self.scene, 0, 8)
        with pytest.raises(TypeError, match="rasterize: means must have dtype float32"):
            rasterize(*self.scene._replace(means=torch.zeros(4, 3, dtype=torch.int64)), 8, 8)
        with pytest.raises(ValueError, match="rasterize: colors must be given for render_mode 'RGB'"):
            rasterize(*self.scene._replace(colors=None), 8, 8)
        with pytest.raises(TypeError, match="backend 'native' computes in float32"):
            rasterize(*double(self.scene), 8, 8, backend="native")

    def test_native_on_another_device_says_why(self) -> None:
        scene = GaussianScene(*(t.to("meta") for t in self.scene))
        with pytest.raises(RuntimeError, match="native backend has no kernel for device meta"):
            rasterize(*scene, 8, 8, backend="native")

    def test_bfloat16_inputs_are_computed_in_float32(self) -> None:
        scene = self.scene._replace(colors=self.scene.colors.bfloat16())
        out = rasterize(*scene, 8, 8).render_colors
        assert out.dtype == torch.float32
        assert torch.equal(out, rasterize(*self.scene._replace(colors=scene.colors.float()), 8, 8).render_colors)


def test_pixel_aligned_scene_is_one_small_splat_a_pixel() -> None:
    scene = pixel_aligned_scene(2, 24, 16, num_views=3, sh_degree=1)
    assert len(scene.means) == 2 * 24 * 16 and scene.colors.shape == (768, 4, 3) and scene.viewmats.shape == (3, 4, 4)
    eye = torch.eye(3).expand(3, 3, 3)
    torch.testing.assert_close(scene.viewmats[:, :3, :3] @ scene.viewmats[:, :3, :3].mT, eye, rtol=0, atol=1e-6)
    depth = scene.means[:, 2]
    sigma = scene.scales / depth[:, None] * 24  # pixels
    assert 0.3 <= float(sigma.min()) and float(sigma.max()) <= 0.9 + 1e-5
    # Seen from the baseline, the frame is covered.
    alphas = rasterize(*scene, 24, 16, sh_degree=1).render_alphas
    assert float(alphas[1].min()) > 0.8 and float(alphas.mean()) > 0.8
