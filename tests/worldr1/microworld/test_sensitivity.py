"""The reward's terms rank known faults; every fault is what it says."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from worldr1.config import EMBEDDED, RewardConfig
from worldr1.microworld import sensitivity
from worldr1.microworld.captions import make_caption
from worldr1.microworld.scene import intrinsics
from worldr1.microworld.sensitivity import (
    Settings,
    TrueGeometry,
    Version,
    check_settings,
    measure_sensitivity,
    versions,
    with_floaters,
)
from worldr1.rewards.judges.micro_geo import rotation_error

JUDGES = RewardConfig(metric_paths=True)
NOBODY = RewardConfig(reconstructor="", critic="", aesthetic="", perceptual="")
CAPTIONS = [make_caption("push_in", 3), make_caption("orbit_left", 8), make_caption("move_right", 5)]


@pytest.fixture(scope="module")
def means() -> dict[str, dict[str, float]]:
    scores = measure_sensitivity(JUDGES, Settings(num=8))
    assert all(v.shape == (8,) and torch.isfinite(v).all() for own in scores.values() for v in own.values())
    return {name: {term: v.mean().item() for term, v in own.items()} for name, own in scores.items()}


def test_the_camera_term_wants_the_motion_that_was_asked_for(means: dict[str, dict[str, float]]) -> None:
    traj = {name: own["traj"] for name, own in means.items()}
    assert traj["truth"] > 0.85
    assert traj["truth"] > traj["half-way"] + 0.2 > traj["frozen"] + 0.4
    assert traj["truth"] > traj["jitter 2"] > traj["jitter 4"]
    faults = ("frozen", "reversed", "other motion", "other scene each frame", "grey")
    assert max(traj[name] for name in faults) < 0.25


def test_the_other_terms_answer_what_it_does_not_see(means: dict[str, dict[str, float]]) -> None:
    truth = means["truth"]
    for fault in ("noise 0.1", "tear 0.5", "blocks 0.7", "other scene each frame", "jitter 4"):
        assert means[fault]["recon"] < truth["recon"] - 0.05, fault
    for fault in ("blur 2", "tear 0.5", "grey", "contrast 0.7", "floaters 80"):
        assert means[fault]["meta"] < truth["meta"] - 0.1, fault
        assert means[fault]["gen"] < truth["gen"] - 0.2, fault


def made(**changes) -> tuple[Version, dict[str, Version]]:
    settings = replace(Settings(num=len(CAPTIONS), height=40, width=64, num_frames=5), **changes)
    found = dict(versions(CAPTIONS, settings))
    return found.pop("truth"), found


@pytest.fixture(scope="module")
def faults() -> tuple[Version, dict[str, Version]]:
    return made()


def test_faults_have_one_shape_and_start_at_the_identity(faults) -> None:
    truth, others = faults
    assert truth.video.shape == (3, 5, 3, 40, 64) and truth.depth.shape == (3, 5, 40, 64)
    assert len(others) == 14 + 11  # kinds; levels beyond the first
    for name, version in others.items():
        assert version.video.shape == truth.video.shape and version.depth.shape == truth.depth.shape, name
        assert float(version.video.min()) >= 0 and float(version.video.max()) <= 1, name
        assert not torch.equal(version.video, truth.video), name
        torch.testing.assert_close(version.viewmats[:, 0], torch.eye(4).expand(3, 4, 4), msg=name)


@pytest.mark.parametrize("kind", ["blur", "noise", "contrast", "floaters", "jitter"])
def test_levels_rise(kind: str, faults) -> None:
    truth, others = faults
    levels = [v for name, v in others.items() if name.startswith(kind + " ")]
    far = [float((v.video - truth.video).square().mean()) for v in levels]
    assert len(far) >= 3 and far[0] > 0 and all(b > 1.3 * a for a, b in pairwise(far)), far


def test_only_the_kinds_asked_for_are_made() -> None:
    assert list(made(only=("blur", "frozen"))[1]) == ["frozen", "blur 0.5", "blur 1", "blur 2", "blur 4"]


def test_true_geometry_renders_the_truth_and_every_fault_has_its_own(faults) -> None:
    """The reconstruction's poses and depth belong to the pictures: points of frame 0 are found again in the last."""
    truth, others = faults
    K = intrinsics(40, 64)
    moved = ("half-way", "frozen", "reversed", "other motion", "jitter 4")
    for name, version in {"truth": truth, **{n: others[n] for n in moved}}.items():
        found = TrueGeometry(version, K, splat_px=0.3).infer(version.video)
        assert found.gaussians.means.shape == (3, 5 * 40 * 64, 3)
        view = found.viewmats[:, -1]
        points = found.gaussians.means[:, : 40 * 64] @ view[:, :3, :3].mT + view[:, None, :3, 3]  # of frame 0
        at = points @ K.T
        x, y = (at[..., i] / at[..., 2] for i in (0, 1))
        inside = (at[..., 2] > 0.1) & (x > 1) & (x < 63) & (y > 1) & (y < 39)
        depth = version.depth[:, -1].flatten(1).gather(1, y.clamp(0, 39).long() * 64 + x.clamp(0, 63).long())
        near = ((depth - points[..., 2]).abs() < 0.1 * depth)[inside].float().mean()
        colors = (
            version.video[:, -1]
            .flatten(2)
            .gather(2, (y.clamp(0, 39).long() * 64 + x.clamp(0, 63).long())[:, None].expand(-1, 3, -1))
        )
        same = (colors.mT - found.gaussians.colors[:, : 40 * 64]).abs().amax(-1)[inside].median()
        assert float(near) > 0.75 and float(same) < 0.05, (name, float(near), float(same))
    turned = rotation_error(others["jitter 4"].viewmats, truth.viewmats)[:, 1:]
    assert 0.02 < float(turned.mean()) < 0.2


def test_floaters_are_fixed_in_the_scene(faults) -> None:
    truth, _ = faults
    with_one = with_floaters(truth, 3, torch.Generator().manual_seed(5))
    nearer = with_one.depth < 0.95 * truth.depth
    assert 0.001 < float(nearer.float().mean()) < 0.2
    assert bool((with_one.depth <= truth.depth * 1.001).all())
    untouched = (with_one.video - truth.video).abs().amax(2) < 1e-3
    assert not bool((nearer & untouched).any()) and float(untouched.float().mean()) > 0.5
    none = with_floaters(truth, 0, torch.Generator())
    torch.testing.assert_close(none.video, truth.video)


def test_without_a_reconstructor_the_camera_is_the_true_one() -> None:
    rewards = replace(NOBODY, perceptual=str(EMBEDDED / "microperceptual"))
    settings = Settings(num=2, height=64, width=32, num_frames=9, ways=True, only=("half-way", "noise"))
    said: list[str] = []
    scores = measure_sensitivity(rewards, settings, progress=said.append)
    assert list(scores["truth"]) == ["traj", "recon", "recon all", "recon held out"]
    assert scores["truth"]["traj"].tolist() == pytest.approx([1.0, 1.0], abs=1e-4)
    assert torch.equal(scores["noise 0.1"]["traj"], scores["truth"]["traj"])
    assert bool((scores["half-way"]["traj"] < 0.8).all())
    assert bool((scores["noise 0.2"]["recon"] < scores["truth"]["recon"] - 0.1).all())
    assert said[0] == "truth: clip 1 of 2" and len(said) == 2 * len(scores)
    ways = [scores["truth"][w] for w in ("recon", "recon all", "recon held out")]
    assert bool((ways[2] < ways[0]).all()) and not torch.allclose(ways[0], ways[1])
    plain = measure_sensitivity(rewards, replace(settings, ways=False, only=("half-way",)))
    assert list(plain["truth"]) == ["traj", "recon"]
    torch.testing.assert_close(plain["truth"]["recon"], ways[0])  # the reward's own


class NumberOfTheFrame:
    """As a distance: ten frames are 0, .1, ... .9 grey, and what was rendered does not count."""

    def distance(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return b.mean((1, 2, 3))


def test_held_out_are_the_frames_whose_gaussians_were_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    grey = torch.arange(10.0)[None, :, None, None, None] / 10
    clips = Version(grey.expand(1, 10, 3, 32, 32), torch.ones(1, 10, 32, 32), torch.eye(4).repeat(1, 10, 1, 1))
    found = TrueGeometry(clips, intrinsics(32, 32), splat_px=0.3).infer(clips.video)
    blurs: list[float] = []
    real = sensitivity.render
    monkeypatch.setattr(
        sensitivity, "render", lambda *args, eps2d, **rest: blurs.append(eps2d) or real(*args, eps2d=eps2d, **rest)
    )
    scores = sensitivity._ways(found, clips.video, NumberOfTheFrame(), eps2d=0.02)
    # Half of ten frames, evenly: 0, 2, 5, 7, 9 are kept.
    held_out = 1 - (0.1 + 0.3 + 0.4 + 0.6 + 0.8) / 5
    assert {name: float(score) for name, score in scores.items()} == pytest.approx(
        {"recon": 0.55, "recon all": 0.55, "recon held out": held_out}
    )
    assert blurs == [0.02] * 3


@pytest.mark.parametrize(
    ("rewards", "changes", "message"),
    [
        (NOBODY, {}, "one of --reconstructor --critic"),
        (JUDGES, {"num": 1}, "--num must be >= 2, got 1"),
        (JUDGES, {"num_frames": 4}, "--num-frames must be >= 5"),
        (JUDGES, {"height": 36}, "multiples of 8, got 36 and 32"),
        (JUDGES, {"splat_px": 0.0}, "need --splat-px > 0"),
        (replace(NOBODY, critic="x"), {"ways": True}, "--ways needs --perceptual"),
        (replace(JUDGES, screen_blur=-0.1), {}, "--screen-blur must be in .0, 1., got -0.1"),
        (JUDGES, {"first_scene": -1}, "--first-scene must be in .*, got -1"),
        (JUDGES, {"only": ("blur", "fog")}, "--only must name some of jitter.*, got fog"),
    ],
)
def test_wrong_settings_are_refused(rewards: RewardConfig, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_settings(rewards, replace(Settings(), **changes))


def test_a_judge_that_cannot_judge_the_size_is_named() -> None:
    rewards = replace(NOBODY, critic=str(EMBEDDED / "microcritic"))
    with pytest.raises(ValueError, match=r"every clip of 'truth' failed: ValueError: MicroCritic: images must have"):
        measure_sensitivity(rewards, Settings(num=2, height=40, width=40, num_frames=5, only=("grey",)))
