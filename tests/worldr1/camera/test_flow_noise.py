"""From motion words to noise: every frame is N(0, 1) and white, and moves along the flow that was asked for."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from worldr1.camera.flow import camera_flow
from worldr1.camera.noise import warped_noise
from worldr1.camera.trajectory import MOTIONS, build_trajectory, intrinsics
from worldr1.config import CameraConfig
from worldr1.datatypes import MotionToken

CAMERA = CameraConfig()
MOVING = sorted(set(MOTIONS) - {"fixed"})


def made(
    kind: str,
    shape: tuple[int, int, int, int],
    *,
    samples: int,
    flow_scale: int,
    degradation: float,
    magnitude: float = 1.0,
    dither: bool = False,
) -> Tensor:
    """[samples, C, f, h, w] for 4 (f - 1) + 1 frames of the default camera."""
    viewmats = build_trajectory([MotionToken(kind, magnitude)], 4 * (shape[1] - 1) + 1, CAMERA)
    return warped_noise(
        viewmats, shape, camera=CAMERA, seed=11, sample_ids=torch.arange(samples), flow_scale=flow_scale,
        degradation=degradation, dither=dither,
    )  # fmt: skip


def z_scores(x: Tensor) -> dict[str, Tensor]:
    """[B, C, f, h, w] -> of each frame: mean, variance and neighbour products in units of their standard error [f]."""
    x = x.double()
    frames = x.movedim(2, 0).flatten(1)
    n = frames.shape[1]
    scores = {
        "mean": frames.mean(1) * math.sqrt(n),
        "variance": (frames.var(1) - 1) * math.sqrt(n / 2),
        "kurtosis": ((frames**4).mean(1) - 3) * math.sqrt(n / 96),
    }
    pairs = {
        "right": (x[..., 1:], x[..., :-1]),
        "below": (x[..., 1:, :], x[..., :-1, :]),
        "diagonal": (x[..., 1:, 1:], x[..., :-1, :-1]),
        "channel": (x[:, 1:], x[:, :-1]),
    }
    for name, (a, b) in pairs.items():
        product = (a * b).movedim(2, 0).flatten(1)
        scores[name] = product.mean(1) * math.sqrt(product.shape[1])
    return scores


def carried(
    kind: str, latent_frames: int, height: int, width: int, sign: float, *, span: int = 1
) -> tuple[Tensor, Tensor]:
    """Where the pixels of each latent frame but the last `span` are after `span` more by the flow asked for (sign 1) or
    its opposite (-1).

    Returns:
      (positions [f-span, h, w, 2] in [-1, 1] for grid_sample, distance [f-span, h, w] in latent pixels).
    """
    viewmats = build_trajectory([MotionToken(kind)], 4 * (latent_frames - 1) + 1, CAMERA)
    starts = latent_frames - span
    flow = camera_flow(viewmats, intrinsics(height, width, CAMERA), depth=CAMERA.depth, height=height, width=width)
    size = torch.tensor([width, height], dtype=torch.float64)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    start = torch.stack([x, y], dim=-1).double().expand(starts, -1, -1, -1)
    position = start.clone()
    for step in range(4 * span):
        field = sign * flow[step::4][:starts]  # [f-span, 2, h, w]
        here = torch.nn.functional.grid_sample(
            field, 2 * position / size - 1, padding_mode="border", align_corners=False
        )
        position += here.movedim(1, -1)
    return 2 * position / size - 1, (position - start).norm(dim=-1)


def correlation_along(x: Tensor, kind: str, sign: float, min_distance: float, span: int = 1) -> float:
    """Correlation of pixels with where they go in `span` latent frames, over pixels that go at least min_distance."""
    _, _, frames, height, width = x.shape
    position, distance = carried(kind, frames, height, width, sign, span=span)
    old = x[:, :, :-span].transpose(1, 2).flatten(0, 1).double()  # [B (f-span), C, h, w]
    new = x[:, :, span:].transpose(1, 2).flatten(0, 1).double()
    seen = torch.nn.functional.grid_sample(new, position.repeat(len(x), 1, 1, 1), align_corners=False)
    inside = (position.abs() < 1 - 1 / min(height, width)).all(-1) & (distance >= min_distance)  # [f-1, h, w]
    keep = inside.repeat(len(x), 1, 1)[:, None].expand_as(old)
    a, b = old[keep], seen[keep]
    return float((a * b).mean() / (a.square().mean() * b.square().mean()).sqrt())


@pytest.mark.parametrize("kind", MOVING)
def test_the_noise_follows_the_flow_and_not_its_opposite(kind: str) -> None:
    x = made(kind, (4, 6, 30, 52), samples=1, flow_scale=4, degradation=0.0)
    along, against = (correlation_along(x, kind, sign, min_distance=1.0) for sign in (1.0, -1.0))
    assert along > 0.5 and abs(against) < 0.1
    for name, score in z_scores(x).items():
        assert score.abs().max() < 4.5, name


@pytest.mark.parametrize("kind", ["push_in", "pull_out", "pan_left", "orbit_left"])
def test_dither_keeps_the_noise_on_its_path_for_a_whole_clip(kind: str) -> None:
    """81 frames, of which rounding to the nearest pixel makes something slower or faster: frame 80 against frame 0."""
    found = {}
    for dither in (False, True):
        x = made(kind, (24, 21, 15, 26), samples=2, flow_scale=8, degradation=0.0, dither=dither)
        found[dither] = correlation_along(x, kind, 1.0, min_distance=0.0, span=20)
        for name, score in z_scores(x).items():
            assert score.abs().max() < 4.8, name  # 21 frames of 8 statistics
    print(f"{kind}: nearest {found[False]:.2f}, dithered {found[True]:.2f}")
    assert found[True] > 0.35 and found[True] > found[False] + 0.15


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(MOTIONS))
def test_a_million_values_of_every_frame_are_white(kind: str) -> None:
    """81 frames at Wan's latent size; `-s` prints the row of docs/camera.md."""
    # A roll of magnitude 1 is so slow that it rounds to nothing on the grid that is fine enough for the others.
    magnitude = 4.0 if kind.startswith("roll") else 1.0
    x = made(kind, (16, 21, 60, 104), samples=11, flow_scale=2, degradation=0.35, magnitude=magnitude)
    kept = float((x[:, :, 0] * x[:, :, 20]).mean()) / (0.65**2 / (0.65**2 + 0.35**2))
    assert abs(kept - 1) < 0.01 if kind == "fixed" else kept < 0.7
    frames = x.movedim(2, 0).flatten(1)
    assert frames.shape == (21, 11 * 16 * 60 * 104) and frames.shape[1] > 10**6
    scores = z_scores(x)
    assert (frames.double().var(1) - 1).abs().max() < 0.01
    for name, score in scores.items():
        # 21 frames that repeat one another: the largest of them, and their root mean square.
        assert score.abs().max() < 4.5 and score.square().mean().sqrt() < 3.0, name
    p_values = [kstest(frames[k].numpy(), "norm").pvalue for k in (0, 10, 20)]
    assert min(p_values) > 1e-3
    row = [f"{float((frames.double().var(1) - 1).abs().max()):.2%}"]
    row += [f"{float(scores[name].abs().max()):.1f}" for name in ("mean", "right", "below", "diagonal")]
    print("|", " | ".join([kind, *row, f"{min(p_values):.2f}"]), "|")
