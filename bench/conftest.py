"""Options and process settings of the benchmarks."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="append the figures to bench/history/")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def record_figures(request: pytest.FixtureRequest) -> bool:
    """Whether the run was asked to keep its figures."""
    return bool(request.config.getoption("--record"))
