"""Videos of a rollout: bytes in one buffer, decoded by as many at a time as their size allows."""

from __future__ import annotations

import pytest
import torch
from fakes import FakePolicy, fake_config, fake_learner, fake_rollout
from torch import Tensor

from worldr1.cost.budget import peak_bytes
from worldr1.rollout import videos as module
from worldr1.rollout.sample import generate
from worldr1.rollout.videos import ByteVideos, byte_videos, videos_per_call


class Counting(FakePolicy):
    """Notes the size of each call, and may spoil a video."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []
        self.spoiled: float | None = None

    def decode(self, latents: Tensor) -> Tensor:
        self.calls.append(len(latents))
        video = super().decode(latents).contiguous()
        if self.spoiled is not None:
            video[0, 0, 0, 0, 0] = self.spoiled
        return video


def latents(n: int) -> Tensor:
    return torch.randn(n, 4, 3, 2, 2, generator=torch.Generator().manual_seed(0))


def test_bytes_are_the_rounded_levels_whatever_goes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, x = Counting(), latents(7)
    expected = (255 * policy.decode(x)).round().to(torch.uint8)
    for cells, calls in ((12, [1] * 7), (25, [2, 2, 1, 2]), (1, [1] * 7), (10_000, [5, 2])):
        monkeypatch.setattr(module, "CELLS_PER_DECODE", cells)
        policy.calls.clear()
        videos = ByteVideos(7)
        for first, part in ((0, x[:5]), (5, x[5:])):
            for rows, made, finite in byte_videos(policy, part):
                assert bool(finite.all())
                videos.keep(slice(first + rows.start, first + rows.stop), made)
        assert torch.equal(videos.video, expected) and policy.calls == calls


def test_the_size_of_a_call_is_bounded_by_pixels_not_by_the_micro_batch() -> None:
    assert videos_per_call((16, 21, 60, 104)) == 1  # 81x480x832: 8.2 GB in Wan's decoder
    assert videos_per_call((12, 3, 8, 8)) == 85  # 9x32x32


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_video_that_is_not_finite_is_masked(bad: float) -> None:
    """A byte cannot say it, so that the rollout must."""
    config = fake_config()
    learner = fake_learner(config)
    policy = Counting()
    policy.spoiled = bad
    _, rollout, _ = fake_rollout(learner._replace(policy=policy), config)
    assert policy.calls == [8, 8]
    struck = torch.zeros(16, dtype=torch.bool)
    struck[[0, 8]] = True
    assert torch.equal(rollout.finite, ~struck)
    assert not rollout.samples[:, struck].any() and not rollout.log_prob[struck].any()


def test_no_float_copy_of_all_videos_is_made() -> None:
    """Beside the bytes there is one part in float32, its levels and what the fake decoder makes of it."""
    policy, x = FakePolicy(), latents(64)
    videos = ByteVideos(64)
    one = policy.decode(x[:1]).nbytes

    def decode() -> None:
        for row in range(64):
            for _, made, _ in byte_videos(policy, x[row : row + 1]):
                videos.keep(slice(row, row + 1), made)

    assert videos_bytes(64, one) <= peak_bytes(decode, torch.device("cpu")) < videos_bytes(64, one) + 6 * one
    assert videos.video.nbytes == videos_bytes(64, one)


def videos_bytes(num: int, one: int) -> int:
    return num * one // 4


def test_generate_stays_in_float32() -> None:
    policy, x = FakePolicy(), latents(5)
    video = generate(policy, ["a"] * 5, x, sigmas=(1.0, 0.0), micro_batch=2)
    embeds = policy.encode_prompts(["a"] * 5)
    expected = policy.decode(x - policy.velocity(x, 1.0, embeds))
    assert video.dtype == torch.float32 and (video - expected).abs().max() < 1e-6
