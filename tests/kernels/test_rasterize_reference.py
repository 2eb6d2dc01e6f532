"""The torch reference itself: gradients, block independence."""

import pytest
import torch

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
