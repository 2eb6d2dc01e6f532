"""What an evaluator that no reward has seen finds in clips: motion, content, geometry, picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from worldr1.datatypes import GaussianScene, Reconstruction
from worldr1.evaluation.camera_metrics import camera_control
from worldr1.evaluation.labels import Labels
from worldr1.rewards.reconstruct import EPS2D_PX2
from worldr1_kernels import rasterize, trajectory_error, trajectory_reward

CLIPS_PER_CALL = 32
SPLAT_PX = 0.25
"""Standard deviation of a Gaussian of the hold-out scene, in pixels of the frame that it comes from."""
MAX_PSNR_DB = 60.0


class Evaluator(Protocol):
    """A reconstructor that can also name the camera motion and the content of a clip."""

    def infer(self, video: Tensor) -> Reconstruction:
        """Video [N, F, 3, H, W] in [0, 1] -> Reconstruction."""
        ...

    def classify(self, video: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Video -> motion logits [N, motions], and the logits of each content head, [N, k]."""
        ...


def load_evaluator(folder: Path, *, device: torch.device) -> Evaluator:
    """Open an evaluator's folder, frozen and in evaluation mode.

    Raises:
      ValueError: no such folder, a damaged config.json, or another network than an evaluator.
    """
    from worldr1.evaluation.micro_evaluator import MicroEvaluator

    return MicroEvaluator.from_pretrained(folder, device=device)


@dataclass(frozen=True)
class Assessment:
    """What the evaluator finds in N clips; every field is [N]. NaN where the quantity is not defined for the prompt."""

    finite: Tensor  # bool: the clip has no NaN or infinity
    obeyed: Tensor  # bool: the motion class found is the one asked for
    content: Tensor  # bool: every content head finds what is asked for
    rotation_deg: Tensor  # mean geodesic over frames 1 .. F-1 between recovered and requested poses
    rot_err: Tensor  # radians, summed over frames
    trans_err: Tensor  # NaN where the requested camera does not travel
    cam_mc: Tensor  # likewise
    trajectory_score: Tensor  # S_traj by the evaluator
    camera_error: Tensor  # of WorldScore; NaN likewise
    path_ratio: Tensor  # recovered over requested path length; NaN likewise
    psnr_requested: Tensor  # dB
    psnr_own: Tensor  # dB
    contrast: Tensor
    frame_change: Tensor
    viewmats: Tensor  # [N, F, 4, 4] recovered


@torch.no_grad()
def assess(videos: Tensor, labels: Labels, viewmats_requested: Tensor, *, evaluator: Evaluator) -> Assessment:
    """What the evaluator finds in N clips.

    Args:
      videos: Shape [N, F, 3, H, W] in [0, 1], F >= 3.
      labels: What the N prompts ask for.
      viewmats_requested: World-to-camera, shape [N, F, 4, 4].
      evaluator: Asked CLIPS_PER_CALL clips at a time.
    Returns:
      Assessment on the CPU.
    """
    finite = torch.isfinite(videos).flatten(1).all(dim=1)  # [N]
    clean = torch.where(finite[:, None, None, None, None], videos, torch.full_like(videos, 0.5))
    parts: list[dict[str, Tensor]] = []
    for start in range(0, len(labels), CLIPS_PER_CALL):
        rows = slice(start, start + CLIPS_PER_CALL)
        part = _assess_chunk(clean[rows], viewmats_requested[rows].to(clean), evaluator, heads=tuple(labels.contents))
        part["obeyed"] = part.pop("motion_class") == labels.motion[rows]
        content = [part.pop(f"{name}_class") == wanted[rows] for name, wanted in labels.contents.items()]
        part["content"] = torch.stack(content).all(dim=0)
        parts.append(part)
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    joined["finite"] = finite.cpu()
    joined["obeyed"] &= joined["finite"]
    joined["content"] &= joined["finite"]
    return Assessment(**joined)


def _assess_chunk(
    video: Tensor, requested: Tensor, evaluator: Evaluator, *, heads: tuple[str, ...]
) -> dict[str, Tensor]:
    scene = evaluator.infer(video)
    motion, contents = evaluator.classify(video)
    error = trajectory_error(scene.viewmats, requested, scale="max_norm")
    depth = scene.depth.flatten(1).median(dim=1).values
    control = camera_control(scene.viewmats, requested, min_path=1e-3 * depth)
    moving = error.path_target > 1e-3 * depth  # [n]
    luma = (video * video.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(2)  # [n, F, H, W]
    out = {
        "motion_class": motion.argmax(1),
        **{f"{name}_class": contents[name].argmax(1) for name in heads},
        "rotation_deg": torch.rad2deg(error.rotation[:, 1:].mean(dim=1)),
        "rot_err": control.rot_err,
        "trans_err": control.trans_err,
        "cam_mc": control.cam_mc,
        "camera_error": control.camera_error,
        "trajectory_score": trajectory_reward(scene.viewmats, requested, median_depth=depth),
        "path_ratio": torch.where(moving, error.path_pred / error.path_target.clamp_min(1e-12), torch.nan),
        "psnr_requested": held_out_psnr(video, scene.depth, requested, scene.Ks),
        "psnr_own": held_out_psnr(video, scene.depth, scene.viewmats, scene.Ks),
        "contrast": luma.flatten(2).std(dim=2).mean(dim=1),
        "frame_change": (video[:, 1:] - video[:, :-1]).abs().flatten(1).mean(dim=1),
        "viewmats": scene.viewmats,
    }
    return {name: value.cpu() for name, value in out.items()}


def held_out_psnr(video: Tensor, depth: Tensor, viewmats: Tensor, Ks: Tensor) -> Tensor:
    """How well the even frames, lifted to 3D at given poses, predict the odd frames.

    The depth may come from a network that has seen all frames; the colours of the odd frames are only compared with.

    Args:
      video: Shape [N, F, 3, H, W] in [0, 1], F >= 3.
      depth: z-depth, shape [N, F, H, W], scene units.
      viewmats: World-to-camera, shape [N, F, 4, 4]: where the frames are placed, and where the render looks from.
      Ks: Shape [N, F, 3, 3], pixels.
    Returns:
      [N] dB: PSNR of each odd frame over all its pixels, averaged over frames, at most MAX_PSNR_DB. Where there is no
      Gaussian, the render shows the mean colour of the even frames.
    """
    height, width = video.shape[-2:]
    scene = _lift(video[:, ::2], depth[:, ::2], viewmats[:, ::2], Ks[:, ::2])
    colors, alphas, _ = rasterize(
        scene.means,
        scene.quats,
        scene.scales,
        scene.opacities,
        scene.colors,
        viewmats[:, 1::2],
        Ks[:, 1::2],
        width,
        height,
        eps2d=EPS2D_PX2,
    )  # [N, C, H, W, 3], [N, C, H, W, 1]
    backdrop = video[:, ::2].mean(dim=(1, 3, 4))[:, None, None, None]  # [N, 1, 1, 1, 3]
    render = (colors + (1.0 - alphas) * backdrop).movedim(-1, 2)  # [N, C, 3, H, W]
    mse = (render.clamp(0.0, 1.0) - video[:, 1::2]).square().flatten(2).mean(dim=2)  # [N, C]
    return (-10.0 * torch.log10(mse.clamp_min(10.0 ** (-MAX_PSNR_DB / 10.0)))).mean(dim=1)


def _lift(video: Tensor, depth: Tensor, viewmats: Tensor, Ks: Tensor) -> GaussianScene:
    """One round Gaussian a pixel, SPLAT_PX wide as seen from its own camera. Arguments as in held_out_psnr."""
    num, frames, _, height, width = video.shape
    v, u = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixel = torch.stack([u, v, torch.ones_like(u)]).flatten(1).to(video)  # [3, P]
    z = depth.flatten(2)[:, :, None]  # [N, F, 1, P]
    points = torch.linalg.inv(Ks) @ pixel * z  # [N, F, 3, P]
    to_world = torch.linalg.inv(viewmats)
    points = to_world[..., :3, :3] @ points + to_world[..., :3, 3:]
    scale = SPLAT_PX * z.movedim(2, 3) / Ks[..., 0, 0][..., None, None]  # [N, F, P, 1]
    total = frames * height * width
    means = points.movedim(2, 3).reshape(num, total, 3)
    quats = torch.zeros(num, total, 4).to(means)
    quats[..., 0] = 1.0
    return GaussianScene(
        means=means,
        quats=quats,
        scales=scale.reshape(num, total, 1).expand(num, total, 3).contiguous(),
        opacities=torch.full_like(means[..., 0], 0.95),
        colors=video.flatten(3).movedim(2, 3).reshape(num, total, 3),
    )
