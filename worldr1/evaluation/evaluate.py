"""What an evaluator that no reward has seen finds in clips: motion, content, geometry, picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from worldr1.datatypes import Reconstruction
from worldr1.evaluation.camera_metrics import camera_control
from worldr1.evaluation.labels import Labels
from worldr1.evaluation.reconstruction_measures import held_out_psnr
from worldr1_kernels import trajectory_error, trajectory_reward
from worldr1_kernels.se3 import check

CLIPS_PER_CALL = 32


class Evaluator(Protocol):
    """A reconstructor that no reward has seen."""

    def infer(self, video: Tensor) -> Reconstruction:
        """Video [N, F, 3, H, W] in [0, 1] -> Reconstruction."""
        ...


class Classifier(Evaluator, Protocol):
    """One that can also name the camera motion and the content of a clip."""

    def classify(self, video: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Video -> motion logits [N, motions], and the logits of each content head, [N, k]."""
        ...


def load_evaluator(source: str | Path, *, device: torch.device, labels: bool = True) -> Evaluator:
    """Open an evaluator, frozen and in evaluation mode.

    Args:
      source: A folder of a MicroEvaluator; without labels any reconstructor that `rewards.judges.registry.load_judge`
        opens, a folder or `module:name`.
      labels: It must be able to name motion and content (EvaluationConfig.labels).
    Raises:
      ValueError: no such folder, a damaged config.json, or another network than asked for.
    """
    from worldr1.evaluation.micro_evaluator import MicroEvaluator
    from worldr1.rewards.judges.folder import read_config
    from worldr1.rewards.judges.registry import is_dotted, load_judge

    dotted = is_dotted(str(source))
    elsewhere = dotted or not Path(source).is_dir()  # the registry says what is not there
    if not labels and (elsewhere or read_config(Path(source)).get("architecture") != MicroEvaluator.__name__):
        return load_judge(source, role="reconstructor", device=device)
    if dotted:
        raise ValueError(f"load_evaluator: {source} cannot name motion and content; use --evaluation.no-labels")
    return MicroEvaluator.from_pretrained(Path(source), device=device)


@dataclass(frozen=True)
class Assessment:
    """What the evaluator finds in N clips; every field is [N]. NaN where the quantity is not defined for the prompt."""

    finite: Tensor  # bool: the clip has no NaN or infinity
    obeyed: Tensor | None  # bool: the motion class found is the one asked for; None without labels
    content: Tensor | None  # bool: every content head finds what is asked for; None likewise
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


def joined(parts: Sequence[Assessment]) -> Assessment:
    """Assessments of clips one after the other, as one."""
    columns = {name: [part.__dict__[name] for part in parts] for name in parts[0].__dict__}
    whole: dict[str, Any] = {name: None if c[0] is None else torch.cat(c) for name, c in columns.items()}
    return Assessment(**whole)


@torch.no_grad()
def assess(
    videos: Tensor, labels: Labels | None, viewmats_requested: Tensor, *, evaluator: Evaluator | Classifier
) -> Assessment:
    """What the evaluator finds in N clips.

    Args:
      videos: Shape [N, F, 3, H, W] in [0, 1], F >= 3.
      labels: What the N prompts ask for; None asks the evaluator for geometry alone.
      viewmats_requested: World-to-camera, shape [N, F, 4, 4].
      evaluator: A Classifier where there are labels. Asked CLIPS_PER_CALL clips at a time.
    Returns:
      Assessment on the CPU.
    """
    finite = torch.isfinite(videos).flatten(1).all(dim=1)  # [N]
    clean = torch.where(finite[:, None, None, None, None], videos, torch.full_like(videos, 0.5))
    parts: list[dict[str, Tensor]] = []
    for start in range(0, len(videos), CLIPS_PER_CALL):
        rows = slice(start, start + CLIPS_PER_CALL)
        part = _geometry(clean[rows], viewmats_requested[rows].to(clean), evaluator)
        if labels is not None:
            part |= _names(clean[rows], labels, rows, evaluator)  # type: ignore[arg-type]
        parts.append(part)
    found: dict[str, Any] = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    finite = finite.cpu()
    for name in ("obeyed", "content"):
        right = found.get(name)
        found[name] = None if right is None else right & finite
    return Assessment(finite=finite, **found)


def _names(video: Tensor, labels: Labels, rows: slice, evaluator: Classifier) -> dict[str, Tensor]:
    motion, contents = evaluator.classify(video)
    right = [contents[name].argmax(1).cpu() == wanted[rows] for name, wanted in labels.contents.items()]
    return {"obeyed": motion.argmax(1).cpu() == labels.motion[rows], "content": torch.stack(right).all(dim=0)}


def _geometry(video: Tensor, requested: Tensor, evaluator: Evaluator) -> dict[str, Tensor]:
    scene = evaluator.infer(video)
    error = trajectory_error(scene.viewmats, requested, scale="max_norm")
    depth = scene.depth.flatten(1).median(dim=1).values
    control = camera_control(scene.viewmats, requested, min_path=1e-3 * depth)
    moving = error.path_target > 1e-3 * depth  # [n]
    luma = (video * video.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(2)  # [n, F, H, W]
    out = {
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
    check(requested.device)  # what the kernels found wrong with these poses, before they are believed
    return {name: value.cpu() for name, value in out.items()}
