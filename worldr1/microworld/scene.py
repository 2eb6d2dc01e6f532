"""Procedural 3D scenes with an exact renderer: image, z-depth, camera poses and intrinsics, on a CPU in
milliseconds a clip.

A scene is a round room: a floor (plane y = floor_height), a wall (vertical cylinder around the orbit centre) and
one object, a ball or a box standing on the floor. Every ray hits something at a finite depth, from every camera
the captions can ask for. Colours are anti-aliased over 2 x 2 rays a pixel; depth is that of the ray through the
pixel centre. The contrast of the floor fades with distance, so that no texture is finer than a pixel of the micro
world; larger frames of the same scenes are smooth, unless `detail` adds texture down to their own pixels.

The camera is at the origin of the world at frame 0, looks along +z, and moves as
`worldr1.camera.trajectory.build_trajectory` says for the
caption: what the trainer requests is what the world shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from worldr1.camera.motion import parse_motion
from worldr1.camera.trajectory import build_trajectory
from worldr1.config import MICRO_CAMERA
from worldr1.microworld.captions import EVENTS, Caption

HEIGHT, WIDTH, NUM_FRAMES = 32, 32, 9
# Seeds of the scenes: what is trained on, what fine-tuning is judged on, what only the final report sees.
TRAIN_SEEDS = range(0, 1_000_000)
HELD_OUT_SEEDS = range(1_000_000, 2_000_000)
EVALUATION_SEEDS = range(2_000_000, 3_000_000)

_WALL_RADIUS = 7.0
_SAMPLES = 2
_RAYS_PER_CALL = 16 * NUM_FRAMES * _SAMPLES**2 * HEIGHT * WIDTH
_WAVES = 8  # of the detail, in each octave of wavelength
_LONGEST_WAVE = 2.0  # scene units
_SHORTEST_WAVE = 4.0  # pixels at the depth of the object
_DETAIL_SALT = 0x4445544C  # keeps the draws of the detail apart from those of the scene

_OBJECT_RGB = {
    "red": (0.86, 0.16, 0.14),
    "green": (0.16, 0.68, 0.22),
    "blue": (0.16, 0.30, 0.88),
    "yellow": (0.94, 0.82, 0.14),
}
# Two tones of each floor.
_FLOOR_RGB = {
    "checkered": ((0.86, 0.86, 0.88), (0.34, 0.34, 0.38)),
    "wooden": ((0.72, 0.50, 0.30), (0.46, 0.27, 0.13)),
}
# The colour an object turns into under the event `changing`.
_CHANGE_TO = {"red": "blue", "green": "yellow", "blue": "red", "yellow": "green"}


@dataclass(frozen=True)
class Clips:
    """Rendered clips with their ground truth. OpenCV camera, scene units, pixels.

    Fields:
      video: Shape [N, F, 3, H, W], float32 in [0, 1].
      depth: z-depth at the pixel centre, shape [N, F, H, W], float32, > 0.
      viewmats: World-to-camera, relative to the first frame (identity there), shape [N, F, 4, 4], float32.
      K: Intrinsics shared by all clips, shape [3, 3], float32, pixels.
      motion: Index in captions.MOTIONS, shape [N], int64.
      content: Content index 0..15, shape [N], int64.
      dynamic: -1 for a static scene, else index in captions.EVENTS, shape [N], int64.
    """

    video: Tensor
    depth: Tensor
    viewmats: Tensor
    K: Tensor
    motion: Tensor
    content: Tensor
    dynamic: Tensor

    def select(self, index: Tensor) -> Clips:
        """The clips at `index` (shape [M], int64), K unchanged."""
        return Clips(**{f.name: self.K if f.name == "K" else getattr(self, f.name)[index] for f in fields(self)})


@dataclass
class _Scene:
    """Random parameters of n scenes of one shape; every field is a tensor with leading dimension n."""

    centre: Tensor  # [n, F, 3] object centre in each frame
    size: Tensor  # [n] ball radius, or half edge of the box
    heading: Tensor  # [n] rotation of the box about y, radians
    albedo: Tensor  # [n, F, 3] object colour in each frame
    floor_height: Tensor  # [n]
    floor_rgb: Tensor  # [n, 2, 3]
    floor_is_wood: Tensor  # [n] 0 or 1
    floor_phase: Tensor  # [n, 2]
    floor_heading: Tensor  # [n]
    wall_rgb: Tensor  # [n, 3]
    wall_phase: Tensor  # [n, 2]
    light: Tensor  # [n, 3] unit vector towards the light
    brightness: Tensor  # [n]
    waves: Tensor  # [n, J, 4] wave vector (radians a scene unit) and phase of the detail's waves


def intrinsics(height: int = HEIGHT, width: int = WIDTH) -> Tensor:
    """The intrinsics of every clip of a size.

    Returns:
      K, shape [3, 3], float32, pixels; the principal point is the image centre.
    """
    focal = MICRO_CAMERA.focal_ratio * width
    return torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])


def trajectory_of(caption: Caption, num_frames: int = NUM_FRAMES) -> Tensor:
    """The camera path a caption asks for.

    Returns:
      viewmats, shape [num_frames, 4, 4], float32, world-to-camera, identity at frame 0.
    """
    return _trajectory(caption.text, num_frames)


def render_clips(
    captions: Sequence[Caption],
    seeds: Sequence[int],
    *,
    paths: Tensor | None = None,
    height: int = HEIGHT,
    width: int = WIDTH,
    num_frames: int = NUM_FRAMES,
    detail: float = 0.0,
) -> Clips:
    """Render one clip for each caption.

    The pair (caption, seed) fixes a clip exactly; the seed draws the place, size and heading of the object, the
    light, the phases of the textures and the tints.

    Args:
      captions: N captions.
      seeds: N non-negative integers, from TRAIN_SEEDS, HELD_OUT_SEEDS or EVALUATION_SEEDS.
      paths: viewmats to render instead of those the captions ask for, shape [N, F, 4, 4], identity at frame 0.
      height: H in pixels.
      width: W in pixels; the field of view across stays.
      num_frames: F >= 2.
      detail: Relative contrast of an added texture, fixed to the surfaces, in every octave of wavelength from 2 scene
        units to 4 pixels: about .1 in photographs. 0: the micro world as it is.
    Returns:
      Clips, N of them, in the order given. float32, CPU.
    Raises:
      ValueError: captions and seeds differ in number, or paths has another shape.
    """
    captions, seeds = list(captions), [int(s) for s in seeds]
    if len(captions) != len(seeds):
        raise ValueError(f"render_clips: captions and seeds must be equally many, got {len(captions)} and {len(seeds)}")
    num = len(captions)
    video = torch.empty(num, num_frames, 3, height, width)
    depth = torch.empty(num, num_frames, height, width)
    viewmats = torch.empty(num, num_frames, 4, 4)
    if paths is not None and paths.shape != viewmats.shape:
        raise ValueError(f"render_clips: paths must have shape {list(viewmats.shape)}, got {list(paths.shape)}")
    for i, caption in enumerate(captions):
        viewmats[i] = _trajectory(caption.text, num_frames) if paths is None else paths[i]
    rays = _SAMPLES**2 * height * width
    together, few = max(1, _RAYS_PER_CALL // (num_frames * rays)), max(1, _RAYS_PER_CALL // rays)
    for shape in ("ball", "box"):
        of_shape = [i for i, c in enumerate(captions) if c.shape == shape]
        for start in range(0, len(of_shape), together):
            chunk = of_shape[start : start + together]
            whole = _draw_scenes([captions[i] for i in chunk], [seeds[i] for i in chunk], num_frames, width)
            for first in range(0, num_frames, few):  # large frames: a few at a time
                part = slice(first, first + few)
                scene = replace(whole, centre=whole.centre[:, part], albedo=whole.albedo[:, part])
                path, size = viewmats[chunk, part], (height, width)
                fine, _ = _render(scene, path, shape, _SAMPLES, size=size, detail=detail)  # [n, f, 3, S H, S W]
                pooled = torch.nn.functional.avg_pool2d(fine.flatten(0, 1), _SAMPLES)
                video[chunk, part] = pooled.unflatten(0, fine.shape[:2])
                depth[chunk, part] = _render(scene, path, shape, 1, size=size)[1]
    return Clips(
        video=video,
        depth=depth,
        viewmats=viewmats,
        K=intrinsics(height, width),
        motion=torch.tensor([c.motion_index for c in captions], dtype=torch.int64),
        content=torch.tensor([c.content_index for c in captions], dtype=torch.int64),
        dynamic=torch.tensor([EVENTS.index(c.dynamic) if c.dynamic else -1 for c in captions], dtype=torch.int64),
    )


@lru_cache(maxsize=1024)
def _trajectory(text: str, num_frames: int) -> Tensor:
    return build_trajectory(parse_motion(text), num_frames, MICRO_CAMERA).to(torch.float32)


def _draw_scenes(captions: Sequence[Caption], seeds: Sequence[int], num_frames: int, width: int) -> _Scene:
    rows = [
        _draw_scene(caption, seed, num_frames) | {"waves": _draw_waves(seed, width)}
        for caption, seed in zip(captions, seeds, strict=True)
    ]
    stacked = {key: torch.from_numpy(np.stack([row[key] for row in rows]).astype(np.float32)) for key in rows[0]}
    return _Scene(**stacked)


def _draw_waves(seed: int, width: int) -> np.ndarray:
    """Wave vectors in all directions and phases [J, 4], _WAVES an octave; those of a smaller frame come first."""
    shortest = _SHORTEST_WAVE * MICRO_CAMERA.depth / (MICRO_CAMERA.focal_ratio * width)
    octaves = max(1, round(math.log2(_LONGEST_WAVE / shortest)))
    rng = np.random.default_rng([_DETAIL_SALT, seed])
    draws = [rng.standard_normal((_WAVES, 4)) for _ in range(octaves)]
    waves = []
    for octave, draw in enumerate(draws):
        direction = draw[:, :3] / np.linalg.norm(draw[:, :3], axis=1, keepdims=True)
        wavelength = _LONGEST_WAVE * 2.0 ** -(octave + (np.arange(_WAVES) + 0.5) / _WAVES)
        waves.append(np.column_stack([direction * (2 * math.pi / wavelength)[:, None], 2 * math.pi * draw[:, 3]]))
    return np.concatenate(waves)


def _draw_scene(caption: Caption, seed: int, num_frames: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    floor_height = rng.uniform(0.95, 1.10)
    size = rng.uniform(0.68, 0.86) if caption.shape == "ball" else rng.uniform(0.56, 0.70)
    offset = rng.uniform(-0.35, 0.35, size=2)
    azimuth = rng.uniform(0.0, 2.0 * math.pi)
    light = np.array([0.65 * math.cos(azimuth), -0.75, 0.45 * math.sin(azimuth) - 0.3])
    rest = floor_height - size
    centre = np.tile([offset[0], rest, MICRO_CAMERA.depth + offset[1]], (num_frames, 1))  # [F, 3]
    colour = np.array(_OBJECT_RGB[caption.colour])
    albedo = np.tile(colour, (num_frames, 1))  # [F, 3]
    event_phase = rng.uniform()
    _animate(caption, centre, albedo, event_phase)
    tint = rng.uniform(-0.07, 0.07, size=3)
    return {
        "centre": centre,
        "size": np.array(size),
        "heading": np.array(rng.uniform(0.0, math.pi / 2.0)),
        "albedo": np.clip(albedo * rng.uniform(0.92, 1.05), 0.0, 1.0),
        "floor_height": np.array(floor_height),
        "floor_rgb": np.array(_FLOOR_RGB[caption.floor]) * rng.uniform(0.92, 1.06),
        "floor_is_wood": np.array(float(caption.floor == "wooden")),
        "floor_phase": rng.uniform(0.0, 2.0, size=2),
        "floor_heading": np.array(rng.uniform(-0.35, 0.35)),
        "wall_rgb": np.array([0.60, 0.62, 0.66]) + tint,
        "wall_phase": rng.uniform(0.0, 2.0 * math.pi, size=2),
        "light": light / np.linalg.norm(light),
        "brightness": np.array(rng.uniform(0.92, 1.06)),
    }


def _animate(caption: Caption, centre: np.ndarray, albedo: np.ndarray, phase: float) -> None:
    """Write the event of a dynamic caption into the object's path and colour."""
    time = np.arange(len(centre)) / (len(centre) - 1)  # [F], 0..1
    if caption.dynamic == "falling":
        drop = 1.9 + 0.4 * phase
        centre[:, 1] -= drop * np.clip(1.0 - (time / 0.9) ** 2, 0.0, None)
    elif caption.dynamic == "bouncing":
        centre[:, 1] -= 1.2 * np.abs(np.sin(math.pi * (1.5 * time + phase)))
    elif caption.dynamic == "flickering":
        dark = (np.arange(len(centre)) + int(4 * phase)) % 4 < 2
        albedo[dark] *= 0.25
    elif caption.dynamic == "changing":
        target = np.array(_OBJECT_RGB[_CHANGE_TO[caption.colour]])
        weight = np.clip((time - 0.15 - 0.1 * phase) / 0.6, 0.0, 1.0)[:, None]
        albedo[:] = (1.0 - weight) * albedo + weight * target


def _render(
    scene: _Scene, viewmats: Tensor, shape: str, samples: int, *, size: tuple[int, int], detail: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Cast samples x samples rays a pixel; returns rgb [n, F, 3, S H, S W] and z-depth [n, F, S H, S W]."""
    num, frames = viewmats.shape[:2]
    height, width = samples * size[0], samples * size[1]
    focal = MICRO_CAMERA.focal_ratio * width
    xs = (torch.arange(width) + 0.5 - width / 2) / focal
    ys = (torch.arange(height) + 0.5 - height / 2) / focal
    rays = torch.stack([xs.expand(height, width), ys[:, None].expand(height, width), torch.ones(height, width)])
    rotation = viewmats[..., :3, :3]  # world to camera
    origin = -(rotation.transpose(-1, -2) @ viewmats[..., :3, 3:])  # [n, F, 3, 1]
    direction = rotation.transpose(-1, -2) @ rays.flatten(1)  # [n, F, 3, P]; t along it is z-depth
    dx, dy, dz = direction.unbind(2)
    ox, oy, oz = origin.unbind(2)

    floor_rgb, floor_t = _floor(scene, (ox, oy, oz), (dx, dy, dz))
    wall_rgb, wall_t = _wall(scene, (ox, oy, oz), (dx, dy, dz))
    on_floor = floor_t < wall_t
    rgb = torch.where(on_floor[:, :, None], floor_rgb, wall_rgb)  # [n, F, 3, P]
    depth = torch.where(on_floor, floor_t, wall_t)  # [n, F, P]
    hit = _ball if shape == "ball" else _box
    object_t, normal = hit(scene, origin, direction)
    lambert = (normal * scene.light[:, None, :, None]).sum(2).clamp_min(0.0)  # [n, F, P]
    object_rgb = scene.albedo[..., None] * (0.42 + 0.62 * lambert)[:, :, None]
    on_object = object_t < depth
    rgb = torch.where(on_object[:, :, None], object_rgb, rgb)
    depth = torch.where(on_object, object_t, depth)
    if detail:
        points = origin + depth[:, :, None] * direction - on_object[:, :, None] * scene.centre[..., None]
        rgb = rgb * (1.0 + detail * _detail(scene.waves, points, samples * depth / focal))[:, :, None]
    rgb = (rgb * scene.brightness[:, None, None, None]).clamp(0.0, 1.0)
    return rgb.reshape(num, frames, 3, height, width), depth.reshape(num, frames, height, width)


_Vector = tuple[Tensor, Tensor, Tensor]


def _floor(scene: _Scene, origin: _Vector, direction: _Vector) -> tuple[Tensor, Tensor]:
    """Colour [n, F, 3, P] and distance [n, F, P] of the floor plane; infinite where a ray does not go down."""
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    height = scene.floor_height[:, None, None]
    t = torch.where(dy > 1e-4, (height - oy) / dy.clamp_min(1e-4), torch.inf)
    x, z = ox + t.clamp_max(50.0) * dx, oz + t.clamp_max(50.0) * dz
    cos, sin = scene.floor_heading.cos()[:, None, None], scene.floor_heading.sin()[:, None, None]
    phase_u, phase_v = scene.floor_phase[:, 0, None, None], scene.floor_phase[:, 1, None, None]
    u, v = cos * x + sin * z + phase_u, cos * z - sin * x + phase_v
    wave_u, wave_v = torch.sin(math.pi * u), torch.sin(math.pi * v)
    # Planks run across the view and alternate every unit; a slow wave along them keeps sideways motion visible.
    wood = scene.floor_is_wood[:, None, None]
    pattern = torch.tanh(3.0 * torch.where(wood > 0.5, wave_v + 0.55 * wave_u, 1.6 * wave_u * wave_v))
    fade = 1.0 / (1.0 + (t / 6.5) ** 4)
    mix = (0.5 + 0.5 * pattern * fade)[:, :, None]  # [n, F, 1, P]
    light, dark = scene.floor_rgb[:, 0, None, :, None], scene.floor_rgb[:, 1, None, :, None]
    centre = scene.centre[..., None]  # [n, F, 3, 1]
    distance2 = (x - centre[:, :, 0]) ** 2 + (z - centre[:, :, 2]) ** 2
    gap = height - centre[:, :, 1] - scene.size[:, None, None]  # how far the object is above the floor
    spread = scene.size[:, None, None] ** 2 * (1.1 + gap)
    shadow = 1.0 - 0.55 / (1.0 + gap) * torch.exp(-distance2 / spread)
    return (mix * light + (1.0 - mix) * dark) * shadow[:, :, None], t


def _wall(scene: _Scene, origin: _Vector, direction: _Vector) -> tuple[Tensor, Tensor]:
    """Colour [n, F, 3, P] and distance [n, F, P] of the round wall, seen from inside."""
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    px, pz = ox, oz - MICRO_CAMERA.depth
    a = dx * dx + dz * dz
    b = px * dx + pz * dz
    t = (-b + (b * b - a * (px * px + pz * pz - _WALL_RADIUS**2)).sqrt()) / a
    azimuth = torch.atan2(px + t * dx, pz + t * dz)
    y = oy + t * dy
    phase = scene.wall_phase[:, :, None, None]
    bands = torch.tanh(1.8 * torch.sin(9.0 * azimuth + phase[:, 0]))
    slow = torch.sin(2.0 * azimuth + phase[:, 1])
    tone = 0.92 + 0.17 * bands + 0.10 * slow - 0.05 * y.clamp(-4.0, 2.0)
    # The slow wave is also one of hue: half a turn of the room is told apart from the other half.
    hue = torch.stack([0.12 * slow, 0.02 * slow, -0.12 * slow], dim=2)  # [n, F, 3, P]
    return (scene.wall_rgb[:, None, :, None] + hue) * tone[:, :, None], t


def _detail(waves: Tensor, points: Tensor, pixel: Tensor) -> Tensor:
    """A texture of deviation 1 an octave at points [n, F, 3, P], [n, F, P]; pixel [n, F, P] is how wide one is there.

    A wave fades as it gets finer than the pixels: to .87 at 4 pixels, to .57 at 2.
    """
    total = torch.zeros_like(pixel)
    for j in range(waves.shape[1]):
        k, phase = waves[:, None, j, :3, None], waves[:, None, j, 3:]  # [n, 1, 3, 1], [n, 1, 1]
        cycles = k.norm(dim=2) * pixel / (2.0 * math.pi)  # a pixel
        total += torch.sin((k * points).sum(2) + phase) * torch.exp(-(1.5 * cycles).square())
    return total / math.sqrt(0.5 * _WAVES)


def _ball(scene: _Scene, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Distance [n, F, P] (infinite: missed) and unit normal [n, F, 3, P] of the ball."""
    relative = origin - scene.centre[..., None]  # [n, F, 3, 1]
    a = (direction * direction).sum(2)
    b = (relative * direction).sum(2)
    c = (relative * relative).sum(2) - (scene.size**2)[:, None, None]
    discriminant = b * b - a * c
    t = (-b - discriminant.clamp_min(0.0).sqrt()) / a
    hit = (discriminant > 0.0) & (t > 0.05)
    normal = (relative + t[:, :, None] * direction) / scene.size[:, None, None, None]
    return torch.where(hit, t, torch.inf), normal


def _box(scene: _Scene, origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Distance [n, F, P] (infinite: missed) and unit normal [n, F, 3, P] of the upright box, by the slab method."""
    cos, sin = scene.heading.cos(), scene.heading.sin()
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    to_box = torch.stack([cos, zero, sin, zero, one, zero, -sin, zero, cos], dim=-1).reshape(-1, 1, 3, 3)
    relative = to_box @ (origin - scene.centre[..., None])  # [n, F, 3, 1]
    ray = to_box @ direction  # [n, F, 3, P]
    ray = torch.where(ray.abs() < 1e-6, torch.full_like(ray, 1e-6), ray)
    half = scene.size[:, None, None, None]
    centre_t, width_t = -relative / ray, half / ray.abs()
    near, axis = (centre_t - width_t).max(dim=2)  # [n, F, P]
    far = (centre_t + width_t).amin(dim=2)
    hit = (near < far) & (near > 0.05)
    # The normal of the face that is entered: along `axis`, against the ray.
    face = torch.nn.functional.one_hot(axis, 3).movedim(-1, 2).to(ray.dtype)
    normal = to_box.transpose(-1, -2) @ (-ray.sign() * face)
    return torch.where(hit, near, torch.inf), normal
