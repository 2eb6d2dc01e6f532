"""What clips were asked for: paths of files at the frames of any clip, and files that are no path."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from worldr1.camera.pose_files import load_poses
from worldr1.config import CameraConfig
from worldr1.evaluation.clip_files import Prompt
from worldr1.evaluation.clip_sources import Cameras


def tum(path: Path, times: list[float]) -> Path:
    """A camera that goes 1 unit to the right a second, without turning."""
    path.write_text("".join(f"{t} {t} 0 0 0 0 0 1\n" for t in times), encoding="utf-8")
    return path


def test_a_path_of_a_file_is_brought_to_the_frames_of_each_clip(tmp_path: Path) -> None:
    file = tum(tmp_path / "a.tum", [0.0, 1.0, 2.0, 3.0, 4.0])
    cameras = Cameras([Prompt("x"), Prompt("y")], CameraConfig(), [file])
    for num_frames in (5, 9, 3):
        request = cameras.request(1, num_frames)
        assert request is not None and request.depth is None and len(request.viewmats) == num_frames
        expected = -torch.linspace(0.0, 4.0, num_frames, dtype=torch.float64)
        torch.testing.assert_close(request.viewmats[:, 0, 3], expected)
    assert torch.equal(cameras.request(0, 5).viewmats, load_poses(file).viewmats)  # type: ignore[union-attr]
    assert cameras.request(0, 1) is None and cameras.motion(0) == "file" and cameras.any_asked


def test_a_file_that_is_no_path_is_named_before_the_first_clip(tmp_path: Path) -> None:
    file = tum(tmp_path / "b.tum", [0.0, 1.0, 1.0])
    with pytest.raises(ValueError, match=r"evaluate: .*b\.tum.*times of the poses must rise"):
        Cameras([Prompt("x")], CameraConfig(), [file])
    with pytest.raises(ValueError, match="one for each of 3 clips, got 2"):
        Cameras([Prompt("x")] * 3, CameraConfig(), [file, file])
