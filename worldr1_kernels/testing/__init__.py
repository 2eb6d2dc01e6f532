"""Oracles shared by the tests and the benchmarks: error budgets, input factories, op checks."""

from worldr1_kernels.testing.compare import (
    assert_close_two_errors,
    assert_images_two_errors,
    two_errors,
    why_not_close,
)
from worldr1_kernels.testing.harness import check_compiles, check_gradients, check_op
from worldr1_kernels.testing.inputs import (
    GuardBands,
    generator,
    guard_bands,
    noncontiguous,
    normal,
    poison_empty,
    uniform,
)
from worldr1_kernels.testing.scenes import GaussianScene, gaussian_scene, pixel_aligned_scene

__all__ = [
    "GaussianScene",
    "GuardBands",
    "assert_close_two_errors",
    "assert_images_two_errors",
    "check_compiles",
    "check_gradients",
    "check_op",
    "gaussian_scene",
    "generator",
    "guard_bands",
    "noncontiguous",
    "normal",
    "pixel_aligned_scene",
    "poison_empty",
    "two_errors",
    "uniform",
    "why_not_close",
]
