"""What the judges learn from: rendered clips on requested and on other camera paths, and videos made worse."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldr1.camera.trajectory import build_trajectory
from worldr1.config import MICRO_CAMERA
from worldr1.datatypes import MotionToken
from worldr1.microworld.captions import COLOURS, EVENTS, FLOORS, MOTIONS, NUM_CONTENTS, SHAPES, make_caption
from worldr1.microworld.scene import HELD_OUT_SEEDS, NUM_FRAMES, render_clips
from worldr1.rewards.judges.micro_geo import poses_to_viewmats

# A motion is tabulated at _POINTS places per unit of magnitude, up to _LONGEST times the requested extent.
_POINTS, _LONGEST = 100, 1.3
_SIDES = {"left": "right", "right": "left"}
_MIRROR = torch.tensor([MOTIONS.index("_".join(_SIDES.get(word, word) for word in m.split("_"))) for m in MOTIONS])
"""Index of a motion -> index of the motion in the mirror."""


@dataclass(frozen=True)
class JudgeClips:
    """A batch of clips for training, or a pool of them kept compactly.

    Fields: video [N, F, 3, H, W], float32 in [0, 1] (uint8 in a pool); depth [N, F, H, W], float32 (float16 in a
    pool); viewmats [N, F, 4, 4] float32; motion [N] int64, index in MOTIONS, -1 where the path is none of them;
    content [N] int64.
    """

    video: Tensor
    depth: Tensor
    viewmats: Tensor
    motion: Tensor
    content: Tensor

    def __len__(self) -> int:
        return self.video.shape[0]

    def batch(self, index: Tensor) -> JudgeClips:
        """The clips at `index` in float32."""
        return JudgeClips(
            video=self.video[index].float() / 255.0 if self.video.dtype == torch.uint8 else self.video[index],
            depth=self.depth[index].float(),
            viewmats=self.viewmats[index],
            motion=self.motion[index],
            content=self.content[index],
        )


def render_pool(num: int, *, seed: int, first_scene: int, dynamic: float = 0.12, exact: float = 0.5) -> JudgeClips:
    """Render clips of random captions, on the path that the caption asks for or on another one.

    Args:
      num: N.
      seed: Draws captions and paths.
      first_scene: Scene seeds are first_scene .. first_scene + N - 1.
      dynamic: Share of clips with an event in them.
      exact: Share of clips on exactly the requested path. The others go a part of it or further, at uneven speed,
        stop on the way, mix two motions, or shake: what a policy makes before it obeys.
    Returns:
      JudgeClips with uint8 video and float16 depth.
    """
    rng = np.random.default_rng([0x4A554447, seed])
    captions, paths, motions = [], [], []
    for _ in range(num):
        motion = MOTIONS[rng.integers(len(MOTIONS))]
        event = EVENTS[rng.integers(len(EVENTS))] if rng.random() < dynamic else None
        captions.append(make_caption(motion, int(rng.integers(NUM_CONTENTS)), dynamic=event))
        is_exact = rng.random() < exact
        paths.append(_along(motion, np.linspace(0.0, 1.0, NUM_FRAMES)) if is_exact else _other_path(motion, rng))
        motions.append(MOTIONS.index(motion) if is_exact else -1)
    clips = render_clips(captions, range(first_scene, first_scene + num), paths=torch.stack(paths))
    return JudgeClips(
        video=(clips.video * 255.0).round().to(torch.uint8),
        depth=clips.depth.half(),
        viewmats=clips.viewmats,
        motion=torch.tensor(motions),
        content=clips.content,
    )


@lru_cache(maxsize=2)
def held_out(num: int = 288, *, seed: int = 0) -> JudgeClips:
    """Static clips of held-out scenes on the requested paths, in float32. Remembered: not to be written to."""
    pool = render_pool(num, seed=1000 + seed, first_scene=HELD_OUT_SEEDS[0], dynamic=0.0, exact=1.0)
    return pool.batch(torch.arange(num))


def held_out_frames(num: int = 288, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """One frame [num, 3, H, W] of each held-out clip, at all places in time, and the contents [num]."""
    clips = held_out(num, seed=seed)
    return clips.video[torch.arange(num), torch.arange(num) % clips.video.shape[1]], clips.content


def content_labels(content: Tensor) -> dict[str, Tensor]:
    """Content index [N] -> the class of each content head of MicroEvaluator, [N] int64."""
    floor = content % len(FLOORS)
    shape = content // len(FLOORS) % len(SHAPES)
    colour = content // (len(FLOORS) * len(SHAPES)) % len(COLOURS)
    return {"colour": colour, "shape": shape, "floor": floor}


@torch.no_grad()
def decode_truth(vae: Any, video: Tensor) -> Tensor:
    """What the autoencoder makes of videos [N, F, 3, H, W] in [0, 1]: encoded to the mean and decoded."""
    out = []
    for part in video.split(16):
        pixels = part.transpose(1, 2) * 2.0 - 1.0  # [n, 3, F, H, W]
        latents = vae.encode(pixels).latent_dist.mode()
        out.append((vae.decode(latents).sample.transpose(1, 2) * 0.5 + 0.5).clamp(0.0, 1.0))
    return torch.cat(out)


def through_vae(pool: JudgeClips, vae: Any, num: int) -> JudgeClips:
    """The pool with its first `num` videos as the autoencoder gives them back: what a perfect base model would make."""
    video = pool.video.clone()
    for rows in torch.arange(min(num, len(pool))).split(96):
        video[rows] = (decode_truth(vae, video[rows].float() / 255.0) * 255.0).round().to(torch.uint8)
    return replace(pool, video=video)


def mirror(clips: JudgeClips) -> JudgeClips:
    """The clips seen in a mirror: x -> -x in image and world, left motions become right ones."""
    flip = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0]))
    return JudgeClips(
        video=clips.video.flip(-1),
        depth=clips.depth.flip(-1),
        viewmats=flip @ clips.viewmats @ flip,
        motion=torch.where(clips.motion < 0, clips.motion, _MIRROR[clips.motion]),
        content=clips.content,
    )


def wear(video: Tensor, generator: torch.Generator, *, strength: float = 1.0, share: float = 0.8) -> Tensor:
    """Random blur in space and time, noise, and shifts of contrast, brightness and colour: what a lossy decoder does.

    Args:
      video: Shape [N, F, 3, H, W] in [0, 1].
      generator: Draws everything.
      strength: Size of the largest change.
      share: Share of the clips that are touched; the others pass unchanged.
    Returns:
      Of the same shape, in [0, 1].
    """
    num, frames = video.shape[:2]

    def draw(*shape: int) -> Tensor:
        return torch.rand(num, *shape, generator=generator)

    x = video
    soft = blur(x, 1.0)
    x = torch.lerp(x, soft, strength * draw(1, 1, 1, 1).square().mul(1.3).clamp(0, 1))
    slow = (torch.cat([x[:, :1], x[:, :-1]], 1) + x + torch.cat([x[:, 1:], x[:, -1:]], 1)) / 3.0
    x = torch.lerp(x, slow, 0.6 * strength * draw(1, 1, 1, 1).square())
    mean = x.mean((1, 3, 4), keepdim=True)
    x = mean + (x - mean) * (1.0 + 0.25 * strength * (draw(1, 1, 1, 1) - 0.7))
    x = x + 0.12 * strength * (draw(1, 1, 1, 1) - 0.5) + 0.08 * strength * (draw(1, 3, 1, 1) - 0.5)
    white = torch.randn(video.shape, generator=generator)
    coarse = torch.randn(num * frames, 3, 8, 8, generator=generator)
    coarse = torch.nn.functional.interpolate(coarse, size=video.shape[-2:], mode="bilinear").view_as(video)
    x = x + 0.04 * strength * (draw(1, 1, 1, 1).square() * white + draw(1, 1, 1, 1).square() * coarse)
    touched = draw(1, 1, 1, 1) < share
    return torch.where(touched, x, video).clamp(0.0, 1.0)


def blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of [..., H, W] with weights renormalised at the edges; sigma in pixels, > 0."""
    # As two matrix products: at 32 pixels 40 times as fast as a one-channel convolution.
    return _blur_matrix(images.shape[-2], sigma) @ images @ _blur_matrix(images.shape[-1], sigma).T


def _blur_matrix(size: int, sigma: float) -> Tensor:
    place = torch.arange(size, dtype=torch.float32)
    weight = torch.exp(-0.5 * ((place[:, None] - place) / sigma).square())
    return weight / weight.sum(1, keepdim=True)


@lru_cache(maxsize=32)
def _table(motion: str) -> Tensor:
    """Camera-to-world at the tabulated places of a motion, [_POINTS * _LONGEST + 1, 4, 4] float64."""
    viewmats = build_trajectory([MotionToken(motion, _LONGEST)], int(_POINTS * _LONGEST) + 1, MICRO_CAMERA)
    return torch.linalg.inv(viewmats)


def _along(motion: str, progress: np.ndarray) -> Tensor:
    """viewmats [F, 4, 4] float32 at `progress` [F] along a motion; 1 is the end that a caption asks for."""
    index = np.clip(np.round(progress * _POINTS), 0, int(_POINTS * _LONGEST)).astype(np.int64)
    return torch.linalg.inv(_table(motion)[torch.from_numpy(index)]).float()


def _other_path(motion: str, rng: np.random.Generator) -> Tensor:
    """A path that is not quite the requested one, viewmats [F, 4, 4] float32, identity at frame 0."""
    time = np.linspace(0.0, 1.0, NUM_FRAMES)
    speed = rng.uniform(0.0, 1.0, size=NUM_FRAMES - 1) ** rng.uniform(0.0, 1.5)
    uneven = np.concatenate([[0.0], np.cumsum(speed) / max(speed.sum(), 1e-6)])
    progress = (uneven if rng.random() < 0.5 else time) * rng.uniform(0.0, _LONGEST)
    if rng.random() < 0.25:
        progress = np.minimum(progress, progress[-1] * rng.uniform(0.2, 0.9))  # stops on the way
    to_world = torch.linalg.inv(_along(motion, progress).double())
    if rng.random() < 0.3:  # a second motion on top
        other = MOTIONS[rng.integers(len(MOTIONS))]
        to_world = to_world @ torch.linalg.inv(_along(other, time * rng.uniform(0.0, 0.6)).double())
    if rng.random() < 0.3:  # an unsteady hand; frame 0 stays where it is
        shake = torch.from_numpy(rng.normal(size=(1, NUM_FRAMES, 6)) * np.repeat([0.012, 0.05], 3)).float()
        to_world = to_world @ torch.linalg.inv(poses_to_viewmats(shake[:, 1:]))[0].double()
    return torch.linalg.inv(to_world).float()
