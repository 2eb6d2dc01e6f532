"""Figures of the classical reconstructor on rendered clips whose cameras are known.

`python -m worldr1.microworld.measure_classical` prints the tables of docs/evaluation_classical.md. A clip counts as
right where its state is that of the camera that rendered it and, with cameras, these are within RIGHT_DEG and
RIGHT_SHARE. What is not right is refused (failed) or wrong (a state and cameras that a measure would believe).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from worldr1.microworld.scene import Clips

RIGHT_DEG, RIGHT_SHARE = 3.0, 0.15
"""Mean error of rotation in degrees, and of translation as a share of the path, of a clip that counts as right."""


@dataclass(frozen=True)
class MeasureConfig:
    """Render clips, recover their cameras, print the errors."""

    height: int = 64
    """Pixels."""
    width: int = 64
    """Pixels."""
    frames: int = 9
    """Frames of a clip, at least 3."""
    clips: int = 36
    """Clips; the nine motions in turn."""
    detail: float = 0.1
    """Contrast of the scenes' texture in each octave (microworld/scene.py); 0: the micro world as it is."""
    focal_error: float = 1.0
    """The reconstructor is told the focal length times this."""
    hard: bool = False
    """Instead: clips with noise, cuts, zoom, moving objects and the like."""


@dataclass(frozen=True)
class Judged:
    """One clip; NaN where there is no such figure.

    Fields: rotation_deg, mean over frames 1 ..; translation, mean over all frames, both paths scaled to a largest
    centre of 1; depth, median of |depth - truth| / truth, scaled by the median ratio; seconds, of the processor.
    """

    state: str
    wanted: str
    rotation_deg: float
    translation: float
    depth: float
    seconds: float

    @property
    def verdict(self) -> str:
        """ "right", "refused" or "wrong"."""
        if self.state == self.wanted and (
            self.state in ("still", "failed") or (self.rotation_deg <= RIGHT_DEG and not self.translation > RIGHT_SHARE)
        ):
            return "right"
        return "refused" if self.state == "failed" else "wrong"


def render(num: int, *, height: int, width: int, frames: int, detail: float, first: int = 0) -> Clips:
    """Static scenes of the evaluation's seeds, the nine motions in turn."""
    from worldr1.microworld.captions import MOTIONS, NUM_CONTENTS, make_caption
    from worldr1.microworld.scene import EVALUATION_SEEDS, render_clips

    numbers = range(first, first + num)
    captions = [make_caption(MOTIONS[i % len(MOTIONS)], (5 * i + 3) % NUM_CONTENTS) for i in numbers]
    seeds = [EVALUATION_SEEDS[i] for i in numbers]
    return render_clips(captions, seeds, height=height, width=width, num_frames=frames, detail=detail)


def wanted_state(viewmats: Tensor) -> str:
    """The state of a path [F, 4, 4]."""
    import torch

    centre = -(viewmats[:, :3, :3].mT @ viewmats[:, :3, 3:])
    if float(centre.norm(dim=1).max()) > 1e-3:
        return "moving"
    return "turning" if float((viewmats - torch.eye(4)).abs().max()) > 1e-3 else "still"


def judge(reconstructor: Any, video: Tensor, viewmats: Tensor | None, *, depth: Tensor | None = None) -> list[Judged]:
    """Recover clips one by one.

    Args:
      video: Shape [N, F, 3, H, W].
      viewmats: The true cameras [N, F, 4, 4], identity at frame 0; None: nothing can be judged, "failed" is right.
      depth: True z-depth [N, F, H, W].
    """
    import torch

    from worldr1_kernels import trajectory_error

    out = []
    for i, clip in enumerate(video):
        began = time.process_time()
        found = reconstructor.recover(clip[None])
        seconds = time.process_time() - began
        state, wanted = found.state[0], "failed" if viewmats is None else wanted_state(viewmats[i])
        rotation = translation = relative = float("nan")
        if viewmats is not None and state != "failed":
            error = trajectory_error(found.reconstruction.viewmats.cpu(), viewmats[i : i + 1], scale="max_norm")
            rotation = float(torch.rad2deg(error.rotation[:, 1:].mean()))
            translation = float(error.translation.mean()) if wanted == state == "moving" else float("nan")
            if depth is not None and state == "moving":
                ours = found.reconstruction.depth[0].cpu()
                ours = ours * (depth[i] / ours).median()
                relative = float(((ours - depth[i]).abs() / depth[i]).median())
        out.append(Judged(state, wanted, rotation, translation, relative, seconds))
    return out


def by_motion(config: MeasureConfig) -> str:
    """A table of Markdown with a line a motion and one for all."""
    import torch

    from worldr1.config import MICRO_CAMERA
    from worldr1.evaluation.classical import Classical
    from worldr1.microworld.captions import MOTIONS

    reconstructor = Classical(focal_ratio=MICRO_CAMERA.focal_ratio * config.focal_error)
    size = {"height": config.height, "width": config.width, "frames": config.frames, "detail": config.detail}
    judged: list[Judged] = []
    for i in range(config.clips):  # one by one: large ones are large
        clip = render(1, first=i, **size)  # type: ignore[arg-type]
        judged += judge(reconstructor, clip.video, clip.viewmats, depth=clip.depth)
    lines = [
        f"{config.clips} clips of {config.frames}x{config.height}x{config.width}, detail {config.detail:g}, "
        f"focal length times {config.focal_error:g}",
        "",
        "| motion | clips | right | refused | wrong | rotation, deg (worst) | translation, % (worst) | depth, % | s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in (*MOTIONS, "all"):
        part = [j for i, j in enumerate(judged) if name in ("all", MOTIONS[i % len(MOTIONS)])]
        if not part:
            continue
        table = torch.tensor([[j.rotation_deg, 100 * j.translation, 100 * j.depth, j.seconds] for j in part])
        mean = table.nanmean(0).tolist()
        worst = torch.where(table.isnan(), -torch.inf, table).amax(0).tolist()
        cells = [
            f"{mean[0]:.2f} ({worst[0]:.2f})",
            f"{mean[1]:.1f} ({worst[1]:.1f})",
            f"{mean[2]:.1f}",
            f"{mean[3]:.2f}",
        ]
        cells = ["-" if "nan" in c else c for c in cells]
        lines.append(" | ".join([f"| {name}", str(len(part)), *_counts(part), *cells]) + " |")
    return "\n".join(lines)


def _counts(judged: Sequence[Judged]) -> list[str]:
    return [str(sum(j.verdict == verdict for j in judged)) for verdict in ("right", "refused", "wrong")]


def hard_cases(num: int, *, height: int, width: int, frames: int, detail: float) -> dict[str, tuple[Tensor, Any]]:
    """Name -> (video [n, F, 3, H, W], true cameras, or None where nothing can be judged)."""
    import torch

    from worldr1.microworld.captions import EVENTS, NUM_CONTENTS, make_caption
    from worldr1.microworld.scene import EVALUATION_SEEDS, render_clips

    size: dict[str, Any] = {"height": height, "width": width, "num_frames": frames, "detail": detail}
    every = render(num, height=height, width=width, frames=frames, detail=detail)
    video, path = every.video, every.viewmats
    generator = torch.Generator().manual_seed(0)

    def at(order: list[int]) -> tuple[Tensor, Tensor]:
        return video[:, order], path[:, order] @ torch.linalg.inv(path[:, order[0]])[:, None]

    cut = video.clone()
    cut[:, frames // 2 + 1 :] = video.roll(1, 0)[:, frames // 2 + 1 :]
    events = [make_caption("fixed", (5 * i + 3) % NUM_CONTENTS, dynamic=EVENTS[i % 4]) for i in range(num)]
    seeds = [EVALUATION_SEEDS[i] for i in range(num)]
    dynamic = render_clips(events, seeds, paths=path, **size).video
    shuffled = torch.randperm(frames, generator=generator).tolist()
    stutter = [f // 2 for f in range(frames)]
    half = torch.full_like(video[:2], 0.5)
    return {
        "noise .02": (noisy(video, 0.02, generator), path),
        "noise .05": (noisy(video, 0.05, generator), path),
        "noise .1": (noisy(video, 0.1, generator), path),
        "an object moves or changes": (dynamic, path),
        "every frame twice": at(stutter),
        "frames shuffled": at(shuffled),
        "played backwards": at(list(range(frames))[::-1]),
        "frozen": (video[:, :1].expand_as(video), torch.eye(4).expand_as(path)),
        "zoom in, camera at rest": (zoomed(video[:, :1].expand_as(video), 1.6), None),
        "zoom out, camera at rest": (zoomed(video[:, :1].expand_as(video), 1.6).flip(1), None),
        "cut": (cut, None),
        "noise alone": (torch.rand(video.shape, generator=generator), None),
        "black, grey": (torch.cat([torch.zeros_like(half), half]), None),
        "a smooth ramp": (torch.linspace(0, 1, width).expand_as(half), None),
    }


def noisy(video: Tensor, deviation: float, generator: Generator) -> Tensor:
    """Independent Gaussian noise on every value."""
    import torch

    return (video + deviation * torch.randn(video.shape, generator=generator)).clamp(0, 1)


def zoomed(video: Tensor, factor: float) -> Tensor:
    """The lens zooms in evenly until the last frame is `factor` times as large."""
    import torch
    from torch.nn import functional as F

    num, frames = video.shape[:2]
    scale = factor ** -torch.linspace(0, 1, frames)
    theta = torch.zeros(frames, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    grid = F.affine_grid(theta, [frames, 3, *video.shape[-2:]], align_corners=False)
    frame = [F.grid_sample(clip, grid, mode="bicubic", padding_mode="border", align_corners=False) for clip in video]
    return torch.stack(frame).clamp(0, 1)


def by_case(config: MeasureConfig) -> str:
    """A table of Markdown with a line a hard case."""
    from worldr1.evaluation.classical import Classical

    cases = hard_cases(
        config.clips, height=config.height, width=config.width, frames=config.frames, detail=config.detail
    )
    lines = [
        f"{config.frames}x{config.height}x{config.width}, detail {config.detail:g}",
        "",
        "| case | clips | right | refused | wrong | states |",
        "|---|---|---|---|---|---|",
    ]
    for name, (video, path) in cases.items():
        judged = judge(Classical(), video, path)
        states = [j.state for j in judged]
        said = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
        lines.append(" | ".join([f"| {name}", str(len(judged)), *_counts(judged), said]) + " |")
    return "\n".join(lines)


def measure(config: MeasureConfig) -> None:
    """Print the table that the settings ask for."""
    if config.frames < 3 or config.clips < 1 or min(config.height, config.width) < 16:
        raise ValueError(
            f"measure_classical: need frames >= 3, clips >= 1 and frames of 16 pixels or more, got {config.frames}, "
            f"{config.clips} and {config.height}x{config.width}"
        )
    table: Callable[[MeasureConfig], str] = by_case if config.hard else by_motion
    print(table(config))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0 done, 2 wrong settings."""
    import tyro

    args = None if argv is None else list(argv)
    config = tyro.cli(MeasureConfig, args=args, prog="python -m worldr1.microworld.measure_classical")
    try:
        measure(config)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
