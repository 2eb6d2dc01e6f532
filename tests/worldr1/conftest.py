"""Fixtures shared by the tests of the pipeline."""

from pathlib import Path

import pytest
from oracle_world import KNOWN_MOTIONS, WRONG_MOTION, Oracle, clips_of

from worldr1.microworld.scene import Clips
from worldr1.rehearsal.wan import save_tiny_wan


@pytest.fixture(scope="session")
def tiny_wan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untrained `WanPipeline`: videos 4 k + 1 frames of multiples of 8 pixels, latents 4 channels."""
    return save_tiny_wan(tmp_path_factory.mktemp("tiny_wan"))


@pytest.fixture(scope="session")
def known_clips() -> tuple[Clips, Clips, Oracle]:
    """Truth for KNOWN_PROMPTS; the same scenes with four of the nine motions wrong; an oracle that knows both."""
    truth = clips_of(KNOWN_MOTIONS)
    wrong = clips_of([WRONG_MOTION.get(m, m) for m in KNOWN_MOTIONS])
    return truth, wrong, Oracle(truth, wrong)
