"""The golden clip: right answers pass, each wrong form is named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from worldr1.datatypes import GaussianScene, Reconstruction
from worldr1.rewards.golden import golden_clip, try_judge


def scene(frames: int = 9, height: int = 16, width: int = 24, **changed) -> Reconstruction:
    m = 50
    viewmats = torch.eye(4).repeat(1, frames, 1, 1)
    viewmats[0, :, 0, 3] = -torch.arange(frames) / 10  # the camera moves to +x
    ones = torch.ones(1, m, 3)
    gaussians = GaussianScene(ones, torch.eye(4)[0].repeat(1, m, 1), ones, torch.ones(1, m), ones)
    depth = torch.full((1, frames, height, width), 2.5)
    return replace(Reconstruction(depth, depth, viewmats, torch.eye(3).repeat(1, frames, 1, 1), gaussians), **changed)


class Answers:
    """A judge of every role that gives one answer."""

    def __init__(self, answer) -> None:
        self.answer = answer

    def infer(self, video: Tensor):
        return self.answer

    def digit_probs(self, images: Tensor, prompts: list[str]):
        return self.answer

    def score(self, frames: Tensor, prompts: list[str]):
        return self.answer

    def distance(self, a: Tensor, b: Tensor):
        return self.answer


CLIP = golden_clip(num_frames=9, height=16, width=24)


def test_the_clip_moves_and_is_the_same_each_time() -> None:
    assert CLIP.shape == (9, 3, 16, 24) and 0 <= float(CLIP.min()) < 0.3 < 0.8 < float(CLIP.max()) <= 1
    assert torch.equal(CLIP, golden_clip(num_frames=9, height=16, width=24))
    assert float((CLIP[1:] - CLIP[:-1]).abs().mean()) > 0.01
    # The tiles go to the left by 0.3 half-heights in all: the camera to the right.
    wide = golden_clip(num_frames=2, height=200, width=300)
    assert float((wide[1, :, :40, :200] - wide[0, :, :40, 30:230]).abs().max()) < 0.05


@pytest.mark.parametrize(
    ("role", "answer", "said"),
    [
        ("reconstructor", scene(), "50 Gaussians; median depth 2.5, camera to the right"),
        ("critic", torch.tensor([[0.0] * 6 + [0.4, 0.5, 0.0, 0.0]]), "grade 6.56 of 9, 90% of its answer on digits"),
        ("aesthetic", torch.full((1, 4), 5.5), "5.50 over 4 frames"),
        ("perceptual", torch.tensor([0.0, 0.25]), "first to last frame 0.250"),
    ],
)
def test_right_answers(role: str, answer, said: str) -> None:
    trial = try_judge(Answers(answer), role, CLIP, num_aesthetic_frames=4)
    assert trial.answer == said and trial.seconds > 0 and trial.peak_gb != trial.peak_gb


NAN = torch.full((1, 9, 16, 24), torch.nan)


@pytest.mark.parametrize(
    ("role", "answer", "what"),
    [
        ("reconstructor", scene(frames=8), r"depth of shape \[1, 9, 16, 24\]"),
        ("reconstructor", scene(depth=NAN), "depth without NaN"),
        ("reconstructor", scene(viewmats=2 * torch.eye(4).repeat(1, 9, 1, 1)), "start at the identity"),
        ("critic", torch.zeros(1, 9), r"shape \[1, 10\]"),
        ("critic", torch.full((1, 10), 0.2), "sum to at most 1"),
        ("critic", torch.full((1, 10), 0.01), "half of its probability on the digits"),
        ("aesthetic", torch.zeros(1, 3), r"scores of shape \[1, 4\]"),
        ("aesthetic", torch.full((1, 4), torch.inf), "scores without NaN"),
        ("perceptual", torch.zeros(1), r"distances of shape \[2\]"),
        ("perceptual", torch.tensor([0.2, 0.3]), "distance 0 of equal images"),
        ("perceptual", torch.tensor([0.0, -0.3]), "distances >= 0"),
    ],
)
def test_wrong_answers_are_named(role: str, answer, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        try_judge(Answers(answer), role, CLIP, num_aesthetic_frames=4)
