"""Speed of the SDE step: `python -m pytest bench/test_sde_step.py -s [--record]`; the native backend on one CPU core,
or on a CUDA device where torch sees one.

Values are compared with the reference first. Peers: the reference, which is eager torch; a copy of as many bytes into a
new tensor, the ceiling for a step that touches every byte once; Triton, on a device at the largest size; torch.compile
of the reference, in rows of their own at the end, because compiling takes long (on a CPU minutes: only with `-m slow`).
Every row is recorded when it is there: a run that is cut off keeps what it has.
"""

import ctypes
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from bench.report import Case, print_table, record
from bench.timing import Timing, measure
from worldr1_kernels import sde_step
from worldr1_kernels._dispatch import triton_unavailable
from worldr1_kernels.sde_step import reference
from worldr1_kernels.sde_step.ops import sde_log_prob_backward_op
from worldr1_kernels.testing import normal

pytestmark = pytest.mark.timeout(1800)  # minutes where the cores are shared

SIGMAS = (0.9, 0.86)


class Size(NamedTuple):
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype  # of the velocities
    guided: bool


SIZES = [
    Size("micro", (32, 12, 3, 8, 8), torch.float32, False),
    Size("wan", (1, 16, 21, 60, 104), torch.bfloat16, False),
    Size("wan guided", (1, 16, 21, 60, 104), torch.bfloat16, True),
    Size("wan 8", (8, 16, 21, 60, 104), torch.bfloat16, False),
]


FORMS = ("draw", "score", "backward")


class Work(NamedTuple):
    """One form of the step on one size: `run(backend)`, and the bytes that it must read and write."""

    form: str
    run: Callable[[str], tuple[Tensor, ...]]
    compiled: Callable[[], object]
    num_bytes: int


def _works(size: Size, device: str) -> list[Work]:
    """Drawing, scoring and backward. `compiled` compiles at its first call."""
    velocity, uncond = (normal(size.shape, seed, dtype=size.dtype, device=device) for seed in range(2))
    sample, prev = (normal(size.shape, seed, device=device) for seed in range(2, 4))
    num, weight = size.shape[0], torch.ones(size.shape[0], device=device)
    ids = torch.arange(num, device=device)
    other, scale = (uncond, 5.0) if size.guided else (None, 1.0)
    scalars = (scale, 0.98, -0.05, 0.17)

    def draw(backend: Any) -> tuple[Tensor, ...]:
        out = sde_step(
            velocity, sample, *SIGMAS, seed=3, step=1, velocity_uncond=other, guidance_scale=scale, backend=backend
        )
        return out.prev_sample_mean, out.prev_sample, out.log_prob

    def score(backend: Any) -> tuple[Tensor, ...]:
        out = sde_step(
            velocity, sample, *SIGMAS, prev_sample=prev, velocity_uncond=other, guidance_scale=scale, backend=backend
        )
        return out.prev_sample_mean, out.log_prob

    tensors = velocity, sample, prev, other, None

    def backward(backend: str) -> tuple[Tensor, ...]:
        grads = sde_log_prob_backward_op(None, weight, None, *tensors, *scalars, backend)
        return grads if size.guided else grads[:1]

    eager = reference.sample_step, reference.log_prob, reference.log_prob_backward
    draw_compiled, score_compiled, backward_compiled = (torch.compile(function, dynamic=False) for function in eager)
    count, narrow = math.prod(size.shape), velocity.element_size() * (1 + size.guided)
    return [
        Work(
            "draw", draw, lambda: draw_compiled(velocity, sample, other, None, None, ids, *scalars, 3, 1),
            count * (narrow + 4 + 8),
        ),
        Work("score", score, lambda: score_compiled(*tensors, *scalars), count * (narrow + 8 + 4)),
        Work(
            "backward", backward, lambda: backward_compiled(None, weight, None, *tensors, *scalars),
            count * (2 * narrow + 8),
        ),
    ]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _keep_freed_memory() -> None:
    """Freed memory is used again, as on a GPU. By default glibc returns large tensors to the system; the page faults
    of the next one cost more than everything measured here."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: no mapping of its own for a large block
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap does not shrink


def _wrong(work: Work, backend: str) -> float:
    """0 when the first result (mean, or the first gradient) is the reference's to the bit and the others are within
    rounding of it, else the largest difference, infinite for the first."""
    got, expected = work.run(backend), work.run("reference")
    if not torch.equal(got[0], expected[0]):
        return math.inf
    pairs = zip(got[1:], expected[1:], strict=True)
    return max(
        (float((k - t).abs().max()) for k, t in pairs if not torch.allclose(k, t, rtol=1e-6, atol=2e-6)), default=0.0
    )


def _peak_megabytes(function: Callable[[], object]) -> float:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def _time(size: Size, work: Work, device: str, *, compiled: bool) -> Case:
    source = torch.ones(work.num_bytes // 8, device=device)
    variants: dict[str, Callable[[], object]] = {
        "native": lambda: work.run("native"),
        "copy": source.clone,
        "torch reference": lambda: work.run("reference"),
    }
    if device == "cuda" and size is SIZES[-1] and triton_unavailable(torch.device(device)) is None:
        variants["triton"] = lambda: work.run("triton")
    if compiled:
        variants["torch.compile of it"] = work.compiled
    timings: dict[str, Timing] = measure(variants, rounds=3, min_calls=1, device=device)
    own = timings.pop("native")
    rate = work.num_bytes / own.decisive / 1e6
    share = timings["copy"].decisive / own.decisive
    notes = f"{work.num_bytes / 1e6:.1f} MB, {rate:.1f} GB/s, {share:.0%} of a copy"
    if device == "cuda":
        peaks = (_peak_megabytes(lambda b=b: work.run(b)) for b in ("native", "reference"))  # type: ignore[misc]
        notes += ", peak {:.0f} MB, of the reference {:.0f} MB".format(*peaks)
    shape = "x".join(map(str, size.shape)) + ("-guided" if size.guided else "")
    name = f"{size.name.split()[0]} {work.form}" + (" compiled" if compiled else "")
    dtype = str(size.dtype).removeprefix("torch.")
    return Case(name, shape, dtype, "native", own, timings, notes, num_bytes=work.num_bytes)


def _run(size: Size, form: str, device: str, record_figures: bool, *, compiled: bool = False) -> None:
    (work,) = (w for w in _works(size, device) if w.form == form)
    assert _wrong(work, "native") == 0.0, (size.name, form)
    case = _time(size, work, device, compiled=compiled)
    print()
    print_table([case])
    print(f"{case.name:14} {case.shape:24} {case.notes}")
    if record_figures:
        print(f"recorded in {record([case], 'sde_step')}")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES, ids=lambda s: s.name)
def test_step(size: Size, form: str, record_figures: bool, device: str) -> None:
    _run(size, form, device, record_figures)


@pytest.mark.parametrize("form", FORMS)
def test_beside_the_compiler_on_a_device(form: str, record_figures: bool, device: str) -> None:
    if device != "cuda":
        pytest.skip("compiling for a CPU takes minutes: -m slow")
    _run(SIZES[-1], form, device, record_figures, compiled=True)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES[:2], ids=lambda s: s.name)
def test_beside_the_compiler_on_a_cpu(size: Size, form: str, record_figures: bool, device: str) -> None:
    if device != "cpu":
        pytest.skip("on a device: test_beside_the_compiler_on_a_device")
    _run(size, form, device, record_figures, compiled=True)
