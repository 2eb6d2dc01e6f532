"""Oracles shared by the tests and the benchmarks: error budgets, input factories, op checks."""

from worldr1_kernels.testing.compare import assert_close_two_errors, two_errors
from worldr1_kernels.testing.harness import check_compiles, check_gradients, check_op
from worldr1_kernels.testing.inputs import generator, noncontiguous, normal, poison_empty, uniform

__all__ = [
    "assert_close_two_errors",
    "check_compiles",
    "check_gradients",
    "check_op",
    "generator",
    "noncontiguous",
    "normal",
    "poison_empty",
    "two_errors",
    "uniform",
]
