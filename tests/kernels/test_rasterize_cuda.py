"""The CUDA rasterizer without a device: its kernels, run thread by thread on the CPU, against the float64 reference."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from worldr1_kernels import _native
from worldr1_kernels.rasterize import api, cuda_impl
from worldr1_kernels.rasterize.arguments import (
    EXPECTED_DEPTH,
    FIRST_DEPTH,
    MEDIAN_DEPTH,
    NO_DEPTH,
    WEIGHTED_DEPTH,
    Inputs,
    Settings,
)
from worldr1_kernels.rasterize.cuda_impl import TiledOutput, rasterize_cuda, rasterize_emulated
from worldr1_kernels.rasterize.native_impl import rasterize_native
from worldr1_kernels.rasterize.reference import rasterize_reference
from worldr1_kernels.testing import (
    GaussianScene,
    assert_images_two_errors,
    gaussian_scene,
    noncontiguous,
    normal,
    poison_empty,
    uniform,
)
from worldr1_kernels.verify import gate


def inputs_of(scene: GaussianScene, backgrounds: torch.Tensor | None = None) -> Inputs:
    """One scene with shared colours, or [C, N, ...] per view where `colors` has three dimensions and no SH."""
    means, quats, scales, opacities, colors, viewmats, Ks = (t[None] for t in scene)
    back = None if backgrounds is None else backgrounds[None]
    return Inputs(means, quats, scales, None, opacities, colors[:, None], viewmats, Ks, back)


def settings_of(width: int, height: int, **changes: object) -> Settings:
    return Settings(width, height, 0.01, 1e10, 0.0, 0.3, -1, NO_DEPTH, False, 0.99, 0.005)._replace(**changes)


def double(inputs: Inputs) -> Inputs:
    return Inputs(*(None if t is None else t.double() for t in inputs))


def check(inputs: Inputs, settings: Settings, *, scale: float = 1.0, seed: int = 0, **options: object) -> TiledOutput:
    """Runs the kernels: as near to the float64 reference as torch in float32 is, and as the C++ path."""
    with poison_empty():
        output = rasterize_emulated(inputs, settings, seed=seed, **options)
    expected = rasterize_reference(double(inputs), settings)
    plain, native = rasterize_reference(inputs, settings), rasterize_native(inputs, settings)
    for name, size in (("render_colors", scale), ("render_alphas", 1.0)):
        for other in (getattr(plain, name), native[name == "render_alphas"]):
            assert_images_two_errors(getattr(output, name), other, getattr(expected, name), name=name, scale=size)
    assert torch.equal(output.num_invalid, expected.num_invalid)
    assert int(output.overflow.sum()) == 0
    return output


@pytest.mark.parametrize("depth_mode", [NO_DEPTH, WEIGHTED_DEPTH, EXPECTED_DEPTH, MEDIAN_DEPTH, FIRST_DEPTH])
@pytest.mark.parametrize("antialiased", [False, True])
def test_depth_modes(depth_mode: int, antialiased: bool) -> None:
    scene = gaussian_scene(300, 45, 37, num_views=2, seed=depth_mode)
    settings = settings_of(45, 37, depth_mode=depth_mode, antialiased=antialiased)
    check(inputs_of(scene), settings, scale=12.0)


@pytest.mark.parametrize(
    ("num", "width", "height", "sigma"),
    [(1, 1, 1, (0.5, 1.0)), (3, 16, 16, (0.5, 2.0)), (200, 17, 7, (0.3, 1.0)), (600, 33, 31, (2.0, 20.0))],
    ids=["N1-H1-W1", "N3-H16-W16", "N200-H7-W17", "N600-H31-W33-large"],
)
def test_odd_sizes(num: int, width: int, height: int, sigma: tuple[float, float]) -> None:
    scene = gaussian_scene(num, width, height, sigma_px=sigma, seed=3)
    check(inputs_of(scene), settings_of(width, height, depth_mode=WEIGHTED_DEPTH), scale=6.0)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("depth_mode", [NO_DEPTH, EXPECTED_DEPTH, MEDIAN_DEPTH])
def test_channels_and_backgrounds(channels: int, depth_mode: int) -> None:
    scene = gaussian_scene(80, 20, 17, num_views=2, num_channels=channels)
    backgrounds = torch.cat([uniform((2, channels), 1), torch.zeros(2, int(depth_mode != NO_DEPTH))], 1)
    check(inputs_of(scene, backgrounds), settings_of(20, 17, depth_mode=depth_mode), scale=12.0)


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("per_view", [False, True])
def test_spherical_harmonics(degree: int, per_view: bool) -> None:
    scene = gaussian_scene(90, 33, 20, num_views=2, seed=degree)
    inputs = inputs_of(scene)._replace(colors=0.3 * normal((1, 2 if per_view else 1, 90, 25, 3), degree))
    check(inputs, settings_of(33, 20, sh_degree=degree, depth_mode=WEIGHTED_DEPTH), scale=6.0)


@pytest.mark.parametrize("num_coefficients", [9, 16, 30])
@pytest.mark.parametrize("offset", [0, 1])
def test_colour_rows_that_begin_anywhere(num_coefficients: int, offset: int) -> None:
    """Rows of odd and even length, and longer than shared memory takes; whole warps of them and a rest of one; in
    memory at 16 bytes and beside; one that is invalid in its last coefficient."""
    inputs, size = inputs_of(gaussian_scene(97, 33, 20, num_views=2)), 97 * num_coefficients * 3
    memory = 0.3 * normal((size + offset,), 5)
    memory[-1] = float("nan")
    inputs = inputs._replace(colors=memory[offset:].view(1, 1, 97, num_coefficients, 3))
    output = check(inputs, settings_of(33, 20, sh_degree=2, depth_mode=WEIGHTED_DEPTH), scale=6.0, seed=1 + offset)
    assert output.num_invalid.tolist() == [[1, 1]]


def test_covariances_in_place_of_quaternions() -> None:
    scene = gaussian_scene(60, 24, 20, seed=2)
    factor = normal((1, 60, 3, 3), 4) * 0.05
    full = factor @ factor.transpose(-1, -2)
    rows, columns = torch.triu_indices(3, 3)
    inputs = inputs_of(scene)._replace(quats=None, scales=None, covars=full[..., rows, columns])
    check(inputs, settings_of(24, 20))
    assert inputs.covars is not None
    inputs.covars[0, 7, 2] = float("inf")
    assert check(inputs, settings_of(24, 20)).num_invalid.tolist() == [[1]]


def test_depth_only_without_colors() -> None:
    inputs = inputs_of(gaussian_scene(50, 20, 20))._replace(colors=None)
    check(inputs, settings_of(20, 20, depth_mode=WEIGHTED_DEPTH), scale=6.0)


def test_ties_keep_the_lower_index_first() -> None:
    scene = gaussian_scene(400, 24, 24, sigma_px=(2.0, 6.0))
    flat = scene.means / scene.means[:, 2:] * 3.0
    scene = scene._replace(means=flat)
    inputs, settings = inputs_of(scene), settings_of(24, 24)
    output = check(inputs, settings)
    reversed_scene = GaussianScene(*(t.flip(0) for t in scene[:5]), *scene[5:])
    other = rasterize_emulated(inputs_of(reversed_scene), settings)
    assert not torch.allclose(output.render_colors, other.render_colors, atol=1e-2)  # the order does matter


def test_saturation_stops_without_the_last_splat() -> None:
    scene = gaussian_scene(300, 16, 16, sigma_px=(8.0, 20.0))
    scene = scene._replace(opacities=torch.full((300,), 0.95))
    output = check(inputs_of(scene), settings_of(16, 16, depth_mode=MEDIAN_DEPTH), scale=6.0)
    assert float(output.render_alphas.min()) > 0.99 and float(output.render_alphas.max()) < 1 - 1e-4 + 1e-7


def test_one_gaussian_over_the_whole_screen_and_empty_tiles() -> None:
    scene = gaussian_scene(40, 130, 70, sigma_px=(0.3, 0.5))
    scene.means[0] = torch.tensor([0.0, 0.0, 5.0])
    scene.scales[0] = 40.0
    check(inputs_of(scene), settings_of(130, 70))
    corner = GaussianScene(*(t[:1] for t in scene[:5]), *scene[5:])
    corner.means[0] = torch.tensor([-1.0, -0.5, 2.0])
    corner.scales[0] = 0.01
    output = check(inputs_of(corner), settings_of(130, 70))
    assert int((output.render_alphas > 0).sum()) < 16 * 16


def test_nothing_to_draw() -> None:
    scene = gaussian_scene(5, 20, 18, num_views=2)
    backgrounds = uniform((2, 3), 0)
    none = GaussianScene(*(t[:0] for t in scene[:5]), *scene[5:])
    for inputs in (inputs_of(none, backgrounds), inputs_of(scene._replace(opacities=torch.zeros(5)), backgrounds)):
        output = check(inputs, settings_of(20, 18))
        assert torch.equal(output.render_colors, backgrounds[None, :, None, None].expand(1, 2, 18, 20, 3))
    without = inputs_of(scene)._replace(viewmats=torch.zeros(1, 0, 4, 4), Ks=torch.zeros(1, 0, 3, 3))
    assert rasterize_emulated(without, settings_of(20, 18)).render_colors.shape == (1, 0, 18, 20, 3)


def test_culling() -> None:
    inputs = inputs_of(gaussian_scene(300, 40, 40, num_views=2))
    for change in (
        {"near_plane": 4.0},
        {"far_plane": 4.0},
        {"radius_clip": 3.0},
        {"far_plane": float("inf")},
        {"eps2d": 0.0},
    ):
        check(inputs, settings_of(40, 40, **change))


def test_invalid_gaussians_are_dropped_and_counted() -> None:
    scene = gaussian_scene(40, 24, 16, num_views=2)
    scene.means[0, 1] = float("nan")
    scene.quats[1] = 0.0
    scene.scales[2, 0] = float("inf")
    scene.opacities[3] = float("nan")
    scene.colors[4, 2] = float("-inf")
    assert check(inputs_of(scene), settings_of(24, 16)).num_invalid.tolist() == [[5, 5]]
    per_view = scene.colors[None].repeat(2, 1, 1)
    per_view[1, 30, 0] = float("nan")
    inputs = inputs_of(scene)._replace(colors=per_view[None])
    assert check(inputs, settings_of(24, 16)).num_invalid.tolist() == [[5, 6]]


def test_extreme_values() -> None:
    scene = gaussian_scene(6, 16, 16)
    scene.means[:4] = torch.tensor([[0.0, 0, -1], [0, 0, 0], [1e30, 0, 3], [0, 0, 3]])
    scene.scales[4] *= -1.0
    inputs, settings = inputs_of(scene), settings_of(16, 16, depth_mode=EXPECTED_DEPTH)
    output = check(inputs, settings, scale=6.0)
    scene.scales[2] = 1e30  # its covariance exceeds float32: dropped, where float64 still draws it
    assert torch.equal(rasterize_emulated(inputs_of(scene), settings).render_colors, output.render_colors)


def test_scenes_and_views_in_chunks() -> None:
    scenes = [gaussian_scene(70, 35, 23, num_views=5, seed=s) for s in range(2)]
    stacked = GaussianScene(*(torch.stack(t) for t in zip(*scenes, strict=True)))
    inputs = Inputs(*stacked[:3], None, stacked.opacities, stacked.colors[:, None], stacked.viewmats, stacked.Ks, None)
    settings = settings_of(35, 23, depth_mode=WEIGHTED_DEPTH)
    whole = check(inputs, settings, scale=6.0)
    assert [chunk.views for chunk in whole.chunks] == [5, 5]
    for may_wait, budget, views in [(True, 1, [1] * 10), (False, 1, [1] * 10), (True, 30_000, [2, 2, 1] * 2)]:
        chunked = rasterize_emulated(inputs, settings, may_wait=may_wait, memory_budget=budget)
        assert [chunk.views for chunk in chunked.chunks] == views
        assert torch.equal(chunked.render_colors, whole.render_colors)
        assert torch.equal(chunked.num_invalid, whole.num_invalid)
    strided = Inputs(*(None if t is None else noncontiguous(t) for t in inputs))
    assert torch.equal(rasterize_emulated(strided, settings).render_colors, whole.render_colors)


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_no_order_of_threads_changes_a_bit(seed: int) -> None:
    """A missing barrier, or a copy awaited too late, would show: orders and the landing of copies follow the seed."""
    scene = gaussian_scene(1400, 24, 18, num_views=2, sigma_px=(2.0, 9.0))
    scene.opacities.mul_(0.03)  # tiles with five batches of splats, none saturated
    inputs, settings = inputs_of(scene), settings_of(24, 18, depth_mode=WEIGHTED_DEPTH)
    expected = check(inputs, settings, scale=6.0)
    output = rasterize_emulated(inputs, settings, seed=seed)
    assert torch.equal(output.render_colors, expected.render_colors)
    assert torch.equal(output.render_alphas, expected.render_alphas)


def test_overflow_is_reported_and_never_a_wrong_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = gaussian_scene(100, 48, 48, num_views=2, sigma_px=(3.0, 9.0))
    inputs, settings = inputs_of(scene), settings_of(48, 48, depth_mode=WEIGHTED_DEPTH)
    whole = rasterize_emulated(inputs, settings)
    needed = whole.chunks[0].pairs
    assert needed > 200 and whole.chunks[0].is_exact
    for room in (50, 100):  # a view
        monkeypatch.setattr(cuda_impl, "_plan", lambda *a, p=room: (2, p))
        output = rasterize_emulated(inputs, settings, may_wait=False)
        assert bool(output.render_colors.isnan().all()) and bool(output.render_alphas.isnan().all())
        assert output.overflow.tolist() == [[needed - 2 * room] * 2]
        counted = rasterize_emulated(inputs, settings)
        assert int(counted.overflow.sum()) == 0 and torch.equal(counted.render_colors, whole.render_colors)
    monkeypatch.setattr(cuda_impl, "_plan", lambda *a: (2, (needed + 1) // 2))
    output = rasterize_emulated(inputs, settings, may_wait=False)
    assert int(output.overflow.sum()) == 0 and torch.equal(output.render_colors, whole.render_colors)


def test_counting_halves_chunks_that_exceed_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = gaussian_scene(60, 48, 48, num_views=7, sigma_px=(9.0, 20.0))
    scene.means[7, 1] = float("nan")
    inputs, settings = inputs_of(scene), settings_of(48, 48)
    whole = rasterize_emulated(inputs, settings)
    monkeypatch.setattr(cuda_impl, "_plan", lambda *a: (7, 1))  # a guess that is too low
    output = rasterize_emulated(inputs, settings, memory_budget=40_000)
    assert [chunk.views for chunk in output.chunks] == [3, 3, 1]
    assert torch.equal(output.render_colors, whole.render_colors) and int(output.overflow.sum()) == 0
    assert output.num_invalid.tolist() == whole.num_invalid.tolist() == [[1] * 7]  # counted once


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_unused_room_of_a_graph_changes_nothing(seed: int) -> None:
    """Half of the Gaussians are culled; what memory holds in place of their splats is large or small by the seed."""
    inputs, settings = inputs_of(gaussian_scene(300, 40, 33, num_views=2)), settings_of(40, 33, near_plane=4.0)
    counted = check(inputs, settings)
    assert 100 < counted.chunks[0].splats < 500
    output = check(inputs, settings, seed=seed, may_wait=False)
    assert torch.equal(output.render_colors, counted.render_colors)


def test_nothing_overflows_outside_a_graph() -> None:
    """40 tiles a splat, ten times the room in a graph."""
    scene = gaussian_scene(60, 240, 240, sigma_px=(30.0, 60.0))
    inputs, settings = inputs_of(scene)._replace(colors=None), settings_of(240, 240, depth_mode=WEIGHTED_DEPTH)
    output = rasterize_emulated(inputs, settings._replace(pairs_per_gaussian=0.0), memory_budget=1)
    assert output.chunks[0].pairs > 40 * 60 and bool(output.render_alphas.isfinite().all())


@pytest.mark.parametrize("published", [0, 1, 31, 32, 33, 40, 70])
def test_look_back_over_blocks_that_do_not_know_their_sum_yet(published: int) -> None:
    """71 blocks ran before; the nearest that knows the sum of all before it is `published` blocks back."""
    own = [7 * i % 5 + 1 for i in range(71)]
    words = [(1 << 32) | value for value in own]
    for block in {0, 70 - published}:
        words[block] = (2 << 32) | sum(own[: block + 1])
    sums, left = _native.cpu().rasterize_look_back(words, 9)
    assert sums == [sum(own)] * 32
    assert left == [*words, (2 << 32) | (sum(own) + 9)]


@pytest.mark.parametrize("seed", range(5))
def test_look_back_whatever_the_blocks_before_have_published(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    own = torch.randint(0, 8193, (97,), generator=generator).tolist()
    knows = (torch.rand(97, generator=generator) < (0.0, 0.02, 0.1, 0.5, 1.0)[seed]).tolist()
    knows[0] = True  # nothing lies before it
    words = [(2 << 32) | sum(own[: i + 1]) if known else (1 << 32) | own[i] for i, known in enumerate(knows)]
    for blocks in (1, 2, 32, 33, 64, 65, 97):
        assert _native.cpu().rasterize_look_back(words[:blocks], 5)[0] == [sum(own[:blocks])] * 32


def test_look_back_of_the_first_block_and_over_one_that_has_not_run() -> None:
    assert _native.cpu().rasterize_look_back([], 9) == ([0] * 32, [(2 << 32) | 9])
    with pytest.raises(RuntimeError, match="waits for one that has not run"):
        _native.cpu().rasterize_look_back([(2 << 32) | 3, 0], 9)


@pytest.mark.slow
def test_more_than_2_to_the_32_pairs_are_counted() -> None:
    """262,160 splats over 16,384 tiles: in 32 bits the count would wrap to 2.6 million and look nearly harmless."""
    num, size = 262_160, 2048
    scene = gaussian_scene(1, size, size)
    means, quats, scales = torch.tensor([[0.0, 0, 3]]), torch.eye(4)[:1], torch.full((1, 3), 100.0)
    opacities = torch.full((1,), 0.5)
    many = [t.expand(num, *t.shape[1:]).contiguous()[None] for t in (means, quats, scales, opacities)]
    cameras = scene.viewmats[None], scene.Ks[None]
    inputs = Inputs(*many[:3], None, many[3], None, *cameras, None)
    settings = settings_of(size, size, depth_mode=WEIGHTED_DEPTH)
    output = rasterize_emulated(inputs, settings._replace(pairs_per_gaussian=0.0), may_wait=False)
    assert output.overflow.tolist() == [[num * 16_384 - (1 << 20)]]
    assert bool(output.render_colors.isnan().all()) and bool(output.render_alphas.isnan().all())


class TestPlan:
    @staticmethod
    def plan(
        num_gaussians: int, num_views: int, width: int, height: int, budget: int, **options: object
    ) -> tuple[int, int]:
        sizes = {"splats": 0, "pairs": 0, "channels": 4, "for_backward": False, "is_exact": False, **options}
        sizes |= {"num_gaussians": num_gaussians, "width": width, "height": height}
        found = _native.cpu().rasterize_tiled_plan(
            num_views=num_views, pairs_per_gaussian=4.0, memory_budget=budget, views=1, **sizes
        )
        return tuple(found)

    @staticmethod
    def num_bytes(num_gaussians: int, views: int, pairs: int, width: int, height: int) -> int:
        sizes = {"channels": 4, "for_backward": False, "is_exact": False, "width": width, "height": height}
        splats = num_gaussians * views
        return sum(
            _native.cpu().rasterize_tiled_bytes(
                num_gaussians=num_gaussians, views=views, splats=splats, pairs=pairs, **sizes
            )
        )

    def test_small_scenes_have_room_for_the_worst_case(self) -> None:
        views, pairs = self.plan(100, 240, 832, 480, 1 << 30)
        assert pairs == 100 * 52 * 30 and views == 32

    def test_large_scenes_keep_to_the_budget_or_to_one_view(self) -> None:
        views, pairs = self.plan(2_000_000, 240, 832, 480, 1 << 30)
        assert pairs == 8_000_000 and views == 4
        assert self.num_bytes(2_000_000, 4, 4 * pairs, 832, 480) <= 1 << 30
        assert self.num_bytes(2_000_000, 5, 5 * pairs, 832, 480) > 1 << 30
        assert self.plan(12_000_000, 240, 832, 480, 1)[0] == 1
        assert self.plan(2_000_000, 240, 832, 480, 1 << 30, for_backward=True) == (1, 8_000_000)

    def test_indices_stay_within_32_bits(self) -> None:
        assert self.plan(1_000_000_000, 8, 832, 480, 1 << 50) == (1, (1 << 31) - 2)
        assert self.plan(8_000_000, 240, 832, 480, 1 << 50)[0] == 32  # 1.0e9 pairs a chunk
        views, pairs = self.plan(20_000_000, 240, 832, 480, 1 << 50)
        assert views == 26  # 2^31 pairs, sizes beyond 32 bits
        assert self.num_bytes(20_000_000, views, views * pairs, 832, 480) > 1 << 35

    def test_views_share_16_bit_keys(self) -> None:
        assert self.plan(1000, 32, 3840, 2160, 1 << 40)[0] == 2  # 32,400 tiles
        assert self.plan(1000, 32, 8192, 8192, 1 << 40)[0] == 32  # 262,144 tiles: 32-bit keys


@pytest.mark.slow
def test_large_images_sort_32_bit_keys() -> None:
    """65,792 tiles do not fit into 16 bits. The reference renders the corner alone: it is dense."""
    width, height, corner = 4112, 4096, 64
    scene = gaussian_scene(60, corner, corner)
    inputs = inputs_of(scene)
    shift = torch.tensor([[0.0, 0, width - corner], [0, 0, height - corner], [0, 0, 0]])
    output = rasterize_emulated(inputs._replace(Ks=inputs.Ks + shift), settings_of(width, height)).render_colors
    expected = rasterize_reference(double(inputs), settings_of(corner, corner)).render_colors
    # float32 places a splat at pixel 4,000 to 2^-12 pixels.
    torch.testing.assert_close(output[..., -corner:, -corner:, :].double(), expected, rtol=0, atol=1e-3)
    assert int(torch.count_nonzero(output[..., : -2 * corner, :, :])) == 0
    assert int(torch.count_nonzero(output[..., :, : -2 * corner, :])) == 0


def test_without_a_device_the_launcher_says_why() -> None:
    if _native.cuda_unavailable() is None:
        pytest.skip("there is a CUDA device")
    inputs = inputs_of(gaussian_scene(3, 8, 8))
    with pytest.raises(RuntimeError, match="worldr1_kernels: worldr1_kernels._C_cuda"):
        rasterize_cuda(inputs, settings_of(8, 8))


def test_auto_waits_for_the_kernels_to_be_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice alone, for inputs that say they are on a device."""
    monkeypatch.setattr(api, "native_unavailable", lambda device: None)
    monkeypatch.delenv("WORLDR1_BACKEND", raising=False)
    on_device: Any = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32, requires_grad=True)
    inputs = Inputs(*[on_device] * len(Inputs._fields))
    weighted, median = (settings_of(8, 8, depth_mode=mode) for mode in (WEIGHTED_DEPTH, MEDIAN_DEPTH))
    why = "not verified"
    monkeypatch.setattr(gate, "unverified", lambda *_: why)
    assert api._choose_backend("rasterize", "auto", inputs, weighted) == "reference"
    assert api._choose_backend("rasterize", "native", inputs, weighted) == "native"
    with pytest.raises(NotImplementedError, match="on CUDA has no gradient of the depths MD and FD"):
        api._choose_backend("rasterize", "native", inputs, median)
    why = ""
    assert api._choose_backend("rasterize", "auto", inputs, weighted) == "native"
    assert api._choose_backend("rasterize", "auto", inputs, median) == "reference"
    with torch.no_grad():
        assert api._choose_backend("rasterize", "auto", inputs, median) == "native"
    monkeypatch.setenv("WORLDR1_BACKEND", "native")  # for a whole run: what it cannot do is the reference's
    assert api._choose_backend("rasterize", "auto", inputs, median) == "reference"


def test_sizes_beyond_32_bits_are_refused() -> None:
    inputs = inputs_of(gaussian_scene(3, 8, 8))
    huge = inputs._replace(means=torch.empty(1, 1 << 31, 3, device="meta"))
    with pytest.raises(ValueError, match="rasterize: N must be at most 2147483646 on CUDA, got 2147483648"):
        rasterize_emulated(huge, settings_of(8, 8))
    with pytest.raises(ValueError, match="an image must have at most"):
        rasterize_emulated(inputs, settings_of(1 << 20, 1 << 20))
