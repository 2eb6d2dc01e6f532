"""A Depth Anything 3 folder as the reconstructor: all frames of a video through the published network at once.

The network is the package's own (depth-anything-3 0.1.1, `DepthAnything3Net`), built from the package's configuration
and filled straight from safetensors. The class around it, `depth_anything_3.api.DepthAnything3`, is left out: it takes
files or uint8 arrays on the host alone, and brings torchvision, OpenCV and numpy < 2 with it.

The conventions were read off the package's source. Poses are world-to-camera, OpenCV, and frame 0 is close to the
identity but not it. Depth is along z. Intrinsics are in pixels of the resized frame, with fx != fy and the principal
point in its middle. The means of Gaussians take depth plus a learnt offset as the length of a ray: they are the
network's, and are kept. Scale is arbitrary, in nested models metres.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from worldr1.config import RewardConfig
from worldr1.datatypes import GaussianScene, Reconstruction
from worldr1.rewards.judges.depth_anything_network import any_view, build_network, fill, keep_constant_colour
from worldr1.rewards.judges.folder import read_config
from worldr1.rewards.judges.micro_geo import pixel_gaussians
from worldr1.rewards.judges.shards import NAMES, tensors, weights_path

LICENCES = {
    "da3nested-giant-large": "CC BY-NC 4.0",
    "da3-giant": "CC BY-NC 4.0",
    "da3-large": "CC BY-NC 4.0",
    "da3-base": "Apache-2.0",
    "da3-small": "Apache-2.0",
}
"""The models that give poses -> the licence of their weights, by the package's own table. CC BY-NC: no commercial use;
the package's code is Apache-2.0."""

PATCH = 14
"""Sides of what the network sees are multiples of this."""

Rotations = Literal["package", "corrected"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
_SH_C0 = 0.28209479177387814  # the constant spherical harmonic, 1 / (2 sqrt(pi))


class DepthAnything:
    """Depth Anything 3 as a Reconstructor. Videos go through it one at a time: with more than 8 frames its Gaussian
    head takes no batch, and a scene must not depend on what else is in one.

    Args:
      net: `DepthAnything3Net` or `NestedDepthAnything3Net`, with weights.
      size: Longest side of what it sees, in pixels.
      rotations: See `RewardConfig.gaussian_rotations`.
    """

    role = "reconstructor"

    def __init__(self, net: Any, *, size: int, rotations: Rotations) -> None:
        self.net, self.size, self.rotations = net, size, rotations
        adapter = any_view(net).gs_adapter
        if adapter is not None:
            keep_constant_colour(adapter)

    @classmethod
    def recognises(cls, folder: Path, config: dict[str, Any]) -> bool:
        """By the model_name in config.json, which `DepthAnything3.save_pretrained` writes."""
        return str(config.get("model_name", "")).startswith("da3")

    @classmethod
    def licence(cls, folder: Path) -> str:
        """Of the folder's model, by LICENCES."""
        found = LICENCES.get(str(read_config(folder).get("model_name")), "not known")
        return f"{found}: no commercial use" if "NC" in found else found

    @classmethod
    def load(cls, folder: Path, *, device: torch.device, config: RewardConfig) -> DepthAnything:
        """Read a folder as `DepthAnything3.save_pretrained` writes it: config.json, model.safetensors or its shards.

        The weights are float32, as in the package: its heads run in float32, its backbone under bfloat16 autocast.

        Raises:
          ValueError: the package is not installed, the model gives no poses, a file is missing or damaged, or the
            weights are not those of the model.
        """
        folder = Path(folder)
        settings = read_config(folder)
        net = build_network(settings, source=folder)
        if getattr(any_view(net), "cam_dec", None) is None:
            raise ValueError(
                f"DepthAnything: model_name in {folder} must be a model that gives poses ({', '.join(LICENCES)}), "
                f"got {settings['model_name']}"
            )
        path = weights_path(folder)
        if path is None:
            raise ValueError(f"DepthAnything: {folder} must hold {NAMES[0]}, got no such file; download it")
        # Copies in memory of their own: a view keeps the file, and would page it in during the run.
        fill(net, {key: value.clone() for key, value in tensors(path, device=device)}, source=folder)
        net.to(device).eval().requires_grad_(False)  # buffers follow the weights
        return cls(net, size=config.reconstructor_size, rotations=config.gaussian_rotations)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.net.parameters()).device

    def to(self, device: torch.device | str) -> DepthAnything:
        """Move the weights; returns itself."""
        self.net.to(device)
        for module in self.net.modules():  # caches positions of patches without asking where they lie
            if getattr(module, "position_getter", None) is not None:
                module.position_getter.position_cache.clear()
        return self

    @torch.no_grad()
    def infer(self, video: Tensor) -> Reconstruction:
        """Lift videos to 3D.

        Args:
          video: Shape [N, F, 3, H, W], floating point in [0, 1], on any device.
        Returns:
          Reconstruction in float32 on the device of `video`. Depth and confidence are the nearest ones of the F h w
          that the network gives (an edge has no depth between its sides); Gaussians M = F h w, frame by frame; a model
          without a Gaussian head gets one of .3 pixels for each pixel, at its depth.
        Raises:
          ValueError: another shape, a video that is not finite, or one in which a nested model sees nothing but sky.
        """
        if video.ndim != 5 or video.shape[2] != 3 or not video.is_floating_point():
            raise ValueError(
                f"DepthAnything: video must have shape [N, F, 3, H, W] in floating point, got {list(video.shape)} "
                f"in {video.dtype}"
            )
        return _together([self._lift(clip) for clip in video], video.device)

    def _lift(self, clip: Tensor) -> Reconstruction:
        """One video [F, 3, H, W] -> its scene, N = 1."""
        if not bool(torch.stack(torch.aminmax(clip)).isfinite().all()):
            raise ValueError("DepthAnything: video must be finite, got NaN or infinite values")
        frames = resize(clip.to(self.device, torch.float32), size=self.size)  # [F, 3, h, w]
        out = self._forward(frames)
        return reconstruction(out, frames, height=clip.shape[-2], width=clip.shape[-1], rotations=self.rotations)

    def _forward(self, frames: Tensor) -> dict[str, Any]:
        """The network's raw output for frames [F, 3, h, w] in [0, 1]; B = 1."""
        device = frames.device
        mean, std = (torch.tensor(x, device=device)[:, None, None] for x in (_MEAN, _STD))
        # Half precision for the backbone alone: the network leaves the autocast for its heads.
        half = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
        with half, _own_random_numbers(device):
            try:
                # No poses given, no features wanted, Gaussians; pose by the decoder; frame 0 is the reference, as in
                # the package's own evaluation.
                return self.net(((frames - mean) / std)[None], None, None, [], True, False, "first")
            except AssertionError as error:  # a nested network: no ground to take the scale from
                raise ValueError(f"DepthAnything: the network refused the video: {error}") from error


def reconstruction(
    out: dict[str, Any], frames: Tensor, *, height: int, width: int, rotations: Rotations = "package"
) -> Reconstruction:
    """The package's raw output of one video in this project's conventions.

    Args:
      out: depth, depth_conf [1, F, h, w]; extrinsics [1, F, 3 or 4, 4], world-to-camera; intrinsics [1, F, 3, 3],
        pixels of h x w; gaussians or none; scale_factor where depth and poses, not Gaussians, were scaled to metres.
      frames: What the network saw, shape [F, 3, h, w] in [0, 1].
      height: H of the video.
      width: W of the video.
      rotations: How the package's quaternions are read.
    Returns:
      Reconstruction, N = 1, on the device of `frames`.
    Raises:
      ValueError: a scale that is not positive.
    """
    num_frames, _, h, w = frames.shape
    # float64: a matrix product in float32 may be one in TF32, which moves a Gaussian by a quarter of a pixel.
    poses = torch.eye(4, dtype=torch.float64, device=frames.device).repeat(num_frames, 1, 1)  # [F, 4, 4]
    poses[:, :3] = out["extrinsics"][0, :, :3].double()
    root = poses[0]
    viewmats = poses @ _rigid_inverse(root)
    viewmats[0] = torch.eye(4)  # without rounding
    viewmats = viewmats.float()[None]
    Ks = out["intrinsics"].float()  # [1, F, 3, 3]
    depth, confidence = out["depth"].float(), out["depth_conf"].float()  # [1, F, h, w]
    if out.get("gaussians") is not None:
        scale = float(out.get("scale_factor", 1.0))
        if not 0.0 < scale < float("inf"):
            raise ValueError(f"DepthAnything: the scale of a nested model must be finite and > 0, got {scale}")
        gaussians = _from_head(out["gaussians"], poses, scale=scale, rotations=rotations)
    else:
        gaussians = pixel_gaussians(frames[None], depth, confidence, viewmats=viewmats, K=Ks)
    to_video = torch.tensor([width / w, height / h, 1.0], device=Ks.device)[:, None]
    return Reconstruction(
        depth=torch.nn.functional.interpolate(depth, (height, width), mode="nearest-exact"),
        confidence=torch.nn.functional.interpolate(confidence, (height, width), mode="nearest-exact"),
        viewmats=viewmats,
        Ks=to_video * Ks,
        gaussians=gaussians,
    )


def _together(scenes: list[Reconstruction], device: torch.device) -> Reconstruction:
    """Scenes of N = 1 as one of N, on `device`."""

    def all_of(name: str, of: list[Any]) -> Tensor:
        return torch.cat([getattr(scene, name) for scene in of]).to(device)

    parts = [scene.gaussians for scene in scenes]
    gaussians = GaussianScene(**{f.name: all_of(f.name, parts) for f in fields(GaussianScene)})
    rest = {f.name: all_of(f.name, scenes) for f in fields(Reconstruction) if f.name != "gaussians"}
    return Reconstruction(**rest, gaussians=gaussians)


def _from_head(gs: Any, poses: Tensor, *, scale: float, rotations: Rotations) -> GaussianScene:
    """Gaussians [1, M, ...] of the package, in the world of `poses` [F, 4, 4], in the frame of the first camera.

    The package composes rotations in the order xyzw and its renderer reads the result as wxyz. With a = camera to
    world and p the four numbers of the head in the order wxyz, it multiplies a and p as if both were xyzw. Where the
    camera is not turned the two slips cancel and p is what is drawn. `corrected` undoes the product and composes a and
    p as wxyz.
    """
    quats = gs.rotations[0].float()  # [M, 4]
    if rotations == "corrected":
        to_world = quaternions(poses[:, :3, :3].mT).float()  # [F, 4]
        to_world = to_world.repeat_interleave(quats.shape[0] // poses.shape[0], dim=0)  # [M, 4]
        p = multiply(to_world * to_world.new_tensor([1.0, -1.0, -1.0, -1.0]), quats[:, [3, 0, 1, 2]])
        quats = multiply(to_world, p[:, [1, 2, 3, 0]])
    rotation, translation = poses[0, :3, :3], poses[0, :3, 3]  # world to first camera
    means = (scale * gs.means.double()) @ rotation.mT + translation  # [1, M, 3]
    return GaussianScene(
        means=means.float(),
        quats=multiply(quaternions(rotation).float(), quats)[None],
        scales=scale * gs.scales.float().abs(),  # of a Gaussian behind its own camera the package's is negative
        opacities=gs.opacities.float().clamp(0.0, 1.0),
        colors=(0.5 + _SH_C0 * gs.harmonics[..., 0].float()).clamp(0.0, 1.0),
    )


def resize(clip: Tensor, *, size: int) -> Tensor:
    """Frames as the package's input processor makes them ("upper_bound_resize"), in torch and on any device.

    In two steps: the longest side to `size`, then each side to the nearest multiple of PATCH, upwards from the middle.
    A step that enlarges a side is bicubic (a = -.75, no antialiasing), any other averages areas. The processor works on
    bytes by OpenCV, so that each step ends in whole levels of 0 ... 255 here too.

    Args:
      clip: Shape [F, 3, H, W], float32 in [0, 1].
      size: Longest side in pixels.
    Returns:
      [F, 3, h, w] in [0, 1].
    """
    x = (255.0 * clip).clamp(0.0, 255.0).round()
    height, width = x.shape[-2:]
    scale = size / max(height, width)
    if scale != 1.0:
        to = max(1, round(height * scale)), max(1, round(width * scale))
        x = _resample(x, *to, enlarge=scale > 1.0)
    height, width = x.shape[-2:]
    to = max(1, (height + PATCH // 2) // PATCH) * PATCH, max(1, (width + PATCH // 2) // PATCH) * PATCH
    if to != (height, width):
        x = _resample(x, *to, enlarge=to[0] > height or to[1] > width)
    return x / 255.0


def _resample(x: Tensor, height: int, width: int, *, enlarge: bool) -> Tensor:
    if enlarge:
        y = torch.nn.functional.interpolate(x, (height, width), mode="bicubic", align_corners=False)
    else:
        y = _areas(x.shape[-2], height).to(x) @ x @ _areas(x.shape[-1], width).to(x).mT
    return (y.clamp(0.0, 255.0) + 0.5).floor()  # a half goes up, as in OpenCV's whole-number arithmetic


def _areas(num: int, to: int) -> Tensor:
    """Share of each of `num` cells of a line in each of `to` <= num equal cells of it: [to, num], rows sum to 1."""
    edges = torch.arange(to + 1, dtype=torch.float64)[:, None] * (num / to)
    cells = torch.arange(num, dtype=torch.float64)
    overlap = (torch.minimum(edges[1:], cells + 1) - torch.maximum(edges[:-1], cells)).clamp_min(0.0)
    return overlap * (to / num)


def quaternions(rotation: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] -> unit quaternions [..., 4], wxyz, of either sign."""
    (a, b, c), (d, e, f), (g, h, i) = (row.unbind(-1) for row in rotation.unbind(-2))
    # 4 q q^T is linear in the matrix; each of its rows is q times a number, the longest row the most accurate.
    rows = [
        [1 + a + e + i, h - f, c - g, d - b],
        [h - f, 1 + a - e - i, b + d, c + g],
        [c - g, b + d, 1 - a + e - i, f + h],
        [d - b, c + g, f + h, 1 - a - e + i],
    ]
    outer = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)  # [..., 4, 4]
    longest = outer.diagonal(dim1=-2, dim2=-1).argmax(dim=-1)[..., None, None]
    q = outer.take_along_dim(longest, dim=-2).squeeze(-2)
    return torch.nn.functional.normalize(q, dim=-1)


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """Product of quaternions [..., 4], wxyz: b turns first."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        dim=-1,
    )


def _rigid_inverse(pose: Tensor) -> Tensor:
    """[4, 4] -> its inverse."""
    inverse = torch.eye(4).to(pose)
    inverse[:3, :3] = pose[:3, :3].mT
    inverse[:3, 3] = -(pose[:3, :3].mT @ pose[:3, 3])
    return inverse


@contextlib.contextmanager
def _own_random_numbers(device: torch.device) -> Iterator[None]:
    """A nested network draws the pixels of its medians: the same ones for every video, and no one else's numbers."""
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        generator = torch.cuda.default_generators[device.index] if cuda else torch.default_generator
        generator.manual_seed(0)  # torch.manual_seed would seed every device
        yield
