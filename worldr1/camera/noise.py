"""Initial latents: Gaussian noise carried along the camera's optical flow, keyed by sample."""

from __future__ import annotations

import math
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from worldr1.camera.flow import CameraFlow
from worldr1.camera.trajectory import intrinsics
from worldr1.config import CameraConfig, TrainConfig
from worldr1.datatypes import PromptBatch
from worldr1_kernels.noise_transport import TransportPlan, noise_transport, plan_transport
from worldr1_kernels.philox import check_sample_ids, check_seed, philox4x32

_STREAM_NOISE = 17 << 16
"""Counter words of the draws of this module (+ the purpose below), apart from the streams of the kernels."""
_FINE, _FRESH = 0, 1
_CACHED_PIXELS = 512 * 2**20
"""Plans are kept up to this many flow pixels in all: thousands at the micro world's size, four at Wan's (4 to 6 bytes a
flow pixel where every fourth frame is kept)."""

_plans: OrderedDict[tuple[Any, ...], TransportPlan] = OrderedDict()


def initial_noise(batch: PromptBatch, latent_shape: tuple[int, int, int, int], *, config: TrainConfig) -> Tensor:
    """The latent at sigma = 1 of every sample of a batch.

    A sample's noise is a function of (config.seed, its sample id, its trajectory) alone: the split over ranks and
    micro-batches does not change it. With `rollout.share_initial_noise` a group shares the draw of its first sample,
    on every rank that has a piece of it. A prompt that asks for no camera (`batch.asked`) gets what mode "plain" would
    give it: noise at rest asks for rest.

    Args:
      batch: Trajectories [P, F, 4, 4], sample ids [N], group ids [P]. The noise is moved on the device of the viewmats.
      latent_shape: (C, f, h, w).
      config: seed, noise, camera and rollout.
    Returns:
      [N, C, f, h, w], float32, N(0, 1) marginals, white.
    Raises:
      ValueError: as `warped_noise`.
    """
    shared = config.rollout.share_initial_noise
    per_draw, ids = (batch.group_size, batch.group_ids) if shared else (1, batch.sample_ids)
    if config.noise.mode == "plain":
        noise = _normal(latent_shape, seed=config.seed, sample_ids=ids, purpose=_FRESH, device=batch.viewmats.device)
        return noise.repeat_interleave(per_draw, dim=0)
    draws = ids.reshape(len(batch.prompts), -1)  # [P, 1 or group_size]
    asked = [True] * len(batch.prompts) if batch.asked is None else batch.asked.tolist()
    noise = torch.empty(*draws.shape, *latent_shape, device=batch.viewmats.device)
    # Prompts of one path after each other: few plans are kept at Wan's size, and making one takes seconds.
    paths = [v.numpy().tobytes() for v in batch.viewmats.detach().cpu()]
    for p in sorted(range(len(paths)), key=lambda p: paths[p]):
        if not asked[p]:
            noise[p] = _normal(latent_shape, seed=config.seed, sample_ids=draws[p], purpose=_FRESH, device=noise.device)
            continue
        noise[p] = warped_noise(
            batch.viewmats[p], latent_shape, camera=config.camera, seed=config.seed, sample_ids=draws[p],
            flow_scale=config.noise.flow_scale, degradation=config.noise.degradation,
            dither=config.noise.dither,
        )  # fmt: skip
    return noise.flatten(0, 1).repeat_interleave(per_draw, dim=0)


def warped_noise(
    viewmats: Tensor,
    latent_shape: tuple[int, int, int, int],
    *,
    camera: CameraConfig,
    seed: int,
    sample_ids: Tensor,
    flow_scale: int,
    degradation: float,
    dither: bool = False,
) -> Tensor:
    """Noise that moves with the camera: transported on a fine grid, reduced to the latent grid, mixed with fresh noise.

        z   = transport of N(0, 1) over latent x flow_scale, each flow_scale^2 block summed / flow_scale
        out = ((1 - degradation) z + degradation xi) / sqrt((1 - degradation)^2 + degradation^2)

    Every element is N(0, 1) and uncorrelated with the others of its frame; frames are correlated along the flow.

    Args:
      viewmats: World-to-camera, [F, 4, 4]; its device is where the noise is moved and returned. White noise is drawn
        on the CPU, so that a sample starts from the same bits everywhere.
      latent_shape: (C, f, h, w); F - 1 must be a multiple of f - 1 (4 for Wan): latent frame k is frame k (F-1)/(f-1).
      camera: Lens and the depth of the plane that stands for the scene.
      seed: In [0, 2^63).
      sample_ids: Integer [B] in [0, 2^32); one draw for each.
      flow_scale: Fineness of the transport grid, >= 1; at 1 motions of less than half a latent pixel a frame vanish.
      degradation: Share of fresh noise, in [0, 1].
      dither: Keep every speed in the mean, as in `plan_transport`; docs/camera.md has what it is worth.
    Returns:
      [B, C, f, h, w], float32.
    Raises:
      ValueError: shapes, frames or ranges other than the above; a camera step through the plane.
    """
    c, f, h, w = latent_shape
    frames = len(viewmats)
    if f < 2 or (frames - 1) % (f - 1):
        raise ValueError(
            f"warped_noise: the {frames} frames of viewmats must be k (f - 1) + 1 for the f = {f} >= 2 latent frames"
        )
    if flow_scale < 1:
        raise ValueError(f"warped_noise: flow_scale must be >= 1, got {flow_scale}")
    if not 0.0 <= degradation <= 1.0:
        raise ValueError(f"warped_noise: degradation must be in [0, 1], got {degradation}")
    device = viewmats.device
    fresh = _normal(latent_shape, seed=seed, sample_ids=sample_ids, purpose=_FRESH, device=device)
    if degradation == 1.0:
        return fresh
    height, width = h * flow_scale, w * flow_scale
    fine = _normal((c, height, width), seed=seed, sample_ids=sample_ids, purpose=_FINE, device=device)
    capture = (frames - 1) // (f - 1)
    moved = noise_transport(
        fine, _plan(viewmats, camera, height, width, capture, dither), seed=seed, sample_ids=sample_ids.to(device),
        capture=capture, reduce=flow_scale,
    )  # fmt: skip
    kept = 1.0 - degradation
    return (kept * moved + degradation * fresh) / math.hypot(kept, degradation)  # [B, C, f, h, w]


def _plan(viewmats: Tensor, camera: CameraConfig, height: int, width: int, capture: int, dither: bool) -> TransportPlan:
    """Transport plan of a trajectory: it depends on the flow alone, and a training set has few distinct ones."""
    lens = (camera.focal_ratio, camera.depth)
    path = viewmats.detach().cpu().double().numpy().tobytes()
    key = (path, str(viewmats.device), lens, height, width, capture, dither)
    if key in _plans:
        _plans.move_to_end(key)
        return _plans[key]
    # float64: in lower precision a few per cent of the pixels would round to another target. Its matrices from the CPU,
    # its fields on the device, where a plan takes milliseconds if the kernels are taken there.
    flow = CameraFlow(
        viewmats.detach().cpu(), intrinsics(height, width, camera), depth=camera.depth, height=height, width=width
    )
    plan = plan_transport(flow.to(viewmats.device), capture=capture, dither=dither).to(viewmats.device)
    pixels = (len(viewmats) - 1) * height * width
    if pixels <= _CACHED_PIXELS:
        _plans[key] = plan
        while sum((len(k[0]) // 128 - 1) * k[3] * k[4] for k in _plans) > _CACHED_PIXELS:
            _plans.popitem(last=False)
    return plan


def _normal(shape: tuple[int, ...], *, seed: int, sample_ids: Tensor, purpose: int, device: torch.device) -> Tensor:
    """N(0, 1) of [B, *shape], float32: one generator per sample, its seed the Philox image of (seed, id, purpose).

    Always a generator of the CPU: one of another device would draw other numbers.
    """
    check_seed("warped_noise", seed)
    ids = check_sample_ids("warped_noise", sample_ids, len(sample_ids), torch.device("cpu"))
    zero = torch.zeros((), dtype=torch.int64)
    words = philox4x32(ids, zero, zero, torch.tensor(_STREAM_NOISE + purpose), seed=seed)
    seeds = [(high << 32 | low) & (2**63 - 1) for low, high in zip(words[0].tolist(), words[1].tolist(), strict=True)]
    out = torch.empty(len(ids), *shape)

    def draw(row: Tensor, own: int) -> None:
        row.normal_(generator=torch.Generator().manual_seed(own))

    threads = min(torch.get_num_threads(), len(seeds))
    if threads > 1 and out.numel() > 1 << 20:  # a generator draws on one thread alone
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(draw, out, seeds))
    else:
        for row, own in zip(out, seeds, strict=True):
            draw(row, own)
    return out.to(device)
