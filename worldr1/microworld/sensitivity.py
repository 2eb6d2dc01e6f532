"""How each reward term answers to known faults: `python -m worldr1.microworld.sensitivity` prints the table of
docs/judges.md."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from worldr1.camera.motion import parse_motion
from worldr1.camera.trajectory import build_trajectory
from worldr1.config import EMBEDDED, MICRO_CAMERA, TrainConfig
from worldr1.datatypes import PromptBatch
from worldr1.microworld.captions import MOTIONS, Caption, make_caption, split_captions
from worldr1.microworld.degrade import KINDS, degrade
from worldr1.microworld.judge_data import wear
from worldr1.microworld.scene import HELD_OUT_SEEDS, render_clips, trajectory_of
from worldr1.rewards import build_rewards

_DEGRADED = (("blur", 0.5), ("blur", 1.0), ("contrast", 0.5), ("noise", 0.5), ("tear", 0.5), ("blocks", 0.7))


@torch.no_grad()
def measure_sensitivity(assets: Path = EMBEDDED, *, num: int = 48) -> dict[str, dict[str, Tensor]]:
    """Score true clips of held-out scenes and captions, and faulty versions of them.

    Args:
      assets: Folder of the judges.
      num: N clips, all with a moving camera.
    Returns:
      Version -> term -> scores [N], the true clips first.
    """
    captions = [c for c in split_captions()[1] if c.motion != "fixed"]
    captions = [captions[i % len(captions)] for i in range(num)]
    config = TrainConfig()
    judges = replace(
        config.reward, reconstructor=str(assets / "microgeo"), critic=str(assets / "microcritic"),
        aesthetic=str(assets / "microaesthetic"), perceptual=str(assets / "microperceptual"),
    )  # fmt: skip
    stack = build_rewards(replace(config, reward=judges), device="cpu")
    batch = PromptBatch(
        prompts=[c.text for c in captions], group_size=1, tokens=[parse_motion(c.text) for c in captions],
        viewmats=torch.stack([trajectory_of(c) for c in captions]), sample_ids=torch.arange(num), dynamic=False,
        group_ids=torch.arange(num),
    )  # fmt: skip
    finite = torch.ones(num, dtype=torch.bool)
    return {name: stack.score(batch, video, finite=finite).breakdown for name, video in _versions(captions).items()}


def _versions(captions: Sequence[Caption]) -> dict[str, Tensor]:
    """Videos [N, F, 3, H, W] in [0, 1] by name."""
    seeds = list(HELD_OUT_SEEDS[: len(captions)])
    truth = render_clips(captions, seeds).video
    num, frames = truth.shape[:2]
    lengths = {name: getattr(MICRO_CAMERA, name) / 2.0 for name in ("push", "move", "pan_deg", "orbit_deg")}
    half = replace(MICRO_CAMERA, **lengths)
    halfway = torch.stack([build_trajectory(parse_motion(c.text), frames, half) for c in captions])
    moving = [m for m in MOTIONS if m != "fixed"]
    turned = [moving[(moving.index(c.motion) + 1) % len(moving)] for c in captions]
    another = torch.stack(
        [trajectory_of(make_caption(m, c.content_index)) for m, c in zip(turned, captions, strict=True)]
    )
    scene = (torch.arange(num)[:, None] + torch.arange(frames)) % num
    generator = torch.Generator().manual_seed(0)
    videos = {
        "truth": truth,
        "worn": wear(truth, generator, share=1.0),
        "half": render_clips(captions, seeds, paths=halfway).video,
        "frozen": truth[:, :1].expand_as(truth),
        "reversed": truth.flip(1),
        "other motion": render_clips(captions, seeds, paths=another).video,
        "other scene each frame": truth[scene, torch.arange(frames)],
    }
    for name, severity in _DEGRADED:
        flat = truth.flatten(0, 1)
        kind = torch.full((len(flat),), KINDS.index(name))
        worse = degrade(flat, kind=kind, severity=torch.full((len(flat),), severity), generator=generator)
        videos[f"{name} {severity:g}"] = worse.view_as(truth)
    return videos | {"grey": torch.full_like(truth, 0.5)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m worldr1.microworld.sensitivity", description=__doc__)
    parser.add_argument("--assets-dir", type=Path, default=EMBEDDED, help="folder of the judges")
    parser.add_argument("--num", type=int, default=48, help="clips")
    options = parser.parse_args(arguments)
    scores = measure_sensitivity(options.assets_dir, num=options.num)
    terms = list(scores["truth"])
    print("| video | " + " | ".join(terms) + " |\n|" + "---|" * (len(terms) + 1))
    for name, own in scores.items():
        print(f"| {name} | " + " | ".join(f"{own[t].mean():.3f} +- {own[t].std():.3f}" for t in terms) + " |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
