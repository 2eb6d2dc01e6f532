"""gsplat's own densification, step by step, on what `rasterization` hands it."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from worldr1_kernels import rasterization, rasterize
from worldr1_kernels.testing import gaussian_scene

strategies = pytest.importorskip("gsplat.strategy")
strategy_ops = pytest.importorskip("gsplat.strategy.ops")
WIDTH, HEIGHT, VIEWS = 40, 32, 2
RATES = {"means": 1e-3, "scales": 5e-3, "quats": 1e-3, "opacities": 5e-2, "colors": 2e-2}


class Fit:
    """A scene as gsplat's trainers hold it (logarithms of scales, logits of opacities), fitted to another."""

    def __init__(self, num: int = 60, *, packed: bool) -> None:
        self.packed = packed
        scene = gaussian_scene(num, WIDTH, HEIGHT, num_views=VIEWS, sigma_px=(1.0, 4.0), seed=3)
        self.cameras = (scene.viewmats, scene.Ks)
        self.target = rasterize(*gaussian_scene(200, WIDTH, HEIGHT, num_views=VIEWS, seed=8), WIDTH, HEIGHT)[0]
        start = {"means": scene.means, "scales": scene.scales.log(), "quats": scene.quats}
        start |= {"opacities": scene.opacities.logit(), "colors": scene.colors}
        self.params = torch.nn.ParameterDict({k: torch.nn.Parameter(v.clone()) for k, v in start.items()})
        self.optimizers = {k: torch.optim.Adam([v], lr=RATES[k]) for k, v in self.params.items()}

    def render(self) -> tuple[Tensor, dict[str, Any]]:
        p = self.params
        activated = (p["means"], p["quats"], p["scales"].exp(), p["opacities"].sigmoid(), p["colors"])
        image, _, info = rasterization(*activated, *self.cameras, WIDTH, HEIGHT, packed=self.packed)
        return (image - self.target).square().mean(), info

    def train(self, strategy: Any, steps: int, **post: Any) -> tuple[list[int], list[float]]:
        """Number of Gaussians after, and loss before, each step; every parameter keeps that number."""
        strategy.check_sanity(self.params, self.optimizers)
        state, counts, losses = strategy.initialize_state(), [], []
        for step in range(steps):
            loss, info = self.render()
            strategy.step_pre_backward(self.params, self.optimizers, state, step, info)
            loss.backward()
            for optimizer in self.optimizers.values():
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            strategy.step_post_backward(self.params, self.optimizers, state, step, info, **post)
            counts.append(len(self.params["means"]))
            assert {len(p) for p in self.params.values()} == {counts[-1]}
            losses.append(float(loss.detach()))
        return counts, losses


@pytest.mark.parametrize("packed", [False, True])
def test_default_strategy_densifies(packed: bool) -> None:
    """Duplicates, splits and prunes: the number of Gaussians rises at steps 6 and 9, and the picture gets better."""
    torch.manual_seed(0)
    fit = Fit(packed=packed)
    with torch.no_grad():
        fit.params["opacities"][:4] = -8.0  # .0003: too transparent to stay
    strategy = strategies.DefaultStrategy(
        refine_start_iter=3, refine_every=3, grow_grad2d=2e-5, grow_scale3d=0.1, refine_scale2d_stop_iter=100
    )
    counts, losses = fit.train(strategy, 16, packed=packed)
    assert counts[:6] == [60] * 6 and counts[6] > 70 and counts[9] > counts[6]
    assert float(fit.params["opacities"].detach().min()) > -6.0
    assert losses[-1] < 0.95 * losses[0]


def test_default_strategy_sees_the_same_packed_or_not() -> None:
    states = []
    for packed in (False, True):
        fit, strategy = Fit(packed=packed), strategies.DefaultStrategy(refine_scale2d_stop_iter=100)
        state = strategy.initialize_state()
        loss, info = fit.render()
        strategy.step_pre_backward(fit.params, fit.optimizers, state, 0, info)
        loss.backward()
        strategy.step_post_backward(fit.params, fit.optimizers, state, 0, info, packed=packed)
        states.append(state | {name: p.grad for name, p in fit.params.items()})
    assert float(states[0]["grad2d"].max()) > 0 and 0 < int(states[0]["count"].sum()) <= 120
    for name in ("grad2d", "count", "radii", *RATES):
        torch.testing.assert_close(states[1][name], states[0][name], rtol=1e-5, atol=1e-9)


def relocation(opacities: Tensor, scales: Tensor, ratios: Tensor, binoms: Tensor) -> tuple[Tensor, Tensor]:
    """gsplat has this in CUDA alone. Kheradmand et al., 3DGS as Markov Chain Monte Carlo, 2024, equation 9."""
    new, factors = 1 - (1 - opacities) ** (1 / ratios), []
    for o, n, whole in zip(new.tolist(), ratios.tolist(), opacities.tolist(), strict=True):
        terms = [
            float(binoms[i - 1, k]) * (-1) ** k / math.sqrt(k + 1) * o ** (k + 1)
            for i in range(1, n + 1)
            for k in range(i)
        ]
        factors.append(whole / sum(terms))
    return new, scales * torch.tensor(factors)[:, None]


@pytest.fixture
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    torch_impl = pytest.importorskip("gsplat.cuda._torch_impl")

    def covariances(quats: Tensor, scales: Tensor, **which: bool) -> tuple[Tensor | None, Tensor | None]:
        return torch_impl._quat_scale_to_covar_preci(quats, scales, **which)

    calls: dict[str, Callable[..., Any]] = {"compute_relocation": relocation, "quat_scale_to_covar_preci": covariances}
    for name, function in calls.items():
        monkeypatch.setattr(strategy_ops, name, function)


@pytest.mark.parametrize("packed", [False, True])
def test_mcmc_strategy_relocates_and_adds(packed: bool, without_cuda: None) -> None:
    """Dead Gaussians go where live ones are, a twentieth more comes at steps 4 and 6, up to the cap."""
    torch.manual_seed(0)
    fit = Fit(packed=packed)
    with torch.no_grad():
        fit.params["opacities"][:5] = -9.0
        fit.params["means"][:5] = 1000.0
    strategy = strategies.MCMCStrategy(refine_start_iter=3, refine_every=2, cap_max=65, noise_lr=1.0)
    counts, losses = fit.train(strategy, 12, lr=RATES["means"])
    assert counts[3:8] == [60, 63, 63, 65, 65] and counts[-1] == 65
    assert float(fit.params["means"].detach().abs().max()) < 100
    assert float(fit.params["opacities"].detach().min()) > -7 and losses[-1] < 0.95 * losses[0]


def test_packed_meta_lists_what_the_other_shows() -> None:
    """Two scenes of two views: every entry of the lists is that of the whole at its ids; nothing seen is left out."""
    scenes = [gaussian_scene(30, 18, 13, num_views=2, seed=seed) for seed in (1, 2)]
    tensors = [torch.stack(pair) for pair in zip(*scenes, strict=True)]
    tensors[0][1, :7, 0] = 1e3  # out of sight
    whole, packed = (rasterization(*tensors, 18, 13, packed=p) for p in (False, True))
    assert torch.equal(whole.render_colors, packed.render_colors)
    names = ("batch_ids", "camera_ids", "gaussian_ids")
    assert [whole.meta[name] for name in names] == [None] * 3
    ids = tuple(packed.meta[name] for name in names)
    assert [i.dtype for i in ids] == [torch.int64] * 3
    assert torch.equal(torch.stack(ids, 1), (whole.meta["radii"] > 0).all(-1).nonzero())
    assert 60 < len(ids[0]) <= 106
    for name in ("means2d", "conics", "depths", "radii", "opacities"):
        assert torch.equal(packed.meta[name], whole.meta[name][ids]), name
    assert set(whole.meta) == set(packed.meta) and (packed.meta["n_batches"], packed.meta["n_cameras"]) == (2, 2)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_gradient_of_the_packed_means(backend: str) -> None:
    """It is that of the whole at the listed places, and goes on to the inputs."""
    found = []
    for packed in (False, True):
        scene = gaussian_scene(30, 18, 13, num_views=2, seed=1)
        leaves = [t.requires_grad_() for t in scene[:5]]
        out = rasterization(*leaves, *scene[5:], 18, 13, packed=packed, backend=backend)
        means2d = out.meta["means2d"]
        means2d.retain_grad()
        out.render_colors.square().sum().backward()
        listed = means2d.grad[(out.meta["radii"] > 0).all(-1)]
        found.append([listed, *(t.grad for t in leaves)])
    assert float(found[0][0].norm()) > 0
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
