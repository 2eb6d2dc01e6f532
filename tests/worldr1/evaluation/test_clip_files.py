"""What a user brings: files in order, both layouts, prompts with themes and seeds, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from worldr1.evaluation.clip_files import CLIP_SUFFIXES, Prompt, list_files, read_clip, read_prompt_file
from worldr1.run import video as video_files
from worldr1.run.video import read_video, write_video


@pytest.fixture()
def clip() -> torch.Tensor:
    """uint8 [5, 3, 16, 24], smooth enough for a codec."""
    x, y = torch.meshgrid(torch.arange(24), torch.arange(16), indexing="xy")
    frames = [torch.stack([8 * x + 5 * t, 12 * y, 60 + 20 * t + 0 * x]) for t in range(5)]
    return torch.stack(frames).clamp(0, 255).to(torch.uint8)


def test_names_count_as_numbers_where_they_hold_numbers(tmp_path: Path) -> None:
    names = ["clip_10.npz", "clip_2.mp4", "clip_1.npz", "b.mp4", "a.npz", "007.MP4"]
    for name in [*names, "notes.txt", ".hidden.npz"]:
        (tmp_path / name).touch()
    (tmp_path / "folder.npz").mkdir()
    found = [path.name for path in list_files(tmp_path, CLIP_SUFFIXES)]
    assert found == ["007.MP4", "a.npz", "b.mp4", "clip_1.npz", "clip_2.mp4", "clip_10.npz"]
    (tmp_path / "a.mp4").touch()
    with pytest.raises(ValueError, match=r"hold each clip once, got a\.mp4 and a\.npz"):
        list_files(tmp_path, CLIP_SUFFIXES)
    with pytest.raises(ValueError, match=r"must hold \.mp4 or \.npz files, got none"):
        list_files(tmp_path / "folder.npz", CLIP_SUFFIXES)
    with pytest.raises(ValueError, match="must be a folder"):
        list_files(tmp_path / "nothing", CLIP_SUFFIXES)


def test_both_layouts_of_an_array(tmp_path: Path, clip: torch.Tensor) -> None:
    np.savez(tmp_path / "last.npz", video=clip.movedim(1, -1).numpy())
    np.savez(tmp_path / "first.npz", video=clip.numpy())
    for name in ("last", "first"):
        found, fps = read_clip(tmp_path / f"{name}.npz", fps=12.0)
        assert torch.equal(found, clip) and fps == 12.0
    np.savez(tmp_path / "narrow.npz", video=np.arange(4 * 3 * 2 * 3, dtype=np.uint8).reshape(4, 3, 2, 3))
    assert read_clip(tmp_path / "narrow.npz", fps=8)[0].shape == (4, 3, 3, 2)  # colours last


def test_an_mp4_file_comes_back_with_its_rate(tmp_path: Path, clip: torch.Tensor) -> None:
    write_video(clip, tmp_path / "clip.mp4", fps=11, upscale=2)
    found, fps = read_clip(tmp_path / "clip.mp4", fps=8.0)
    large = clip.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert found.shape == large.shape and found.dtype == torch.uint8 and fps == pytest.approx(11)
    assert float((found.float() - large.float()).abs().mean()) < 4.0
    assert torch.equal(found, read_video(tmp_path / "clip.mp4")[0])


@pytest.mark.parametrize(
    "arrays",
    [
        {"frames": np.zeros((4, 8, 8, 3), np.uint8)},
        {"video": np.zeros((4, 8, 8, 3), np.float32)},
        {"video": np.zeros((8, 8, 3), np.uint8)},
        {"video": np.zeros((4, 8, 8, 4), np.uint8)},
        {"video": np.zeros((0, 8, 8, 3), np.uint8)},
        {"video": np.array([{"a": 1}], dtype=object)},
    ],
)
def test_arrays_of_another_form_are_refused(tmp_path: Path, arrays: dict) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=r"x\.npz must be an \.npz file with a key `video`, uint8"):
        read_clip(tmp_path / "x.npz", fps=8)


def test_damaged_and_oversized_files_are_refused(tmp_path: Path, clip: torch.Tensor, monkeypatch) -> None:
    (tmp_path / "x.mp4").write_bytes(b"no video at all" * 100)
    with pytest.raises(ValueError, match=r"x\.mp4 must be a video file"):
        read_clip(tmp_path / "x.mp4", fps=8)
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ValueError, match=r"x\.npz must be an \.npz file"):
        read_clip(tmp_path / "x.npz", fps=8)
    write_video(clip, tmp_path / "y.mp4", fps=8, upscale=2)
    monkeypatch.setattr(video_files, "MAX_PIXELS", 2 * 32 * 48)
    with pytest.raises(ValueError, match="more than 3072 pixels; cut or reduce it"):
        read_clip(tmp_path / "y.mp4", fps=8)


def test_prompts_with_themes_and_seeds(tmp_path: Path) -> None:
    text = tmp_path / "prompts.txt"
    text.write_text("Pan left.\n\n# a comment\nPush in.\n")
    assert read_prompt_file(text) == [Prompt("Pan left."), Prompt("Push in.")]
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"prompt": " Pan left. ", "theme": "city", "seed": 7, "note": 1}\n\n{"prompt": "Push in."}\n')
    assert read_prompt_file(lines) == [Prompt("Pan left.", "city", 7), Prompt("Push in.")]


@pytest.mark.parametrize(
    "line", ["{", "3", '{"text": "a"}', '{"prompt": ""}', '{"prompt": "a", "theme": 3}', '{"prompt": "a", "seed": -1}',
             '{"prompt": "a", "seed": true}', '{"prompt": "a", "seed": 1.5}']
)  # fmt: skip
def test_a_line_that_is_no_prompt_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"prompt": "Pan left."}}\n{line}\n')
    with pytest.raises(ValueError, match=r"prompts\.jsonl line 2"):
        read_prompt_file(file)


def test_a_file_without_prompts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="at least one prompt"):
        read_prompt_file(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match="must be readable"):
        read_prompt_file(tmp_path / "nothing.jsonl")
