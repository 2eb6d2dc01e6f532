"""Speed of the rasterizer on a GPU: `python -m pytest bench/test_rasterize_gpu.py -m gpu -s [--record]`.

The work is that of the rewards: five frames of 832x480, one Gaussian a pixel (2 M), harmonics of degree 2, as RGB and
depth from 1 and from 240 cameras; backward; and a small scene, where launches are what costs. Peer: gsplat 1.5.3's own
CUDA kernels (`bench.gsplat_build`), packed and not, all cameras in a call and few; the fastest counts. Pictures and
gradients are compared first: ours with the CPU's (which the tests hold against float64), the peer's with ours.

    python -m pytest bench/test_rasterize_gpu.py    # the same code on a CPU, 500 Gaussians
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from bench import gsplat_build
from bench.peers import gsplat_torch
from bench.report import Case, print_table, record
from bench.timing import measure
from worldr1_kernels import rasterize
from worldr1_kernels.testing import GaussianScene, pixel_aligned_scene

pytestmark = pytest.mark.timeout(1800)

SH_DEGREE = 2
MODE = "RGB+D"
CHANNELS = 4
VIEWS_A_CALL = (8, 32)  # of a peer's calls when there are many: with 240 gsplat's 32-bit ids wrap, beside 100 GB


class Size(NamedTuple):
    name: str
    num_frames: int
    width: int
    height: int
    views: int

    def scene(self, device: str) -> GaussianScene:
        return pixel_aligned_scene(
            self.num_frames, self.width, self.height, num_views=self.views, sh_degree=SH_DEGREE, device=device
        )


SIZES = {
    "view": Size("view", 5, 832, 480, 1),
    "views": Size("views", 5, 832, 480, 240),
    "small": Size("small", 1, 128, 80, 1),
}
TINY = Size("tiny", 1, 25, 20, 3)

Render = Callable[[GaussianScene], tuple[Tensor, Tensor]]


def _ours(scene: GaussianScene, *, size: Size) -> tuple[Tensor, Tensor]:
    out = rasterize(
        *scene, size.width, size.height, sh_degree=SH_DEGREE, render_mode=MODE, compat="gsplat-1.5", backend="native"
    )
    return out.render_colors, out.render_alphas


def _gsplat(scene: GaussianScene, *, size: Size, packed: bool, views: int) -> tuple[Tensor, Tensor]:
    import gsplat

    parts = [
        gsplat.rasterization(
            *scene[:5], scene.viewmats[i : i + views], scene.Ks[i : i + views], size.width, size.height,
            sh_degree=SH_DEGREE, render_mode=MODE, packed=packed,
        )[:2]
        for i in range(0, len(scene.viewmats), views)
    ]  # fmt: skip
    return parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))  # type: ignore[return-value]


def _gsplat_torch(scene: GaussianScene, *, size: Size) -> tuple[Tensor, Tensor]:
    return gsplat_torch(*scene, width=size.width, height=size.height, sh_degree=SH_DEGREE, render_mode=MODE)


def _peers(size: Size, device: str) -> dict[str, Render]:
    if device == "cpu":
        return {"gsplat 1.5.3 torch code": partial(_gsplat_torch, size=size)}
    if gsplat_build.unavailable() is not None:
        return {}
    found: dict[str, Render] = {}
    for views in sorted({min(views, size.views) for views in VIEWS_A_CALL}):
        for packed in (False, True):
            name = f"gsplat 1.5.3{' packed' if packed else ''}" + (f", {views} views a call" if size.views > 1 else "")
            found[name] = partial(_gsplat, size=size, packed=packed, views=views)
    return found


def _leaves(scene: GaussianScene) -> GaussianScene:
    """All but Ks want a gradient: gsplat has none for them."""
    return GaussianScene(*(t.detach().clone().requires_grad_(t is not scene.Ks) for t in scene))


def _backward(render: Render, scene: GaussianScene) -> Callable[[], tuple[Tensor, ...]]:
    """Backward alone, from one gradient of colours and alphas."""
    leaves = _leaves(scene)
    colors, alphas = render(leaves)
    g = torch.Generator().manual_seed(1)
    gradients = [torch.randn(t.shape, generator=g).to(t.device) for t in (colors, alphas)]
    return lambda: torch.autograd.grad((colors, alphas), leaves[:6], gradients, retain_graph=True)


def _errors(
    ours: Render, other: Render, scene: GaussianScene, other_scene: GaussianScene, *, limit: float, backward: bool
) -> tuple[float, float]:
    """How far two renders are apart: the share of pixels off by more than `limit` in a colour, or by six times that in
    depth; the largest relative L2 error of a gradient, 0 without `backward`."""
    picture, expected = ours(scene)[0].cpu(), other(other_scene)[0].cpu()
    scale = torch.tensor([1.0] * (CHANNELS - 1) + [6.0])
    right = ((picture - expected).abs() / scale).amax(-1) <= limit  # NaN is not
    pairs = zip(_backward(ours, scene)(), _backward(other, other_scene)(), strict=True) if backward else ()
    errors = [(a - b.to(a.device)).norm() / a.norm() for a, b in pairs]
    return 1.0 - float(right.double().mean()), float(torch.stack(errors).max()) if errors else 0.0


def _peak_bytes(function: Callable[[], object]) -> int:
    """Device memory that a call takes beside what is there, its results among it; 0 on a CPU."""
    if not torch.cuda.is_available():
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    return torch.cuda.max_memory_allocated() - before


def floor_bytes(scene: GaussianScene, size: Size, *, backward: bool) -> int:
    """What a call must move at least: every Gaussian once, whatever the number of views, and every picture once; in the
    backward their gradients, and what the forward kept of each pixel."""
    gaussians = sum(t.nbytes for t in scene[:5])
    pixels = size.views * size.width * size.height
    return 2 * gaussians + pixels * 4 * (CHANNELS + 3) if backward else gaussians + pixels * 4 * (CHANNELS + 1)


def _few_views(scene: GaussianScene) -> GaussianScene:
    """On which results are compared."""
    return scene._replace(viewmats=scene.viewmats[:3], Ks=scene.Ks[:3])


def _disagrees(render: Render, size: Size, few: GaussianScene, *, backward: bool) -> str:
    """What is wrong with a peer's result, seen from ours; empty where nothing is."""
    wrong, error = _errors(partial(_ours, size=size), render, few, few, limit=1e-4, backward=backward)
    if wrong > 1e-3:
        return f"{wrong:.1%} of its pixels differ"
    return "" if error <= 5e-2 else f"a gradient differs by {error:.2f}"


def _case(size: Size, scene: GaussianScene, *, backward: bool) -> Case:
    device, left_out = scene.means.device.type, []
    renders: dict[str, Render] = {"native": partial(_ours, size=size), **_peers(size, device)}
    variants: dict[str, Callable[[], object]] = {}
    for name, render in renders.items():
        try:
            trouble = "" if name == "native" else _disagrees(render, size, _few_views(scene), backward=backward)
            call: Callable[[], object] = _backward(render, scene) if backward else partial(render, scene)
            call()
        except torch.OutOfMemoryError:
            if name == "native":
                raise
            trouble = "out of memory"
            torch.cuda.empty_cache()
        if trouble:
            left_out.append(f"{name} left out: {trouble}")
        else:
            variants[name] = call
    peaks = {name: _peak_bytes(function) for name, function in variants.items()}
    timings = measure(variants, rounds=3, seconds_per_round=0.05, min_calls=1, device=device)
    own = timings.pop("native")
    notes = [f"{own.decisive / size.views:.4f} ms a view", *left_out]
    if device == "cuda":
        notes.append("peak " + ", ".join(f"{name} {peak / 1e6:.0f} MB" for name, peak in peaks.items()))
    shape = f"N{len(scene.means)}-C{size.views}-H{size.height}-W{size.width}-SH{SH_DEGREE}-{MODE}"
    return Case(
        f"{size.name} back" if backward else size.name, shape, "float32", "native", own, timings, ", ".join(notes),
        num_bytes=floor_bytes(scene, size, backward=backward), peaks=peaks,
    )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("name", "backward"), [("view", False), ("views", False), ("view", True), ("small", False)])
def test_gpu(name: str, backward: bool, record_figures: bool) -> None:
    size = SIZES[name]
    scene = size.scene("cuda")
    few = _few_views(scene)
    host = GaussianScene(*(t.cpu() for t in few))  # the CPU's kernels, which the tests hold against float64
    ours: Render = partial(_ours, size=size)
    wrong_pixels, gradient_error = _errors(ours, ours, few, host, limit=1e-5, backward=backward)
    assert wrong_pixels <= 1e-3
    assert gradient_error <= 1e-2
    case = _case(size, scene, backward=backward)
    print()
    print_table([case])
    print(f"{case.name:12} {case.shape:44} {case.notes}")
    if record_figures:
        print(f"recorded in {record([case], 'rasterize')}")


@pytest.mark.parametrize("backward", [False, True])
def test_the_same_on_a_cpu(backward: bool) -> None:
    """The comparison with the peer and the bookkeeping, where there is no GPU; records nothing."""
    scene = TINY.scene("cpu")
    few = _few_views(scene)
    ours, peer = partial(_ours, size=TINY), partial(_gsplat_torch, size=TINY)
    wrong_pixels, gradient_error = _errors(ours, peer, few, few, limit=1e-4, backward=backward)
    assert wrong_pixels <= 1e-3 and gradient_error <= 5e-2
    moved = few._replace(means=few.means + 0.3)
    assert _errors(ours, peer, few, moved, limit=1e-4, backward=False)[0] > 0.5
    nan = few._replace(colors=few.colors * float("nan"))
    assert _errors(lambda s: peer(nan), peer, few, few, limit=1e-4, backward=False)[0] > 0.5
    case = _case(TINY, scene, backward=backward)
    assert set(case.peers) == {"gsplat 1.5.3 torch code"} and case.num_bytes > 500 * 152
