"""Scenes of different N in one call: the same as one call each; and what the lists must be."""

from typing import Any

import pytest
import torch
from torch import Tensor

from worldr1_kernels import rasterization, rasterize
from worldr1_kernels.testing import gaussian_scene, normal, uniform

COUNTS = (7, 40, 0, 23)
WIDTH, HEIGHT, VIEWS = 21, 18, 2


def scenes(colors: str = "shared") -> list[list[Tensor]]:
    made = [list(gaussian_scene(n, WIDTH, HEIGHT, num_views=VIEWS, seed=b)) for b, n in enumerate(COUNTS)]
    for b, (n, scene) in enumerate(zip(COUNTS, made, strict=True)):
        if colors == "per view":
            scene[4] = uniform((VIEWS, n, 3), b)
        elif colors == "harmonics":
            scene[4] = 0.3 * normal((n, 9, 3), b)
    return made


def lists(made: list[list[Tensor]]) -> list[Any]:
    """Lists of the tensors that hold Gaussians, cameras stacked."""
    columns = [list(column) for column in zip(*made, strict=True)]
    return [*columns[:5], torch.stack(columns[5]), torch.stack(columns[6])]


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("colors", ["shared", "per view", "harmonics"])
def test_equal_one_call_each(colors: str, backend: str) -> None:
    made = scenes(colors)
    options: dict[str, Any] = {"render_mode": "RGB+D", "backend": backend}
    options["sh_degree"] = 2 if colors == "harmonics" else None
    backgrounds = uniform((len(COUNTS), VIEWS, 3), 9)
    for scene in made:
        for tensor in scene[:5]:
            tensor.requires_grad_()
    together = rasterize(*lists(made), WIDTH, HEIGHT, backgrounds=backgrounds, **options)
    weights = normal(together.render_colors.shape, 1)
    leaves = [scene[k] for scene in made for k in range(5)]
    gradients = torch.autograd.grad((together.render_colors * weights).sum(), leaves)
    assert together.meta["num_invalid"].tolist() == [[0, 0]] * len(COUNTS)
    for b, scene in enumerate(made):
        alone = rasterize(*scene, WIDTH, HEIGHT, backgrounds=backgrounds[b], **options)
        torch.testing.assert_close(together.render_colors[b], alone.render_colors, rtol=0, atol=1e-6)
        torch.testing.assert_close(together.render_alphas[b], alone.render_alphas, rtol=0, atol=1e-6)
        expected = torch.autograd.grad((alone.render_colors * weights[b]).sum(), scene[:5])
        for one, other in zip(gradients[5 * b : 5 * b + 5], expected, strict=True):
            assert one.shape == other.shape
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_covars_invalid_and_full_meta() -> None:
    made = scenes()
    means, quats, scales, opacities, colors, viewmats, Ks = lists(made)
    means[1][3] = float("nan")
    covars = [torch.eye(3).expand(n, 3, 3) * 0.01 for n in COUNTS]
    out = rasterization(means, None, None, opacities, colors, viewmats, Ks, WIDTH, HEIGHT, covars=covars, packed=False)
    assert out.meta["num_invalid"].tolist() == [[0, 0], [1, 1], [0, 0], [0, 0]]
    assert out.meta["means2d"].shape == (len(COUNTS), VIEWS, max(COUNTS), 2)
    for b, n in enumerate(COUNTS):
        assert not bool(out.meta["radii"][b, :, n:].any())  # what was added is never seen
        alone = rasterize(
            means[b], None, None, opacities[b], colors[b], viewmats[b], Ks[b], WIDTH, HEIGHT, covars=covars[b]
        )
        torch.testing.assert_close(out.render_colors[b], alone.render_colors, rtol=0, atol=1e-6)
    ignored = rasterize(means, 1, 2, opacities, colors, viewmats, Ks, WIDTH, HEIGHT, covars=covars)  # type: ignore[arg-type]
    assert torch.equal(ignored.render_colors, out.render_colors)


class TestErrors:
    given = lists(scenes())

    def call(self, **changes: Any) -> None:
        names = ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks")
        rasterize(*(dict(zip(names, self.given, strict=True)) | changes).values(), WIDTH, HEIGHT)

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"means": []}, ValueError, "means must hold at least one scene, got an empty list"),
            ({"quats": given[1][:3]}, ValueError, "quats must hold 4 scenes like means, got 3"),
            ({"scales": given[2][0]}, TypeError, "scales must be a list like means, got Tensor"),
            ({"means": given[0][0]}, TypeError, "quats must be a torch.Tensor, got list"),
            ({"opacities": [1, 2, 3, 4]}, TypeError, r"opacities\[0\] must be a torch.Tensor, got int"),
            (
                {"quats": [*given[1][:3], torch.ones(22, 4)]},
                ValueError,
                r"quats\[3\] must have shape \[N, 4\] with N = 23, got \[22, 4\]",
            ),
            (
                {"colors": [*given[4][:3], torch.ones(23, 2)]},
                ValueError,
                r"colors\[3\] must have shape \[N, D\] with D = 3",
            ),
            (
                {"colors": [*given[4][:3], torch.ones(2, 23, 3)]},
                ValueError,
                r"colors\[3\] must have shape \[N, D\], got \[2, 23, 3\]",
            ),
            ({"scales": [t.to("meta") for t in given[2]]}, ValueError, "scales must be on cpu"),
            (
                {"means": [*given[0][:3], given[0][3].to("meta")]},
                ValueError,
                r"means\[3\] must be on cpu like means\[0\], got meta",
            ),
            ({"viewmats": given[5][0]}, ValueError, r"viewmats must have shape \[4, C, 4, 4\]"),
        ],
    )
    def test_messages(self, changes: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=f"rasterize: {message}"):
            self.call(**changes)
