"""What holds at the size of a large model too: bytes for videos, chunks for memory, reasons for a full rasterizer."""

from dataclasses import replace

import pytest
import torch
from oracle_world import Brightness, CoverageCritic, MeanDifference, Oracle, clips_of, prompt_batch

from worldr1.config import RewardConfig
from worldr1.cost.budget import peak_bytes
from worldr1.datatypes import GaussianScene, Reconstruction
from worldr1.microworld.captions import make_caption
from worldr1.rewards import combine, reconstruct
from worldr1.rewards.combine import RewardStack
from worldr1.rewards.reconstruct import rasterize

CPU = torch.device("cpu")
MOTIONS = ["push_in", "orbit_left", "pan_right"]


class AtRest:
    """A reconstructor that takes no memory: poses alone."""

    def infer(self, video: torch.Tensor) -> Reconstruction:
        assert video.dtype == torch.float32 and 0.0 <= float(video[0, 0].min()) <= float(video[0, 0].max()) <= 1.0
        num, frames = video.shape[:2]
        depth = torch.full((num, frames, 2, 2), 4.0)
        none = torch.zeros(num, 0, 3)
        scene = GaussianScene(none, torch.zeros(num, 0, 4), none, torch.zeros(num, 0), none)
        eye = torch.eye(4).repeat(num, frames, 1, 1)
        return Reconstruction(depth, depth, eye, eye[..., :3, :3], scene)


class FirstPixels:
    """An aesthetic judge that reads a few pixels, and remembers how many frames it saw."""

    def score(self, frames: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        self.frames = frames.shape[1]
        return frames[..., :2, :2].mean((2, 3, 4))


def stack_of(oracle: Oracle, *, device: torch.device | None = None, **settings) -> RewardStack:
    return RewardStack(
        RewardConfig(**settings), seed=5, reconstructor=oracle, critic=CoverageCritic(), aesthetic=Brightness(),
        perceptual=MeanDifference(), device=device,
    )  # fmt: skip


def test_bytes_score_as_the_floats_that_they_stand_for():
    clips = clips_of(MOTIONS)
    batch = prompt_batch([make_caption(m, 3) for m in MOTIONS], group_size=1)
    video = (clips.video * 255.0).round().to(torch.uint8)
    exact = replace(clips, video=video.float() / 255.0)
    stack = stack_of(Oracle(exact), device=CPU)
    floats, bytes_ = stack.score(batch, exact.video), stack.score(batch, video)
    assert bool(bytes_.valid.all()) and bytes_.reward.dtype == torch.float32
    for name, values in floats.breakdown.items():
        assert torch.equal(values, bytes_.breakdown[name]), name
    with pytest.raises(ValueError, match="video must be floating point or uint8, got torch.int64"):
        stack.score(batch, video.long())


@pytest.mark.parametrize("kind", ["uint8", "float32", "strided"])
def test_above_the_videos_there_is_one_chunk_at_a_time(monkeypatch, kind: str):
    frames, size = 9, 64
    chunk = 4 * frames * 3 * size * size  # bytes of one clip as float32
    monkeypatch.setattr(combine, "PIXELS_PER_CALL", frames * size * size)
    batch = prompt_batch([make_caption(m, 3) for m in ("push_in", "pan_left")], group_size=4)
    video = torch.rand(8, frames, 3, size, size, generator=torch.Generator().manual_seed(0))
    video[5, 3, 1, 2, 2] = torch.nan
    if kind == "uint8":
        video = (video.nan_to_num() * 255).to(torch.uint8)
    if kind == "strided":  # as a decoder gives it: [N, 3, F, H, W] in memory
        video = video.transpose(1, 2).contiguous().transpose(1, 2)
    stack = RewardStack(
        RewardConfig(weight_recon=0.0, weight_meta=0.0), seed=0, reconstructor=AtRest(), critic=None,
        aesthetic=FirstPixels(), perceptual=None,
    )  # fmt: skip
    results = []
    peak = peak_bytes(lambda: results.append(stack.score(batch, video)), CPU)
    assert results[0].valid.tolist() == [kind == "uint8" or i != 5 for i in range(8)]
    converted = 1.25 if kind == "uint8" else 1.0  # the bytes of the chunk beside its floats
    assert 0.9 * chunk < peak < (converted + 0.1) * chunk, peak / chunk


@pytest.mark.parametrize(("which", "found"), [("first", 0.0), ("spread", 0.5)])
def test_the_stack_judges_the_frames_of_the_setting(which: str, found: float):
    video = torch.zeros(1, 9, 3, 4, 4)
    video[:, 4:] = 1.0  # the first three frames are black; of 0, 4, 8 two are white
    batch = prompt_batch([make_caption("push_in", 3)], group_size=1)
    judge = FirstPixels()
    stack = RewardStack(
        RewardConfig(
            weight_traj=0, weight_recon=0, weight_meta=0, num_aesthetic_frames=3, aesthetic_frames=which,
        ),  # fmt: skip
        seed=0, reconstructor=None, critic=None, aesthetic=judge, perceptual=None,
    )  # fmt: skip
    score = float(stack.score(batch, video).breakdown["gen"])
    assert judge.frames == 3 and score == pytest.approx(2 / 3 / 10 if found else 0.0)


def test_a_sample_whose_scene_found_no_room_is_invalid_for_that_reason(monkeypatch):
    clips = clips_of(MOTIONS)
    batch = prompt_batch([make_caption(m, 3) for m in MOTIONS], group_size=1)
    crowded = Oracle(clips).infer(clips.video).gaussians.means[1]

    def full(means, *args, **settings):
        colors, alphas, meta = rasterize(means, *args, **settings)
        missing = torch.stack([7 * torch.equal(m, crowded) * torch.ones(colors.shape[1]) for m in means]).long()
        colors[missing > 0] = torch.nan
        return colors, alphas, meta | {"num_overflow": missing}

    clean = stack_of(Oracle(clips)).score(batch, clips.video)
    monkeypatch.setattr(reconstruct, "rasterize", full)
    out = stack_of(Oracle(clips)).score(batch, clips.video)
    assert out.valid.tolist() == [True, False, True] and list(out.reasons) == [1]
    assert "render: the rasterizer must have room" in out.reasons[1]
    assert torch.allclose(out.reward[out.valid], clean.reward[out.valid], atol=1e-5)
