"""Depth Anything 3: the package's network from a folder, its numbers, and its conventions in ours.

`depth_anything.npz` holds what the package's own class made of the tiny folder in its own environment
(`record_depth_anything.py`).
"""

import copy
import json
import math
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rewards.judges.record_depth_anything import EVERY, RESIZED, SIZE, STRIDE, picture

from worldr1.config import RewardConfig
from worldr1.datatypes import GaussianScene, PromptBatch, Reconstruction
from worldr1.rehearsal.depth_anything import CONFIG, MODEL_NAME, save_tiny_depth_anything, save_untrained
from worldr1.rewards import RewardStack
from worldr1.rewards.judges.depth_anything import (
    LICENCES,
    DepthAnything,
    multiply,
    quaternions,
    reconstruction,
    resize,
)
from worldr1.rewards.judges.depth_anything_network import build_network, keep_constant_colour
from worldr1.rewards.judges.micro_geo import rotation_error
from worldr1.rewards.judges.registry import load_judge
from worldr1.rewards.reconstruct import render

ROOT = Path(__file__).resolve().parents[4]
SMALL = RewardConfig(reconstructor_size=SIZE)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def package() -> None:
    if find_spec("depth_anything_3") is None:
        pytest.skip("depth-anything-3 is not installed; `make judges` installs it")


@pytest.fixture(scope="module")
def folder(package: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_depth_anything(tmp_path_factory.mktemp("depth_anything"))


@pytest.fixture(scope="module")
def judge(folder: Path) -> DepthAnything:
    return load_judge(folder, role="reconstructor", device=CPU, config=SMALL)


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    with np.load(Path(__file__).with_name("depth_anything.npz")) as file:
        return {k: file[k].tolist() if k == "keys" else torch.from_numpy(file[k]) for k in file.files}


def clip(frames: int, height: int = 64, width: int = 96, first: int = 0) -> torch.Tensor:
    """[1, F, 3, H, W] in [0, 1]."""
    pixels = [picture(height, width, first + t) for t in range(frames)]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)[None].float() / 255.0


def pose(axis: tuple[float, float, float], degrees: float, centre: tuple[float, float, float]) -> torch.Tensor:
    """World-to-camera [4, 4] of a camera at `centre`, turned."""
    unit = torch.tensor(axis, dtype=torch.float64) / math.sqrt(sum(a * a for a in axis))
    x, y, z = unit.tolist()
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64) * math.radians(degrees)
    viewmat = torch.eye(4, dtype=torch.float64)
    viewmat[:3, :3] = torch.linalg.matrix_exp(cross).mT
    viewmat[:3, 3] = -viewmat[:3, :3] @ torch.tensor(centre, dtype=torch.float64)
    return viewmat.float()


# The package's own numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, number",
    [
        ("da3-small", 34_299_463),
        ("da3-base", 135_366_599),
        ("da3-large", 410_941_767),
        ("da3-giant", 1_355_674_125),
        ("da3nested-giant-large", 1_689_845_519),
    ],
)
def test_the_published_networks_are_built_without_memory(package: None, name: str, number: int):
    net = build_network({"model_name": name}, source=Path("x"))
    assert sum(p.numel() for p in net.parameters()) == number
    assert {p.device.type for p in net.parameters()} == {"meta"}
    assert LICENCES[name] == ("Apache-2.0" if number < 2e8 else "CC BY-NC 4.0")


@pytest.mark.parametrize("height, width, size", RESIZED)
def test_frames_are_resized_as_by_the_package(recorded, height: int, width: int, size: int):
    ours = 255 * resize(clip(1, height, width)[0], size=size)[0]
    theirs = recorded[f"resized_{height}_{width}_{size}"].float()
    assert ours.shape == theirs.shape
    difference = (ours - theirs).abs()
    assert float(difference.max()) <= 2.01 and float((difference > 0.5).float().mean()) < 0.01
    mode = dict(mode="bilinear", antialias=True)  # not just any way of resizing would pass
    other = torch.nn.functional.interpolate(255 * clip(1, height, width)[0], ours.shape[-2:], **mode)[0]
    assert float((other - theirs).abs().mean()) > 100 * float(difference.mean())


def test_the_network_gives_what_the_packages_class_gives(judge: DepthAnything, recorded):
    with torch.no_grad():
        out = judge._forward(resize(clip(9)[0], size=SIZE))
    gaussians = out["gaussians"]
    ours = {
        "extrinsics": out["extrinsics"][0],
        "intrinsics": out["intrinsics"][0],
        "depth": out["depth"][0, :, ::STRIDE, ::STRIDE],
        "conf": out["depth_conf"][0, :, ::STRIDE, ::STRIDE],
        "dc": gaussians.harmonics[0, ::EVERY, :, 0],
        **{k: getattr(gaussians, k)[0, ::EVERY] for k in ("means", "scales", "rotations", "opacities")},
    }
    for name, value in ours.items():
        assert value.shape == recorded[name].shape
        scale = float(recorded[name].abs().max())
        error = float((value - recorded[name]).abs().max()) / scale
        half = float((value - recorded["half_" + name]).abs().max()) / scale
        assert error < 5e-4, name
        assert half < 5e-3, name  # as it comes: its backbone in half precision


def test_a_scene_is_the_packages_in_our_conventions(judge: DepthAnything, recorded):
    scene = judge.infer(clip(9))
    poses = torch.eye(4).repeat(9, 1, 1)
    poses[:, :3] = recorded["extrinsics"]
    torch.testing.assert_close(scene.viewmats[0], poses @ torch.linalg.inv(poses[0]), atol=1e-4, rtol=0)
    assert torch.equal(scene.viewmats[0, 0], torch.eye(4))
    Ks = recorded["intrinsics"] * torch.tensor([96 / 98, 64 / 70, 1.0])[:, None]
    torch.testing.assert_close(scene.Ks[0], Ks, atol=5e-3, rtol=0)
    assert scene.depth.shape == scene.confidence.shape == (1, 9, 64, 96)
    g, root = scene.gaussians, poses[0]
    assert g.means.shape == (1, 9 * 70 * 98, 3)
    means = recorded["means"] @ root[:3, :3].T + root[:3, 3]
    torch.testing.assert_close(g.means[0, ::EVERY], means, atol=5e-4, rtol=0)
    torch.testing.assert_close(g.scales[0, ::EVERY], recorded["scales"], atol=1e-4, rtol=0)
    torch.testing.assert_close(g.opacities[0, ::EVERY], recorded["opacities"], atol=1e-4, rtol=0)
    torch.testing.assert_close(g.colors[0, ::EVERY], (0.5 + 0.28209479 * recorded["dc"]).clamp(0, 1), atol=1e-4, rtol=0)
    turned = root[:3, :3] @ matrices(recorded["rotations"])
    torch.testing.assert_close(matrices(g.quats[0, ::EVERY]), turned, atol=2e-3, rtol=0)


# Conventions, on scenes that are known -------------------------------------------------------------------------------


def matrices(quats: torch.Tensor) -> torch.Tensor:
    """wxyz [M, 4] -> [M, 3, 3]: the images of the axes under q v q*."""
    conjugate = quats * torch.tensor([1.0, -1.0, -1.0, -1.0])
    axes = torch.cat([torch.zeros(3, 1), torch.eye(3)], dim=1)
    images = [multiply(multiply(quats, axis.expand_as(quats)), conjugate)[:, 1:] for axis in axes]
    return torch.stack(images, dim=-1)


def test_quaternions_and_their_product():
    generator = torch.Generator().manual_seed(0)
    q = torch.nn.functional.normalize(torch.randn(2, 500, 4, generator=generator), dim=-1)
    q[0, :4], q[0, 4:8] = torch.eye(4), -torch.eye(4)  # half turns too
    a, b = matrices(q[0]), matrices(q[1])
    assert float(torch.linalg.det(a).min()) > 0.999
    about_z = matrices(torch.tensor([[math.cos(0.3), 0.0, 0.0, math.sin(0.3)]]))[0]
    turn = torch.tensor([[math.cos(0.6), -math.sin(0.6), 0], [math.sin(0.6), math.cos(0.6), 0], [0, 0, 1]])
    torch.testing.assert_close(about_z, turn, atol=1e-6, rtol=0)
    torch.testing.assert_close(matrices(quaternions(a)), a, atol=2e-6, rtol=0)
    torch.testing.assert_close(matrices(multiply(q[0], q[1])), a @ b, atol=2e-6, rtol=0)


def raw_output(poses: torch.Tensor, depth: float = 4.0, h: int = 14, w: int = 28) -> dict:
    """What the network would say of cameras `poses` [F, 4, 4] in front of a wall."""
    frames = poses.shape[0]
    K = torch.tensor([[30.0, 0, w / 2], [0, 24.0, h / 2], [0, 0, 1]])
    return {
        "depth": torch.full((1, frames, h, w), depth),
        "depth_conf": torch.ones(1, frames, h, w),
        "extrinsics": poses[None, :, :3],
        "intrinsics": K.expand(1, frames, 3, 3),
    }


def test_known_cameras_come_out_relative_to_the_first():
    # Two cameras somewhere in a world; the second stands one unit to the right of the first and looks 20 degrees right.
    first = pose((0.2, 1.0, -0.3), 70.0, (3.0, -2.0, 5.0))
    right = pose((0.0, 1.0, 0.0), 20.0, (1.0, 0.0, 0.0))
    out = raw_output(torch.stack([first, right @ first]))
    scene = reconstruction(out, torch.rand(2, 3, 14, 28), height=28, width=84)
    assert torch.equal(scene.viewmats[0, 0], torch.eye(4))
    torch.testing.assert_close(scene.viewmats[0, 1], right, atol=1e-5, rtol=0)
    assert float(torch.linalg.inv(scene.viewmats[0, 1])[0, 3]) == pytest.approx(1.0, abs=1e-5)  # its centre: x = 1
    ahead = torch.linalg.inv(scene.viewmats[0, 1])[:3, 2]
    assert float(ahead[0]) == pytest.approx(math.sin(math.radians(20.0)), abs=1e-5)  # looks to +x: to the right
    # The lens in pixels of the video: three times as wide, twice as high.
    torch.testing.assert_close(scene.Ks[0, 0], torch.tensor([[90.0, 0, 42.0], [0, 48.0, 14.0], [0, 0, 1]]))
    out["depth"][..., 10:] = 9.0  # an edge between columns 9 and 10: no depth between its sides is made up
    depth = reconstruction(out, torch.rand(2, 3, 14, 28), height=28, width=84).depth
    assert depth.shape == (1, 2, 28, 84)
    assert bool((depth[..., :30] == 4.0).all()) and bool((depth[..., 30:] == 9.0).all())


def test_without_a_gaussian_head_pixels_are_lifted_to_their_depth():
    poses = torch.stack([pose((0, 1, 0), 30.0, (1, 2, 3)), pose((1, 0, 0), -10.0, (0, 1, 0))])
    out = raw_output(poses)
    out["intrinsics"] = out["intrinsics"] * torch.tensor([1.0, 1.5])[:, None, None]  # another lens a frame
    out["intrinsics"][..., 2, 2] = 1.0
    frames = torch.rand(2, 3, 14, 28)
    scene = reconstruction(out, frames, height=14, width=28)
    assert scene.gaussians.means.shape == (1, 2 * 14 * 28, 3)
    for t in range(2):
        mine = slice(t * 14 * 28, (t + 1) * 14 * 28)
        points = scene.gaussians.means[0, mine] @ scene.viewmats[0, t, :3, :3].T + scene.viewmats[0, t, :3, 3]
        seen = points @ scene.Ks[0, t].T
        torch.testing.assert_close(points[:, 2], torch.full((14 * 28,), 4.0), atol=1e-4, rtol=0)
        pixel = (seen[:, :2] / seen[:, 2:])[14 * 7 + 3 + 7 * 14]  # row 7, column 3
        torch.testing.assert_close(pixel, torch.tensor([3.5, 7.5]), atol=1e-3, rtol=0)
        scale = 0.3 / float(scene.Ks[0, t, 0, 0]) * 4.0
        torch.testing.assert_close(scene.gaussians.scales[0, mine], torch.full((14 * 28, 3), scale))
        torch.testing.assert_close(scene.gaussians.colors[0, mine], frames[t].flatten(1).T)


def splats(num: int, seed: int = 0) -> SimpleNamespace:
    """Long, thin Gaussians in front of the camera, as the package hands them on."""
    g = torch.Generator().manual_seed(seed)
    spread = torch.tensor([3.0, 2.0, 1.0])
    return SimpleNamespace(
        means=((torch.rand(1, num, 3, generator=g) - 0.5) * spread + torch.tensor([0, 0, 5.0])),
        scales=torch.tensor([0.5, 0.05, 0.1]).expand(1, num, 3),
        rotations=torch.nn.functional.normalize(torch.randn(1, num, 4, generator=g), dim=-1),
        opacities=torch.full((1, num), 0.7),
        harmonics=torch.randn(1, num, 3, 1, generator=g),
    )


def test_a_scene_with_another_root_looks_the_same():
    gs = splats(40)
    world = [pose((0.3, 1.0, 0.2), 25.0, (0.4, -0.3, -0.5)), pose((0.1, 1.0, 0.0), -15.0, (-0.8, 0.2, 0.3))]
    out = raw_output(torch.stack(world)) | {"gaussians": gs}
    scene = reconstruction(out, torch.rand(2, 3, 14, 28), height=56, width=112)
    as_it_was = GaussianScene(
        means=gs.means, quats=gs.rotations, scales=gs.scales, opacities=gs.opacities, colors=scene.gaussians.colors
    )
    before = render(as_it_was, torch.stack(world)[None], scene.Ks, height=56, width=112, eps2d=0.1)
    after = render(scene.gaussians, scene.viewmats, scene.Ks, height=56, width=112, eps2d=0.1)
    assert float(before.std()) > 0.1
    torch.testing.assert_close(after, before, atol=2e-4, rtol=0)
    unturned = GaussianScene(**{**vars(scene.gaussians), "quats": gs.rotations})
    wrong = render(unturned, scene.viewmats, scene.Ks, height=56, width=112, eps2d=0.1)
    assert float((wrong - before).abs().max()) > 0.1  # the test sees rotations


def test_corrected_rotations_are_right_where_the_packages_are_not(package: None):
    """The package's own adapter on cameras and Gaussians that are known: each Gaussian turned in its camera's frame."""
    build_network({"model_name": MODEL_NAME, "config": CONFIG}, source=Path("x"))  # imports it
    from depth_anything_3.model.gs_adapter import GaussianAdapter

    adapter = GaussianAdapter(sh_degree=2, pred_offset_depth=True, pred_offset_xy=True)
    keep_constant_colour(adapter)
    h, w = 14, 28
    poses = torch.stack([torch.eye(4), pose((0.3, 1.0, 0.5), 40.0, (0.5, 0.1, 0.2)), pose((1, 0, 1), 25.0, (0, 0, 0))])
    out = raw_output(poses)
    g = torch.Generator().manual_seed(1)
    raw = torch.zeros(1, 3, h, w, 2 + 3 + 4 + 27 + 1)
    raw[..., 2:5] = torch.tensor([2.0, -4.0, -3.0])  # long and thin
    raw[..., 5:9] = torch.randn(1, 3, h, w, 4, generator=g)  # xyzw, in the camera's frame
    colours = torch.rand(1, 3, h, w, 3, generator=g)
    raw[..., 9:36:9] = (colours - 0.5) / 0.28209479
    raw[..., 10:18] = 7.0  # bands that are not read
    out["gaussians"] = adapter(
        extrinsics=poses[None], intrinsics=out["intrinsics"], depths=out["depth"], opacities=torch.ones(1, 3, h, w),
        raw_gaussians=raw, image_shape=(h, w),
    )  # fmt: skip
    in_camera = torch.nn.functional.normalize(raw[0, ..., 5:9], dim=-1).flatten(0, 2)[:, [3, 0, 1, 2]]  # wxyz
    to_world = poses[:, :3, :3].mT.repeat_interleave(h * w, dim=0)
    truth = to_world @ matrices(in_camera)
    scenes = {
        which: reconstruction(out, torch.rand(3, 3, h, w), height=56, width=112, rotations=which)
        for which in ("package", "corrected")
    }
    off = {k: rotation_error(matrices(s.gaussians.quats[0]), truth).unflatten(0, (3, h * w)) for k, s in scenes.items()}
    assert float(off["corrected"].max()) < 5e-3
    assert float(off["package"][0].max()) < 5e-3  # the camera that is not turned
    assert float(off["package"][1].median()) > 0.2 and float(off["package"][2].median()) > 0.2
    torch.testing.assert_close(
        scenes["package"].gaussians.colors[0], colours.flatten(0, 3)[: 3 * h * w * 3].view(-1, 3)
    )

    true = GaussianScene(**{**vars(scenes["package"].gaussians), "quats": quaternions(truth)[None]})
    seen = {k: s.gaussians for k, s in scenes.items()} | {"truth": true}
    views = scenes["package"].viewmats, scenes["package"].Ks
    picture_of = {k: render(v, *views, height=56, width=112, eps2d=0.1) for k, v in seen.items()}
    error = {k: float((picture_of[k] - picture_of["truth"]).abs().mean()) for k in ("package", "corrected")}
    assert error["corrected"] < 1e-4 < 1e-2 < error["package"]


# Folders -------------------------------------------------------------------------------------------------------------


def test_the_folder_has_the_published_form(folder: Path, recorded):
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        assert sorted(file.keys()) == recorded["keys"]  # of a folder that the package's class saved
    settings = json.loads((folder / "config.json").read_text())
    assert DepthAnything.recognises(folder, settings) and DepthAnything.recognises(folder, {"model_name": "da3-giant"})
    assert not DepthAnything.recognises(folder, {"model_type": "qwen3_vl"})
    assert not DepthAnything.recognises(folder, {})


def test_untrained_weights_say_something_of_the_video(judge: DepthAnything):
    scene, other = judge.infer(clip(9)), judge.infer(clip(9, first=40))
    for value in [*tensors(scene), *tensors(other)]:
        assert value.dtype == torch.float32 and bool(value.isfinite().all())
    turn = rotation_error(scene.viewmats[0], torch.eye(4).expand(9, 4, 4)).rad2deg()
    centres = torch.linalg.inv(scene.viewmats[0])[:, :3, 3].norm(dim=-1)
    assert 0.5 < float(turn[1:].max()) < 45 and float(centres.max()) > 0.005 * float(scene.depth.median())
    assert float(scene.depth.min()) > 0 and float(scene.depth.std()) > 0.02 * float(scene.depth.mean())
    assert 40 < float(scene.Ks[..., 0, 0].median()) < 160
    assert float(scene.gaussians.means[..., 2].median()) > 0 and float(scene.gaussians.scales.min()) > 0
    assert 0 < float(scene.gaussians.opacities.min()) < float(scene.gaussians.opacities.max()) < 1
    assert float((scene.viewmats - other.viewmats).abs().max()) > 1e-3
    assert not any(p.requires_grad for p in judge.net.parameters())


def tensors(scene: Reconstruction) -> list[torch.Tensor]:
    return [v for v in vars(scene).values() if isinstance(v, torch.Tensor)] + list(vars(scene.gaussians).values())


def test_a_scene_does_not_depend_on_its_batch(folder: Path):
    judge = load_judge(folder, role="reconstructor", device=CPU, config=RewardConfig(reconstructor_size=42))
    videos = torch.cat([clip(3, first=20 * i) for i in range(3)])
    together = tensors(judge.infer(videos))
    alone = [tensors(judge.infer(videos[i : i + 1])) for i in range(3)]
    for k, value in enumerate(together):
        assert torch.equal(value, torch.cat([a[k] for a in alone]))


def test_weights_in_shards_and_in_half_precision(folder: Path, judge: DepthAnything, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    keys, where = sorted(weights), {}
    for i, part in enumerate((keys[:200], keys[200:])):
        name = f"model-0000{i + 1}-of-00002.safetensors"
        save_file({k: weights[k].bfloat16() if i else weights[k] for k in part}, tmp_path / name)
        where |= dict.fromkeys(part, name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    loaded = load_judge(tmp_path, role="reconstructor", device=CPU, config=SMALL)
    for (name, a), (_, b) in zip(loaded.net.named_parameters(), judge.net.named_parameters(), strict=True):
        half = f"model.{name}" in keys[200:]
        assert a.dtype == torch.float32 and torch.equal(a, b.bfloat16().float() if half else b)
    (tmp_path / name_of(where, 1)).unlink()
    with pytest.raises(ValueError, match=r"must hold model-00002-of-00002.safetensors, model.*index.json names it"):
        load_judge(tmp_path, role="reconstructor", device=CPU)
    where["model.backbone.extra"] = name_of(where, 0)
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {k: v for k, v in where.items() if v == name_of(where, 0)}})
    )
    with pytest.raises(ValueError, match=r"got none of 1 tensors \(model.backbone.extra\)"):
        load_judge(tmp_path, role="reconstructor", device=CPU)


def name_of(where: dict[str, str], i: int) -> str:
    return sorted(set(where.values()))[i]


def write(path: Path, config: object, weights: dict[str, torch.Tensor] | bytes | None = None) -> Path:
    from safetensors.torch import save_file

    (path / "config.json").write_text(json.dumps(config))
    if isinstance(weights, bytes):
        (path / "model.safetensors").write_bytes(weights)
    elif weights is not None:
        save_file(weights, path / "model.safetensors")
    return path


TINY = {"model_name": MODEL_NAME, "config": CONFIG}


def changed(**net: object) -> dict:
    config = copy.deepcopy(TINY)
    config["config"]["net"] |= net
    return config


@pytest.mark.parametrize(
    "config, weights, message",
    [
        (TINY, None, "must hold model.safetensors, got no such file"),
        (TINY, {"model.a": torch.zeros(1)}, r"got \d+ missing \(backbone"),
        (
            TINY,
            {"model.cam_dec.fc_t.bias": torch.zeros(4)},
            r"1 of another shape \(cam_dec.fc_t.bias\)",
        ),
        ({"model_name": "da3-huge"}, None, "must be in da3-base, .*, got 'da3-huge'"),
        ({"model_name": "da3mono-large"}, None, "must be a model that gives poses .*got da3mono-large"),
        (changed(name="vitx"), None, "must build a network, got AssertionError"),
        (changed(out_layers=None, width=3, name=None), None, "must build a network"),
        (
            changed(__object__={"path": "os", "name": "system"}),
            None,
            "classes of depth_anything_3.model alone, got 'os'",
        ),
        (changed(__inherit__="/etc/passwd"), None, "classes of depth_anything_3.model alone"),
        (changed(name="${eval:1+1}"), None, "must hold plain values"),
    ],
)
def test_a_folder_that_is_not_one(package: None, tmp_path: Path, config: dict, weights: dict, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        load_judge(write(tmp_path, config, weights), role="reconstructor", device=CPU)
    assert str(tmp_path) in str(caught.value)


def test_weights_of_no_part_are_said_and_left_out(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """As the package, which reads what fits: a published file may hold more than the network."""
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors") | {"model.training_only": torch.zeros(3)}
    clip = torch.rand(1, 2, 3, 28, 42, generator=torch.Generator().manual_seed(0))
    config = RewardConfig(reconstructor_size=42)
    ours = load_judge(write(tmp_path, TINY, weights), role="reconstructor", device=CPU, config=config).infer(clip)
    assert "1 weights are of no part of the model (training_only)" in caplog.text
    plain = load_judge(folder, role="reconstructor", device=CPU, config=config).infer(clip)
    assert torch.equal(ours.depth, plain.depth) and torch.equal(ours.gaussians.means, plain.gaussians.means)


def test_a_damaged_file_of_weights(folder: Path, tmp_path: Path):
    whole = (folder / "model.safetensors").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"version https://git-lfs.github.com/spec/v1\n", b""):
        with pytest.raises(ValueError, match=f"{tmp_path}.*must be a safetensors file.*download it again"):
            load_judge(write(tmp_path, TINY, damaged), role="reconstructor", device=CPU)


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "depth_anything_3"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "depth_anything_3", None)
    with pytest.raises(ValueError, match="`make judges` installs it .pip install --no-deps depth-anything-3==0.1.1"):
        load_judge(write(tmp_path, {"model_name": "da3-giant"}), role="reconstructor", device=CPU)


def test_nothing_heavy_is_imported_and_nothing_downloaded(folder: Path):
    code = f"""
import socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("the network was asked")
socket.socket.connect = refuse
heavy = ("torchvision", "e3nn", "evo", "cv2", "xformers", "open3d", "moviepy", "pycolmap")
sys.modules.update(dict.fromkeys(heavy))  # an import of one of them fails
import torch
from worldr1.config import RewardConfig
from worldr1.rewards.judges.registry import load_judge
judge = load_judge({str(folder)!r}, role="reconstructor", device=torch.device("cpu"),
                   config=RewardConfig(reconstructor_size=28))
scene = judge.infer(torch.rand(1, 3, 3, 16, 24))
assert scene.gaussians.means.shape == (1, 3 * 14 * 28, 3), scene.gaussians.means.shape
assert "depth_anything_3.api" not in sys.modules
print([name for name in sys.modules if name.split(".")[0] in heavy and sys.modules[name] is not None])
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == "[]\n"  # and the package prints nothing of its own


# Use -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "video, message",
    [
        (torch.zeros(3, 3, 16, 24), r"must have shape \[N, F, 3, H, W\] in floating point, got \[3, 3, 16, 24\]"),
        (torch.zeros(1, 3, 16, 24, 3), "got .1, 3, 16, 24, 3."),
        (torch.zeros(1, 3, 3, 16, 24, dtype=torch.uint8), "in torch.uint8"),
        (torch.full((1, 3, 3, 16, 24), torch.nan), "must be finite"),
        (torch.full((1, 3, 3, 16, 24), torch.inf), "must be finite"),
    ],
)
def test_a_video_that_it_cannot_take(judge: DepthAnything, video: torch.Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        judge.infer(video)


def test_settings_reach_it(folder: Path):
    scenes = {}
    for rotations in ("package", "corrected"):
        config = RewardConfig(reconstructor_size=28, gaussian_rotations=rotations)
        judge = load_judge(folder, role="reconstructor", device=CPU, config=config)
        scenes[rotations] = judge.infer(clip(3))
    package, corrected = (scenes[k].gaussians for k in ("package", "corrected"))
    assert package.means.shape == (1, 3 * 14 * 28, 3)
    assert torch.equal(package.means, corrected.means) and not torch.allclose(package.quats, corrected.quats, atol=1e-3)


def test_moving_it_forgets_what_lies_on_the_old_device(folder: Path):
    judge = load_judge(folder, role="reconstructor", device=CPU, config=RewardConfig(reconstructor_size=28))
    before = tensors(judge.infer(clip(2)))
    (getter,) = {
        id(m.position_getter): m.position_getter for m in judge.net.modules() if hasattr(m, "position_getter")
    }.values()
    assert getter.position_cache
    assert judge.to("cpu") is judge and not getter.position_cache
    assert all(torch.equal(a, b) for a, b in zip(before, tensors(judge.infer(clip(2))), strict=True))


class MeanDifference:
    """A perceptual distance: mean absolute difference."""

    def distance(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean(dim=(1, 2, 3))


def test_the_reward_stack_scores_with_it(judge: DepthAnything):
    config = RewardConfig(weight_meta=0, weight_gen=0, reconstructor_size=SIZE)
    stack = RewardStack(config, seed=0, reconstructor=judge, critic=None, aesthetic=None, perceptual=MeanDifference())
    path = torch.eye(4).repeat(1, 9, 1, 1)
    path[..., 2, 3] = -torch.linspace(0, 1, 9)
    batch = PromptBatch(
        prompts=["push in"], group_size=3, tokens=[()], viewmats=path, sample_ids=torch.arange(3), dynamic=False,
        group_ids=torch.zeros(1, dtype=torch.int64),
    )  # fmt: skip
    videos = (255 * torch.cat([clip(9), clip(9, first=30), clip(9, first=60)])).round().to(torch.uint8)
    output = stack.score(batch, videos)
    assert output.valid.tolist() == [True] * 3 and output.reasons == {}
    assert bool(((output.breakdown["recon"] > 0) & (output.breakdown["recon"] < 1)).all())
    assert len(set(output.reward.tolist())) == 3


# Nested --------------------------------------------------------------------------------------------------------------


def nested(sky: float, folder: Path) -> DepthAnything:
    """A tiny model of two branches; its metric branch sees so much sky (below .3: none)."""
    from safetensors.torch import load_file, save_file

    metric = {
        "__object__": CONFIG["__object__"],
        "net": CONFIG["net"] | {"alt_start": -1, "qknorm_start": -1, "rope_start": -1, "cat_token": False},
        "head": {
            "__object__": {"path": "depth_anything_3.model.dpt", "name": "DPT", "args": "as_params"},
            "dim_in": 384, "output_dim": 1, "features": 16, "out_channels": [16, 16, 16, 16],
        },
    }  # fmt: skip
    both = {
        "__object__": {"path": "depth_anything_3.model.da3", "name": "NestedDepthAnything3Net", "args": "as_params"},
        "anyview": CONFIG,
        "metric": metric,
    }
    save_untrained(folder, both, seed=3)
    weights = load_file(folder / "model.safetensors")
    last = "model.da3_metric.head.scratch.sky_output_conv2.2."
    weights[last + "weight"] = torch.zeros_like(weights[last + "weight"])
    weights[last + "bias"] = torch.full_like(weights[last + "bias"], sky)
    save_file(weights, folder / "model.safetensors")
    return load_judge(folder, role="reconstructor", device=CPU, config=SMALL)


@pytest.mark.slow
def test_a_nested_model_puts_all_in_metres(package: None, tmp_path: Path):
    judge = nested(0.0, tmp_path)
    video = clip(17, 70, 98)  # more than 100,000 pixels: it draws some of them
    scene = judge.infer(video)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    again = judge.infer(video)
    assert torch.equal(state, torch.get_rng_state())  # no one else's numbers
    assert all(torch.equal(a, b) for a, b in zip(tensors(scene), tensors(again), strict=True))

    plain = DepthAnything(judge.net.da3, size=SIZE, rotations="package")  # its first branch alone
    alone = plain.infer(video)
    scale = float(scene.depth.median() / alone.depth.median())
    assert abs(math.log(scale)) > 0.05
    torch.testing.assert_close(scene.depth, scale * alone.depth, rtol=1e-3, atol=0)
    torch.testing.assert_close(scene.viewmats[..., :3, 3], scale * alone.viewmats[..., :3, 3], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(scene.gaussians.means, scale * alone.gaussians.means, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(scene.gaussians.scales, scale * alone.gaussians.scales, rtol=1e-3, atol=1e-5)
    assert torch.equal(scene.gaussians.quats, alone.gaussians.quats)


@pytest.mark.slow
def test_nothing_but_sky_is_the_videos_fault(package: None, tmp_path: Path):
    with pytest.raises(ValueError, match="the network refused the video: Insufficient non-sky pixels"):
        nested(1.0, tmp_path).infer(clip(2))


@pytest.mark.parametrize("scale", [0.0, math.nan, math.inf])
def test_a_scale_must_be_one(scale: float):
    out = raw_output(torch.eye(4).repeat(2, 1, 1)) | {"gaussians": splats(8), "scale_factor": scale}
    with pytest.raises(ValueError, match=f"scale of a nested model must be finite and > 0, got {scale}"):
        reconstruction(out, torch.rand(2, 3, 14, 28), height=14, width=28)
