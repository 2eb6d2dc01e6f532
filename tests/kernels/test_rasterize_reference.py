"""The torch reference itself: gradients, block independence, agreement with gsplat's own torch code."""

import pytest
import torch

from bench.peers import gsplat_torch
from worldr1_kernels import rasterize
from worldr1_kernels.rasterize import reference
from worldr1_kernels.testing import GaussianScene, check_gradients, gaussian_scene


@pytest.mark.parametrize("kind", ["classic", "antialiased"])
@pytest.mark.parametrize("mode", ["RGB+D", "RGB+ED", "RGB+MD", "RGB+FD"])
def test_gradients(mode: str, kind: str) -> None:
    scene = gaussian_scene(3, 6, 5, sigma_px=(1.5, 3.0), num_channels=2, dtype=torch.float64)
    backgrounds = torch.rand(1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def function(*tensors: torch.Tensor) -> torch.Tensor:
        out = rasterize(*tensors[:7], 6, 5, backgrounds=tensors[7], render_mode=mode, rasterize_mode=kind)
        seen = out.render_alphas.detach() > 0.05  # the quotient of ED has no gradient to compare where nothing is hit
        return out.render_colors * seen + out.render_alphas

    check_gradients(function, (*scene, backgrounds))


@pytest.mark.parametrize("degree", [1, 4])
def test_gradients_of_spherical_harmonics(degree: int) -> None:
    scene = gaussian_scene(2, 4, 4, sigma_px=(1.5, 3.0), dtype=torch.float64)
    generator = torch.Generator().manual_seed(degree)
    coefficients = 0.2 * torch.randn(2, (degree + 1) ** 2, 3, dtype=torch.float64, generator=generator)

    def function(means: torch.Tensor, coefficients: torch.Tensor, viewmats: torch.Tensor) -> torch.Tensor:
        moved = scene._replace(means=means, colors=coefficients, viewmats=viewmats)
        return rasterize(*moved, 4, 4, sh_degree=degree).render_colors

    check_gradients(function, (scene.means, coefficients, scene.viewmats))


def test_gradients_are_finite_beside_invalid_gaussians() -> None:
    scene = GaussianScene(*(t.clone() for t in gaussian_scene(6, 12, 12)))
    scene.means[0] = float("nan")
    scene.means[1] = 0.0  # on the camera centre
    scene.scales[2] = float("inf")
    scene.colors[3] = float("nan")
    leaves = [t.requires_grad_() for t in scene[:5]]
    out = rasterize(*scene, 12, 12, render_mode="RGB+ED", rasterize_mode="antialiased")
    gradients = torch.autograd.grad(out.render_colors.sum() + out.render_alphas.sum(), leaves)
    for gradient in gradients:
        assert gradient.isfinite().all()
    assert gradients[0][4:].abs().sum() > 0


def test_result_does_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = gaussian_scene(80, 37, 29, dtype=torch.float64)
    expected = rasterize(*scene, 37, 29, render_mode="RGB+D", backend="reference").render_colors
    monkeypatch.setattr(reference, "BLOCK", 64)
    whole = rasterize(*scene, 37, 29, render_mode="RGB+D", backend="reference").render_colors
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("degree", [None, 3])
def test_agrees_with_gsplat(backend: str, antialiased: bool, degree: int | None) -> None:
    pytest.importorskip("gsplat")
    width, height = 48, 40
    scene = gaussian_scene(300, width, height, seed=2)
    if degree is not None:
        scene = scene._replace(colors=0.3 * torch.randn(300, 16, 3, generator=torch.Generator().manual_seed(0)))
    dtype = torch.float64 if backend == "reference" else torch.float32
    peer = [t.double() for t in scene]
    colors, alphas = gsplat_torch(
        *peer[:5], peer[5][0], peer[6][0], width, height, sh_degree=degree, antialiased=antialiased
    )
    out = rasterize(
        *(t.to(dtype) for t in scene),
        width,
        height,
        sh_degree=degree,
        render_mode="RGB+D",
        rasterize_mode="antialiased" if antialiased else "classic",
        compat="gsplat-1.5",
        backend=backend,
    )
    tolerance = 1e-9 if backend == "reference" else 2e-5
    for actual, expected in ((out.render_colors[0], colors), (out.render_alphas[0], alphas)):
        outside = ((actual.double() - expected).abs() > tolerance * 6).any(-1).sum()
        assert int(outside) <= 1  # of 1920 pixels: one splat may cross a threshold in float32
        assert float((actual.double() - expected).abs().max()) < 6 / 255
