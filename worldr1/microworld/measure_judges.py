"""Figures of the judges on held-out scenes: what the build prints and the tests assert."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from worldr1.evaluation.micro_evaluator import MicroEvaluator
from worldr1.microworld.captions import NUM_CONTENTS, make_caption
from worldr1.microworld.corrupt import KINDS as CORRUPTIONS
from worldr1.microworld.corrupt import broken_views
from worldr1.microworld.degrade import KINDS, degrade, shift
from worldr1.microworld.judge_data import JudgeClips, content_labels, held_out, held_out_frames
from worldr1.rewards.judges.micro_geo import MicroGeo, rotation_error, viewmats_to_poses
from worldr1.rewards.judges.micro_images import MicroAesthetic, MicroCritic, MicroPerceptual

_BATCH = 32


@torch.no_grad()
def measure_geometry(network: MicroGeo | MicroEvaluator, clips: JudgeClips | None = None) -> dict[str, float]:
    """Errors of depth and poses; by default on held-out static clips of the requested paths.

    Returns:
      rotation_deg: mean geodesic error over frames 1.., degrees; centre: mean distance of camera centres, scene units;
      depth_rel: mean of |depth - truth| / truth.
    """
    clips = held_out() if clips is None else clips
    results = [network.infer(video) for video in clips.video.split(_BATCH)]
    viewmats = torch.cat([r.viewmats for r in results])
    depth = torch.cat([r.depth for r in results])
    ours, truth = viewmats_to_poses(viewmats), viewmats_to_poses(clips.viewmats)
    return {
        "rotation_deg": math.degrees(float(rotation_error(viewmats, clips.viewmats)[:, 1:].mean())),
        "centre": float((ours - truth)[..., 3:].norm(dim=-1).mean()),
        "depth_rel": float(((depth - clips.depth).abs() / clips.depth).mean()),
    }


@torch.no_grad()
def measure_classes(network: MicroEvaluator, clips: JudgeClips | None = None) -> dict[str, float]:
    """Shares of clips whose motion, colour, shape and floor are named rightly; by default of the held-out ones."""
    clips = held_out() if clips is None else clips
    results = [network.classify(video) for video in clips.video.split(_BATCH)]
    share = {"motion": float((torch.cat([m for m, _ in results]).argmax(1) == clips.motion).float().mean())}
    for name, label in content_labels(clips.content).items():
        share[name] = float((torch.cat([c[name] for _, c in results]).argmax(1) == label).float().mean())
    return share


@torch.no_grad()
def measure_perceptual(network: MicroPerceptual, *, num: int = 288) -> dict[str, float]:
    """Mean distances of held-out frames to themselves shifted, blurred, made noisy, and to frames of other scenes."""
    images, _ = held_out_frames(num)
    generator = torch.Generator().manual_seed(0)
    none = torch.zeros(num, dtype=torch.int64)
    out = {}
    for pixels in (1, 2, 4, 8):
        out[f"shift_{pixels}"] = float(network.distance(images, shift(images, none + pixels, none)).mean())
    for kind in ("blur", "noise"):
        for severity in (0.25, 0.5, 1.0):
            changed = degrade(
                images, kind=none + KINDS.index(kind), severity=torch.full((num,), severity), generator=generator
            )
            out[f"{kind}_{severity:g}"] = float(network.distance(images, changed).mean())
    out["other_scene"] = float(network.distance(images, images.roll(num // 2 + 1, 0)).mean())
    return out


@torch.no_grad()
def measure_aesthetic(network: MicroAesthetic, *, num: int = 288) -> dict[str, float]:
    """Scores of held-out frames.

    Returns:
      clean, clean_std: mean and spread over clean frames; degraded: mean over fully degraded ones; pairs_right: share
      of pairs in which the clean frame beats its version of severity .5, over all kinds; prompt_right: share in which
      the frame scores higher under its own prompt than under another's.
    """
    images, content = held_out_frames(num)
    generator = torch.Generator().manual_seed(0)
    kind = torch.arange(len(images)) % len(KINDS)
    captions = [make_caption("fixed", k).text for k in range(NUM_CONTENTS)]

    def score(x: Tensor, contents: Tensor) -> Tensor:
        return network.score(x[:, None], [captions[k] for k in contents.tolist()])[:, 0]

    def degraded(severity: float) -> Tensor:
        return degrade(images, kind=kind, severity=torch.full(kind.shape, severity), generator=generator)

    clean = score(images, content)
    half, full = score(degraded(0.5), content), score(degraded(1.0), content)
    wrong = score(images, (content + 1 + torch.arange(len(content)) % (NUM_CONTENTS - 1)) % NUM_CONTENTS)
    return {
        "clean": float(clean.mean()),
        "clean_std": float(clean.std()),
        "degraded": float(full.mean()),
        "pairs_right": float((clean > half).float().mean()),
        "prompt_right": float((clean > wrong).float().mean()),
    }


@torch.no_grad()
def measure_critic(network: MicroCritic, geo: MicroGeo, *, num: int = 144) -> dict[str, float]:
    """Mean scores (expected digit / 9) of novel views of held-out scenes.

    Returns:
      whole: nothing broken; whole_std: their spread; half, full: all kinds at severity .5 and 1; pairs_right: share of
      scenes that score higher whole than at severity .5; full_<kind>: one kind at severity 1.
    """
    clips = held_out(num)
    kind = torch.arange(num) // 2 % len(CORRUPTIONS)  # true and recovered scenes of every kind

    def score(severity: float) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        images = broken_views(
            clips, geo, kind=kind, severity=torch.full((num,), severity), generator=generator, first_key=100_000
        )
        return network.digit_probs(images, [""] * num) @ torch.arange(10.0) / 9.0

    whole, half, full = score(0.0), score(0.5), score(1.0)
    figures = {
        "whole": float(whole.mean()),
        "whole_std": float(whole.std()),
        "half": float(half.mean()),
        "full": float(full.mean()),
        "pairs_right": float((whole > half).float().mean()),
    }
    return figures | {f"full_{name}": float(full[kind == k].mean()) for k, name in enumerate(CORRUPTIONS)}
