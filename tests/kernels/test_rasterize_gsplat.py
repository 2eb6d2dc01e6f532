"""The drop-in against gsplat 1.5.3's torch reference: pictures to 1e-4, gradients to gsplat's own tolerances."""

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.peers import gsplat_torch
from worldr1_kernels import rasterization, rasterize
from worldr1_kernels.testing import gaussian_scene, normal, uniform

pytest.importorskip("gsplat")

WIDTH, HEIGHT, NUM, VIEWS = 44, 35, 150, 2
FORWARD = 1e-4
REL_L2, COSINE = 5e-2, 0.999  # gsplat's own
DEPTH = 6.0  # the farthest: what a picture's depth channel is measured by
NAMES = ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks", "backgrounds")
MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")


def case(**changes: Any) -> tuple[list[Tensor], dict[str, Any]]:
    """Tensors and options of one call. `colors`: "shared", "per view" or a degree; also `batch` dimensions."""
    options = {"render_mode": "RGB+D", "rasterize_mode": "classic", "sh_degree": None} | changes
    colors, batch = options.pop("colors", "shared"), options.pop("batch", ())
    scenes = [gaussian_scene(NUM, WIDTH, HEIGHT, num_views=VIEWS, sigma_px=(1.0, 4.0), seed=s) for s in range(2)]
    tensors = list(scenes[0]) if not batch else [torch.stack(t)[None] for t in zip(*scenes, strict=True)]
    if colors == "per view":
        tensors[4] = uniform((VIEWS, NUM, 3), 5)
    if options["sh_degree"] is not None:
        shape = (NUM, 25, 3) if colors == "shared" else (VIEWS, NUM, 25, 3)
        tensors[4] = 0.3 * normal(shape, options["sh_degree"])
    if options["render_mode"].startswith("RGB"):
        tensors.append(uniform((*tensors[5].shape[:-2], 3), 9))
    return tensors, options


def ours(
    tensors: list[Tensor], options: dict[str, Any], backend: str, compat: str = "gsplat-1.5"
) -> tuple[Tensor, Tensor]:
    backgrounds = tensors[7] if len(tensors) > 7 else None
    more = options | {"compat": compat, "backend": backend, "meta": "minimal"}
    return rasterization(*tensors[:7], WIDTH, HEIGHT, backgrounds=backgrounds, **more)[:2]


def theirs(tensors: list[Tensor], options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    backgrounds = tensors[7] if len(tensors) > 7 else None
    return gsplat_torch(*tensors[:7], width=WIDTH, height=HEIGHT, backgrounds=backgrounds, **options)


CASES = [
    *({"render_mode": mode, "rasterize_mode": kind} for mode in MODES for kind in ("classic", "antialiased")),
    *({"sh_degree": degree, "colors": colors} for degree in range(5) for colors in ("shared", "per view")),
    {"colors": "per view"},
    {"batch": (1, 2)},
    {"eps2d": 0.1, "near_plane": 3.0, "far_plane": 5.0},
]
IDS = ["-".join(f"{value}" for value in changes.values()).replace(" ", "-") for changes in CASES]


@pytest.mark.parametrize("changes", CASES, ids=IDS)
def test_pictures(changes: dict[str, Any]) -> None:
    tensors, options = case(**changes)
    double = [t.double() for t in tensors]
    colors, alphas = theirs(double, options)
    scale = torch.ones(colors.shape[-1])
    if "D" in options["render_mode"]:
        scale[-1] = DEPTH
    seen = alphas > 0.05 if options["render_mode"].endswith("ED") else torch.ones_like(alphas, dtype=torch.bool)
    for backend, tolerance, given in (("reference", 1e-9, double), ("native", FORWARD, tensors)):
        for actual, expected in zip(ours(given, options, backend), (colors, alphas), strict=True):
            assert actual.shape == expected.shape
            unit = scale if expected is colors else torch.ones(1)
            difference = ((actual.double() - expected) / unit * seen).abs().amax(-1)
            # One pixel may see a splat cross 1/255 in float32.
            assert int((difference > tolerance).sum()) <= (backend == "native"), float(difference.max())
            assert float(difference.max()) <= 1 / 255


@pytest.mark.parametrize("changes", [*CASES[:10], *CASES[13::3]], ids=[*IDS[:10], *IDS[13::3]])
def test_gradients(changes: dict[str, Any]) -> None:
    tensors, options = case(**changes)
    if options["render_mode"] in ("D", "ED"):
        tensors[4] = tensors[4][..., :1]  # not read

    def gradients(function: Any) -> tuple[Tensor | None, ...]:
        leaves = [t.clone().requires_grad_() for t in tensors]
        colors, alphas = function(leaves)
        seen = alphas.detach() > 0.05  # the quotient of ED has no gradient to compare where nothing is hit
        loss = (colors * seen * normal(colors.shape, 1)).sum() + (alphas * normal(alphas.shape, 2)).sum()
        return torch.autograd.grad(loss, leaves, allow_unused=True)

    expected = gradients(lambda leaves: theirs(leaves, options))
    actual = gradients(lambda leaves: ours(leaves, options, "native"))
    for name, one, other in zip(NAMES, actual, expected, strict=False):
        if other is None:
            assert one is None or float(one.abs().max()) == 0.0, name
            continue
        assert one is not None
        if name == "Ks":  # gsplat's torch code reads the skew; its kernels and we do not
            other = other * torch.tensor([[1.0, 0, 1], [0, 1, 1], [0, 0, 0]])
        norms = float(one.norm()), float(other.norm())
        assert norms[1] > 0 and float((one - other).norm()) <= REL_L2 * norms[1], name
        assert float((one * other).sum()) >= COSINE * norms[0] * norms[1], name


def test_covars() -> None:
    import gsplat.cuda._torch_impl as torch_impl

    tensors, options = case()
    covars, _ = torch_impl._quat_scale_to_covar_preci(*tensors[1:3], compute_preci=False)
    colors, alphas = theirs(tensors, options)
    more = options | {"compat": "gsplat-1.5", "backend": "native", "backgrounds": tensors[7]}
    out = rasterize(tensors[0], None, None, *tensors[3:7], WIDTH, HEIGHT, covars=covars, **more)
    assert float((out.render_alphas - alphas).abs().max()) <= FORWARD
    assert float((out.render_colors - colors).abs().max()) <= FORWARD * DEPTH


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_presets_differ_in_their_constants_alone(backend: str) -> None:
    """Opacities below .99 in classic mode: both presets are gsplat 1.5.3. At .999 and in small splats they are not."""
    tensors, options = case()
    colors, _ = theirs(tensors, options)
    assert float(tensors[3].max()) < 0.99
    one, other = (ours(tensors, options, backend, compat)[0] for compat in ("gsplat-1.5", "gsplat-1.6"))
    assert torch.equal(one, other) and float((one - colors).abs().max()) <= FORWARD * DEPTH
    point = [torch.tensor([[0.5 / 8, 0.5 / 8, 1.0]]), torch.eye(4)[:1], torch.full((1, 3), 1e-6), torch.ones(1)]
    K = torch.tensor([[[8.0, 0, 4], [0, 8, 4], [0, 0, 1]]])
    point = [*point, torch.ones(1, 1), torch.eye(4)[None], K]
    for compat, clipped, small in (("gsplat-1.5", 0.999, 0.0), ("gsplat-1.6", 0.99, 0.005)):
        for kind, expected in (("classic", clipped), ("antialiased", small)):
            more = {"rasterize_mode": kind, "compat": compat, "backend": backend}
            alpha = rasterize(*point, 8, 8, **more).render_alphas[0, 4, 4, 0]
            assert float(alpha) == pytest.approx(expected, abs=1e-6)
