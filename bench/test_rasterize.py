"""Speed of the rasterizer on one CPU core: `python -m pytest bench/test_rasterize.py -s [--record]`.

Values of every case are compared with the float64 reference first: no figure for a wrong picture or gradient. Peers:
this package's torch reference and, where it fits, gsplat 1.5.3's torch code (its kernels need a GPU), both with
autograd.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from bench.peers import gsplat_torch
from bench.report import Case, print_table, record
from bench.timing import measure
from worldr1_kernels import rasterization, rasterize
from worldr1_kernels.rasterize import reference
from worldr1_kernels.rasterize.arguments import WEIGHTED_DEPTH, Inputs, Settings
from worldr1_kernels.testing import GaussianScene, gaussian_scene

pytestmark = pytest.mark.timeout(1800)  # minutes where the cores are shared


class Size(NamedTuple):
    name: str
    num: int
    width: int
    height: int
    views: int
    sigma: tuple[float, float]  # pixels

    def scene(self) -> GaussianScene:
        return gaussian_scene(self.num, self.width, self.height, num_views=self.views, sigma_px=self.sigma)


SIZES = [
    Size("target", 10_000, 256, 256, 1, (0.5, 3.0)),
    Size("reward", 9_216, 32, 32, 9, (0.2, 0.6)),
    Size("small", 2_000, 64, 64, 1, (0.5, 3.0)),
    Size("dense", 65_536, 256, 256, 1, (0.5, 1.5)),
    Size("one", 1, 8, 8, 1, (0.5, 3.0)),
]


def _reference_rows(scene: GaussianScene, size: Size, rows: range) -> Tensor:
    """Rows of the reference's picture, colours, depth and transmittance: [C, rows, W, 5]. The whole picture of a large
    scene would take minutes."""
    means, quats, scales, opacities, colors, viewmats, Ks = (t[None] for t in scene)
    inputs = Inputs(means, quats, scales, None, opacities, colors[:, None], viewmats, Ks, None)
    settings = Settings(size.width, size.height, 0.01, 1e10, 0.0, 0.3, -1, WEIGHTED_DEPTH, False, 0.99, 0.005)
    projection = reference.project(*reference.replace_invalid(inputs), settings)
    x, y = torch.arange(size.width) + 0.5, torch.tensor(rows) + 0.5
    pixels = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2).to(means)
    images = []
    for view in range(size.views):
        p = reference.Projection(*(t[0, view] for t in projection))
        near = (p.means2d[:, 1] + p.reach[:, 1] > rows.start) & (p.means2d[:, 1] - p.reach[:, 1] < rows.stop)
        hit = (p.keep & near).nonzero()[:, 0]
        hit = hit[torch.sort(p.depths[hit], stable=True).indices]
        features = torch.cat([scene.colors[hit], p.depths[hit, None]], 1)
        color, left = reference.blend(pixels, p.means2d[hit], p.conics[hit], p.opacities[hit], features, settings)
        images.append(torch.cat([color, left[:, None]], 1).reshape(len(rows), size.width, 5))
    return torch.stack(images)


def _errors(size: Size, scene: GaussianScene) -> tuple[float, float]:
    """Over eight rows, or all there are: the share of pixels that are off by more than 1e-5 (of the largest depth), and
    the largest relative L2 error of a gradient."""
    count = min(8, size.height)
    first = (size.height - count) // 2
    rows = range(first, first + count)
    leaves = GaussianScene(*(t.clone().requires_grad_() for t in scene))
    native = rasterize(*leaves, size.width, size.height, render_mode="RGB+D", backend="native")
    double = GaussianScene(*(t.double().requires_grad_() for t in scene))
    expected = _reference_rows(double, size, rows)
    seen = native.render_colors[:, first : first + count]
    difference = (seen.detach().double() - expected.detach()[..., :4]).abs().amax(-1)
    weights = torch.randn(seen.shape, generator=torch.Generator().manual_seed(0))
    actual = torch.autograd.grad((seen * weights).sum(), leaves)
    wanted = torch.autograd.grad((expected[..., :4] * weights).sum(), double)
    errors = [float((one - other).norm() / other.norm()) for one, other in zip(actual, wanted, strict=True)]
    return float((difference > 6e-5).double().mean()), max(errors)


def _forward(size: Size, scene: GaussianScene) -> dict[str, Callable[[], object]]:
    def run(backend: str) -> object:
        return rasterize(*scene, size.width, size.height, render_mode="RGB+D", backend=backend)

    def gsplat() -> object:
        return gsplat_torch(*scene, width=size.width, height=size.height, render_mode="RGB+D")

    variants: dict[str, Callable[[], object]] = {"native": lambda: run("native")}
    if size.num <= 2_000 or size.name == "target":
        variants["torch reference"] = lambda: run("reference")
    if size.name in ("small", "target"):
        variants["gsplat 1.5.3 torch code"] = gsplat
    return variants


def _backward(size: Size, scene: GaussianScene) -> dict[str, Callable[[], object]]:
    """Backward alone, of all inputs, from one gradient of the picture."""

    def prepare(backend: str) -> Callable[[], object]:
        leaves = GaussianScene(*(t.clone().requires_grad_() for t in scene))
        if backend == "gsplat":
            picture, _ = gsplat_torch(*leaves, width=size.width, height=size.height, render_mode="RGB+D")
        else:
            out = rasterize(*leaves, size.width, size.height, render_mode="RGB+D", backend=backend)
            picture = out.render_colors
        gradient = torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
        return lambda: torch.autograd.grad(picture, leaves, gradient, retain_graph=True)

    variants = {"native": prepare("native")}
    if size.num <= 2_000:
        variants["torch reference"] = prepare("reference")
    if size.name in ("small", "target"):
        variants["gsplat 1.5.3 torch code"] = prepare("gsplat")
    return variants


def _run_case(size: Size, variants: dict[str, Callable[[], object]], form: str) -> Case:
    peers = measure(variants, min_calls=1)
    timing = peers.pop("native")
    shape = f"N{size.num}-C{size.views}-H{size.height}-W{size.width}-RGB+D"
    return Case(f"{size.name} {form}".strip(), shape, "float32", "native", timing, peers, f"sigma {size.sigma} px")


@pytest.mark.parametrize("form", ["forward", "backward"])
def test_speed(form: str, record_figures: bool) -> None:
    cases = []
    for size in SIZES:
        scene = size.scene()
        wrong_pixels, gradient_error = _errors(size, scene)
        assert wrong_pixels <= 1e-3, size.name
        assert gradient_error <= 1e-2, size.name  # a splat at a threshold in float32 weighs more than rounding
        variants = _forward(size, scene) if form == "forward" else _backward(size, scene)
        cases.append(_run_case(size, variants, "" if form == "forward" else "back"))
    print()
    print_table(cases)
    if record_figures:
        print(f"recorded in {record(cases, 'rasterize')}")


@pytest.mark.parametrize("form", ["forward", "forward and backward"])
def test_drop_in(form: str, record_figures: bool) -> None:
    """`rasterization` with all that gsplat's users read, packed and not, against `rasterize`: the same pictures."""
    size = SIZES[0]
    grads = form != "forward"
    scene = GaussianScene(*(t.clone().requires_grad_(grads) for t in size.scene()))
    picture = rasterize(*scene, size.width, size.height).render_colors
    weights = torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))

    def run(function: Callable[..., Any], **options: Any) -> Any:
        out = function(*scene, size.width, size.height, **options)
        if grads:
            if "means2d" in out.meta:
                out.meta["means2d"].retain_grad()
            out.render_colors.backward(weights)
        return out

    variants: dict[str, Callable[[], Any]] = {
        "native": lambda: run(rasterization),
        "rasterize": lambda: run(rasterize),
        "packed=False": lambda: run(rasterization, packed=False),
    }
    for variant in variants.values():
        assert torch.equal(variant().render_colors, picture)
    case = _run_case(size, variants, f"drop-in {form}")
    print()
    print_table([case])
    if record_figures:
        print(f"recorded in {record([case], 'rasterize')}")


@pytest.mark.parametrize("name", ["target", "dense"])
def test_two_threads(name: str, record_figures: bool) -> None:
    """Wall time of one view on two threads against one; the pictures are the same bits. Wants idle cores. Its line is
    compared by wall time, other lines of a CPU by that of the processor."""
    size = next(size for size in SIZES if size.name == name)
    scene = size.scene()
    render = _forward(size, scene)["native"]

    def on(threads: int) -> Any:
        torch.set_num_threads(threads)
        return render()

    try:
        assert torch.equal(on(1).render_colors, on(2).render_colors)
        timings = measure({"one": lambda: on(1), "two": lambda: on(2)})
        one, two = timings["one"].p20, timings["two"].p20
        notes = f"p20 of wall time {one:.3f} ms on one thread, {two:.3f} ms on two, {one / two:.2f}x"
        print(f"\n{name}: {notes}")
        if record_figures:
            shape = f"N{size.num}-C{size.views}-H{size.height}-W{size.width}-RGB+D"
            wall = timings["two"]._replace(cpu_p50=timings["two"].p50)
            case = Case(f"{name} two threads", shape, "float32", "native", wall, notes=notes)
            torch.set_num_threads(2)  # the line says so
            print(f"recorded in {record([case], 'rasterize')}")
    finally:
        torch.set_num_threads(1)
