"""Dense depth at known cameras: a plane sweep over inverse depths, drawn towards the tracked points."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from worldr1.evaluation.classical.bundle import Scene, anchor_rays, directions
from worldr1.evaluation.classical.tracks import Tracks

_WIDEST = 160
"""Pixels across at which depths are searched; wider frames are reduced for it."""
_PLANES, _SOURCES, _WINDOW = 64, 4, 5
_PRIOR = 0.02
"""Weight of the distance to the tracked points' depth (in planes / 8) against a colour difference in [0, 1]."""


def sweep(video: Tensor, scene: Scene, tracks: Tracks, K: np.ndarray) -> tuple[Tensor, Tensor]:
    """z-depth and confidence of every frame.

    Each pixel takes the inverse depth at which a window around it looks most alike in other frames (Collins 1996): the
    nearest in time whose camera is elsewhere. Where nothing is told apart, it is that of the tracked points around it.

    Args:
      video: Shape [F, 3, H, W] in [0, 1].
      scene, tracks: Of the clip, with a path.
      K: Intrinsics [3, 3], pixels.
    Returns:
      (depth [F, H, W] > 0, confidence [F, H, W] > 0), float32; a confidence is the cost of the other depths over that
      of the chosen one.
    """
    frames, _, height, width = video.shape
    factor = max(1, -(-width // _WIDEST))
    small = F.avg_pool2d(video, factor) if factor > 1 else video
    h, w = small.shape[-2:]
    lens = K.copy()
    lens[0] *= w / width
    lens[1] *= h / height
    rays = anchor_rays(tracks, K)
    depth, confidence = [], []
    for f in range(frames):
        q = directions(scene, rays, tracks.anchor, f)  # of every point; 1 / z-depth is rho / q_z
        inverse = np.where(q[:, 2] > 1e-6, scene.inverse_depth / np.maximum(q[:, 2], 1e-6), 0.0)
        good = tracks.seen[:, f] & (inverse > 1e-4)
        known = inverse[good] if good.any() else np.ones(1)
        low, high = 0.5 * np.quantile(known, 0.02), 1.6 * np.quantile(known, 0.98)
        planes = torch.linspace(float(low), float(high), _PLANES)
        prior = _spread(tracks.at[good, f] / factor, known, h, w) if good.any() else torch.full((h, w), float(known[0]))
        cost = _matching_cost(small, scene, lens, f, planes)  # [P, h, w]
        away = (planes[:, None, None] - prior).abs() / (planes[1] - planes[0]) / (_PLANES / 8)
        total = cost + _PRIOR * away
        best, second = _sharpest(total, planes)
        depth.append(1.0 / best.clamp_min(1e-6))
        confidence.append(second)
    out = torch.stack(depth)[:, None]
    sure = torch.stack(confidence)[:, None]
    if factor > 1:
        out, sure = (F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False) for x in (out, sure))
    return out[:, 0].float(), sure[:, 0].float()


def _matching_cost(video: Tensor, scene: Scene, K: np.ndarray, frame: int, planes: Tensor) -> Tensor:
    """Mean absolute colour difference of windows against the better half of the source frames, [P, h, w]."""
    frames, _, h, w = video.shape
    sources = _sources(scene, frame, frames)
    v, u = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    pixel = torch.stack([u, v, torch.ones_like(u)]).flatten(1).double()
    ray = torch.from_numpy(np.linalg.inv(K)) @ pixel  # [3, hw]
    costs = []
    for s in sources:
        turn = scene.rotation[s] @ scene.rotation[frame].T
        move = scene.translation[s] - turn @ scene.translation[frame]
        there = (torch.from_numpy(K @ turn) @ ray).float()  # [3, hw]
        shift = torch.from_numpy(K @ move).float()
        place = there[None] + planes[:, None, None] * shift[None, :, None]  # [P, 3, hw]
        z = place[:, 2].clamp_min(1e-6)
        xy = torch.stack([place[:, 0] / z * 2 / w - 1, place[:, 1] / z * 2 / h - 1], dim=-1).view(-1, h, w, 2)
        seen = F.grid_sample(
            video[s][None].expand(len(planes), -1, -1, -1), xy, padding_mode="border", align_corners=False
        )
        difference = (seen - video[frame]).abs().mean(1)  # [P, h, w]
        outside = (xy.abs() > 1.0).any(-1) | (place[:, 2].view(-1, h, w) < 1e-6)
        costs.append(difference.masked_fill(outside, 0.25))
    stacked = torch.stack(costs)
    keep = max(1, (len(sources) + 1) // 2)
    best = stacked.topk(keep, dim=0, largest=False).values.mean(0)  # what is hidden in one frame is seen in another
    return F.avg_pool2d(best[None], _WINDOW, stride=1, padding=_WINDOW // 2, count_include_pad=False)[0]


def _sources(scene: Scene, frame: int, frames: int) -> list[int]:
    """The frames to compare with: on either side, at cameras apart by about a twentieth of the depth or more."""
    centre = -np.einsum("fji,fj->fi", scene.rotation, scene.translation)
    apart = np.linalg.norm(centre - centre[frame], axis=1)
    order = sorted((f for f in range(frames) if f != frame), key=lambda f: abs(f - frame))
    wide = [f for f in order if apart[f] > 0.05]
    return (wide or sorted(order, key=lambda f: -apart[f]))[:_SOURCES]


def _sharpest(total: Tensor, planes: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse depth of least cost, between planes by a parabola, and the mean cost over the least: [h, w] each."""
    least, index = total.min(0)
    inner = index.clamp(1, len(planes) - 2)
    a, b, c = (total.gather(0, (inner + d)[None])[0] for d in (-1, 0, 1))
    bend = a - 2 * b + c
    offset = torch.where(bend > 1e-9, 0.5 * (a - c) / bend.clamp_min(1e-9), 0.0).clamp(-1, 1)
    offset = torch.where(index == inner, offset, 0.0)
    value = planes[index] + offset * (planes[1] - planes[0])
    value = _median(value)
    return value.clamp_min(1e-6), (total.mean(0) / (least + 1e-3)).clamp(0.1, 1e3)


def _median(x: Tensor) -> Tensor:
    """Median of 3 x 3 windows of [h, w]."""
    around = F.unfold(F.pad(x[None, None], (1, 1, 1, 1), mode="replicate"), 3)[0]
    return around.median(0).values.view_as(x)


def _spread(points: np.ndarray, values: np.ndarray, h: int, w: int) -> Tensor:
    """Values at scattered points [n, 2], pixels, over the whole frame: means weighted by distance, [h, w]."""
    rows, columns = max(2, h // 3), max(2, w // 3)  # it is smooth
    v, u = torch.meshgrid(
        (torch.arange(rows) + 0.5) * h / rows, (torch.arange(columns) + 0.5) * w / columns, indexing="ij"
    )
    place = torch.stack([u, v], -1).view(-1, 2)
    distance = torch.cdist(place, torch.from_numpy(points).float())
    weight = 1.0 / (distance / (0.03 * w)).square().add(0.05).square()
    coarse = (weight @ torch.from_numpy(values).float() / weight.sum(1)).view(1, 1, rows, columns)
    return F.interpolate(coarse, size=(h, w), mode="bilinear", align_corners=False)[0, 0]
