"""The gates before reinforcement learning: is there a base to elicit from, and judges that can tell?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from worldr1.camera.noise import warped_noise
from worldr1.config import ModelConfig, ScheduleConfig, TrainConfig, VideoConfig
from worldr1.microworld.captions import (
    COLOURS,
    FLOORS,
    MOTIONS,
    NUM_CONTENTS,
    SHAPES,
    Caption,
    make_caption,
    split_captions,
)
from worldr1.microworld.dataset import held_out_clips
from worldr1.microworld.scene import EVALUATION_SEEDS, render_clips, trajectory_of
from worldr1.microworld.train_vae import measure_psnr
from worldr1.rollout.sample import generate
from worldr1.rollout.schedule import euler_sigmas

_LIMITS = {
    "vae_psnr_db": (27.0, float("inf")),
    "decoded_truth_motion": (0.99, 1.0),
    "decoded_truth_content": (0.99, 1.0),
    "decoded_truth_rotation_deg": (0.0, 0.5),
    "base_obedience": (0.45, 0.65),
    "base_content": (0.98, 1.0),
    "base_obedience_plain_noise": (0.45, 0.65),
    "base_content_plain_noise": (0.98, 1.0),
}


class Gate(NamedTuple):
    """One gate: its figure, the closed range it must lie in, and whether it does."""

    name: str
    value: float
    low: float
    high: float

    @property
    def passed(self) -> bool:
        return self.low <= self.value <= self.high


def measure_gates(assets: Path, *, num_samples: int = 384, seed: int = 0) -> list[Gate]:
    """Measure every gate with the independent evaluator on scenes and captions kept for it.

    Args:
      assets: Folder with microwan and microeval.
      num_samples: Videos drawn from the base, on held-out captions, and true clips sent through the autoencoder.
      seed: Of the noise.
    Returns:
      The gates in the order of a build: autoencoder, evaluator on decoded truth, base.
    """
    from worldr1.evaluation.micro_evaluator import MicroEvaluator
    from worldr1.models.wan import load_policy
    from worldr1.rewards.judges.micro_geo import rotation_error

    policy = load_policy(ModelConfig(path=Path(assets) / "microwan"), device="cpu")
    evaluator = MicroEvaluator.from_pretrained(Path(assets) / "microeval")
    _, held_out = split_captions()
    captions = [held_out[i % len(held_out)] for i in range(num_samples)]

    truth = render_clips(captions, list(EVALUATION_SEEDS[:num_samples]))
    decoded = autoencode(policy.vae, truth.video)
    motion, content = judge(evaluator, decoded, captions)
    recovered = torch.cat([evaluator.infer(part).viewmats for part in decoded.split(32)])
    rotation = rotation_error(recovered, truth.viewmats)[:, 1:].mean().rad2deg()

    shape = policy.latent_shape(VideoConfig())
    noises = {"": trainer_noise(captions, shape, seed=seed), "_plain_noise": plain_noise(captions, shape, seed=seed)}
    base: dict[str, float] = {}
    for name, noise in noises.items():
        obeyed, kept = judge(evaluator, sample_base(policy, captions, noise), captions)
        base |= {f"base_obedience{name}": float(obeyed.mean()), f"base_content{name}": float(kept.mean())}
    values = {
        "vae_psnr_db": measure_psnr(policy.vae, held_out_clips(128)),
        "decoded_truth_motion": float(motion.mean()),
        "decoded_truth_content": float(content.mean()),
        "decoded_truth_rotation_deg": float(rotation),
        **base,
    }
    return [Gate(name, values[name], *_LIMITS[name]) for name in _LIMITS]


def judge(evaluator: Any, video: Tensor, captions: list[Caption]) -> tuple[Tensor, Tensor]:
    """Whether each video shows the motion of its caption, and the share of colour, shape and floor that it shows.

    Returns:
      (motion, content): [N] float, 0 or 1, and 0 to 1 in thirds.
    """
    parts = [evaluator.classify(part) for part in video.split(32)]
    motion = torch.cat([m.argmax(1) for m, _ in parts])
    asked = {
        "colour": [COLOURS.index(c.colour) for c in captions],
        "shape": [SHAPES.index(c.shape) for c in captions],
        "floor": [FLOORS.index(c.floor) for c in captions],
    }
    right = [torch.cat([c[name].argmax(1) for _, c in parts]) == torch.tensor(asked[name]) for name in asked]
    obeyed = motion == torch.tensor([c.motion_index for c in captions])
    return obeyed.float(), torch.stack(right).float().mean(0)


@torch.no_grad()
def autoencode(vae: Any, video: Tensor) -> Tensor:
    """Video [N, F, 3, H, W] in [0, 1] through the encoder's mean and the decoder."""
    out = []
    for part in video.split(32):
        mean = vae.encode(part.transpose(1, 2) * 2.0 - 1.0).latent_dist.mean
        out.append(vae.decode(mean, return_dict=False)[0].transpose(1, 2) * 0.5 + 0.5)
    return torch.cat(out).clamp(0.0, 1.0)


def plain_noise(captions: list[Caption], shape: tuple[int, int, int, int], *, seed: int) -> Tensor:
    """White initial noise, which the base is trained on: [N, C, f, h, w]."""
    return torch.randn(len(captions), *shape, generator=torch.Generator().manual_seed(seed))


def trainer_noise(captions: list[Caption], shape: tuple[int, int, int, int], *, seed: int) -> Tensor:
    """The initial noise [N, C, f, h, w] of the default run: by its settings carried along the flow of each caption."""
    config = TrainConfig()
    if config.noise.mode == "plain":
        return plain_noise(captions, shape, seed=seed)
    out = torch.empty(len(captions), *shape)
    motions = torch.tensor([c.motion_index for c in captions])
    for motion in motions.unique().tolist():
        ids = (motions == motion).nonzero()[:, 0]
        out[ids] = warped_noise(
            trajectory_of(captions[int(ids[0])]), shape, camera=config.camera, seed=seed, sample_ids=ids,
            flow_scale=config.noise.flow_scale, degradation=config.noise.degradation, dither=config.noise.dither,
        )  # fmt: skip
    return out


def sample_base(policy: Any, captions: list[Caption], noise: Tensor) -> Tensor:
    """Videos [N, F, 3, H, W] of the base: the default grid, no guidance, no adapter."""
    texts, grid = [c.text for c in captions], ScheduleConfig()
    return generate(
        policy, texts, noise, sigmas=euler_sigmas(grid.num_steps, grid.shift), adapter=False, micro_batch=32
    )


def write_contact_sheet(assets: Path, path: Path, *, seed: int = 0, log: Callable[[str], None] = print) -> None:
    """Write a picture of base samples: for each motion one row of truth and two rows of samples, 9 frames each.

    Args:
      assets: Folder with microwan.
      path: PNG to write.
      seed: Of the noise.
      log: Takes one line.
    """
    from worldr1.models.wan import load_policy

    policy = load_policy(ModelConfig(path=Path(assets) / "microwan"), device="cpu")
    shape = policy.latent_shape(VideoConfig())
    captions = [make_caption(m, (5 * i + 2) % NUM_CONTENTS) for i, m in enumerate(MOTIONS)]
    truth = render_clips(captions, list(EVALUATION_SEEDS[: len(captions)])).video
    first, second = (sample_base(policy, captions, trainer_noise(captions, shape, seed=seed + k)) for k in (0, 1))
    _draw_sheet(path, captions, torch.stack([truth, first, second], dim=1))
    log(f"contact sheet: {path}")


def _draw_sheet(path: Path, captions: list[Caption], videos: Tensor) -> None:
    """Draw [rows, 3 (truth, sample, sample), F, 3, H, W] with the captions as titles."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 3
    figure = Figure(figsize=(13.0, 6.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(-(-len(captions) // columns), columns)
    for axis, caption, clip in zip(axes.flat, captions, videos, strict=False):
        lines = [np.concatenate(list(line.clamp(0, 1).permute(0, 2, 3, 1).numpy()), axis=1) for line in clip]
        axis.imshow(np.concatenate(lines, axis=0), interpolation="nearest")
        axis.set_title(caption.text, fontsize=7)
        middles = [(i + 0.5) * clip.shape[-2] for i in range(len(lines))]
        axis.set_yticks(middles, ["truth", "base", "base"], fontsize=7)
        axis.set_xticks([])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
