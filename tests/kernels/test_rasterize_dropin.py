"""`rasterization`: gsplat's signature, and what `rasterize` and it share."""

import inspect

import pytest
import torch

import worldr1_kernels
from worldr1_kernels import rasterization, rasterize
from worldr1_kernels.testing import gaussian_scene


def test_signature_is_gsplats() -> None:
    gsplat = pytest.importorskip("gsplat")
    theirs = inspect.signature(gsplat.rasterization).parameters
    ours = inspect.signature(rasterization).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    for name, parameter in theirs.items():
        assert ours[name].kind == parameter.kind, name
        if name == "rolling_shutter":  # an enumeration of gsplat's; its default is accepted, below
            assert ours[name].default is None and parameter.default.name == "GLOBAL"
        else:
            assert ours[name].default == parameter.default, name
    assert list(ours)[len(theirs) :] == ["compat", "meta", "pairs_per_gaussian", "backend"]


def test_defaults_are_those_of_rasterize() -> None:
    """The two signatures are written out twice; only `meta` may differ."""
    one, other = (inspect.signature(function).parameters for function in (rasterize, rasterization))
    different = [name for name in one if one[name].default != other[name].default]
    assert different == ["meta"]
    assert worldr1_kernels.rasterization is rasterization


def test_positional_order_and_meta() -> None:
    scene = gaussian_scene(30, 18, 13, num_views=2)
    colors, alphas, meta = rasterization(*scene, 18, 13, 0.01, 1e10, 0.0, 0.3, None, False, 16)
    expected = rasterize(*scene, 18, 13)
    assert torch.equal(colors, expected.render_colors) and torch.equal(alphas, expected.render_alphas)
    assert set(expected.meta) == {"width", "height", "num_invalid", "num_overflow"}
    assert (meta["width"], meta["height"], meta["n_cameras"], meta["n_batches"]) == (18, 13, 2, 1)
    assert meta["radii"].shape == meta["means2d"].shape == (2, 30, 2) and meta["radii"].dtype == torch.int32
    focal = scene.Ks[0, 0, 0]
    points = scene.means @ scene.viewmats[:, :3, :3].mT + scene.viewmats[:, None, :3, 3]
    torch.testing.assert_close(meta["depths"], points[..., 2], rtol=1e-6, atol=0)
    torch.testing.assert_close(
        meta["means2d"][..., 0], focal * points[..., 0] / points[..., 2] + 9, rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("kind", ["classic", "antialiased"])
def test_meta_agrees_with_gsplat(kind: str) -> None:
    torch_impl = pytest.importorskip("gsplat.cuda._torch_impl")
    scene = gaussian_scene(200, 48, 40, num_views=2, seed=4)
    *_, meta = rasterization(*scene, 48, 40, rasterize_mode=kind, compat="gsplat-1.5", packed=False)
    covars, _ = torch_impl._quat_scale_to_covar_preci(scene.quats, scene.scales, compute_preci=False)
    radii, means2d, depths, conics, compensations = torch_impl._fully_fused_projection(
        scene.means, covars, scene.viewmats, scene.Ks, 48, 40, calc_compensations=kind == "antialiased"
    )
    both = (meta["radii"] > 0).all(-1) & (radii > 0).all(-1)
    assert int(both.sum()) > 200
    for name, value in (("means2d", means2d), ("depths", depths), ("conics", conics)):
        torch.testing.assert_close(meta[name][both], value[both], rtol=2e-4, atol=1e-4)
    opacities = scene.opacities.expand(2, -1) * (1.0 if compensations is None else compensations)
    torch.testing.assert_close(meta["opacities"][both], opacities[both], rtol=2e-4, atol=1e-5)
    assert int((meta["radii"][both] - radii[both]).max()) <= 0  # gsplat's torch code does not use the opacity: larger


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sparse_grad", True),
        ("absgrad", True),
        ("distributed", True),
        ("camera_model", "fisheye"),
        ("with_ut", True),
        ("with_eval3d", True),
        ("radial_coeffs", torch.zeros(1, 6)),
        ("tangential_coeffs", torch.zeros(1, 2)),
        ("thin_prism_coeffs", torch.zeros(1, 4)),
        ("ftheta_coeffs", object()),
        ("rolling_shutter", "ROLLING_TOP_TO_BOTTOM"),
        ("viewmats_rs", torch.eye(4)[None]),
    ],
)
def test_what_is_not_offered_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(NotImplementedError, match=f"rasterization: {name} is not offered"):
        rasterization(*gaussian_scene(3, 8, 8), 8, 8, **{name: value})


def test_what_does_not_change_the_picture_is_accepted() -> None:
    gsplat = pytest.importorskip("gsplat.cuda._wrapper")
    scene = gaussian_scene(20, 12, 12)
    expected = rasterization(*scene, 12, 12).render_colors
    options = dict(packed=False, tile_size=8, channel_chunk=8, segmented=True)
    options["rolling_shutter"] = gsplat.RollingShutterType.GLOBAL
    assert torch.equal(rasterization(*scene, 12, 12, **options).render_colors, expected)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_covars_replace_quats_and_scales(backend: str) -> None:
    torch_impl = pytest.importorskip("gsplat.cuda._torch_impl")
    scene = gaussian_scene(60, 20, 17, seed=2)
    covars, _ = torch_impl._quat_scale_to_covar_preci(scene.quats, scene.scales, compute_preci=False)
    means, quats, scales, *rest = scene
    expected = rasterize(*scene, 20, 17, backend=backend).render_colors
    for given in ((quats, scales), (None, None), (torch.zeros(3), None)):  # ignored, whatever they are
        out = rasterize(means, *given, *rest, 20, 17, covars=covars, backend=backend).render_colors
        torch.testing.assert_close(out, expected, rtol=0, atol=2e-5)
    with pytest.raises(ValueError, match="rasterize: scales must be given where covars is not, got None"):
        rasterize(means, quats, None, *rest, 20, 17)
    with pytest.raises(ValueError, match=r"rasterize: covars must have shape \[N, 3, 3\]"):
        rasterize(means, None, None, *rest, 20, 17, covars=covars[:, :2])


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_median_and_first_depth(backend: str) -> None:
    """Three walls at z = 2, 3, 4 with opacities .3, .4, .9: T = .7, .42, .042."""
    means = torch.tensor([[0.0, 0, 4], [0, 0, 2], [0, 0, 3]])
    quats, scales = torch.eye(4)[:1].repeat(3, 1), torch.full((3, 3), 500.0)
    K = torch.tensor([[[10.0, 0, 4], [0, 10, 4], [0, 0, 1]]])
    for opacities, median in (
        ([0.9, 0.3, 0.4], 3.0),
        ([0.9, 0.3, 0.1], 4.0),
        ([0.2, 0.1, 0.1], 0.0),
        ([0.9, 0.6, 0.4], 2.0),
    ):
        scene = (means, quats, scales, torch.tensor(opacities), torch.rand(3, 2), torch.eye(4)[None], K)
        out = rasterize(*scene, 8, 8, render_mode="MD", backend=backend)
        assert torch.equal(out.render_colors, torch.full((1, 8, 8, 1), median))
        both = rasterize(*scene, 8, 8, render_mode="RGB+FD", backend=backend)
        assert torch.equal(both.render_colors[..., 2:], torch.full((1, 8, 8, 1), 2.0))
        plain = rasterize(*scene, 8, 8, backend=backend)
        assert torch.equal(both.render_colors[..., :2], plain.render_colors)
        assert torch.equal(both.render_alphas, plain.render_alphas)
        behind = rasterize(*scene, 8, 8, render_mode="FD", far_plane=1.0, backend=backend)
        assert float(behind.render_colors.abs().max()) == 0.0  # nothing is hit


@pytest.mark.parametrize("mode", ["MD", "FD", "RGB+MD", "RGB+FD"])
def test_median_and_first_depth_of_a_scene(mode: str) -> None:
    scene = gaussian_scene(300, 45, 31, num_views=2)
    native = rasterize(*scene, 45, 31, render_mode=mode, backend="native").render_colors[..., -1].double()
    double = [t.double() for t in scene]
    expected = rasterize(*double, 45, 31, render_mode=mode, backend="reference").render_colors[..., -1]
    # One splat in place of its neighbour where a transmittance is at 1/2 or an alpha at 1/255.
    assert int(((native - expected).abs() > 1e-5).sum()) <= 3
