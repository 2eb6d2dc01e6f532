"""Camera paths in the files of the field: the conventions by hand, round trips, and what `evo` makes of ours."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from worldr1.camera.__main__ import main
from worldr1.camera.motion import parse_motion
from worldr1.camera.pose_files import load_poses, save_realestate, save_tum
from worldr1.camera.trajectory import build_trajectory, intrinsics, load_trajectory
from worldr1.config import MICRO_CAMERA, CameraConfig

WORDS = "The camera pushes in, then pans left, then rolls right."


@pytest.fixture()
def viewmats() -> torch.Tensor:
    return build_trajectory(parse_motion(WORDS), 13, MICRO_CAMERA)


def test_tum_by_hand(tmp_path: Path) -> None:
    """A camera 3 to the right of the origin, turned right by 90 degrees: it looks along +x."""
    (tmp_path / "a.tum").write_text(
        "# timestamp tx ty tz qx qy qz qw\n0.0 3 0 0 0 0.70710678 0 0.70710678\n0.5 0 0 0 0 0 0 1\n"
    )
    got = load_poses(tmp_path / "a.tum")
    pose = torch.linalg.inv(got.viewmats[0])
    assert torch.allclose(pose[:3, 2], torch.tensor([1.0, 0, 0], dtype=torch.float64), atol=1e-7)  # optical axis
    assert torch.allclose(pose[:3, 3], torch.tensor([3.0, 0, 0], dtype=torch.float64))
    assert torch.allclose(
        got.viewmats[0] @ torch.tensor([5.0, 0, 0, 1]).double(), torch.tensor([0, 0, 2, 1.0]).double()
    )
    assert got.seconds.tolist() == [0.0, 0.5] and got.intrinsics is None


def test_realestate_by_hand(tmp_path: Path) -> None:
    """World-to-camera by rows: a camera at (0, 0, -2) sees the origin 2 in front of it."""
    line = "0.9 1.6 0.5 0.5 0 0 1 0 0 0 0 1 0 0 0 0 1 2"
    (tmp_path / "a.txt").write_text(f"https://www.youtube.com/watch?v=abc#t=1\n0 {line}\n33367 {line}\n")
    got = load_poses(tmp_path / "a.txt")
    assert (got.viewmats[1] @ torch.tensor([0.0, 0, 0, 1]).double()).tolist() == [0, 0, 2, 1]
    assert got.seconds.tolist() == pytest.approx([0.0, 0.033367])
    assert got.intrinsics[0].tolist() == [0.9, 1.6, 0.5, 0.5]


def test_round_trips(tmp_path: Path, viewmats: torch.Tensor) -> None:
    camera = CameraConfig()
    K = intrinsics(480, 832, camera)
    save_realestate(tmp_path / "a.txt", viewmats, K=K, height=480, width=832, fps=16)
    got = load_poses(tmp_path / "a.txt")
    assert torch.equal(got.viewmats, viewmats)  # every bit
    assert got.seconds.tolist() == pytest.approx([i / 16 for i in range(13)], abs=5e-7)
    f = camera.focal_ratio
    assert got.intrinsics.tolist() == [[pytest.approx(v) for v in (f, f * 832 / 480, 0.5, 0.5)]] * 13
    columns = (tmp_path / "a.txt").read_text().splitlines()[1].split()
    assert len(columns) == 19 and columns[5:7] == ["0.0", "0.0"]
    save_tum(tmp_path / "a.tum", viewmats, fps=16)
    got = load_poses(tmp_path / "a.tum")
    assert float((got.viewmats - viewmats).abs().max()) < 1e-14 and got.seconds.tolist() == [i / 16 for i in range(13)]


def test_evo_reads_our_tum_files_with_equal_poses(tmp_path: Path, viewmats: torch.Tensor) -> None:
    from evo.core import metrics
    from evo.tools import file_interface

    save_tum(tmp_path / "a.tum", viewmats, fps=8)
    found = file_interface.read_tum_trajectory_file(str(tmp_path / "a.tum"))
    assert found.num_poses == 13 and found.timestamps.tolist() == [i / 8 for i in range(13)]
    assert found.check()[0], found.check()[1]
    poses = torch.linalg.inv(viewmats).numpy()  # camera-to-world
    np.testing.assert_allclose(np.stack(found.poses_se3), poses, atol=1e-14)
    # And ours reads what evo writes.
    file_interface.write_tum_trajectory_file(str(tmp_path / "b.tum"), found)
    save_tum(tmp_path / "c.tum", load_poses(tmp_path / "b.tum").viewmats, fps=8)
    again = file_interface.read_tum_trajectory_file(str(tmp_path / "c.tum"))
    error = metrics.APE(metrics.PoseRelation.full_transformation)
    error.process_data((found, again))
    assert error.get_statistic(metrics.StatisticsType.max) < 1e-12


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "0 poses"),
        ("1 2 3\n", "3 words in line 1"),
        ("0 0 0 0 0 0 0 1\n", "1 poses"),
        ("0 0 0 0 0 0 0 1\n1 0 0 0 0 0 0\n", "7 words in line 2"),
        ("0 0 0 0 0 0 0 1\n1 0 0 0 0 0 x 1\n", "line 2: could not convert"),
        ("0 0 0 0 0 0 0 1\n1 0 0 0 0 0 0 nan\n", "not finite"),
        ("0 0 0 0 0 0 0 1\n1 0 0 0 0 0 0 2\n", "quaternion of length 2"),
        ("x y\n" + 2 * ("0" + " 0" * 18 + "\n"), "2 words in line 1"),
        ("http://x\n" + 2 * ("0" + " 0" * 18 + "\n"), "rigid"),
        ("\0\0", "1 words"),
    ],
)
def test_what_is_no_path_is_refused_with_its_name(tmp_path: Path, text: str, match: str) -> None:
    file = tmp_path / "a.txt"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"a.txt must be a camera path .*, got .*{match}"):
        load_poses(file)


def test_bytes_that_are_no_text_and_files_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="a.txt must be"):
        load_poses(tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError, match="b.txt"):
        load_poses(tmp_path / "b.txt")


def test_what_cannot_be_written_is_refused(tmp_path: Path, viewmats: torch.Tensor) -> None:
    K = intrinsics(480, 832, CameraConfig())
    with pytest.raises(ValueError, match="rigid"):
        save_tum(tmp_path / "a", 2 * viewmats, fps=8)
    with pytest.raises(ValueError, match="fps must be finite and > 0"):
        save_tum(tmp_path / "a", viewmats, fps=0)
    K[0, 1] = 1
    with pytest.raises(ValueError, match="without skew"):
        save_realestate(tmp_path / "a", viewmats, K=K, height=480, width=832, fps=8)
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_and_converts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = build_trajectory(parse_motion(WORDS), 10, CameraConfig())
    for name in ("a.json", "a.txt", "a.tum"):
        assert main([WORDS, "--frames", "10", "--save", str(tmp_path / name), "--fps", "8"]) == 0
        got = load_poses(tmp_path / name)
        assert float((got.viewmats - expected).abs().max()) < 1e-10, name
    assert load_poses(tmp_path / "a.txt").seconds.tolist() == load_poses(tmp_path / "a.tum").seconds.tolist()
    assert load_trajectory(tmp_path / "a.json").tokens == parse_motion(WORDS)
    capsys.readouterr()
    assert main(["--load", str(tmp_path / "a.txt"), "--save", str(tmp_path / "b.tum"), "--fps", "8"]) == 0
    # 200 units of the push in, 14 / 3 and 10 / 3 degrees
    assert "10 poses" in (said := capsys.readouterr().out) and "travels 200 units" in said and "turns 8 degrees" in said
    assert (tmp_path / "b.tum").read_text() == (tmp_path / "a.tum").read_text()
    assert math.isclose(float(torch.linalg.inv(expected)[-1, 2, 3]), 200.0)


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([WORDS, "--frames", "1"], 2, "num_frames must be >= 2"),
        (["--load", "nowhere.txt"], 1, "nowhere.txt"),
        ([WORDS, "--save", "nowhere/at/all.txt"], 1, "nowhere/at"),
        ([WORDS, "--save", "a.tum", "--fps", "0"], 2, "fps must be finite"),
    ],
)
def test_the_command_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args, code, message
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(args) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and list(tmp_path.iterdir()) == []
