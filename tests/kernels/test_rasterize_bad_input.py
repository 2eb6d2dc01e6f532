"""Whatever the rasterizer is given, it answers with an error or with what the documentation says; it never crashes."""

import math
import random
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from worldr1_kernels import _native, rasterize
from worldr1_kernels.testing import gaussian_scene

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("backend", ["native", "reference"])
class TestDocumentedResults:
    def test_length_of_a_quaternion_does_not_matter(self, backend: str) -> None:
        scene = gaussian_scene(40, 20, 20)
        expected = rasterize(*scene, 20, 20, backend=backend).render_colors
        longer = rasterize(*scene._replace(quats=scene.quats * 7.5), 20, 20, backend=backend).render_colors
        torch.testing.assert_close(longer, expected, rtol=0, atol=1e-5)

    def test_sign_of_a_scale_does_not_matter(self, backend: str) -> None:
        scene = gaussian_scene(40, 20, 20)
        negative = scene._replace(scales=scene.scales * torch.tensor([-1.0, 1.0, -1.0]))
        out = rasterize(*negative, 20, 20, backend=backend).render_colors
        torch.testing.assert_close(out, rasterize(*scene, 20, 20, backend=backend).render_colors, rtol=0, atol=1e-6)

    def test_flat_and_empty_gaussians_are_points_of_the_blur(self, backend: str) -> None:
        """A singular covariance is made regular by eps2d: with scale 0 the splat is a disc of variance eps2d."""
        focal, depth = 16.0, 4.0
        means = torch.tensor([[0.5 * depth / focal, 0.5 * depth / focal, depth]])
        K = torch.tensor([[[focal, 0, 4.0], [0, focal, 4.0], [0, 0, 1]]])
        scene = (
            means,
            torch.eye(4)[:1],
            torch.zeros(1, 3),
            torch.tensor([0.8]),
            torch.ones(1, 1),
            torch.eye(4)[None],
            K,
        )
        out = rasterize(*scene, 9, 9, eps2d=0.5, backend=backend).render_alphas[0, 4, :, 0]
        torch.testing.assert_close(out[4:6], 0.8 * torch.exp(-torch.tensor([0.0, 1.0])), rtol=0, atol=1e-5)
        # Without a blur there is nothing to see of it.
        assert float(rasterize(*scene, 9, 9, eps2d=0.0, backend=backend).render_alphas.abs().max()) == 0.0

    @pytest.mark.parametrize("bad", [0.0, NAN, INF])
    def test_focal_length(self, backend: str, bad: float) -> None:
        """A view whose intrinsics are no camera shows no NaN; the other views are what they are."""
        scene = gaussian_scene(20, 16, 16, num_views=2)
        Ks = scene.Ks.clone()
        Ks[0, 0, 0] = bad
        out = rasterize(*scene._replace(Ks=Ks), 16, 16, render_mode="RGB+D", backend=backend)
        assert out.render_colors.isfinite().all()
        expected = rasterize(*scene, 16, 16, render_mode="RGB+D", backend=backend)
        assert torch.equal(out.render_colors[1], expected.render_colors[1])

    @pytest.mark.parametrize("bad", [NAN, INF])
    def test_view_that_is_not_finite_is_empty(self, backend: str, bad: float) -> None:
        scene = gaussian_scene(20, 16, 16, num_views=2)
        viewmats = scene.viewmats.clone()
        viewmats[1, 2, 3] = bad
        out = rasterize(*scene._replace(viewmats=viewmats), 16, 16, backend=backend)
        assert float(out.render_alphas[1].abs().max()) == 0.0 and float(out.render_alphas[0].max()) > 0.1

    def test_huge_opacity_is_clipped(self, backend: str) -> None:
        scene = gaussian_scene(5, 12, 12, sigma_px=(4.0, 8.0))
        out = rasterize(*scene._replace(opacities=torch.full((5,), 1e30)), 12, 12, backend=backend)
        assert 0.98 <= float(out.render_alphas.max()) <= 1.0 and out.render_colors.isfinite().all()

    @pytest.mark.parametrize("opacity", [1e3, 1e20, 1e30])
    def test_huge_opacity_ends_where_it_should(self, backend: str, opacity: float) -> None:
        scene = gaussian_scene(3, 96, 96, sigma_px=(1.0, 3.0))
        scene = scene._replace(opacities=torch.full((3,), opacity))
        expected = rasterize(*(t.double() for t in scene), 96, 96, backend="reference").render_alphas
        alphas = rasterize(*scene, 96, 96, backend=backend).render_alphas
        assert 0 < int((expected > 0).sum()) < expected.numel() // 2
        assert int(((alphas > 0) != (expected > 0)).sum()) <= 3  # pixels on the edge


class TestErrors:
    scene = gaussian_scene(4, 8, 8)

    @pytest.mark.parametrize("name", ["means", "quats", "scales", "opacities", "colors", "viewmats", "Ks"])
    def test_every_tensor_is_checked(self, name: str) -> None:
        tensor = getattr(self.scene, name)
        for bad in (tensor[None, None], tensor[..., :0], tensor.reshape(-1)[:1].reshape(())):
            with pytest.raises(ValueError, match="rasterize: "):
                rasterize(*self.scene._replace(**{name: bad}), 8, 8)
        for bad in (tensor.long(), tensor.bool(), tensor.to(torch.complex64)):
            with pytest.raises(TypeError, match=f"rasterize: {name} must have dtype"):
                rasterize(*self.scene._replace(**{name: bad}), 8, 8)
        # A list of means stands for scenes of different N; then the others must be lists too.
        message = "quats must be a list like means" if name == "means" else f"{name} must be a torch.Tensor, got list"
        with pytest.raises(TypeError, match=f"rasterize: {message}"):
            rasterize(*self.scene._replace(**{name: tensor.tolist()}), 8, 8)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="must be on"):
            rasterize(*self.scene._replace(**{name: tensor.to("meta")}), 8, 8)

    @pytest.mark.parametrize(("near", "far"), [(1.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (NAN, 1.0), (0.1, NAN)])
    def test_near_and_far(self, near: float, far: float) -> None:
        with pytest.raises(ValueError, match="rasterize: 0 <= near_plane < far_plane must hold"):
            rasterize(*self.scene, 8, 8, near_plane=near, far_plane=far)

    @pytest.mark.parametrize("size", [0, -1, 1 << 21, 1.5, 2.0])
    def test_sizes(self, size: int) -> None:
        for shape in ((size, 8), (8, size)):
            with pytest.raises(ValueError, match="must be an integer from 1"):
                rasterize(*self.scene, *shape)


OUT_OF_MEMORY = """
import resource
import torch
from worldr1_kernels import rasterize
from worldr1_kernels.testing import gaussian_scene
scene = gaussian_scene(3000, 2048, 2048, sigma_px=(3000.0, 4000.0))  # 65,536 tiles each: 1.5 GB of lists
torch.set_num_threads({threads})
rasterize(*gaussian_scene(9, 64, 64), 64, 64, backend="native")  # the workers have started
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (600 << 20), resource.RLIM_INFINITY))
try:
    rasterize(*scene, 2048, 2048, render_mode="D", backend="native")
except MemoryError as error:
    print(error)
print(float(rasterize(*gaussian_scene(9, 64, 64), 64, 64, backend="native").render_alphas.max()) > 0.1)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is read from /proc")
@pytest.mark.parametrize("threads", [1, 2])
def test_pairs_beyond_the_memory_are_an_error(threads: int) -> None:
    """And the next call works. More than 2^31 pairs take the same path: sizes are 64 bits wide."""
    command = [sys.executable, "-c", OUT_OF_MEMORY.format(threads=threads)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    message, works = done.stdout.splitlines()
    assert message.startswith("rasterize: the lists of (tile, splat) pairs must fit into memory, got 3000 Gaussians")
    assert works == "True"


SPECIAL = (0.0, -1.0, NAN, INF, -INF, 1e-38, 1e38, -1e30, 1e-20)
MODES = ("RGB", "D", "ED", "MD", "FD", "RGB+D", "RGB+ED", "RGB+MD", "RGB+FD")


def _spoil(tensor: Tensor, draw: random.Random) -> Tensor:
    """The tensor with a few special values, in a strange layout, or of another shape, dtype or device."""
    tensor = tensor.clone(memory_format=torch.contiguous_format)
    kind = draw.random()
    if kind < 0.6 and tensor.numel() and tensor.is_floating_point() and tensor.device.type == "cpu":
        for _ in range(draw.randint(1, 3)):
            tensor.view(-1)[draw.randrange(tensor.numel())] = draw.choice(SPECIAL)
    elif kind < 0.7:
        tensor = tensor * draw.choice(SPECIAL)
    elif kind < 0.8:
        tensor = tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor.flip(0)
    elif kind < 0.9:
        tensor = tensor.to(draw.choice((torch.float64, torch.bfloat16, torch.float16, torch.int32)))
    elif kind < 0.97:
        tensor = draw.choice((tensor[:0], tensor[..., :-1], tensor[None], tensor.reshape(-1)))
    else:
        tensor = tensor.to("meta")
    return tensor


def _call(seed: int) -> str:
    """One random call; returns what became of it. Anything but an error of the documented kinds or a documented result
    fails."""
    draw = random.Random(seed)
    width, height = draw.choice((1, 2, 7, 8, 9, 17)), draw.choice((1, 3, 8, 10, 16))
    num, views = draw.choice((0, 1, 2, 7, 8, 9, 20)), draw.choice((0, 1, 1, 2, 3))
    degree = draw.choice((*[None] * 6, 0, 1, 2, 3, 4, 4, 5))
    scene = gaussian_scene(num, width, height, num_views=views, num_channels=draw.choice((1, 3, 3, 5)), seed=seed)
    tensors = list(scene)
    if degree is not None:
        tensors[4] = torch.randn(num, draw.choice(((degree + 1) ** 2, 25, 25, 3)), 3)
    for _ in range(draw.choice((0, 1, 1, 1, 2))):
        index = draw.randrange(7)
        tensors[index] = _spoil(tensors[index], draw)
    options = {
        "render_mode": draw.choice(MODES),
        "rasterize_mode": draw.choice(("classic", "antialiased")),
        "compat": draw.choice(("gsplat-1.5", "gsplat-1.6")),
        "sh_degree": degree,
        "eps2d": draw.choice((*[0.3] * 12, 0.0, 1e-20, 1e30, NAN)),
        "near_plane": draw.choice((*[0.01] * 12, 0.0, 3.0, 1e30)),
        "far_plane": draw.choice((*[1e10] * 12, INF, 4.0, 0.0)),
        "radius_clip": draw.choice((*[0.0] * 12, 2.0, INF)),
        "meta": draw.choice(("minimal", "minimal", "full")),
        "backend": draw.choice(("native", "native", "auto", "reference")),
    }
    leaf = draw.randrange(7)
    if draw.random() < 0.5 and tensors[leaf].is_floating_point():
        tensors[leaf].requires_grad_()
    try:
        out = rasterize(*tensors, width, height, **options)
    except (ValueError, TypeError, NotImplementedError) as error:
        assert str(error).startswith("rasterize: "), (seed, error)
        return "refused"
    except RuntimeError as error:  # of the environment: here only a device without kernels
        assert "meta" in str(error), (seed, error)
        return "no device"
    if out.render_alphas.device.type == "meta":
        return "no device"
    alphas = out.render_alphas.detach()
    assert (
        alphas.isfinite().all() and float(alphas.clamp(0, 1).sub(alphas).abs().max() if alphas.numel() else 0) <= 1e-6
    )
    if out.render_colors.requires_grad:
        (gradient,) = torch.autograd.grad(out.render_colors.sum() + out.render_alphas.sum(), tensors[leaf])
        assert gradient.shape == tensors[leaf].shape
        return "differentiated"
    return "rendered"


@pytest.mark.parametrize("name", ["rasterize_forward", "rasterize_backward", "rasterize_tiled_prepare"])
def test_a_launcher_that_leaves_an_argument_out_is_told_which(name: str) -> None:
    with pytest.raises(RuntimeError, match="rasterize: missing argument means"):
        getattr(_native.cpu(), name)(num_scenes=1)


def _count(seeds: range) -> dict[str, int]:
    counts: dict[str, int] = {}
    for seed in seeds:
        outcome = _call(seed)
        counts[outcome] = counts.get(outcome, 0) + 1
    return counts


def test_200_fuzzed_calls() -> None:
    counts = _count(range(200))
    assert min(counts["rendered"], counts["refused"], counts["differentiated"]) >= 10


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_10000_fuzzed_calls() -> None:
    counts = _count(range(1000, 11_000))
    assert (
        sum(counts.values()) == 10_000 and math.prod(counts[k] for k in ("rendered", "refused", "differentiated")) > 0
    )
