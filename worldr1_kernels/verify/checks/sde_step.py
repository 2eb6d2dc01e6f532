"""The SDE step: draws, densities and gradients, short and long samples, with guidance and a reference or without."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from worldr1_kernels.testing import normal
from worldr1_kernels.verify.target import Check
from worldr1_kernels.verify.trial import Trial, same_bits, two_errors

# Elements a sample: 1, odd, no multiple of 4 or 8, whole blocks, beyond a block, beyond a thousand blocks.
SHAPES = ((1, 1), (3, 7), (2, 3, 1, 10, 11), (2, 12, 3, 8, 8), (2, 3077), (1, 1_100_003))
SEED = 2**62 + 12345
RULES = (two_errors(),)


def settings(guided: Tensor | None, reference: Tensor | None) -> dict[str, Any]:
    return {
        "sigma": 0.83,
        "sigma_next": 0.74,
        "sde_type": "linear",
        "sigma_max": 0.95,
        "velocity_uncond": guided,
        "guidance_scale": 1.0 if guided is None else 2.5,
        "velocity_ref": reference,
    }


def ids(num: int) -> Tensor:
    return torch.arange(2**32 - num, 2**32)


def drawn(
    function: Callable[..., Any], v: Tensor, x: Tensor, sample_ids: Tensor, u: Tensor | None, r: Tensor | None
) -> Any:
    return function(v, x, seed=SEED, step=2**32 - 1, sample_ids=sample_ids, **settings(u, r))


def tensors(
    shape: tuple[int, ...], dtype: torch.dtype, *, whole: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """velocity and sample; where `whole`, velocity_uncond and velocity_ref too."""
    v, u, r = (normal(shape, seed, dtype=dtype) for seed in range(3))
    return v, normal(shape, 3), u if whole else None, r if whole else None


def draws(trial: Trial) -> None:
    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            whole = dtype == torch.bfloat16  # one of two, so that fewer variants are compiled
            v, x, u, r = tensors(shape, dtype, whole=whole)

            def body(function, v, x, sample_ids, u, r) -> list[Tensor]:  # type: ignore[no-untyped-def]
                out = drawn(function, v, x, sample_ids, u, r)
                return [out.prev_sample, out.prev_sample_mean, out.log_prob, *([] if r is None else [out.kl])]

            names = ["prev_sample", "mean", "log_prob", *(["kl"] if whole else [])]
            given = (v, x, ids(shape[0]), u, r)
            trial.compare(f"{list(shape)} {dtype}", "sde_step", body, *given, names=names, rules=RULES)


def given_noise(trial: Trial) -> None:
    shape = (3, 1029)
    v, x, _, r = tensors(shape, torch.float32, whole=True)

    def body(function, v, x, r, z) -> list[Tensor]:  # type: ignore[no-untyped-def]
        out = function(v, x, noise=z, **settings(None, r))
        return [out.prev_sample, out.prev_sample_mean, out.log_prob, out.kl]

    names = ["prev_sample", "mean", "log_prob", "kl"]
    trial.compare(f"{list(shape)}", "sde_step", body, v, x, r, normal(shape, 4), names=names, rules=RULES)


def densities_and_gradients(trial: Trial) -> None:
    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            whole = dtype == torch.bfloat16
            v, x, u, r = tensors(shape, dtype, whole=whole)
            prev = x + 0.2 * normal(shape, 4)
            weights = normal(shape, 5), normal((shape[0],), 6), normal((shape[0],), 7)

            def body(function, v, x, p, g, gl, gk, u, r) -> list[Tensor]:  # type: ignore[no-untyped-def]
                leaves = [t.requires_grad_() for t in (v, u) if t is not None]
                guided = None if u is None else leaves[1]
                out = function(leaves[0], x, prev_sample=p, **settings(guided, r))
                loss = (out.prev_sample_mean * g).sum() + (out.log_prob * gl).sum()
                if r is not None:
                    loss = loss + (out.kl * gk).sum()
                values = [out.prev_sample_mean, out.log_prob, *([] if r is None else [out.kl])]
                return [*values, *torch.autograd.grad(loss, leaves)]

            names = ["mean", "log_prob", "gradient"]
            if whole:
                names = ["mean", "log_prob", "kl", "gradient", "gradient of velocity_uncond"]
            given = (v, x, prev, *weights, u, r)
            trial.compare(f"{list(shape)} {dtype}", "sde_step", body, *given, names=names, rules=RULES)


def ratio_is_one(trial: Trial) -> None:
    """What was drawn, scored again, and drawn again alone: the same bits."""
    shape = (3, 2, 1, 7, 23)
    v, x, u, r = tensors(shape, torch.float32, whole=True)

    def body(function, v, x, sample_ids, u, r) -> list[Tensor]:  # type: ignore[no-untyped-def]
        out = drawn(function, v, x, sample_ids, u, r)
        again = function(v, x, prev_sample=out.prev_sample, **settings(u, r))
        alone = drawn(function, v[2:], x[2:], sample_ids[2:], u[2:], r[2:])
        return [out.log_prob - again.log_prob, out.prev_sample[2:] - alone.prev_sample]

    names = ["log ratio", "difference of a sample alone"]
    trial.compare(f"{list(shape)}", "sde_step", body, v, x, ids(3), u, r, names=names, rules=[same_bits])


def empty(trial: Trial) -> None:
    v, x, u, r = tensors((0, 5), torch.float32, whole=True)

    def body(function, v, x, sample_ids, u, r) -> list[Tensor]:  # type: ignore[no-untyped-def]
        out = drawn(function, v, x, sample_ids, u, r)
        scored = function(v.requires_grad_(), x, prev_sample=x, **settings(u, r))
        return [out.prev_sample, out.log_prob, *torch.autograd.grad(scored.log_prob.sum(), v)]

    names = ["prev_sample", "log_prob", "gradient"]
    trial.compare("N0", "sde_step", body, v, x, ids(0), u, r, names=names, rules=RULES)


CHECKS = (
    Check("draws", draws),
    Check("given noise", given_noise),
    Check("densities and gradients", densities_and_gradients),
    Check("ratio of one", ratio_is_one),
    Check("no sample", empty, is_empty=True),
)
