"""Speed of the rasterizer's forward pass on one CPU core: `python -m pytest bench/test_rasterize.py -s [--record]`.

Values are compared with the reference first: no figure for a wrong picture. Peers: this package's torch reference and,
for a small case, gsplat 1.5.3's torch code (its kernels need a GPU).
"""

import torch

from bench.peers import gsplat_torch
from bench.report import Case, print_table, record
from bench.timing import Timing, measure
from worldr1_kernels import rasterize
from worldr1_kernels.testing import GaussianScene, gaussian_scene

# name, Gaussians, width, height, views, standard deviation in pixels
CASES = [
    ("target", 10_000, 256, 256, 1, (0.5, 3.0)),
    ("reward", 9_216, 32, 32, 9, (0.2, 0.6)),
    ("small", 2_000, 64, 64, 1, (0.5, 3.0)),
    ("dense", 65_536, 256, 256, 1, (0.5, 1.5)),
    ("one", 1, 8, 8, 1, (0.5, 3.0)),
]


def _check(scene: GaussianScene, width: int, height: int) -> None:
    native = rasterize(*scene, width, height, render_mode="RGB+D", backend="native")
    with torch.no_grad():
        double = GaussianScene(*(t.double() for t in scene))
        expected = rasterize(*double, width, height, render_mode="RGB+D", backend="reference")
    difference = (native.render_colors.double() - expected.render_colors).abs().amax(-1)
    assert (difference > 6e-5).double().mean() <= 1e-3


def _run_case(name: str, num: int, width: int, height: int, views: int, sigma: tuple[float, float]) -> Case:
    scene = gaussian_scene(num, width, height, num_views=views, sigma_px=sigma)

    def native() -> object:
        return rasterize(*scene, width, height, render_mode="RGB+D", backend="native")

    def reference() -> object:
        return rasterize(*scene, width, height, render_mode="RGB+D", backend="reference")

    def gsplat() -> object:
        return gsplat_torch(*scene[:5], scene.viewmats[0], scene.Ks[0], width, height)

    if num <= 10_000:
        _check(scene, width, height)
    timing = measure({"native": native})["native"]
    peers: dict[str, Timing] = {}
    if num <= 2_000 or name == "target":
        peers.update(measure({"torch reference": reference}, rounds=1, min_calls=1))
    if name == "small":  # dense over pixels and Gaussians: the larger cases do not fit in memory
        peers.update(measure({"gsplat 1.5.3 torch code": gsplat}, rounds=1, min_calls=1))
    shape = f"N{num}-C{views}-H{height}-W{width}-RGB+D"
    return Case(name, shape, "float32", "native", timing, peers, f"sigma {sigma} px")


def test_forward(record_figures: bool) -> None:
    cases = [_run_case(*case) for case in CASES]
    print()
    print_table(cases)
    if record_figures:
        print(f"recorded in {record(cases, 'rasterize')}")
