"""Camera paths in the files of the field: RealEstate10K and TUM. Ours (`save_trajectory`) are read too.

RealEstate10K (.txt): a line with the address of the video, then a line a frame of 19 numbers: time in microseconds;
fx / width, fy / height, cx / width, cy / height; two zeros (distortion); [R | t], 3 x 4 by rows, world-to-camera.
https://google.github.io/realestate10k/download.html
TUM (.tum): a line a frame of 8 numbers: time in seconds, tx ty tz, qx qy qz qw (real part last), camera-to-world; "#"
begins a comment. https://cvg.cit.tum.de/data/datasets/rgbd-dataset/file_formats

Both take OpenCV axes (x right, y down, z forward), as viewmats do; lengths are scene units.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldr1.camera.trajectory import check_rigid, load_trajectory
from worldr1.run.files import reading, write_text

REALESTATE_COLUMNS, TUM_COLUMNS = 19, 8


class Poses(NamedTuple):
    """What a file says of a camera."""

    viewmats: Tensor  # [F, 4, 4] world-to-camera, float64
    seconds: Tensor  # [F] float64
    intrinsics: Tensor | None  # [F, 4] float64: fx / width, fy / height, cx / width, cy / height; None: it says nothing


def save_realestate(path: Path, viewmats: Tensor, *, K: Tensor, height: int, width: int, fps: float) -> None:
    """Write a camera path as RealEstate10K does; numbers keep all their bits, times are rounded to microseconds.

    Args:
      path: File to write; it is replaced whole.
      viewmats: World-to-camera, [F >= 2, 4, 4], rigid.
      K: Intrinsics in pixels of all frames, [3, 3], without skew.
      height, width: Of the image, pixels.
      fps: Frames per second, > 0.
    Raises:
      ValueError: viewmats of another shape, not finite or not rigid; a K with skew; fps <= 0.
      OSError: the file cannot be written.
    """
    check_rigid("save_realestate", viewmats)
    _check_rate("save_realestate", fps)
    K = K.detach().cpu().double()
    if K.shape != (3, 3) or float(K[0, 1]) or float(K[1, 0]):
        raise ValueError(f"save_realestate: K must be [3, 3] without skew, got {K.tolist()}")
    lens = [float(v) for v in (K[0, 0] / width, K[1, 1] / height, K[0, 2] / width, K[1, 2] / height)]
    lines = ["# no video"]  # where the address of one would be: readers skip the first line
    for i, pose in enumerate(viewmats.detach().cpu().double()[:, :3]):
        numbers = [*lens, 0.0, 0.0, *pose.flatten().tolist()]
        lines.append(f"{round(1e6 * i / fps)} " + " ".join(map(repr, numbers)))
    write_text(path, "\n".join(lines) + "\n")


def save_tum(path: Path, viewmats: Tensor, *, fps: float) -> None:
    """Write a camera path as TUM's benchmark and `evo` read it.

    Args:
      path, viewmats, fps: As for `save_realestate`.
    Raises:
      ValueError: viewmats of another shape, not finite or not rigid; fps <= 0.
      OSError: the file cannot be written.
    """
    from scipy.spatial.transform import Rotation

    check_rigid("save_tum", viewmats)
    _check_rate("save_tum", fps)
    poses = torch.linalg.inv(viewmats.detach().cpu().double())  # camera-to-world
    quats = Rotation.from_matrix(poses[:, :3, :3].numpy()).as_quat()  # x, y, z, w
    lines = ["# timestamp tx ty tz qx qy qz qw (camera-to-world, OpenCV axes)"]
    for i, (pose, quat) in enumerate(zip(poses, quats, strict=True)):
        lines.append(" ".join(map(repr, [i / fps, *pose[:3, 3].tolist(), *quat.tolist()])))
    write_text(path, "\n".join(lines) + "\n")


def load_poses(path: Path) -> Poses:
    """Read a camera path from RealEstate10K's, TUM's or our own files; they are told apart by what is in them.

    Returns:
      Poses(viewmats, seconds, intrinsics). Of our own files the seconds are the frame numbers.
    Raises:
      ValueError: another format, a damaged file, fewer than two poses, poses that are no rigid motions.
      OSError: the file cannot be read.
    """
    path = Path(path)
    what = "a camera path of RealEstate10K (19 numbers a frame), TUM (8) or save_trajectory"
    with reading(path, what):
        text = path.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("{"):
        viewmats = load_trajectory(path).viewmats
        return Poses(viewmats, torch.arange(len(viewmats), dtype=torch.float64), None)
    with reading(path, what):
        rows = _rows(text)
        table = torch.tensor([numbers for _, numbers in rows], dtype=torch.float64)
        if not table.isfinite().all():
            raise ValueError("numbers that are not finite")
        poses = _of_realestate(table) if table.shape[1] == REALESTATE_COLUMNS else _of_tum(table)
        check_rigid("poses", poses.viewmats)
    return poses


def resampled(poses: Poses, num_frames: int) -> Tensor:
    """A path at another number of frames, evenly spaced in its own time, from its first pose to its last.

    Centres are interpolated linearly, rotations along the shortest arc (slerp). Frame 0 becomes the identity.

    Args:
      poses: From `load_poses`.
      num_frames: >= 2.
    Returns:
      viewmats [num_frames, 4, 4], world-to-camera, float64.
    Raises:
      ValueError: num_frames < 2, or times that do not rise.
    """
    from scipy.spatial.transform import Rotation, Slerp

    if num_frames < 2:
        raise ValueError(f"resampled: num_frames must be >= 2, got {num_frames}")
    times = poses.seconds.numpy()
    if not bool((poses.seconds.diff() > 0).all()):
        raise ValueError("resampled: the times of the poses must rise from frame to frame")
    first_to_world = torch.linalg.inv(poses.viewmats)
    path = poses.viewmats[0] @ first_to_world  # camera-to-world of a world in which the first camera is the identity
    if num_frames == len(path) and float((poses.seconds.diff() - poses.seconds.diff().mean()).abs().max()) < 2e-6:
        return torch.linalg.inv(path)  # as they are, but for what rounding to microseconds makes of the times
    wanted = np.linspace(times[0], times[-1], num_frames)
    out = torch.eye(4, dtype=torch.float64).repeat(num_frames, 1, 1)
    turned = Slerp(times, Rotation.from_matrix(path[:, :3, :3].numpy()))(wanted)
    out[:, :3, :3] = torch.from_numpy(turned.as_matrix())
    out[:, :3, 3] = torch.from_numpy(np.stack([np.interp(wanted, times, x) for x in path[:, :3, 3].T.numpy()], 1))
    return torch.linalg.inv(out)


def _rows(text: str) -> list[tuple[int, list[float]]]:
    """The lines of numbers, each with its line number; all have the 8 or 19 columns of the first."""
    rows: list[tuple[int, list[float]]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].replace(",", " ").split()
        if not words or (not rows and re.match(r"[a-z]+://", words[0])):
            continue
        columns = len(rows[0][1]) if rows else len(words)
        if len(words) != columns or columns not in (TUM_COLUMNS, REALESTATE_COLUMNS):
            raise ValueError(f"{len(words)} words in line {number}")
        try:
            rows.append((number, [float(word) for word in words]))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from error
    if len(rows) < 2:
        raise ValueError(f"{len(rows)} poses, where a path has two at least")
    return rows


def _of_realestate(table: Tensor) -> Poses:
    viewmats = torch.eye(4, dtype=torch.float64).repeat(len(table), 1, 1)
    viewmats[:, :3] = table[:, 7:].reshape(-1, 3, 4)
    return Poses(viewmats, 1e-6 * table[:, 0], table[:, 1:5])


def _of_tum(table: Tensor) -> Poses:
    from scipy.spatial.transform import Rotation

    norm = table[:, 4:].norm(dim=1)
    if not bool(((norm - 1).abs() < 0.01).all()):
        raise ValueError(f"a quaternion of length {float(norm[(norm - 1).abs().argmax()]):.3g}")
    poses = torch.eye(4, dtype=torch.float64).repeat(len(table), 1, 1)  # camera-to-world
    poses[:, :3, :3] = torch.from_numpy(Rotation.from_quat(table[:, 4:].numpy()).as_matrix())
    poses[:, :3, 3] = table[:, 1:4]
    return Poses(torch.linalg.inv(poses), table[:, 0], None)


def _check_rate(op: str, fps: float) -> None:
    if not 0 < fps < float("inf"):
        raise ValueError(f"{op}: fps must be finite and > 0, got {fps}")
