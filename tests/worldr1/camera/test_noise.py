"""Initial latents: white, keyed by sample, and moving as the camera asks."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from worldr1.camera import noise as module
from worldr1.camera.flow import CameraFlow, camera_flow
from worldr1.camera.noise import initial_noise, warped_noise
from worldr1.camera.trajectory import MOTIONS, build_trajectory, intrinsics
from worldr1.config import MICRO_CAMERA, CameraConfig, NoiseConfig, RolloutConfig, TrainConfig
from worldr1.datatypes import MotionToken, PromptBatch
from worldr1_kernels.noise_transport import TransportPlan, noise_transport, plan_transport

SHAPE = (12, 3, 8, 8)


def path(kind: str, frames: int = 9) -> Tensor:
    return build_trajectory([MotionToken(kind)], frames, MICRO_CAMERA).float()


def warp(
    kind: str, ids: Tensor, *, degradation: float = 0.35, flow_scale: int = 8, seed: int = 0, shape=SHAPE,
    dither: bool = False,
) -> Tensor:  # fmt: skip
    return warped_noise(
        path(kind), shape, camera=MICRO_CAMERA, seed=seed, sample_ids=ids, flow_scale=flow_scale,
        degradation=degradation, dither=dither,
    )  # fmt: skip


def make_batch(*kinds: str, group_size: int = 4, first_id: int = 0) -> PromptBatch:
    return PromptBatch(
        prompts=list(kinds), group_size=group_size, tokens=[(MotionToken(k),) for k in kinds],
        viewmats=torch.stack([path(k) for k in kinds]),
        sample_ids=torch.arange(first_id, first_id + len(kinds) * group_size), dynamic=False,
        group_ids=torch.arange(first_id, first_id + len(kinds) * group_size, group_size),
    )  # fmt: skip


def check_white(x: Tensor) -> None:
    """[B, C, f, h, w]: each latent frame against N(0, 1), 4.5 sigma; no correlation between neighbours."""
    frames = x.movedim(2, 0).flatten(1)  # [f, n]
    n = frames.shape[1]
    assert frames.mean(1).abs().max() < 4.5 / math.sqrt(n)
    assert (frames.var(1) - 1).abs().max() < 4.5 * math.sqrt(2 / n)
    assert ((frames**4).mean(1) - 3).abs().max() < 4.5 * math.sqrt(96 / n)
    for a, b in ((x[..., 1:], x[..., :-1]), (x[..., 1:, :], x[..., :-1, :]), (x[:, 1:], x[:, :-1])):
        products = (a * b).movedim(2, 0).flatten(1)
        assert products.mean(1).abs().max() < 4.5 / math.sqrt(products.shape[1])


@pytest.mark.parametrize("kind", sorted(MOTIONS))
def test_every_motion_gives_white_frames(kind: str) -> None:
    check_white(warp(kind, torch.arange(48)))


@pytest.mark.parametrize("degradation", [0.0, 1.0])
def test_white_at_both_ends_of_the_mixture(degradation: float) -> None:
    check_white(warp("orbit_left", torch.arange(48), degradation=degradation))


def test_the_mixture_is_the_written_one() -> None:
    ids = torch.arange(2)
    moved, fresh, mixed = (warp("pan_left", ids, degradation=d) for d in (0.0, 1.0, 0.35))
    assert (mixed - (0.65 * moved + 0.35 * fresh) / math.sqrt(0.65**2 + 0.35**2)).abs().max() < 1e-6
    assert abs(float((moved * fresh).mean())) < 4.5 / math.sqrt(moved.numel())  # independent of each other
    assert 0.73823 < math.sqrt(0.65**2 + 0.35**2) < 0.73825


def test_it_is_the_transport_of_the_fine_flow_reduced_and_captured_every_fourth_frame() -> None:
    ids = torch.tensor([5, 9])
    fine = module._normal((12, 64, 64), seed=3, sample_ids=ids, purpose=module._FINE, device=torch.device("cpu"))
    flow = camera_flow(path("push_in"), intrinsics(64, 64, MICRO_CAMERA), depth=MICRO_CAMERA.depth, height=64, width=64)
    every = noise_transport(fine, plan_transport(flow), seed=3, sample_ids=ids)  # [2, 12, 9, 64, 64]
    blocks = every[:, :, ::4].unflatten(-1, (8, 8)).unflatten(-3, (8, 8)).sum((-1, -3)) / 8
    assert (warp("push_in", ids, degradation=0.0, seed=3) - blocks).abs().max() < 1e-5


def test_a_fixed_camera_repeats_the_same_noise() -> None:
    x = warp("fixed", torch.arange(3), degradation=0.0)
    assert torch.equal(x[:, :, 0], x[:, :, 1]) and torch.equal(x[:, :, 0], x[:, :, 2])


@pytest.mark.parametrize("kind, sign", [("move_left", 1), ("move_right", -1), ("pan_left", 1), ("pan_right", -1)])
def test_noise_moves_with_the_scene(kind: str, sign: int) -> None:
    """Where the camera goes left, the noise goes right: frame 8 correlates with frame 0 shifted by the summed flow."""
    x = warp(kind, torch.arange(24), degradation=0.0)
    scores = {}
    for shift in range(-6, 7):
        a, b = x[:, :, 0], x[:, :, 2]
        a, b = (a[..., : 8 - shift], b[..., shift:]) if shift >= 0 else (a[..., -shift:], b[..., :shift])
        scores[shift] = float((a * b).mean())
    best = max(scores, key=lambda s: scores[s])
    extent = {"move": 0.8 * 8 * 2.0 / 4.0, "pan": 8 * 0.8 * 8 * math.tan(math.radians(28 / 8))}[kind[:-5].rstrip("_")]
    assert abs(best * sign - extent) < 0.75 and scores[best] > 0.5
    assert abs(scores[-best]) < 0.05


def test_a_sample_is_the_same_in_any_batch_split() -> None:
    whole = warp("orbit_right", torch.arange(10, 18))
    assert torch.equal(torch.cat([warp("orbit_right", torch.arange(a, a + 2)) for a in (10, 12, 14, 16)]), whole)
    assert torch.equal(warp("orbit_right", torch.tensor([17, 10])), whole[[7, 0]])


def test_seeds_and_samples_are_independent() -> None:
    ids = torch.arange(8)
    for degradation in (0.35, 1.0):
        first = warp("pan_left", ids, degradation=degradation)
        bound = 4.5 / math.sqrt(first.numel())
        others = (
            warp("pan_left", ids, degradation=degradation, seed=1),
            warp("pan_left", ids + 8, degradation=degradation),
        )
        for other in (*others, first.roll(1, 0)):
            # Frames of one sample are correlated along the flow: up to f times the variance of a mean.
            assert abs(float((first * other).mean())) < bound * math.sqrt(3)


@pytest.mark.parametrize("mode", ["transport", "plain"])
@pytest.mark.parametrize("share", [False, True])
def test_initial_noise_draws_each_sample_by_its_id(mode: str, share: bool) -> None:
    config = TrainConfig(
        seed=6,
        noise=NoiseConfig(mode=mode, flow_scale=8, degradation=0.35),
        rollout=RolloutConfig(share_initial_noise=share),
    )
    batch = make_batch("pan_left", "push_in", first_id=100)
    x = initial_noise(batch, SHAPE, config=config)
    assert x.shape == (8, *SHAPE) and x.dtype == torch.float32
    for row in range(8):
        key = torch.tensor([100 + (row // 4 * 4 if share else row)])
        degradation = 0.35 if mode == "transport" else 1.0
        expected = warp(["pan_left", "push_in"][row // 4], key, degradation=degradation, seed=6)[0]
        assert torch.equal(x[row], expected)
    assert not torch.equal(x[0], x[4])


def test_plain_noise_is_white_and_ignores_the_camera() -> None:
    config = TrainConfig(noise=NoiseConfig(mode="plain"), rollout=RolloutConfig(group_size=48))
    x = initial_noise(make_batch("push_in", group_size=48), SHAPE, config=config)
    check_white(x)
    assert torch.equal(x, initial_noise(make_batch("fixed", group_size=48), SHAPE, config=config))


def test_plans_are_made_once_for_each_trajectory_and_lens(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, ...]] = []

    def recorded(flow: CameraFlow, **options: Any) -> TransportPlan:
        made.append((len(flow), *flow[0].shape))
        return plan_transport(flow, **options)

    monkeypatch.setattr(module, "plan_transport", recorded)
    monkeypatch.setattr(module, "_plans", module.OrderedDict())
    ids = torch.arange(1)
    for kind in ("pan_left", "push_in", "pan_left", "push_in"):
        warp(kind, ids)
    assert len(made) == 2
    warp("pan_left", ids, flow_scale=4)
    lens = replace(MICRO_CAMERA, focal_ratio=1.0)
    warped_noise(path("pan_left"), SHAPE, camera=lens, seed=0, sample_ids=ids, flow_scale=8, degradation=0.35)
    assert len(made) == 4
    warp("pan_left", ids, flow_scale=4, dither=True)
    assert len(made) == 5
    assert made[0] == (8, 2, 64, 64)
    # The oldest plans leave when the budget is used up.
    monkeypatch.setattr(module, "_CACHED_PIXELS", 2 * 8 * 64 * 64)
    warp("move_left", ids)
    warp("pan_left", ids)
    assert len(made) == 7 and len(module._plans) == 2


def test_prompts_of_one_path_share_its_plan_even_if_one_alone_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(noise=NoiseConfig(degradation=0.35), rollout=RolloutConfig(share_initial_noise=False))
    batch = make_batch("pan_left", "push_in", "pan_left", "push_in", "pan_left", group_size=2)
    expected = initial_noise(batch, SHAPE, config=config)
    made = []
    monkeypatch.setattr(module, "plan_transport", lambda *a, **k: made.append(1) or plan_transport(*a, **k))
    monkeypatch.setattr(module, "_plans", module.OrderedDict())
    monkeypatch.setattr(module, "_CACHED_PIXELS", 8 * 64 * 64)
    assert torch.equal(initial_noise(batch, SHAPE, config=config), expected) and len(made) == 2
    for p in range(5):  # each prompt's samples stay in their place
        alone = warp(batch.prompts[p], batch.sample_ids[2 * p : 2 * p + 2], seed=config.seed)
        assert torch.equal(expected[2 * p : 2 * p + 2], alone)


def test_threads_draw_the_same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = {"seed": 3, "sample_ids": torch.arange(5), "purpose": module._FINE, "device": torch.device("cpu")}
    expected = module._normal((4, 256, 256), **draw)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(module._normal((4, 256, 256), **draw), expected)


_MEMORY = """
import torch
from pathlib import Path
from typing import Any
from worldr1.camera import noise
from worldr1.config import CameraConfig
from worldr1.datatypes import MotionToken
from worldr1.camera.trajectory import build_trajectory
def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))
viewmats = build_trajectory([MotionToken("push_in")], 81, CameraConfig())
noise._plan(viewmats, CameraConfig(), 8, 8, 4, False)
Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
before = status("VmRSS")
plan = noise._plan(viewmats, CameraConfig(), 480, 832, 4, False)
print(status("VmHWM") - before, sum(t.nbytes for t in plan.tensors()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_flow_of_a_whole_clip_is_never_in_memory() -> None:
    """Beside the plan there are some hundred bytes a pixel, of whatever length the clip: its flow would take 1280."""
    root = Path(__file__).resolve().parents[3]
    result = subprocess.run([sys.executable, "-c", _MEMORY], cwd=root, capture_output=True, text=True, check=True)
    grown, plan = map(int, result.stdout.split())
    assert plan < grown < plan + 300 * 480 * 832


@pytest.mark.gpu
def test_a_sample_is_the_same_on_every_device() -> None:
    ids = torch.arange(5, 8)
    for degradation in (0.35, 1.0):
        arguments = {"camera": MICRO_CAMERA, "seed": 2, "sample_ids": ids, "flow_scale": 8, "degradation": degradation}
        here = warped_noise(path("orbit_left"), SHAPE, **arguments)
        there = warped_noise(path("orbit_left").cuda(), SHAPE, **arguments)
        assert there.is_cuda and (there.cpu() - here).abs().max() < 1e-5


def test_the_release_lens_gives_the_release_flow() -> None:
    """The intrinsics scale with the transport grid: the motion in latents does not depend on flow_scale."""
    camera = CameraConfig(ease=0.0)
    viewmats = build_trajectory([MotionToken("move_left")], 9, camera)
    shifts = []
    for scale in (8, 16):
        flow = camera_flow(viewmats, intrinsics(8 * scale, 8 * scale, camera), depth=1000.0, height=8, width=8)
        shifts.append(float(flow[:, 0].sum(0).mean()) / scale)
    assert shifts[0] == pytest.approx(1.2 * 8 * 0.22, rel=1e-9) and shifts[1] == pytest.approx(shifts[0], rel=1e-9)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"latent_shape": (4, 4, 8, 8)}, "frames"),
        ({"latent_shape": (4, 1, 8, 8)}, "frames"),
        ({"flow_scale": 0}, "flow_scale"),
        ({"degradation": 1.5}, "degradation"),
        ({"degradation": math.nan}, "degradation"),
        ({"seed": -1}, "seed"),
        ({"sample_ids": torch.tensor([-1])}, "sample_ids"),
        ({"viewmats": torch.full((9, 4, 4), math.nan)}, "viewmats must be finite"),
        ({"viewmats": torch.eye(4).expand(9, 4, 4)[:, :3]}, "viewmats must have shape"),
    ],
)
def test_bad_input_is_named(change: dict, match: str) -> None:
    arguments = {"latent_shape": SHAPE, "seed": 0, "sample_ids": torch.arange(1), "flow_scale": 8, "degradation": 0.3}
    arguments |= change
    shape, viewmats = arguments.pop("latent_shape"), arguments.pop("viewmats", path("pan_left"))
    with pytest.raises(ValueError, match=f"(warped_noise|camera_flow): .*{match}"):
        warped_noise(viewmats, shape, camera=MICRO_CAMERA, **arguments)


def test_no_channels_or_no_samples_give_an_empty_result() -> None:
    assert warp("pan_left", torch.arange(2), shape=(0, 3, 8, 8)).shape == (2, 0, 3, 8, 8)
    assert warp("pan_left", torch.arange(0)).shape == (0, *SHAPE)


@pytest.mark.parametrize("shared", [False, True])
def test_a_prompt_that_asks_for_no_camera_starts_from_plain_noise(shared: bool) -> None:
    """Bit by bit that of mode "plain"; the others do not notice."""
    config = TrainConfig(rollout=RolloutConfig(share_initial_noise=shared))
    batch = make_batch("pan_left", "fixed", "fixed")
    moved = initial_noise(batch, SHAPE, config=config)
    plain = initial_noise(batch, SHAPE, config=replace(config, noise=replace(config.noise, mode="plain")))
    mixed = initial_noise(replace(batch, asked=torch.tensor([True, False, True])), SHAPE, config=config)
    asked = torch.tensor([True, False, True]).repeat_interleave(batch.group_size)
    assert torch.equal(mixed[asked], moved[asked]) and torch.equal(mixed[~asked], plain[~asked])
    assert not torch.equal(moved[~asked], plain[~asked])
    assert torch.equal(
        initial_noise(replace(batch, asked=torch.ones(3, dtype=torch.bool)), SHAPE, config=config), moved
    )
