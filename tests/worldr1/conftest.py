"""Fixtures shared by the tests of the pipeline."""

from pathlib import Path

import pytest
from tiny_wan import save_tiny_wan


@pytest.fixture(scope="session")
def tiny_wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untrained `WanPipeline`: videos 4 k + 1 frames of multiples of 8 pixels, latents 4 channels."""
    return save_tiny_wan(tmp_path_factory.mktemp("tiny_wan"))
