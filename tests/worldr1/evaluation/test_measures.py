"""One clip measured: every state, evo's poses, graded corruption, freezing; all with the renderer's truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from oracle_world import MeanDifference, clips_of, jittered, path_of
from scipy.spatial.transform import Rotation

from worldr1.datatypes import Reconstruction
from worldr1.evaluation import measures
from worldr1.evaluation.measures import CAMERA_COLUMNS, MEASURES, ClipMeasurer, Request, camera_measures
from worldr1.evaluation.recovered import Recovered
from worldr1.microworld.judge_data import blur
from worldr1.run.video import to_bytes

CPU = torch.device("cpu")
PICTURES = ("psnr", "ssim", "lpips", "psnr_self", "ssim_self", "lpips_self")


class Told:
    """A reconstructor that answers with what it was told, in the state that it was told."""

    def __init__(self, depth, viewmats, K, *, state: str = "moving", reason: str = "") -> None:
        self.depth, self.viewmats, self.K = depth, viewmats, K
        self.state, self.reason = state, reason

    def recover(self, video: torch.Tensor) -> Recovered:
        self.seen = video
        frames = len(self.depth)
        scene = Reconstruction(
            self.depth[None],
            torch.ones_like(self.depth)[None],
            self.viewmats[None],
            self.K.expand(1, frames, 3, 3),
            None,
        )
        return Recovered(scene, (self.state,), (self.reason,))


@pytest.fixture(scope="module")
def scenes():
    """push_in, pan_left, fixed and orbit_left of one content."""
    return clips_of(["push_in", "pan_left", "fixed", "orbit_left"])


def measured(scenes, i: int, *, video=None, depth=None, viewmats=None, request="own", state="moving", reason=""):
    judge = Told(
        scenes.depth[i] if depth is None else depth, scenes.viewmats[i] if viewmats is None else viewmats, scenes.K,
        state=state, reason=reason,
    )  # fmt: skip
    asked = Request(scenes.viewmats[i], 4.0) if request == "own" else request
    video = to_bytes(scenes.video[i] if video is None else video)
    return ClipMeasurer(judge, perceptual=MeanDifference(), device=CPU).measure(video, request=asked, fps=8)


def given(found) -> set[str]:
    return {name for name, value in found.measures.items() if not math.isnan(value)}


def test_truth_has_every_measure_that_its_path_defines(scenes) -> None:
    push, pan = measured(scenes, 0), measured(scenes, 1)
    assert push.state == "moving" and push.reason == ""
    assert given(push) == set(MEASURES) - {"return_score"}
    assert given(pan) == given(push) - {"trans_err", "cam_mc", "camera_error", "path_ratio"}
    for name in ("rot_err", "trans_err", "cam_mc", "camera_error"):
        assert push.measures[name] == pytest.approx(0, abs=2e-3)
    # Both lengths over their depth: the path is 2 units, the request is told for a scene at 4.
    assert push.measures["path_ratio"] == pytest.approx(4.0 / float(scenes.depth[0].median()), rel=1e-4)
    cameras = push.cameras
    assert cameras["depth"].dtype == torch.float16 and cameras["depth"].shape == (9, 32, 32)
    torch.testing.assert_close(cameras["recovered_cam_c2w"].inverse().float(), scenes.viewmats[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(cameras["K"].float(), scenes.K)


def test_camera_measures_equal_evo() -> None:
    """Absolute pose errors of evo after the first poses are laid on each other; evo takes camera-to-world."""
    metrics = pytest.importorskip("evo.core.metrics", reason="pip install --no-deps evo")
    from evo.core.trajectory import PosePath3D

    target = path_of("orbit_left")
    pred = jittered(target[None], angle=0.1, shift=0.2, seed=3)[0] @ path_of("pull_out")[-1]  # another world frame
    found = camera_measures(pred.double(), Request(target.double(), 4.0), depth=4.0, state="moving")

    def evos(viewmats: torch.Tensor, first: np.ndarray, *, scale: bool) -> PosePath3D:
        poses = np.linalg.inv(viewmats.double().numpy())
        path = PosePath3D(poses_se3=[np.linalg.inv(poses[0]) @ pose for pose in poses])
        if scale:
            path.scale(1.0 / np.linalg.norm(path.positions_xyz, axis=1).max())
        return path

    def sum_of(relation, *, scale: bool) -> float:
        metric = metrics.APE(relation)
        metric.process_data(tuple(evos(m, np.eye(4), scale=scale) for m in (target, pred)))
        return float(metric.error.sum())

    relation = metrics.PoseRelation
    assert found["rot_err"] == pytest.approx(sum_of(relation.rotation_angle_rad, scale=False), abs=1e-6)
    assert found["rotation_deg"] == pytest.approx(sum_of(relation.rotation_angle_deg, scale=False) / 9, abs=1e-5)
    assert found["trans_err"] == pytest.approx(sum_of(relation.translation_part, scale=True), abs=1e-6)
    lengths = [evos(m, np.eye(4), scale=False).path_length for m in (pred, target)]
    assert found["path_ratio"] == pytest.approx(lengths[0] / lengths[1], rel=1e-6)


def test_a_camera_that_turns_by_hand() -> None:
    """A request of 10 degrees a frame about y, 3 frames, a recovered 7: angles 0, 3, 6 degrees."""
    turn = lambda degrees: torch.from_numpy(Rotation.from_euler("y", degrees, degrees=True).as_matrix())  # noqa: E731
    paths = []
    for rate in (7, 10):
        path = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
        path[:, :3, :3] = torch.stack([turn(rate * t) for t in range(3)])
        paths.append(path)
    found = camera_measures(paths[0], Request(paths[1], 4.0), depth=4.0, state="turning")
    assert found["rotation_deg"] == pytest.approx(3.0, abs=1e-9)
    assert found["rot_err"] == pytest.approx(math.radians(9.0), abs=1e-9)
    assert all(math.isnan(found[name]) for name in CAMERA_COLUMNS if name not in ("rotation_deg", "rot_err"))


def test_a_camera_that_stands_still_is_as_wrong_as_the_path_is_long() -> None:
    """The article's static row: every frame is off by its normalised |centre|."""
    target = path_of("push_in")
    found = camera_measures(torch.eye(4).repeat(9, 1, 1), Request(target, 4.0), depth=1.0, state="still")
    assert found["path_ratio"] == 0.0 and found["rotation_deg"] == pytest.approx(0.0, abs=1e-6)
    assert found["trans_err"] == pytest.approx(sum(t / 8 for t in range(9)), abs=1e-5)


def test_what_turning_still_and_failed_leave_out(scenes) -> None:
    turning = measured(scenes, 0, state="turning", reason="no parallax")
    assert turning.reason == "no parallax"
    all_but = set(MEASURES) - {"return_score"}
    assert given(turning) == all_but - {"trans_err", "cam_mc", "camera_error", "path_ratio", "mvcs"}
    still = measured(scenes, 0, state="still", viewmats=torch.eye(4).repeat(9, 1, 1))
    assert given(still) == all_but - {"mvcs"}
    failed = measured(scenes, 0, state="failed", reason="too few tracks")
    assert given(failed) == {"motion_magnitude", "dynamic_degree", "contrast"} and failed.cameras == {}
    assert failed.reason == "too few tracks"
    unasked = measured(scenes, 0, request=None)
    assert given(unasked) == all_but - set(CAMERA_COLUMNS)


def test_the_pictures_of_a_turning_camera_do_not_depend_on_depth(scenes) -> None:
    """A plane shows what the true depth shows, within 1 dB: neither state pays."""
    plane = torch.full_like(scenes.depth[1], 7.0)
    truth, turning = measured(scenes, 1), measured(scenes, 1, state="turning", depth=plane)
    for name, tolerance in (("psnr", 1.0), ("psnr_self", 1.0), ("ssim", 0.005), ("ssim_self", 0.005)):
        assert turning.measures[name] == pytest.approx(truth.measures[name], abs=tolerance), name


def test_reconstructors_that_fail_or_talk_nonsense(scenes) -> None:
    class Broken:
        def infer(self, video):
            raise RuntimeError("no room\nand more")

    video, request = to_bytes(scenes.video[0]), Request(scenes.viewmats[0], 4.0)
    found = ClipMeasurer(Broken(), device=CPU).measure(video, request=request, fps=8)
    assert (found.state, found.reason) == ("failed", "reconstructor: RuntimeError: no room")
    mirrored = scenes.viewmats[0].clone()
    mirrored[3, 0, :3] *= -1
    assert "got a reflection" in measured(scenes, 0, viewmats=mirrored).reason
    assert measured(scenes, 0, depth=-scenes.depth[0]).reason == "reconstructor: depth must be finite and > 0"

    class Buggy:
        def infer(self, video):
            raise TypeError("our own mistake")

    with pytest.raises(TypeError):
        ClipMeasurer(Buggy(), device=CPU).measure(video, request=request, fps=8)


def test_clips_that_show_nothing_are_not_judged(scenes) -> None:
    for colour in (0.0, 0.5, 1.0):
        found = measured(scenes, 0, video=torch.full((9, 3, 32, 32), colour))
        assert found.state == "failed" and "every frame is of one colour" in found.reason
        assert given(found) == {"contrast"} and found.measures["contrast"] == 0.0
    short = measured(scenes, 0, video=scenes.video[0, :2])
    assert short.reason == "the clip must have 3 frames or more, got 2" and given(short) == set()
    with pytest.raises(ValueError, match="a pose a frame, got 8 for a clip of 9"):
        measured(scenes, 0, request=Request(scenes.viewmats[0, :8], 4.0))


def test_freezing_is_exposed_by_the_columns_of_motion(scenes) -> None:
    truth = measured(scenes, 0)
    frozen = measured(
        scenes, 0, video=scenes.video[0, :1].repeat(9, 1, 1, 1), state="still", viewmats=torch.eye(4).repeat(9, 1, 1)
    )
    for name in ("psnr", "psnr_self"):
        assert frozen.measures[name] > truth.measures[name] + 10.0, name
    assert frozen.measures["ssim_self"] > truth.measures["ssim_self"]
    assert frozen.measures["motion_magnitude"] == frozen.measures["dynamic_degree"] == 0.0
    assert frozen.measures["path_ratio"] == 0.0 and truth.measures["path_ratio"] > 0.3
    assert frozen.measures["trans_err"] > 4.0 > 0.01 > truth.measures["trans_err"]


def test_each_measure_falls_with_graded_corruption(scenes) -> None:
    """The truth told of poses and depth, the video worn more and more: what is measured of pictures falls each time.
    And the other way round: true pictures, poses and depth more and more wrong."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(scenes.video[0].shape, generator=generator)
    order = torch.randperm(9, generator=generator)
    faults = {
        "flicker": lambda s: (scenes.video[0] + 0.3 * s * torch.randn(9, 3, 1, 1, generator=generator)).clamp(0, 1),
        "noise": lambda s: (scenes.video[0] + 0.3 * s * noise).clamp(0, 1),
        "ghost": lambda s: torch.lerp(scenes.video[0], scenes.video[0, order], s),
    }
    better = {name: -1.0 if MEASURES[name].better == "down" else 1.0 for name in MEASURES}
    for fault, make in faults.items():
        levels = [measured(scenes, 0, video=make(s)).measures for s in (0.0, 0.3, 0.6, 1.0)]
        for name in PICTURES:
            scores = [better[name] * level[name] for level in levels]
            assert scores == sorted(scores, reverse=True), (fault, name, scores)
    shake = [jittered(scenes.viewmats[:1], angle=0.02 * s, shift=0.1 * s, seed=1)[0] for s in (0.0, 0.3, 1.0, 3.0)]
    levels = [measured(scenes, 0, viewmats=path).measures for path in shake]
    names = ("psnr", "ssim", "lpips", "mvcs", "rot_err", "trans_err", "cam_mc", "rotation_deg", "camera_error")
    for name in names:
        scores = [better[name] * level[name] for level in levels]
        assert scores == sorted(scores, reverse=True) and scores[0] > scores[-1], (name, scores)
    ripple = torch.sin(torch.arange(9.0) * 2)[:, None, None]
    levels = [measured(scenes, 0, depth=scenes.depth[0] * (1 + s * ripple)).measures for s in (0.0, 0.2, 0.4)]
    for name in ("psnr", "ssim", "lpips", "mvcs"):
        scores = [better[name] * level[name] for level in levels]
        assert scores == sorted(scores, reverse=True) and scores[0] > scores[-1], (name, scores)
    blurred = [measured(scenes, 0, video=blur(scenes.video[0], s)).measures["contrast"] for s in (0.3, 1.0, 3.0)]
    assert blurred == sorted(blurred, reverse=True)


def test_slower_clips_go_less_far(scenes) -> None:
    paths = torch.stack([scenes.viewmats[0, (torch.arange(9) * k / 8).round().long()] for k in (8, 4, 2, 0)])
    clips = clips_of(["push_in"] * 4, seeds=[2_000_000] * 4, paths=paths)
    found = [measured(clips, i, request=Request(paths[0], 4.0)).measures for i in range(4)]
    ratios = [f["path_ratio"] for f in found]
    assert ratios == sorted(ratios, reverse=True) and ratios[-1] == pytest.approx(0.0, abs=1e-6)
    speeds = [f["motion_magnitude"] for f in found]
    assert speeds == sorted(speeds, reverse=True) and speeds[-1] == 0.0


def test_a_camera_that_comes_back_finds_what_it_left(scenes) -> None:
    there_and_back = scenes.viewmats[0, [0, 2, 4, 6, 8, 6, 4, 2, 0]]
    clip = clips_of(["push_in"], seeds=[2_000_000], paths=there_and_back[None])
    generator = torch.Generator().manual_seed(1)
    drift = torch.linspace(0, 1, 9)[:, None, None, None] * torch.randn(1, 3, 32, 32, generator=generator)
    judge = Told(clip.depth[0], there_and_back, clip.K)
    scores = []
    for level in (0.0, 0.02, 0.1, 0.4):
        video = to_bytes((clip.video[0] + level * drift).clamp(0, 1))
        found = ClipMeasurer(judge, device=CPU).measure(video, request=Request(there_and_back, 4.0), fps=8)
        scores.append(found.measures["return_score"])
    assert scores[0] == 60.0 and scores == sorted(scores, reverse=True) and scores[-1] < 20.0


def test_large_clips_are_reduced_for_the_reconstructor_and_few_frames_lifted(scenes, monkeypatch) -> None:
    clip = clips_of(["push_in"])
    large = to_bytes(clip.video[0]).repeat_interleave(3, 2).repeat_interleave(3, 3)  # 96 x 96
    judge = Told(clip.depth[0], clip.viewmats[0], clip.K)
    reduced = ClipMeasurer(judge, device=CPU, side=32).measure(large, request=None, fps=8)
    torch.testing.assert_close(judge.seen[0], to_bytes(clip.video[0]) / 255.0, atol=1e-6, rtol=0)
    own = ClipMeasurer(judge, device=CPU).measure(to_bytes(clip.video[0]), request=None, fps=8)
    assert reduced.measures["psnr"] == pytest.approx(own.measures["psnr"], abs=1e-3)
    lifted = []
    whole = measures.views

    def counting(*args, sources, targets):
        lifted.append((list(sources), list(targets)))
        return whole(*args, sources=sources, targets=targets)

    monkeypatch.setattr(measures, "views", counting)
    monkeypatch.setattr(measures, "MAX_FRAMES_LIFTED", 3)
    ClipMeasurer(judge, device=CPU).measure(to_bytes(clip.video[0]), request=None, fps=8)
    assert lifted == [([0, 4, 8], [1, 5, 7]), ([0, 4, 8], [0, 4, 8])]
