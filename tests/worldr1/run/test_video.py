"""Files of clips: whole or not there, and where each clip of a sheet stands."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from worldr1.run import video as module
from worldr1.run.video import beside, grid, shrunk, to_bytes, write_video


def test_bytes_round_and_a_nan_is_grey() -> None:
    video = torch.tensor([0.0, 0.5, 1.0, 2.0, float("nan")]).view(1, 1, 1, 1, 5)
    assert to_bytes(video).flatten().tolist() == [0, 128, 255, 255, 128]
    assert torch.equal(to_bytes(to_bytes(video)), to_bytes(video))


@pytest.mark.parametrize("white", [1.0, 255])
def test_a_grid_of_three_has_white_between_and_at_the_end(white: float) -> None:
    dtype = torch.uint8 if white == 255 else torch.float32
    clips = [torch.full((2, 3, 5, 6), k, dtype=dtype) / (1 if white == 255 else 10) for k in range(3)]
    clips = [clip.to(dtype) for clip in clips]
    sheet = grid(clips, columns=2)
    assert sheet.shape == (2, 3, 5 + 4 + 5, 6 + 4 + 6) and sheet.dtype == dtype
    assert torch.equal(sheet[..., :5, :], beside(clips[:2])) and torch.equal(sheet[..., 9:, :6], clips[2])
    assert (sheet[..., 5:9, :] == white).all() and (sheet[..., 9:, 6:] == white).all()


def test_shrinking_keeps_the_mean() -> None:
    clip = torch.randint(0, 256, (2, 3, 8, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    small = shrunk(clip, max_width=4)
    assert small.shape == (2, 3, 2, 4)
    assert (small.float() - clip[..., :6, :].float().unflatten(-1, (4, 3)).unflatten(-3, (2, 3)).mean((-3, -1))).abs(
    ).max() <= 0.5  # fmt: skip
    assert shrunk(clip, max_width=12) is clip


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_a_disk_that_is_full_leaves_no_half_file(tmp_path: Path, monkeypatch, suffix: str) -> None:
    """The encoder ends without a word, with half of its file or none of it; an older whole file stays."""
    clip = torch.rand(9, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    path = tmp_path / f"clip{suffix}"
    write_video(clip, path, fps=8)
    whole = path.read_bytes()
    name = f"_write_{suffix[1:]}"
    true_write = getattr(module, name)

    for kept in (len(whole) // 2, 0):

        def half(video, target, *, fps, factor, kept=kept):
            true_write(video, target, fps=fps, factor=factor)
            target.write_bytes(target.read_bytes()[:kept])

        monkeypatch.setattr(module, name, half)
        with pytest.raises(OSError, match="is the disk full"):
            write_video(clip, path, fps=8)
        assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_bytes() == whole


def test_frames_that_were_not_written_are_missed(tmp_path: Path, monkeypatch) -> None:
    true_write = module._write_mp4
    monkeypatch.setattr(module, "_write_mp4", lambda video, *a, **k: true_write(video[:-2], *a, **k))
    with pytest.raises(OSError, match="must hold 9 frames, got 7"):
        write_video(torch.rand(9, 3, 16, 16), tmp_path / "clip.mp4", fps=8)
    assert not list(tmp_path.iterdir())
