"""S_meta: the critic's opinion of the scene from a camera that the video never had."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from worldr1.rewards.base import Critic

# The novel camera. Ours: the article gives no numbers.
PULL_BACK = 0.2  # how far behind the bounding sphere of the path, in median depths
AZIMUTH_DEG = (15.0, 35.0)  # to the left or the right of the path, seen from the point looked at
ELEVATION_DEG = (0.0, 12.0)  # above it

MIN_DIGIT_MASS = 0.5
"""A critic that puts less of its probability than this on the ten digits has not answered the question."""

_SALT = 0x4D455441  # keeps these draws apart from every other draw keyed by (seed, sample id)


def draw_offset(seed: int, key: int) -> tuple[float, float]:
    """The azimuth and elevation, in radians, of the novel camera of one group; the same for (seed, key) everywhere."""
    rng = np.random.default_rng([_SALT, seed, key])
    azimuth = math.radians(rng.uniform(*AZIMUTH_DEG)) * (1.0 if rng.random() < 0.5 else -1.0)
    return azimuth, math.radians(rng.uniform(*ELEVATION_DEG))


def meta_camera(viewmats: Tensor, *, median_depth: Tensor, azimuth: Tensor, elevation: Tensor) -> Tensor:
    """A camera pulled back and aside from a path, which looks at the scene's median-depth point.

        target = point at the median depth on the optical axis of the middle frame
        eye    = c + (r + .2 depth) u,   c, r the bounding sphere of the path's centres,
                 u the direction from target to c, turned by azimuth about the vertical and then raised by elevation

    Args:
      viewmats: Recovered path, world-to-camera, shape [N, F, 4, 4].
      median_depth: Shape [N], scene units, > 0.
      azimuth: Shape [N], radians, positive to the right of the path.
      elevation: Shape [N], radians, positive upwards.
    Returns:
      viewmats of the novel cameras, world-to-camera, shape [N, 4, 4], in the frame of `viewmats`; no roll against the
      vertical of the middle frame.
    """
    to_world = torch.linalg.inv(viewmats)  # [N, F, 4, 4]
    centres = to_world[:, :, :3, 3]  # [N, F, 3]
    c = 0.5 * (centres.amin(dim=1) + centres.amax(dim=1))  # [N, 3]
    r = (centres - c[:, None]).norm(dim=-1).amax(dim=1)  # [N]
    middle = to_world[:, viewmats.shape[1] // 2]  # [N, 4, 4]
    down, forward = middle[:, :3, 1], middle[:, :3, 2]  # [N, 3] each
    depth = median_depth[:, None]
    target = middle[:, :3, 3] + depth * forward
    back = torch.nn.functional.normalize(c - target, dim=-1)
    # A path that runs past the target would leave no direction: fall back on the optical axis.
    back = torch.where((c - target).norm(dim=-1, keepdim=True) > 1e-3 * depth, back, -forward)
    side = torch.nn.functional.normalize(torch.linalg.cross(down, -back), dim=-1)  # to the right of the view
    cos, sin = torch.cos(azimuth)[:, None], torch.sin(azimuth)[:, None]
    u = cos * back + sin * side
    u = torch.cos(elevation)[:, None] * u - torch.sin(elevation)[:, None] * down
    u = torch.nn.functional.normalize(u, dim=-1)
    eye = c + (r[:, None] + PULL_BACK * depth) * u
    return _look_at(eye, target, down=down)


def meta_view_term(images: Tensor, prompts: list[str], critic: Critic) -> Tensor:
    """S_meta = (sum_d d p_d / sum_d p_d) / 9 over the digits d = 0 ... 9.

    Args:
      images: Renders from the novel cameras, shape [N, 3, H, W] in [0, 1].
      prompts: N prompts.
      critic: Gives the digit probabilities.
    Returns:
      [N] in [0, 1]; NaN where the digits carry less than MIN_DIGIT_MASS of the probability.
    """
    probs = critic.digit_probs(images, prompts).float()  # [N, 10]
    mass = probs.sum(dim=1)
    digits = torch.arange(10, device=probs.device, dtype=probs.dtype)
    score = (probs * digits).sum(dim=1) / mass.clamp_min(1e-12) / 9.0
    return torch.where(mass >= MIN_DIGIT_MASS, score, torch.full_like(score, torch.nan))


def _look_at(eye: Tensor, target: Tensor, *, down: Tensor) -> Tensor:
    """World-to-camera [N, 4, 4] of a camera at `eye` that looks at `target`, image y along `down` as far as it can."""
    z = torch.nn.functional.normalize(target - eye, dim=-1)
    x = torch.nn.functional.normalize(torch.linalg.cross(down, z), dim=-1)
    y = torch.linalg.cross(z, x)
    rotation = torch.stack([x, y, z], dim=1)  # rows are the camera's axes: world to camera
    viewmat = torch.eye(4, dtype=eye.dtype, device=eye.device).repeat(eye.shape[0], 1, 1)
    viewmat[:, :3, :3] = rotation
    viewmat[:, :3, 3] = -(rotation @ eye[:, :, None])[:, :, 0]
    return viewmat
