"""What a scene loses when it has too many Gaussians: at 30 frames of pixels to 5 kept, as a large reconstructor gives.

`python tests/worldr1/rewards/test_thinning.py` prints the table of docs/rewards.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from worldr1.config import EMBEDDED, MICRO_CAMERA
from worldr1.datatypes import GaussianScene
from worldr1.microworld.captions import make_caption
from worldr1.microworld.scene import render_clips
from worldr1.rewards.judges.micro_geo import pinhole, pixel_gaussians
from worldr1.rewards.judges.registry import load_judge
from worldr1.rewards.reconstruct import MAX_GAUSSIANS_PER_PIXEL, render, thin

FRAMES, SIZE = 30, 64
KEPT = int(MAX_GAUSSIANS_PER_PIXEL * SIZE * SIZE)
MOTIONS = ("push_in", "orbit_left", "pan_right")


def clip_of(motion: str, *, content: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A clip [1, F, 3, S, S] of a scene at rest, its depth [1, F, S, S] and its path [1, F, 4, 4]."""
    caption = make_caption(motion, content)
    clips = render_clips([caption], [seed], height=SIZE, width=SIZE, num_frames=FRAMES)
    return clips.video, clips.depth, clips.viewmats


def blurred(video: Tensor, sigma: float) -> Tensor:
    """Each frame [1, F, 3, S, S] under a Gaussian blur, sigma in pixels."""
    radius = int(3 * sigma) + 1
    x = torch.arange(-radius, radius + 1.0)
    kernel = torch.softmax(-x.square() / (2 * sigma**2), 0)
    planes = functional.pad(video.reshape(-1, 1, SIZE, SIZE), [radius] * 4, mode="replicate")
    return functional.conv2d(functional.conv2d(planes, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1)).view_as(
        video
    )


def torn(video: Tensor) -> Tensor:
    """Every frame moved by up to 3 pixels, each its own way."""
    moves = torch.randint(-3, 4, (FRAMES, 2), generator=torch.Generator().manual_seed(7)).tolist()
    return torch.stack([frame.roll(move, (1, 2)) for frame, move in zip(video[0], moves, strict=True)])[None]


def picked(scene: GaussianScene, keep: Tensor, *, growth: float = 1.0, times: float = 1.0) -> GaussianScene:
    """Some Gaussians, wider by `growth`, each as opaque as `times` of them one behind the other."""
    return GaussianScene(
        scene.means[:, keep], scene.quats[:, keep], scene.scales[:, keep] * growth,
        1.0 - (1.0 - scene.opacities[:, keep]) ** times, scene.colors[:, keep],
    )  # fmt: skip


def ways(scene: GaussianScene) -> Iterator[tuple[str, GaussianScene]]:
    """The whole scene, what `thin` makes of it, and what else was tried, with one Gaussian of each stretch."""
    num = scene.means.shape[1]
    ratio = num / KEPT
    at = torch.arange(num).expand(1, num)[..., None].float()
    places = GaussianScene(at, at, at, at[..., 0], at)
    one = thin(places, max_gaussians=KEPT, num_frames=num + 1).means[0, :, 0].long()  # no frames: one of each stretch
    yield "all", scene
    yield "whole frames", thin(scene, max_gaussians=KEPT, num_frames=FRAMES)
    yield "grown by sqrt(M/K)", picked(scene, one, growth=ratio**0.5)
    yield "grown by 1.25", picked(scene, one, growth=1.25)
    yield "not grown", picked(scene, one)
    yield "opacity merged", picked(scene, one, times=ratio)


def score(scene: GaussianScene, video: Tensor, path: Tensor, perceptual) -> Tensor:
    """S_recon by 3 x the mean absolute difference, and by the embedded network on tiles of its size; [2]."""
    Ks = pinhole(SIZE, MICRO_CAMERA.focal_ratio).expand(1, FRAMES, 3, 3)
    pictures = render(scene, path, Ks, height=SIZE, width=SIZE, eps2d=0.1)
    tiles = [x[0].unfold(2, 32, 32).unfold(3, 32, 32).movedim(1, 3).reshape(-1, 3, 32, 32) for x in (pictures, video)]
    return 1.0 - torch.stack([3.0 * (pictures - video).abs().mean(), perceptual.distance(*tiles).mean()])


def measured(names: set[str], kinds: set[str], *, splat_px: float, motions=MOTIONS) -> dict[tuple[str, str], Tensor]:
    """(way, video) -> both scores [2], means over the motions; depth and poses are true."""
    perceptual = load_judge(Path(EMBEDDED / "microperceptual"), role="perceptual", device=torch.device("cpu"))
    sums: dict[tuple[str, str], Tensor] = {}
    for m, motion in enumerate(motions):
        video, depth, path = clip_of(motion, content=5 * m + 3, seed=1_000_100 + m)
        rest = (video[:, :1].expand_as(video), depth[:, :1].expand_as(depth), path[:, :1].expand_as(path))
        videos = {
            "truth": (video, depth, path), "blur 1": (blurred(video, 1.0), depth, path),
            "blur 2": (blurred(video, 2.0), depth, path), "frozen": rest, "torn": (torn(video), depth, path),
        }  # fmt: skip
        for kind in kinds:
            v, d, p = videos[kind]
            K = pinhole(SIZE, MICRO_CAMERA.focal_ratio)
            full = pixel_gaussians(v, d, torch.full_like(d, 40.0), viewmats=p, K=K, splat_px=splat_px)
            for name, scene in ways(full):
                if name in names:
                    found = score(scene, v, p, perceptual) / len(motions)
                    sums[name, kind] = sums.get((name, kind), torch.zeros(2)) + found
    return sums


@pytest.fixture(scope="module")
def scores() -> dict[tuple[str, str], Tensor]:
    return measured(
        {"all", "whole frames", "grown by sqrt(M/K)"}, {"truth", "blur 1", "blur 2", "torn"}, splat_px=0.3,
        motions=MOTIONS[1:2],
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["blur 1", "blur 2"])
def test_thinning_pays_less_for_softness_than_growth_and_than_the_whole_scene(scores, kind: str):
    paid = {way: scores[way, kind] - scores[way, "truth"] for way, k in scores if k == "truth"}
    assert bool((paid["whole frames"] < 0.4 * paid["grown by sqrt(M/K)"]).all()), paid
    assert bool((paid["whole frames"] < 0.6 * paid["all"]).all()), paid


def test_thinning_costs_the_truth_nothing_and_tells_torn_videos_apart(scores):
    for other in ("all", "grown by sqrt(M/K)"):
        assert bool((scores["whole frames", "truth"] > scores[other, "truth"]).all())
        lost = {way: scores[way, "truth"] - scores[way, "torn"] for way in (other, "whole frames")}
        assert bool((lost["whole frames"] > lost[other] + 0.02).all()), lost


def scene_of(num: int, *, scenes: int = 1) -> GaussianScene:
    generator = torch.Generator().manual_seed(0)
    return GaussianScene(*(torch.rand(scenes, num, *d, generator=generator) for d in ((3,), (4,), (3,), (), (3,))))


def kept(scene: GaussianScene, thinned: GaussianScene) -> list[int]:
    """Indices of the Gaussians that are left; they are as they were."""
    index = (scene.means[0, None] == thinned.means[0, :, None]).all(-1).nonzero()[:, 1]
    for name, values in vars(scene).items():
        assert torch.equal(getattr(thinned, name), values[:, index]), name
    return index.tolist()


def test_whole_frames_are_kept_where_gaussians_come_by_frames():
    scene = scene_of(70, scenes=3)
    assert kept(scene, thin(scene, max_gaussians=35, num_frames=7)) == [
        *range(0, 10), *range(30, 40), *range(60, 70)
    ]  # fmt: skip
    assert kept(scene, thin(scene, max_gaussians=19, num_frames=7)) == list(range(30, 40))
    assert thin(scene, max_gaussians=70, num_frames=7) is scene


@pytest.mark.parametrize(("num", "k", "frames"), [(71, 35, 7), (70, 9, 7), (1000, 999, 7), (97, 1, 5), (3001, 500, 10)])
def test_else_one_of_each_stretch_is_kept(num: int, k: int, frames: int):
    scene = scene_of(num, scenes=2)
    thinned = thin(scene, max_gaussians=k, num_frames=frames)
    index = kept(scene, thinned)
    assert len(index) == k and all(i * num // k <= at < (i + 1) * num // k for i, at in enumerate(index))
    alone = thin(GaussianScene(*(x[1:] for x in vars(scene).values())), max_gaussians=k, num_frames=frames)
    assert torch.equal(thinned.means[1:], alone.means)


def test_places_in_the_stretches_are_even_and_keep_no_step():
    scene = scene_of(60_001)
    places = GaussianScene(*(torch.arange(60_001)[None].expand_as(scene.opacities) for _ in range(5)))
    index = thin(places, max_gaussians=10_000, num_frames=7).means[0]
    place = index - torch.arange(10_000) * 60_001 // 10_000  # 0 ... 5, rarely 6
    share = torch.bincount(place, minlength=6)[:6] / 10_000
    assert share == pytest.approx(torch.full((6,), 1 / 6), abs=0.02)
    centred = place.double() - place.double().mean()
    for step in (1, 2, 3, 32, 64):
        correlation = (centred[:-step] * centred[step:]).mean() / centred.square().mean()
        assert abs(float(correlation)) < 0.05, step


def main() -> None:
    """The table."""
    names = [name for name, _ in ways(scene_of(FRAMES * SIZE * SIZE))]
    kinds = ["truth", "blur 1", "blur 2", "frozen", "torn"]
    for splat_px in (0.3, 0.55):
        found = measured(set(names), set(kinds), splat_px=splat_px)
        for name in names:
            truth = found[name, "truth"]
            cells = [" / ".join(f"{x:.3f}" for x in truth.tolist())]
            cells += [" / ".join(f"{x:+.3f}" for x in (found[name, k] - truth).tolist()) for k in kinds[1:]]
            print(f"| {splat_px} px | {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
