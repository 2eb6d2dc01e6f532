"""What meta says of the projected Gaussians: the C++ module against the float64 reference, values and gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor

from worldr1_kernels import rasterization
from worldr1_kernels._native import cpu as native_module
from worldr1_kernels.rasterize.arguments import Inputs, Settings
from worldr1_kernels.rasterize.native_impl import PACKED, PROJECTED, rasterize_native
from worldr1_kernels.rasterize.projected import Projected, WithGradient, by_module, project_by_torch
from worldr1_kernels.testing import check_compiles, gaussian_scene, poison_empty

WIDTH, HEIGHT = 45, 31


def inputs_of(num: int, *, views: int = 2, scenes: int = 1, seed: int = 3, wide: float = 1.0) -> Inputs:
    """`wide` > 1 spreads the centres, so that some are out of sight."""
    found = [
        gaussian_scene(num, WIDTH, HEIGHT, num_views=views, sigma_px=(0.5, 4.0), seed=seed + i) for i in range(scenes)
    ]
    means, quats, scales, opacities, colors, viewmats, Ks = (torch.stack(ts) for ts in zip(*found, strict=True))
    means = torch.cat([wide * means[..., :2], means[..., 2:]], -1)
    return Inputs(means, quats, scales, None, opacities, colors[:, None], viewmats, Ks, None)


def settings_of(**changes: Any) -> Settings:
    given = dict(near_plane=0.01, far_plane=1e10, radius_clip=0.0, eps2d=0.3, sh_degree=-1, depth_mode=0)
    given |= dict(antialiased=False, max_alpha=0.99, compensation_floor=0.005)
    return Settings(WIDTH, HEIGHT, **(given | changes))


def doubled(inputs: Inputs) -> Inputs:
    return Inputs(*(None if t is None else t.double() for t in inputs))


def project_by_module(inputs: Inputs, settings: Settings, *, report: int = PROJECTED, level: str = "") -> Projected:
    with poison_empty(), torch.no_grad():
        return by_module(*rasterize_native(inputs, settings, report=report, level=level)[5:])


def seen(projected: Projected) -> Tensor:
    return projected.radii[..., 0] > 0


def assert_agree(inputs: Inputs, settings: Settings, *, level: str = "") -> Projected:
    found = project_by_module(inputs, settings, level=level)
    expected = project_by_torch(doubled(inputs), settings)
    assert int((seen(found) != seen(expected)).sum()) <= 1  # by a rounding at the edge of the picture
    both = seen(found) & seen(expected)
    for name, one, other in zip(found.names(), found.names().values(), expected.names().values(), strict=True):
        assert not bool(one[~seen(found)].any()), name
        if name == "radii":
            assert int((one[both] - other[both]).abs().sum()) <= 2 and one.dtype == torch.int32
            continue
        torch.testing.assert_close(one[both].double(), other[both], rtol=1e-4, atol=1e-4, msg=lambda m, n=name: n + m)
    return found


@pytest.mark.parametrize("num", [1, 7, 8, 700])
@pytest.mark.parametrize("antialiased", [False, True])
def test_values_are_those_of_the_reference(num: int, antialiased: bool) -> None:
    found = assert_agree(inputs_of(num, wide=1.5), settings_of(antialiased=antialiased, compensation_floor=0.0))
    if num == 700:
        assert 200 < int(found.radii[..., 0].count_nonzero()) < 1300


def test_every_instruction_set_sees_the_same() -> None:
    inputs, settings = inputs_of(700, views=3, scenes=2, wide=1.5), settings_of(radius_clip=3.0, near_plane=2.5)
    levels = [name for name in ("x86-64-v2", "x86-64-v3", "x86-64-v4") if native_module().has_instruction_set(name)]
    for level in levels or [""]:
        found = assert_agree(inputs, settings, level=level)
        assert found.values.shape == (2, 3, 700, 7) and 100 < int(found.radii[..., 0].count_nonzero()) < 4000


def test_what_is_invalid_is_not_seen() -> None:
    """NaN in each input, colours of one view alone among them, and a covariance in place of quaternion and scales."""
    inputs = inputs_of(40)
    colors = inputs.colors.repeat(1, 2, 1, 1)
    inputs.means[0, 3, 1] = inputs.opacities[0, 5] = inputs.scales[0, 7, 2] = torch.nan
    inputs.quats[0, 9] = 0.0
    colors[0, 1, 11, 0] = torch.inf
    shown = seen(assert_agree(inputs._replace(colors=colors), settings_of()))[0]
    assert not bool(shown[:, [3, 5, 7, 9]].any()) and shown[:, 11].tolist() == [True, False]
    covars = torch.tensor([0.01, 0, 0, 0.02, 0, 0.01]).repeat(1, 40, 1)
    covars[0, 13, 4] = torch.nan
    shown = seen(assert_agree(inputs._replace(quats=None, scales=None, covars=covars), settings_of()))[0]
    assert not bool(shown[:, [3, 5, 13]].any()) and bool(shown[:, [7, 9]].all())
    assert project_by_module(inputs_of(0), settings_of()).values.shape == (1, 2, 0, 7)


def test_the_list_is_that_of_what_is_seen() -> None:
    """Of the module, of the reference, and by torch's own search: in the order of scene, view and Gaussian."""
    inputs, settings = inputs_of(300, views=3, scenes=2, wide=1.5), settings_of()
    whole, found = project_by_module(inputs, settings), project_by_module(inputs, settings, report=PACKED)
    places = seen(whole).nonzero(as_tuple=True)
    assert 100 < len(places[0]) < 1700 and found.ids is not None
    assert torch.equal(found.ids, torch.stack(places))
    for one, every in zip(found[:2], whole[:2], strict=True):
        assert torch.equal(one, every[places])
    for one, other in zip(found, whole.packed(), strict=True):
        assert torch.equal(one, other)
    with poison_empty():
        none = project_by_module(inputs_of(0), settings, report=PACKED)
    assert none.values.shape == (0, 7) and none.ids is not None and none.ids.shape == (3, 0)


@pytest.mark.parametrize("weighted", [("means2d",), ("means2d", "conics", "depths", "opacities"), ("depths",)])
def test_gradients_are_those_of_the_reference(weighted: tuple[str, ...]) -> None:
    """The means alone take the short way; the others the whole projection. No NaN comes back from what is invalid."""
    inputs = inputs_of(60, wide=1.5)
    inputs.means[0, 3, 1] = inputs.scales[0, 7, 2] = torch.nan
    settings = settings_of(antialiased=True)
    shapes = {name: t.shape for name, t in project_by_torch(inputs, settings).names().items()}
    weights = {name: torch.randn(shapes[name]) for name in weighted}
    found = []
    for double in (False, True):
        leaves = Inputs(
            *(t if t is None else t.clone().requires_grad_() for t in (doubled(inputs) if double else inputs))
        )
        if double:
            projected = project_by_torch(leaves, settings)
        else:
            found_by_module = project_by_module(leaves, settings)
            values = WithGradient.apply(settings, found_by_module.values, None, *leaves)
            projected = found_by_module._replace(values=values)
        named = projected.names()
        loss = torch.stack([(named[name] * w).sum() for name, w in weights.items()]).sum()
        loss.backward()
        found.append([None if t is None else t.grad for t in leaves])
    compared = 0
    for name, one, other in zip(Inputs._fields, *found, strict=True):
        if other is None or float(other.norm()) == 0:
            assert one is None or float(one.norm()) == 0, name
            continue
        compared += 1
        assert float((one.double() - other).norm() / other.norm()) <= 1e-4, name
    assert compared == {("means2d",): 3, ("depths",): 2}.get(weighted, 6)


def test_only_what_wants_a_gradient_gets_one() -> None:
    scene = gaussian_scene(20, WIDTH, HEIGHT)
    means = scene.means.clone().requires_grad_()
    out = rasterization(means, *scene[1:], WIDTH, HEIGHT, packed=False)
    out.meta["conics"].sum().backward()
    assert float(means.grad.norm()) > 0 and not out.meta["radii"].requires_grad
    opacities = scene.opacities.clone().requires_grad_()
    out = rasterization(*scene[:3], opacities, *scene[4:], WIDTH, HEIGHT, packed=False)
    out.render_colors.sum().backward()  # no gradient goes from the projected means to the opacities
    assert float(opacities.grad.norm()) > 0


def test_compilation() -> None:
    scene = gaussian_scene(9, WIDTH, HEIGHT)

    def function(means: Tensor) -> tuple[Tensor, Tensor]:
        out = rasterization(means, *scene[1:], WIDTH, HEIGHT, packed=False)
        return out.render_colors, out.meta["conics"]

    check_compiles(function, (scene.means,))
    means = scene.means.clone().requires_grad_()
    torch._dynamo.reset()
    found = torch.compile(function, fullgraph=True, backend="aot_eager")(means)
    for one, other in zip(found, function(means), strict=True):  # compiled, the projection is torch's
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
