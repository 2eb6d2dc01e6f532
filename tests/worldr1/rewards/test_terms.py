"""Each term alone: known camera and geometry give a known score."""

import math

import pytest
import torch
from oracle_world import (
    Brightness,
    CoverageCritic,
    MeanDifference,
    Oracle,
    clips_of,
    half_way,
    jittered,
    path_of,
)

from worldr1.cost.budget import peak_bytes
from worldr1.datatypes import GaussianScene, Reconstruction
from worldr1.microworld.captions import MOTIONS
from worldr1.rewards import fidelity, reconstruct
from worldr1.rewards.aesthetic import aesthetic_term, frames_to_judge
from worldr1.rewards.fidelity import fidelity_term
from worldr1.rewards.meta_view import draw_offset, meta_camera, meta_view_term
from worldr1.rewards.reconstruct import render
from worldr1.rewards.trajectory import median_depth, trajectory_term

MOVING = [m for m in MOTIONS if m != "fixed"]


def scenes_at(viewmats: torch.Tensor, *, depth: float = 4.0) -> Reconstruction:
    """Reconstructions that hold nothing but poses and a flat depth."""
    num, frames = viewmats.shape[:2]
    flat = torch.full((num, frames, 4, 4), depth)
    empty = torch.zeros(num, 0, 3)
    gaussians = GaussianScene(empty, torch.zeros(num, 0, 4), empty, torch.zeros(num, 0), empty)
    return Reconstruction(flat, torch.ones_like(flat), viewmats, torch.eye(3).expand(num, frames, 3, 3), gaussians)


def test_exact_camera_scores_one_and_any_scale_of_it():
    requested = torch.stack([path_of(m) for m in MOTIONS])
    assert trajectory_term(scenes_at(requested), requested) == pytest.approx(torch.ones(9), abs=1e-4)
    doubled = requested.clone()
    doubled[:, :, :3, 3] *= 2.0
    assert trajectory_term(scenes_at(doubled, depth=8.0), requested) == pytest.approx(torch.ones(9), abs=1e-4)


def test_metric_paths_pay_for_the_length():
    requested = torch.stack([path_of(m) for m in MOTIONS])
    halved = requested.clone()
    halved[:, :, :3, 3] *= 0.5
    scores = trajectory_term(scenes_at(halved), requested, metric=True)
    has_length = requested[:, -1, :3, 3].norm(dim=-1) > 1e-6
    assert 0 < int(has_length.sum()) < len(MOTIONS)  # pans and the fixed camera have none
    assert scores[has_length] == pytest.approx(torch.full_like(scores[has_length], 0.5), abs=1e-4)  # exp(-ln 2)
    assert scores[~has_length] == pytest.approx(torch.ones(int((~has_length).sum())), abs=1e-4)


@pytest.mark.parametrize("motion", MOVING)
def test_camera_score_falls_with_the_error(motion: str):
    requested = path_of(motion)[None]
    mirror = motion.replace("left", "@").replace("right", "left").replace("@", "right")
    opposite = {"push_in": "pull_out", "pull_out": "push_in"}.get(motion, mirror)
    paths = [
        requested,
        jittered(requested, angle=0.005, shift=0.02),
        half_way(requested),
        requested[:, :1].repeat(1, 9, 1, 1),
    ]
    scores = [float(trajectory_term(scenes_at(p), requested)[0]) for p in (*paths, path_of(opposite)[None])]
    assert scores == sorted(scores, reverse=True), scores
    assert scores[1] < 0.995 and scores[2] < 0.85 and scores[3] < 0.4 and scores[4] < 0.2


def test_median_depth_is_over_all_pixels_of_all_frames():
    depth = torch.arange(1.0, 1 + 2 * 3 * 5 * 7).reshape(2, 3, 5, 7)
    scene = scenes_at(torch.eye(4).expand(2, 3, 4, 4))
    found = median_depth(Reconstruction(depth, depth, scene.viewmats, scene.Ks, scene.gaussians))
    assert found.tolist() == [depth[0].median().item(), depth[1].median().item()]


def test_render_puts_a_gaussian_where_the_pinhole_says():
    means = torch.tensor([[[0.5, -0.25, 5.0]]])
    scene = GaussianScene(
        means,
        torch.tensor([[[1.0, 0, 0, 0]]]),
        torch.full((1, 1, 3), 0.2),
        torch.tensor([[0.98]]),
        torch.tensor([[[1.0, 0.5, 0.0]]]),
    )
    K = torch.tensor([[40.0, 0, 16.0], [0, 40.0, 12.0], [0, 0, 1]])
    picture = render(
        scene, torch.eye(4)[None, None], K[None, None], height=24, width=32, eps2d=0.1
    )  # [1, 1, 3, 24, 32]
    assert picture.shape == (1, 1, 3, 24, 32)
    red = picture[0, 0, 0]
    ys, xs = torch.meshgrid(torch.arange(24) + 0.5, torch.arange(32) + 0.5, indexing="ij")
    assert float((xs * red).sum() / red.sum()) == pytest.approx(16 + 40 * 0.5 / 5, abs=0.05)
    assert float((ys * red).sum() / red.sum()) == pytest.approx(12 - 40 * 0.25 / 5, abs=0.05)
    assert torch.allclose(picture[0, 0, 1], 0.5 * red, atol=1e-6) and float(picture[0, 0, 2].max()) == 0.0


def test_exact_geometry_renders_the_frames_it_was_not_made_from():
    clips = clips_of(["push_in", "orbit_left", "pan_right"])
    scenes = Oracle(clips).infer(clips.video)
    pictures = render(scenes.gaussians, scenes.viewmats, scenes.Ks, height=32, width=32, eps2d=0.1)
    odd = (pictures[:, 1::2] - clips.video[:, 1::2]).square().flatten(1).mean(1)
    assert float((-10 * odd.log10()).min()) > 19.0
    score = fidelity_term(pictures, clips.video, MeanDifference())
    other = fidelity_term(pictures, clips.video.roll(1, 0), MeanDifference())
    assert bool((score > other + 0.15).all()), (score, other)


def test_fidelity_is_one_minus_the_mean_distance_and_never_negative():
    video = torch.rand(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.5
    shifted = video + torch.tensor([0.01, 0.02, 0.06])[None, :, None, None, None]
    assert fidelity_term(shifted, video, MeanDifference()) == pytest.approx(torch.full((2,), 1 - 3 * 0.03), abs=1e-5)
    assert fidelity_term(video + 0.5, video, MeanDifference()).tolist() == [0.0, 0.0]
    assert fidelity_term(video, video, MeanDifference()).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("motion", MOTIONS)
def test_novel_camera_stands_behind_the_path_and_looks_at_the_scene(motion: str):
    path = path_of(motion)[None]
    azimuth, elevation = torch.tensor([0.4]), torch.tensor([0.1])
    novel = meta_camera(path, median_depth=torch.tensor([4.0]), azimuth=azimuth, elevation=elevation)
    assert torch.allclose(novel[0, :3, :3] @ novel[0, :3, :3].T, torch.eye(3), atol=1e-5)
    assert float(torch.linalg.det(novel[0, :3, :3])) == pytest.approx(1.0, abs=1e-5)
    to_world = torch.linalg.inv(path[0])
    centres = to_world[:, :3, 3]
    centre = 0.5 * (centres.amin(0) + centres.amax(0))
    radius = float((centres - centre).norm(dim=1).max())
    eye = torch.linalg.inv(novel[0])[:3, 3]
    assert float((eye - centre).norm()) == pytest.approx(radius + 0.2 * 4.0, abs=1e-4)
    target = to_world[4] @ torch.tensor([0.0, 0.0, 4.0, 1.0])
    seen = (novel[0] @ target)[:3]
    assert seen[:2].tolist() == pytest.approx([0.0, 0.0], abs=1e-4)
    assert float(seen[2]) > float((centre - target[:3]).norm())  # farther away than the middle of the path
    # Offset to the right of the path and above it, as the signs say: the path is left of and below the optical axis.
    middle = novel[0, :3, :3] @ centre + novel[0, :3, 3]
    assert float(middle[0]) < 0 < float(middle[1])
    mirrored = meta_camera(path, median_depth=torch.tensor([4.0]), azimuth=-azimuth, elevation=elevation)
    assert float((mirrored[0, :3, :3] @ centre + mirrored[0, :3, 3])[0]) > 0


def test_novel_camera_is_drawn_by_seed_and_group():
    draws = [draw_offset(3, key) for key in range(200)]
    assert draw_offset(3, 7) == draws[7] and draw_offset(4, 7) != draws[7]
    azimuths = torch.tensor([abs(a) for a, _ in draws])
    assert math.radians(15) <= float(azimuths.min()) and float(azimuths.max()) <= math.radians(35)
    assert 0.35 < sum(a > 0 for a, _ in draws) / 200 < 0.65


def test_meta_view_is_the_expected_digit_over_nine():
    class Fixed:
        def digit_probs(self, images, prompts):
            probs = torch.zeros(3, 10)
            probs[0, 9] = 1.0
            probs[1, 2], probs[1, 4] = 0.3, 0.3  # mass .6: the expectation is over what was said about digits
            probs[2, 5] = 0.2  # hardly an answer
            return probs

    score = meta_view_term(torch.zeros(3, 3, 8, 8), ["a"] * 3, Fixed())
    assert score[:2].tolist() == pytest.approx([1.0, 3.0 / 9.0]) and bool(score[2].isnan())
    assert meta_view_term(torch.ones(1, 3, 8, 8), ["a"], CoverageCritic()).tolist() == [1.0]


def test_aesthetic_is_the_clipped_mean_over_the_frames():
    video = torch.zeros(2, 5, 3, 4, 4)
    video[0, :2] = 0.5  # scores 5, 5, -5
    video[1] = 1.0  # scores 15 each: clipped
    score = aesthetic_term(video[:, :3], ["a", "b"], Brightness())
    assert score.tolist() == pytest.approx([(5 + 5 - 5) / 3 / 10, 1.0])


def test_which_frames_are_judged():
    assert frames_to_judge(81, k=8, which="first") == list(range(8))
    assert frames_to_judge(81, k=8, which="spread") == [0, 11, 23, 34, 46, 57, 69, 80]
    assert frames_to_judge(81, k=1, which="spread") == [40] and frames_to_judge(81, k=2, which="spread") == [0, 80]
    assert frames_to_judge(9, k=1, which="first") == [0] and frames_to_judge(9, k=8, which="first") == list(range(8))
    for frames in range(1, 30):
        for k in range(1, 35):
            spread = frames_to_judge(frames, k=k, which="spread")
            assert len(spread) == min(k, frames) == len(set(spread)) and spread == sorted(spread)
            assert k == 1 or frames == 1 or (spread[0] == 0 and spread[-1] == frames - 1)
            assert frames_to_judge(frames, k=k, which="first") == list(range(min(k, frames)))


class WideNetwork:
    """A distance that holds 64 numbers of each pixel, as a network would; counts the images of each call."""

    def __init__(self):
        self.calls: list[int] = []

    def distance(self, a, b):
        self.calls.append(len(a))
        gains = torch.linspace(0.5, 1.5, 64)[:, None, None]
        return ((a - b).abs().mean(1, keepdim=True) * gains).flatten(1).mean(1)


def test_fidelity_in_pieces_is_that_of_one_call_with_bounded_memory(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    video = torch.rand(2, 13, 3, 16, 24, generator=generator)
    renders = (video + 0.1 * torch.rand(video.shape, generator=generator)).clamp(0, 1)
    whole, pieces = WideNetwork(), WideNetwork()
    expected = fidelity_term(renders, video, whole)
    assert whole.calls == [26]
    monkeypatch.setattr(fidelity, "PIXELS_PER_DISTANCE", 4 * 16 * 24 + 5)
    assert torch.equal(fidelity_term(renders, video, pieces), expected)
    assert pieces.calls == [4, 4, 4, 4, 4, 4, 2]
    cpu = torch.device("cpu")
    short = peak_bytes(lambda: fidelity_term(renders[:, :2], video[:, :2], pieces), cpu)
    long = peak_bytes(lambda: fidelity_term(renders[:1], video[:1], pieces), cpu)
    assert 4 * 64 * 4 * 16 * 24 < long < 1.1 * short, "13 frames hold what 4 hold"
    monkeypatch.setattr(fidelity, "PIXELS_PER_DISTANCE", 1)
    assert torch.equal(fidelity_term(renders, video, pieces), expected)  # a frame at a time is the least


def test_a_view_without_room_is_an_error_that_says_so(monkeypatch):
    def crowded(means, quats, scales, opacities, colors, viewmats, Ks, width, height, *, eps2d):
        picture = torch.full((1, 2, height, width, 3), torch.nan)
        return picture, picture[..., :1], {"num_overflow": torch.tensor([[0, 7]])}

    monkeypatch.setattr(reconstruct, "rasterize", crowded)
    empty = scenes_at(torch.eye(4).expand(1, 2, 4, 4))
    with pytest.raises(RuntimeError, match=r"render: the rasterizer must have room .* the Gaussians are too wide"):
        render(empty.gaussians, empty.viewmats, empty.Ks, height=4, width=4, eps2d=0.1)
