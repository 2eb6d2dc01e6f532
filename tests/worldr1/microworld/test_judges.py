"""The embedded judges on scenes that they were not trained on: accuracy, and how they rank good and bad."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from worldr1.config import EMBEDDED
from worldr1.evaluation.micro_evaluator import MicroEvaluator
from worldr1.microworld import degrade as frames
from worldr1.microworld import train_judges
from worldr1.microworld.captions import MOTIONS, all_captions, make_caption
from worldr1.microworld.gates import Gate, judge
from worldr1.microworld.judge_data import JudgeClips, blur, content_labels, held_out, mirror, render_pool, wear
from worldr1.microworld.measure_judges import (
    measure_aesthetic,
    measure_classes,
    measure_critic,
    measure_geometry,
    measure_perceptual,
)
from worldr1.microworld.scene import HELD_OUT_SEEDS, render_clips
from worldr1.rewards.judges.micro_geo import (
    MicroGeo,
    pinhole,
    pixel_gaussians,
    poses_to_viewmats,
    rotation_error,
    viewmats_to_poses,
)
from worldr1.rewards.judges.micro_images import MicroAesthetic, MicroCritic, MicroPerceptual, bag_of_words
from worldr1.rewards.trajectory import trajectory_term

ALL = {
    "microgeo": MicroGeo,
    "microeval": MicroEvaluator,
    "microcritic": MicroCritic,
    "microaesthetic": MicroAesthetic,
    "microperceptual": MicroPerceptual,
}


@pytest.fixture(scope="module")
def clips() -> JudgeClips:
    return held_out(144)


@pytest.fixture(scope="module")
def geo() -> MicroGeo:
    return MicroGeo.from_pretrained(EMBEDDED / "microgeo")


@pytest.fixture(scope="module")
def evaluator() -> MicroEvaluator:
    return MicroEvaluator.from_pretrained(EMBEDDED / "microeval")


@pytest.mark.parametrize("folder", ALL)
def test_a_network_comes_back_from_its_folder(folder, tmp_path):
    torch.manual_seed(0)
    network = ALL[folder]()
    network.save_pretrained(tmp_path)
    again = ALL[folder].from_pretrained(tmp_path)
    assert again.settings == network.settings and not again.training
    for a, b in zip(network.parameters(), again.parameters(), strict=True):
        assert torch.equal(a.half().float(), b) and not b.requires_grad
    assert (tmp_path / "model.safetensors").stat().st_size < 2 * network.num_parameters + 8192


def test_the_embedded_judges_are_small():
    assert sum((EMBEDDED / name / "model.safetensors").stat().st_size for name in ALL) < 4e6


def test_a_folder_of_another_architecture_is_refused(tmp_path):
    MicroCritic().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="must be MicroGeo, got 'MicroCritic'"):
        MicroGeo.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"colour": 1}))
    with pytest.raises(ValueError, match="settings"):
        MicroCritic.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="model.safetensors"):
        MicroCritic.from_pretrained(tmp_path)


def test_other_sizes_are_refused(geo, evaluator):
    with pytest.raises(ValueError, match=r"\[N, 9, 3, 32, 32\]"):
        geo.infer(torch.rand(1, 1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"\[N, 9, 3, 32, 32\]"):
        evaluator.classify(torch.rand(1, 9, 3, 64, 64))
    with pytest.raises(ValueError, match="one per image"):
        MicroCritic().digit_probs(torch.rand(2, 3, 32, 32), ["x"])
    with pytest.raises(ValueError, match="one shape"):
        MicroPerceptual().distance(torch.rand(2, 3, 32, 32), torch.rand(1, 3, 32, 32))


def test_poses_and_viewmats_are_inverse(clips):
    again = poses_to_viewmats(viewmats_to_poses(clips.viewmats))
    assert (again - clips.viewmats).abs().max() < 2e-6
    vector = torch.tensor([[[0.3, -0.4, 1.2, 0.0, 0.0, 0.0]]])  # angle 1.3
    turned = poses_to_viewmats(vector)
    assert torch.allclose(rotation_error(turned[:, 1], turned[:, 0]), torch.tensor([1.3]), atol=1e-6)


def test_gaussians_project_to_the_pixels_they_come_from(clips):
    K = pinhole(32, 0.8)
    scene = pixel_gaussians(
        clips.video[:2], clips.depth[:2], torch.full_like(clips.depth[:2], 2.0), viewmats=clips.viewmats[:2], K=K,
        half_opacity_confidence=2.0,
    )  # fmt: skip
    points = scene.means.unflatten(1, (9, 1024)) @ clips.viewmats[:2, :, :3, :3].transpose(-1, -2)
    points = points + clips.viewmats[:2, :, None, :3, 3]  # [2, 9, 1024, 3] in each camera
    assert torch.allclose(points[..., 2], clips.depth[:2].flatten(2), atol=1e-4)
    pixels = (points @ K.T)[..., :2] / points[..., 2:]
    place = torch.arange(1024)
    assert torch.allclose(pixels[..., 0], (place % 32 + 0.5).expand(2, 9, 1024), atol=1e-3)
    assert torch.allclose(pixels[..., 1], (place // 32 + 0.5).expand(2, 9, 1024), atol=1e-3)
    assert torch.allclose(scene.opacities, torch.full_like(scene.opacities, 0.49))
    assert torch.equal(scene.colors[0, 1024 + 33], clips.video[0, 1, :, 1, 1])


def test_the_mirror_turns_geometry_and_names_together(clips):
    other = mirror(clips)
    K = pinhole(32, 0.8)

    def points(c: JudgeClips) -> torch.Tensor:
        scene = pixel_gaussians(c.video, c.depth, torch.ones_like(c.depth), viewmats=c.viewmats, K=K)
        return scene.means.unflatten(1, (9, 32, 32))

    flip = torch.tensor([-1.0, 1.0, 1.0])
    assert torch.allclose(points(clips).flip(3) * flip, points(other), atol=1e-3)
    names = [MOTIONS[k] for k in clips.motion], [MOTIONS[k] for k in other.motion]
    assert all(a.endswith("left") == b.endswith("right") for a, b in zip(*names, strict=True))


def test_degradation_at_zero_changes_nothing_and_grows(clips):
    images = clips.video[:60, 4]
    generator = torch.Generator().manual_seed(0)
    kind = torch.arange(60) % len(frames.KINDS)
    same = frames.degrade(images, kind=kind, severity=torch.zeros(60), generator=generator)
    assert torch.allclose(same, images, atol=1e-6)
    change = [
        (frames.degrade(images, kind=kind, severity=torch.full((60,), s), generator=generator) - images)
        .abs().mean((1, 2, 3)).view(-1, len(frames.KINDS)).mean(0)
        for s in (0.25, 0.5, 1.0)
    ]  # fmt: skip
    assert (change[0] < change[1]).all() and (change[1] < change[2]).all()
    assert torch.allclose(blur(torch.full((3, 32, 32), 0.4), 1.5), torch.tensor(0.4))
    assert torch.equal(wear(clips.video[:4], generator, share=0.0), clips.video[:4])


def test_microgeo_recovers_held_out_scenes(geo, clips):
    figures = measure_geometry(geo, clips)
    assert figures["rotation_deg"] < 0.8 and figures["centre"] < 0.1 and figures["depth_rel"] < 0.07, figures
    found = geo.infer(clips.video[:32])
    assert torch.equal(found.viewmats[:, 0], torch.eye(4).expand(32, 4, 4))
    assert found.gaussians.means.shape == (32, len(geo.key_frames) * 1024, 3) and (found.confidence > 0).all()


def test_the_camera_reward_puts_truth_before_half_before_frozen(geo, clips):
    moving = torch.nonzero(clips.motion != MOTIONS.index("fixed"))[:, 0]
    video, requested = clips.video[moving], clips.viewmats[moving]
    half = video[:, [0, 1, 2, 3, 4, 4, 4, 4, 4]]
    score = {
        name: trajectory_term(geo.infer(x), requested)
        for name, x in (("truth", video), ("half", half), ("frozen", video[:, :1].expand_as(video)))
    }
    means = {name: float(s.mean()) for name, s in score.items()}
    assert means["truth"] > 0.85 and means["truth"] - 0.1 > means["half"] > means["frozen"] + 0.1, means
    assert (score["truth"] > score["frozen"]).float().mean() > 0.97


def test_the_evaluator_names_and_measures_held_out_clips(evaluator, clips):
    classes, geometry = measure_classes(evaluator, clips), measure_geometry(evaluator, clips)
    assert min(classes.values()) >= 0.97, classes
    assert geometry["rotation_deg"] < 0.8 and geometry["depth_rel"] < 0.08, geometry


def test_the_evaluator_bears_what_a_decoder_does(evaluator, clips):
    worn = wear(clips.video, torch.Generator().manual_seed(3), share=1.0)
    figures = measure_classes(evaluator, replace(clips, video=worn))
    assert min(figures.values()) >= 0.95, figures


def test_the_critic_prefers_whole_scenes(geo):
    figures = measure_critic(MicroCritic.from_pretrained(EMBEDDED / "microcritic"), geo, num=72)
    assert figures["whole"] > figures["half"] + 0.15 and figures["half"] > figures["full"] + 0.1, figures
    assert figures["pairs_right"] >= 0.85, figures
    probs = MicroCritic.from_pretrained(EMBEDDED / "microcritic").digit_probs(torch.rand(3, 3, 32, 32), [""] * 3)
    assert torch.allclose(probs.sum(1), torch.ones(3), atol=1e-6)


def test_the_aesthetic_judge_prefers_clean_frames_and_the_right_prompt():
    judge = MicroAesthetic.from_pretrained(EMBEDDED / "microaesthetic")
    figures = measure_aesthetic(judge, num=144)
    assert figures["pairs_right"] >= 0.9 and figures["prompt_right"] >= 0.9, figures
    assert math.isclose(figures["clean"], 5.0, abs_tol=0.4) and math.isclose(figures["degraded"], -5.0, abs_tol=0.8)
    words = bag_of_words(["Camera pan left. A Red ball stands on a wooden floor.", "nothing known"])
    assert words.tolist() == [[1, 0, 0, 0, 1, 0, 0, 1], [0] * 8]


def test_the_perceptual_distance_rises_with_the_change():
    judge = MicroPerceptual.from_pretrained(EMBEDDED / "microperceptual")
    d = measure_perceptual(judge, num=144)
    assert 0 < d["shift_1"] < d["shift_2"] < d["shift_4"] < d["shift_8"] < d["other_scene"], d
    assert d["blur_0.25"] < d["blur_0.5"] < d["blur_1"] < d["other_scene"], d
    assert d["noise_0.25"] < d["noise_0.5"] < d["noise_1"] < d["other_scene"], d
    assert 0.6 < d["other_scene"] < 0.8, d
    image = torch.rand(2, 3, 32, 32)
    assert torch.equal(judge.distance(image, image), torch.zeros(2))


def test_content_labels_follow_the_content_index():
    labels = content_labels(torch.tensor([0, 1, 2, 4, 15]))
    assert labels["colour"].tolist() == [0, 0, 0, 1, 3]
    assert labels["shape"].tolist() == [0, 0, 1, 0, 1]
    assert labels["floor"].tolist() == [0, 1, 0, 0, 1]


def test_a_stage_is_reproducible(tmp_path, monkeypatch):
    monkeypatch.setattr(train_judges, "measure_geometry", lambda network: {"rotation_deg": 0.0})
    for name in "ab":
        train_judges.microgeo(tmp_path / name, seed=3, log=lambda line: None, num_clips=16, num_steps=2)
    files = [(tmp_path / name / "microgeo" / "model.safetensors").read_bytes() for name in "ab"]
    assert files[0] == files[1]


def test_pools_are_reproducible_and_other_paths_start_at_rest():
    first, again = (render_pool(24, seed=5, first_scene=HELD_OUT_SEEDS[0]) for _ in range(2))
    assert torch.equal(first.video, again.video) and torch.equal(first.viewmats, again.viewmats)
    assert torch.allclose(first.viewmats[:, 0], torch.eye(4).expand(24, 4, 4), atol=1e-6)
    assert 0 < int((first.motion < 0).sum()) < 24


def test_gates_judge_motion_and_content(evaluator, clips):
    assert Gate("a", 27.5, 27.0, math.inf).passed and not Gate("a", math.nan, 27.0, math.inf).passed
    captions = [c for c in all_captions() if c.motion == "pan_left"][:8]
    truth = render_clips(captions, HELD_OUT_SEEDS[:8]).video
    obeyed, content = judge(evaluator, truth, captions)
    assert obeyed.tolist() == [1.0] * 8 and content.mean() > 0.95
    others = [make_caption("pan_right", c.content_index) for c in captions]
    assert judge(evaluator, truth, others)[0].tolist() == [0.0] * 8
