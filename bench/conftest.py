"""Options and process settings of the benchmarks."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

from pathlib import Path

import pytest
import torch

from bench import report


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", action="store_true", help="append the figures to the history")
    parser.addoption("--history", type=Path, help="folder of the history; default bench/history/")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    folder = config.getoption("--history")
    if folder is not None:
        report.HISTORY = folder


@pytest.fixture(scope="session")
def record_figures(request: pytest.FixtureRequest) -> bool:
    """Whether the run was asked to keep its figures."""
    return bool(request.config.getoption("--record"))


@pytest.fixture(scope="session")
def device() -> str:
    """The device that is measured: CUDA where torch sees one."""
    return "cuda" if torch.cuda.is_available() else "cpu"
