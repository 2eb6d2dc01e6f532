"""What the classical reconstructor can do, measured on rendered clips whose cameras are known.

python -m worldr1.evaluation.classical                        # 36 clips of 9 x 64 x 64
python -m worldr1.evaluation.classical --size 32 --detail 0 --noise 0.05
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from worldr1.cli import exit_code
from worldr1.ranges import Real, Whole


@dataclass(frozen=True)
class MeasureConfig:
    """Measure the classical reconstructor on clips of the micro world's scenes."""

    size: Annotated[int, Whole("[16, 2048]")] = 64
    """Height and width in pixels."""
    num_frames: Annotated[int, Whole("[3, 4097]")] = 9
    """Frames of a clip."""
    clips: Annotated[int, Whole("[1, 1e4]")] = 4
    """Clips of each motion."""
    detail: Annotated[float, Real("[0, 1]")] = 0.1
    """Contrast of the texture added to the scenes, in every octave; about .1 in photographs."""
    noise: Annotated[float, Real("[0, 1]")] = 0.0
    """Deviation of white noise added to every frame."""
    events: bool = False
    """Something moves, flickers or changes its colour in every clip."""
    first_seed: Annotated[int, Whole("[0, 1e9]")] = 7000
    """Seed of the first scene."""


def measure(config: MeasureConfig) -> list[dict[str, float | str]]:
    """Render, recover, compare; prints a row for each motion.

    Returns:
      The rows: motion; moving, turning, still, failed (shares); rotation_deg and rotation_worst (over clips that did not
      fail); translation and translation_worst, in parts of the longest way (over moving clips); depth, the median
      relative error after the scale that fits; seconds a clip.
    """
    import torch

    from worldr1.evaluation.classical import Classical
    from worldr1.evaluation.recovered import FAILED, MOVING, STATES
    from worldr1.microworld.captions import EVENTS, MOTIONS, NUM_CONTENTS, make_caption
    from worldr1.microworld.scene import render_clips, trajectory_of
    from worldr1_kernels import trajectory_error

    reconstructor, rows = Classical(), []
    generator = torch.Generator().manual_seed(config.first_seed)
    head = f"{'motion':12}" + "".join(f"{s:>9}" for s in STATES) + "   rotation, deg   way, %        depth, %  s a clip"
    print(head + "\n" + f"{'':12}" + " " * 36 + "   mean  worst     mean  worst")
    for motion in MOTIONS:
        captions, paths = [], []
        for i in range(config.clips):
            content = (5 * i + 3) % NUM_CONTENTS
            asked = make_caption(motion, content)
            paths.append(trajectory_of(asked, config.num_frames))
            event = EVENTS[i % len(EVENTS)]
            captions.append(make_caption("fixed", content, dynamic=event) if config.events else asked)
        seeds = range(config.first_seed, config.first_seed + config.clips)
        clips = render_clips(
            captions, seeds, paths=torch.stack(paths), height=config.size, width=config.size,
            num_frames=config.num_frames, detail=config.detail,
        )  # fmt: skip
        noise = config.noise * torch.randn(clips.video.shape, generator=generator)
        start = time.perf_counter()
        found = reconstructor.recover((clips.video + noise).clamp(0.0, 1.0))
        seconds = (time.perf_counter() - start) / config.clips
        error = trajectory_error(found.reconstruction.viewmats, clips.viewmats, scale="max_norm")
        rotation = torch.rad2deg(error.rotation[:, 1:].mean(1))[[s != FAILED for s in found.state]]
        moving = torch.tensor([s == MOVING for s in found.state])
        way = error.translation.mean(1)[moving]
        ratio = found.reconstruction.depth / clips.depth
        ratio = ratio / ratio.flatten(1).median(1).values[:, None, None, None]
        depth = (ratio - 1.0).abs().flatten(1).median(1).values[moving]

        def of(values: torch.Tensor, kind: str) -> float:
            return float(getattr(values, kind)()) if len(values) else float("nan")

        row: dict[str, float | str] = {
            "motion": motion,
            **{state: found.state.count(state) / config.clips for state in STATES},
            "rotation_deg": of(rotation, "mean"),
            "rotation_worst": of(rotation, "max"),
            "translation": of(way, "mean"),
            "translation_worst": of(way, "max"),
            "depth": of(depth, "mean"),
            "seconds": seconds,
        }
        rows.append(row)
        states = "".join(f"{row[s]:9.0%}" for s in STATES)
        angles = f"{row['rotation_deg']:4.2f}   {row['rotation_worst']:4.2f}"
        ways = f"{100 * of(way, 'mean'):6.1f} {100 * of(way, 'max'):6.1f}"
        print(f"{motion:12}{states}   {angles}   {ways}   {100 * of(depth, 'mean'):7.1f}   {seconds:6.2f}", flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0 done, 1 failed while running, 2 wrong settings."""
    import tyro

    config = tyro.cli(
        MeasureConfig, args=None if argv is None else list(argv), prog="python -m worldr1.evaluation.classical"
    )
    return exit_code(lambda: measure(config))


if __name__ == "__main__":
    sys.exit(main())
