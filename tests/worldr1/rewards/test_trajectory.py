"""S_traj over the whole taxonomy and composites: better camera work never scores less."""

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from worldr1.camera.motion import parse_motion
from worldr1.camera.trajectory import MOTIONS, build_trajectory
from worldr1.config import MICRO_CAMERA, CameraConfig
from worldr1.datatypes import GaussianScene, MotionToken, Reconstruction
from worldr1.rewards import trajectory
from worldr1.rewards.base import score_rows
from worldr1.rewards.trajectory import median_depth, trajectory_parts, trajectory_term

CAMERA = CameraConfig()
DEPTH = 4.0
COMPOSITES = [
    ("push_in", "pan_left"),
    ("pan_right", "push_in"),
    ("orbit_left", "pull_out"),
    ("move_up", "tilt_down", "push_in"),
    ("pull_right", "orbit_right"),
    ("roll_left", "move_left"),
]
SINGLE = [(kind,) for kind in sorted(MOTIONS) if kind != "fixed"]


def scene(viewmats: torch.Tensor, depth: float = DEPTH) -> Reconstruction:
    """Reconstructions that hold nothing but poses and a flat depth."""
    num, frames = viewmats.shape[:2]
    flat = torch.full((num, frames, 2, 2), depth)
    empty = torch.zeros(num, 0, 3)
    gaussians = GaussianScene(empty, torch.zeros(num, 0, 4), empty, torch.zeros(num, 0), empty)
    return Reconstruction(flat, torch.ones_like(flat), viewmats, torch.eye(3).expand(num, frames, 3, 3), gaussians)


def jittered(path: torch.Tensor, seed: int, *, angle: float = 0.005, shift: float = 0.02) -> torch.Tensor:
    """Every frame but the first turned by about `angle` (radians) and shifted by `shift` (scene units)."""
    generator = torch.Generator().manual_seed(seed)
    shake = torch.eye(4, dtype=path.dtype).repeat(len(path), 1, 1)
    v = angle * torch.randn(len(path), 3, generator=generator, dtype=path.dtype)
    skew = torch.zeros(len(path), 3, 3, dtype=path.dtype)
    skew[:, 0, 1], skew[:, 0, 2], skew[:, 1, 2] = -v[:, 2], v[:, 1], -v[:, 0]
    shake[:, :3, :3] = torch.linalg.matrix_exp(skew - skew.mT)
    shake[:, :3, 3] = shift * torch.randn(len(path), 3, generator=generator, dtype=path.dtype)
    shake[0] = torch.eye(4, dtype=path.dtype)
    return shake @ path


def opposite(path: torch.Tensor) -> torch.Tensor:
    """Each step undone instead of done: the inverse pose, which runs the same way backwards."""
    return torch.linalg.inv(path)


@pytest.mark.parametrize("metric", [False, True], ids=["free", "metric"])
@pytest.mark.parametrize("frames", [9, 81])
@pytest.mark.parametrize("kinds", SINGLE + COMPOSITES, ids=lambda kinds: "+".join(kinds))
def test_perfect_jitter_half_way_static_opposite(kinds: tuple[str, ...], frames: int, metric: bool) -> None:
    target = build_trajectory([MotionToken(kind) for kind in kinds], frames, CAMERA)
    stop = torch.arange(frames).clamp_max((frames - 1) // 2)
    paths = [target, jittered(target, 3), target[stop], target[:1].expand_as(target), opposite(target)]
    batch = torch.stack(paths).float()
    scores = trajectory_term(scene(batch), target.expand(5, -1, -1, -1), metric=metric)
    assert float(scores[0]) == pytest.approx(1.0, abs=1e-4)
    for better, worse in itertools.pairwise(scores.tolist()):
        assert better > worse, scores.tolist()


@pytest.mark.parametrize("metric", [False, True], ids=["free", "metric"])
@pytest.mark.parametrize("camera", [CAMERA, MICRO_CAMERA], ids=["default", "micro"])
def test_the_order_holds_for_every_pair_of_motions(camera: CameraConfig, metric: bool) -> None:
    """All 240 ordered pairs. A jitter of the size of the motion itself may cost more than half of it: here it is small
    beside each."""
    broken = []
    for pair in itertools.permutations([kinds[0] for kinds in SINGLE], 2):
        target = build_trajectory([MotionToken(kind) for kind in pair], 9, camera)
        shaken = jittered(target, 3, angle=0.001, shift=camera.depth / 1000)
        stopped = target[torch.arange(9).clamp_max(4)]
        paths = torch.stack([target, shaken, stopped, target[:1].expand_as(target), opposite(target)])
        found = scene(paths.float(), camera.depth)
        scores = trajectory_term(found, target.expand(5, -1, -1, -1), metric=metric).tolist()
        broken += [(pair, rank) for rank, (better, worse) in enumerate(itertools.pairwise(scores)) if better <= worse]
    # 14 degrees to the left, then 30 to the right: who stops after the first part is farther from where the camera
    # should look, on average over the frames, than who never turned.
    away = [(("pan_left", "orbit_left"), 2), (("pan_right", "orbit_right"), 2)]
    assert broken == (away if camera is MICRO_CAMERA else [])


def test_a_fixed_camera_asks_for_rest() -> None:
    still = build_trajectory([MotionToken("fixed")], 9, CAMERA)
    drifts = [build_trajectory([MotionToken("push_in", m)], 9, CAMERA) for m in (0.02, 0.1, 0.5, 1.0)]
    paths = torch.stack([still, *drifts]).float()
    scores = trajectory_term(scene(paths), still.expand(5, -1, -1, -1)).tolist()
    assert scores[0] == pytest.approx(1.0, abs=1e-6) and scores == sorted(scores, reverse=True) and scores[-1] < 0.5


def test_far_pixels_do_not_change_the_length_that_is_measured_by() -> None:
    """A sky of a third of the picture moves the mean depth of a scene, not its median, and so not the score."""
    still = build_trajectory([MotionToken("fixed")], 9, CAMERA)[None]
    drift = build_trajectory([MotionToken("push_in", 0.001)], 9, CAMERA)[None].float()
    plain, sky = scene(drift), scene(drift)
    sky.depth.flatten(1)[:, ::3] = 100 * DEPTH
    assert float(sky.depth.mean()) > 30 * DEPTH and median_depth(sky).tolist() == [DEPTH]
    score = trajectory_term(plain, still)
    assert 0.1 < float(score) < 0.9 and torch.equal(trajectory_term(sky, still), score)
    for expected, got in zip(trajectory_parts(plain, still), trajectory_parts(sky, still), strict=True):
        assert torch.equal(expected, got)


def test_words_to_score() -> None:
    """From the prompt's words to the reward: the path that was asked for scores 1, one of its two halves less."""
    tokens = parse_motion("The camera slowly pushes in, then pans to the left.")
    assert [t.kind for t in tokens] == ["push_in", "pan_left"]
    target = build_trajectory(tokens, 21, CAMERA)
    only = [build_trajectory(tokens[:1], 21, CAMERA), build_trajectory(tokens[1:], 21, CAMERA)]
    scores = trajectory_term(scene(torch.stack([target, *only]).float()), target.expand(3, -1, -1, -1))
    assert float(scores[0]) == pytest.approx(1.0, abs=1e-4) and float(scores[1:].max()) < 0.8


def test_parts_add_up_and_say_what_is_wrong() -> None:
    target = build_trajectory([MotionToken("pull_left")], 21, CAMERA)
    short = target.clone()
    short[:, :3, 3] *= 0.5  # right words, half the size
    turned = target.clone()
    turned[:, :3, 3] = 0.0  # turns, but does not travel
    paths = torch.stack([target, short, turned, jittered(target, 5)])
    wanted = target.expand(4, -1, -1, -1)
    for metric in (False, True):
        parts = trajectory_parts(scene(paths), wanted, metric=metric)
        expected = trajectory_term(scene(paths), wanted, metric=metric)
        torch.testing.assert_close(parts.score, expected, rtol=1e-9, atol=1e-12)
        assert bool(parts.valid.all())
        assert parts.extent[1].item() == pytest.approx(math.log(2.0) if metric else 0.0, abs=1e-9)
    assert parts.scale[:3].tolist() == pytest.approx([1.0, 2.0, 0.0], abs=1e-9)
    assert parts.translation[:2].tolist() == pytest.approx([0.0, 0.0], abs=1e-9)
    assert float(parts.rotation[:3].max()) < 1e-9 < float(parts.rotation[3])
    assert float(parts.translation[2]) == pytest.approx(
        0.5, abs=0.05
    )  # mean distance of a straight path over its length


def test_a_scene_that_cannot_be_scored_is_marked_alone() -> None:
    target = build_trajectory([MotionToken("push_in")], 9, CAMERA)
    paths = target.repeat(6, 1, 1, 1)
    paths[1, 4, 0, 0] = float("nan")
    paths[2, 4, :3, 3] = float("inf")
    paths[3, 4, :3, :3] *= 1.01
    paths[4, 4, 0, :3] *= -1.0
    flawed = scene(paths)
    flawed.depth[5] = 0.0
    parts = trajectory_parts(flawed, target.expand(6, -1, -1, -1))
    assert parts.valid.tolist() == [True] + [False] * 5
    assert float(parts.score[0]) == pytest.approx(1.0, abs=1e-9)
    assert all(bool(part[1:].isnan().all()) and bool(part[0].isfinite()) for part in parts[:-1])


def test_a_fault_that_a_device_says_late_is_that_of_its_own_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips are judged one by one at full size; a device says what was wrong with one at its next call, or if asked."""
    pending: list[str] = []

    def check(device: torch.device) -> None:
        if pending:
            raise ValueError(pending.pop())

    def on_a_device(pred: torch.Tensor, target: torch.Tensor, **options: Any) -> torch.Tensor:
        check(pred.device)
        bad = ~pred.isfinite().flatten(1).all(1)
        pending.extend(["viewmats_pred must be finite"] * bool(bad.any()))
        return torch.where(bad, torch.nan, 0.5)

    monkeypatch.setattr(trajectory, "trajectory_reward", on_a_device)
    monkeypatch.setattr(trajectory, "check", check)
    viewmats = torch.eye(4).repeat(3, 5, 1, 1)
    viewmats[1, 2, 0, 3] = torch.nan

    def term(rows: list[int]) -> dict[str, torch.Tensor]:
        scene = SimpleNamespace(viewmats=viewmats[rows], depth=torch.ones(len(rows), 5, 4, 4))
        return {"traj": trajectory.trajectory_term(scene, torch.eye(4).repeat(len(rows), 5, 1, 1))}

    values, reasons = {"traj": torch.zeros(3)}, {}
    for row in range(3):
        score_rows(term, [row], values=values, reasons=reasons)
    assert reasons == {1: "ValueError: viewmats_pred must be finite"} and not pending
    assert values["traj"].tolist() == [0.5, 0.0, 0.5]
