"""Flow against the renderer's true flow, VBench's rule by hand, and paths that come back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from oracle_world import clips_of, path_of

from worldr1.camera.motion import parse_motion
from worldr1.camera.trajectory import build_trajectory
from worldr1.config import CameraConfig
from worldr1.evaluation import motion_measures
from worldr1.evaluation.motion_measures import contrasts, motion, return_score, returns
from worldr1.microworld.captions import make_caption
from worldr1.microworld.scene import Clips, render_clips
from worldr1.run.video import to_bytes

cv2 = pytest.importorskip("cv2", reason='pip install -e ".[evaluate]"')


def true_flow(clips: Clips, n: int) -> float:
    """Mean length of the flow of all pixels and pairs, pixels, from depth and poses."""
    height, width = clips.depth.shape[-2:]
    v, u = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixel = torch.stack([u, v, torch.ones_like(u)]).flatten(1)
    lengths = []
    for i in range(8):
        step = clips.viewmats[n, i + 1] @ torch.linalg.inv(clips.viewmats[n, i])
        points = torch.linalg.inv(clips.K) @ pixel * clips.depth[n, i].flatten()
        there = clips.K @ (step[:3, :3] @ points + step[:3, 3:])
        lengths.append((there[:2] / there[2] - pixel[:2]).norm(dim=0).mean())
    return float(torch.stack(lengths).mean())


def test_magnitude_is_the_true_flow_over_the_diagonal() -> None:
    motions = ["push_in", "move_left", "pan_left", "fixed"]
    for size, detail, tolerance in ((32, 0.0, 0.13), (64, 0.1, 0.13)):
        captions = [make_caption(m, 3) for m in motions]
        clips = render_clips(captions, range(2_000_000, 2_000_004), height=size, width=size, detail=detail)
        for n, name in enumerate(motions):
            found = motion(to_bytes(clips.video[n]), fps=8)
            expected = 100 * true_flow(clips, n) / math.hypot(size, size)
            assert found.magnitude == pytest.approx(expected, rel=tolerance, abs=0.02), (size, name)
            assert found.dynamic == float(name != "fixed")


def test_a_frozen_clip_does_not_move_and_a_slower_one_moves_less() -> None:
    path = path_of("move_left")
    paces = torch.stack([path, path[[0, 0, 1, 1, 2, 2, 3, 3, 4]], path[[0] * 9]])
    video = to_bytes(clips_of(["move_left"] * 3, seeds=[2_000_000] * 3, paths=paces).video)
    whole, half, frozen = (motion(clip, fps=8) for clip in video)
    assert frozen == (0.0, 0.0)
    assert 0.4 < half.magnitude / whole.magnitude < 0.6


def speeds_of(monkeypatch, frames: dict[int, list[float]]) -> None:
    """Every pixel of the pair as fast as told, by the step between its frames."""
    monkeypatch.setattr(
        motion_measures, "_speeds", lambda video, step: iter([np.full((16, 64), s) for s in frames[step]])
    )


def test_dynamic_degree_by_hand(monkeypatch) -> None:
    video = torch.zeros(16, 3, 16, 64, dtype=torch.uint8)
    threshold = 6 / 256 * 16  # the shorter side; a quarter of 16 frames must move
    speeds_of(monkeypatch, {1: [threshold * 1.01] * 4 + [0.0] * 11})
    assert motion(video, fps=8).dynamic == 1.0
    speeds_of(monkeypatch, {1: [threshold * 1.01] * 3 + [threshold * 0.99] * 12})
    assert motion(video, fps=8).dynamic == 0.0
    # At 4 fps twice the threshold; at 16 every other frame is looked at, and 2 pairs of its 8 frames must move.
    speeds_of(monkeypatch, {1: [threshold * 1.5] * 15})
    assert motion(video, fps=4).dynamic == 0.0
    speeds_of(monkeypatch, {1: [0.0] * 15, 2: [threshold * 1.01] * 2 + [0.0] * 5})
    assert motion(video, fps=16) == (0.0, 1.0)


def test_the_fastest_twentieth_decides() -> None:
    speed = np.zeros((10, 20))
    speed.flat[:10] = 3.0  # 10 of 200 pixels
    assert motion_measures._fastest(speed) == pytest.approx(3.0)
    speed.flat[:5] = 0.0
    assert motion_measures._fastest(speed) == pytest.approx(1.5)


def test_without_the_package_it_says_which(monkeypatch) -> None:
    monkeypatch.setattr(motion_measures.importlib.util, "find_spec", lambda name: None)
    assert not motion_measures.has_flow()
    with pytest.raises(RuntimeError, match=r'opencv-python-headless is not installed; pip install -e "\.\[evaluate\]"'):
        motion(torch.zeros(3, 3, 16, 16, dtype=torch.uint8), fps=8)


def test_contrast_by_hand() -> None:
    video = torch.zeros(2, 3, 2, 2, dtype=torch.uint8)
    video[1, :, 0] = 255
    assert contrasts(video).tolist() == pytest.approx([0.0, np.std([1, 1, 0, 0], ddof=1)])
    video[1, 1:] = 0  # red alone
    assert float(contrasts(video)[1]) == pytest.approx(0.299 * np.std([1, 1, 0, 0], ddof=1))


def path(words: str, frames: int) -> torch.Tensor:
    return build_trajectory(parse_motion(words), frames, CameraConfig())


@pytest.mark.parametrize("words", ["push in, then pull out", "pan left, then pan right"])
def test_there_and_back_pairs_mirror_frames(words: str) -> None:
    pairs = returns(path(f"The camera {words}.", 9))
    assert (0, 8) in pairs and (1, 7) in pairs
    assert all(i + j == 8 for i, j in pairs) and all(i < 3 for i, _ in pairs)  # those about the turn were never away


def test_what_does_not_come_back_has_no_pairs() -> None:
    for words in ("push in", "pan left", "push in, then pan left", "hold still"):
        assert returns(path(f"The camera {words}.", 9)) == []
    assert returns(torch.eye(4).repeat(9, 1, 1)) == []
    # A full orbit: the last frame alone.
    assert returns(build_trajectory(parse_motion("orbit left"), 13, CameraConfig(orbit_deg=360.0, ease=0.0))) == [
        (0, 12)
    ]
    # Back to the same place, but looking elsewhere.
    turned = path("The camera pushes in, then pulls out.", 9)
    turned[5:] = path("The camera pans left.", 9)[8] @ turned[5:]
    assert returns(turned) == []


def test_return_score_compares_what_it_should() -> None:
    generator = torch.Generator().manual_seed(0)
    video = torch.rand(5, 3, 8, 8, generator=generator)
    assert math.isnan(return_score(video, []))
    video[4] = video[0]
    assert return_score(video, [(0, 4)]) == 60.0
    video[3] = video[1] + 0.1
    assert return_score(video, [(0, 4), (1, 3)]) == pytest.approx((60.0 + 20.0) / 2, abs=1e-4)
