"""The same numbers from every backend of sde_step: native here, and its CUDA kernels by their interpreter; triton on a
GPU or, where TRITON_INTERPRET=1 was set before the process began (test_sde_step_triton.py does), in Triton's
interpreter; and the reference alike."""

import functools
import math
import os
import types
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tests.kernels.sde_oracle import NOISE_LEVELS, euler_grid, published_step
from worldr1_kernels.sde_step import SdeStepOutput, native_impl, ops, sde_step
from worldr1_kernels.sde_step.coefficients import SDE_TYPES
from worldr1_kernels.sde_step.ops import sde_log_prob_backward_op, sde_log_prob_op, sde_sample_op
from worldr1_kernels.sde_step.reference import step_noise
from worldr1_kernels.testing import assert_close_two_errors, noncontiguous, normal, poison_empty

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class Target(NamedTuple):
    backend: str
    device: str
    emulated: bool = False


@pytest.fixture(
    params=[
        Target("reference", "cpu"),
        Target("native", "cpu"),
        Target("native", "cpu", emulated=True),
        pytest.param(Target("native", "cuda"), marks=pytest.mark.gpu),
        pytest.param(
            Target("triton", "cpu"), marks=pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
        ),
        pytest.param(Target("triton", "cuda"), marks=pytest.mark.gpu),
    ],
    ids=lambda target: f"{target.backend}-{'emulated' if target.emulated else target.device}",
)
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Target:
    if request.param.emulated:
        names = ("sample_step", "log_prob", "log_prob_backward")
        emulated = {name: functools.partial(getattr(native_impl, name), emulated=2) for name in names}
        monkeypatch.setattr(ops, "native_impl", types.SimpleNamespace(**emulated))
    return request.param


# Elements a sample: 1, odd, no multiple of 4, of 8 or of a block, whole blocks; 2304 is a latent of the micro world.
SHAPES = [(1, 1), (3, 7), (2, 3, 1, 10, 11), (2, 12, 3, 8, 8)]
SCALARS = (2.5, 0.93, -0.11, 0.21)  # guidance_scale, coef_sample, coef_velocity, std


def step(target: Target, *tensors: Tensor, **settings: Any) -> SdeStepOutput:
    """sde_step on the target's device, results on the CPU. `tensors` are velocity and sample."""
    moved = {k: v.to(target.device) if isinstance(v, Tensor) else v for k, v in settings.items()}
    out = sde_step(*(t.to(target.device) for t in tensors), backend=target.backend, **moved)
    return SdeStepOutput(*(None if t is None else t.cpu() for t in out))  # type: ignore[arg-type]


@pytest.mark.parametrize("num_steps", [20, 50])
@pytest.mark.parametrize("sde_type", SDE_TYPES)
def test_log_prob_is_that_of_torch_distributions(target: Target, sde_type: str, num_steps: int) -> None:
    grid, eta = euler_grid(num_steps), NOISE_LEVELS[sde_type]
    velocity, sample, noise = (normal((1, 2, 33), seed) for seed in range(3))
    last = num_steps - 1 if sde_type == "cps" else num_steps
    for sigma, sigma_next in list(zip(grid[:-1], grid[1:], strict=True))[:last]:
        out = step(
            target, velocity, sample, sigma=sigma, sigma_next=sigma_next, noise=noise, sde_type=sde_type,
            sigma_max=grid[1], noise_level=eta,
        )  # fmt: skip
        mean, std = published_step(sde_type, velocity.double(), sample.double(), sigma, sigma_next, eta, grid[1])
        scale = max(1.0, float(mean.abs().max()))
        assert float((out.prev_sample_mean - mean).abs().max()) < 3e-7 * scale
        assert float((out.prev_sample - (mean + std * noise)).abs().max()) < 6e-7 * scale
        density = torch.distributions.Normal(out.prev_sample_mean.double(), std)
        expected = density.log_prob(out.prev_sample.double()).flatten(1).mean(1)
        assert float((out.log_prob - expected).abs().max()) < 1e-6


def test_normals_follow_their_definition(target: Target) -> None:
    """One wrong bit in the words gives other normals; the rest is rounding, counted in units in the last place of the
    exact value where the backend has its own logarithm and sine, and absolutely in torch."""
    # A key of zeros, one with both halves, the largest counters.
    for seed, index, ids in ((0, 0, [0, 1]), (2**62 + 12345, 2**32 - 1, [2**32 - 1, 2**31])):
        zero, identity = torch.zeros(2, 517, device=target.device), (1.0, 1.0, 1.0, 1.0)
        sample_ids = torch.tensor(ids, device=target.device)
        got = sde_sample_op(zero, zero, None, None, None, sample_ids, *identity, seed, index, target.backend)[0].cpu()
        exact = step_noise((2, 517), torch.tensor(ids), seed=seed, step=index, dtype=torch.float64)
        if target.backend == "reference":
            assert float((got - exact).abs().max()) < 2e-6
            continue
        ulp = torch.nextafter(exact.float().abs(), torch.tensor(math.inf)).double() - exact.float().abs().double()
        assert float(((got - exact).abs() / ulp).max()) <= 4.0
        if target.backend == "triton":
            cpu = torch.zeros(2, 517), torch.zeros(2, 517), None, None, None, torch.tensor(ids)
            assert torch.equal(got, sde_sample_op(*cpu, *identity, seed, index, "native")[0])


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"])
def test_error_against_float64(target: Target, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Drawing with given noise, scoring and backward, with guidance and a reference velocity: no worse than twice plain
    torch; and mean and float32 gradients, whose operations are the same ones, equal torch's bit for bit."""
    v, u, r = (normal(shape, seed, dtype=dtype) for seed in range(3))
    x, z = normal(shape, 3), normal(shape, 4)
    p, g = x + 0.2 * z, normal(shape, 5)
    grads = normal((shape[0],), 6), normal((shape[0],), 7)

    def run(backend: str, device: str, wide: torch.dtype | None) -> list[Tensor]:
        a = [t.to(device, wide or t.dtype) for t in (v, u, r, x, z, p, g, *grads)]
        ids = torch.arange(shape[0], device=device)
        drawn = sde_sample_op(a[0], a[3], a[1], a[2], a[4], ids, *SCALARS, 0, 0, backend)
        scored = sde_log_prob_op(a[0], a[3], a[5], a[1], a[2], *SCALARS, backend)
        back = sde_log_prob_backward_op(a[6], a[7], a[8], a[0], a[3], a[5], a[1], a[2], *SCALARS, backend)
        return [t.cpu() for t in (*drawn, *scored, *back)]

    with poison_empty():
        got = run(target.backend, target.device, None)
    plain, exact = run("reference", "cpu", None), run("reference", "cpu", torch.float64)
    names = ["prev_sample", "mean", "log_prob", "kl"]  # then of the scoring form, then the gradients
    names += ["scored mean", "scored log_prob", "scored kl", "grad", "grad_uncond"]
    for name, k, t, e in zip(names, got, plain, exact, strict=True):
        assert k.dtype == t.dtype, name
        # The interpreter truncates to 16 bits where a device rounds to the nearest.
        cut = INTERPRETED and target.backend == "triton" and name.startswith("grad")
        assert_close_two_errors(k, t, e, name=name, factor=2.0 + cut)
        if "mean" in name or name == "prev_sample" or (dtype == torch.float32 and name.startswith("grad")):
            assert torch.equal(k, t), name


@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize("sde_type", SDE_TYPES)
def test_gradient_is_autograd_of_the_published_formula(target: Target, sde_type: str, guided: bool) -> None:
    sigma, sigma_next, top, eta = 0.83, 0.74, 0.95, NOISE_LEVELS[sde_type]
    velocity, sample, noise, reference, uncond, weight = (normal((2, 3, 13), seed) for seed in range(6))
    guidance = 3.5 if guided else 1.0
    prev = sample + 0.2 * noise

    def loss_of(dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
        v, u, x, p, r, w = (t.to(device, dtype) for t in (velocity, uncond, sample, prev, reference, weight))
        v, u = v.clone().requires_grad_(), u.clone().requires_grad_()
        if dtype == torch.float64:
            q = u + guidance * (v - u) if guided else v
            mean, std = published_step(sde_type, q, x, sigma, sigma_next, eta, top)
            mean_ref, _ = published_step(sde_type, r, x, sigma, sigma_next, eta, top)
            log_prob = torch.distributions.Normal(mean, std).log_prob(p).flatten(1).mean(1)
            kl: Tensor | None = (mean - mean_ref).square().flatten(1).mean(1) / (2 * std**2)
        else:
            out = sde_step(
                v, x, sigma, sigma_next, prev_sample=p, velocity_uncond=u if guided else None, noise_level=eta,
                guidance_scale=guidance, sde_type=sde_type, sigma_max=top, velocity_ref=r, backend=target.backend,
            )  # fmt: skip
            mean, log_prob, kl = out.prev_sample_mean, out.log_prob, out.kl
        assert kl is not None
        loss = (log_prob * w[:, 0, 0]).sum() + (kl * w[:, 0, 1]).sum() + (mean * w).sum()
        return torch.autograd.grad(loss, (v, u) if guided else (v,))

    for got, expected in zip(loss_of(torch.float32, target.device), loss_of(torch.float64, "cpu"), strict=True):
        assert float((got.cpu() - expected).abs().max()) < 1e-6 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize("sde_type", SDE_TYPES)
def test_ratio_is_one_at_any_batch_split(target: Target, sde_type: str, split: int) -> None:
    """What the sampler stored, scored again in parts: the same bits, hence a ratio of exactly 1."""
    velocity, uncond, sample = (normal((3, 2, 1, 7, 23), seed) for seed in range(3))
    ids = torch.tensor([4, 2**32 - 1, 0])
    settings: dict[str, Any] = dict(
        sigma=0.9, sigma_next=0.8, sde_type=sde_type, noise_level=NOISE_LEVELS[sde_type], sigma_max=0.95,
        guidance_scale=2.0,
    )  # fmt: skip
    whole = step(target, velocity, sample, seed=6, step=3, sample_ids=ids, velocity_uncond=uncond, **settings)
    for rows in torch.arange(3).split(split):
        inputs = velocity[rows], sample[rows]
        again = step(target, *inputs, seed=6, step=3, sample_ids=ids[rows], velocity_uncond=uncond[rows], **settings)
        assert torch.equal(again.prev_sample, whole.prev_sample[rows])
        assert torch.equal(again.log_prob, whole.log_prob[rows])
        train = step(target, *inputs, prev_sample=whole.prev_sample[rows], velocity_uncond=uncond[rows], **settings)
        assert torch.equal(train.prev_sample_mean, whole.prev_sample_mean[rows])
        assert torch.equal(torch.exp(train.log_prob - whole.log_prob[rows]), torch.ones(len(rows)))


def test_ids_are_the_numbers_of_the_samples_by_default(target: Target) -> None:
    velocity, sample = normal((3, 40), 0), normal((3, 40), 1)
    at: dict[str, Any] = dict(sigma=0.8, sigma_next=0.7, seed=4)
    named = step(target, velocity, sample, sample_ids=torch.arange(3), **at)
    assert torch.equal(step(target, velocity, sample, **at).prev_sample, named.prev_sample)


def test_strides_and_an_empty_batch(target: Target) -> None:
    velocity, sample, noise = (normal((2, 3, 2, 5, 7), seed) for seed in range(3))
    at: dict[str, Any] = dict(sigma=0.8, sigma_next=0.7)
    expected = step(target, velocity, sample, noise=noise, **at)
    strided = step(target, noncontiguous(velocity), noncontiguous(sample), noise=noncontiguous(noise), **at)
    for got, want in zip(strided[:3], expected[:3], strict=True):
        assert torch.equal(got, want)
    turned = step(target, velocity.mT.contiguous().mT, sample, noise=noise, **at)
    assert torch.equal(turned.prev_sample, expected.prev_sample)
    empty = step(target, velocity[:0], sample[:0], seed=0, velocity_ref=noise[:0], **at)
    assert empty.log_prob.shape == (0,) and empty.kl is not None and empty.kl.shape == (0,)
    assert empty.prev_sample.shape == velocity[:0].shape


def test_a_nan_stays_in_its_sample(target: Target) -> None:
    velocity, sample, noise = (normal((2, 40), seed) for seed in range(3))
    clean = step(target, velocity, sample, sigma=0.8, sigma_next=0.7, noise=noise)
    velocity[1, 39] = math.nan
    out = step(target, velocity, sample, sigma=0.8, sigma_next=0.7, noise=noise)
    assert torch.equal(out.log_prob[0], clean.log_prob[0])
    assert out.log_prob[1].isnan() and out.prev_sample.isnan().sum() == 1 and out.prev_sample[1, 39].isnan()


def test_float64_is_for_the_reference_alone(target: Target) -> None:
    velocity, sample = normal((2, 5), 0, dtype=torch.float64), normal((2, 5), 1)
    if target.backend == "reference":
        assert step(target, velocity, sample, sigma=0.8, sigma_next=0.7, seed=0).log_prob.dtype == torch.float64
        return
    with pytest.raises(RuntimeError, match=f"'{target.backend}' is not available: it computes in float32, got float64"):
        step(target, velocity, sample, sigma=0.8, sigma_next=0.7, seed=0)
