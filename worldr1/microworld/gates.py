"""The gates before reinforcement learning: is there something to elicit, and can the evaluator be believed?

python -m worldr1.microworld.gates
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from worldr1.config import EMBEDDED, ModelConfig, TrainConfig
from worldr1.datatypes import PromptBatch
from worldr1.microworld.captions import all_captions
from worldr1.microworld.judge_data import JudgeClips, content_labels, held_out
from worldr1.microworld.measure_judges import measure_classes, measure_geometry
from worldr1.microworld.networks import MicroEvaluator
from worldr1.microworld.scene import trajectory_of

_CHUNK = 32


class BaseGate(NamedTuple):
    """One condition on the embedded weights: low <= value <= high."""

    name: str
    value: float
    low: float
    high: float

    @property
    def passed(self) -> bool:
        """Whether the value lies between the bounds; a NaN does not."""
        return self.low <= self.value <= self.high

    def __str__(self) -> str:
        bounds = f">= {self.low:g}" if self.high == float("inf") else f"{self.low:g} .. {self.high:g}"
        return f"{'passed' if self.passed else 'FAILED'}  {self.name}: {self.value:.3f} (must be {bounds})"


def before_rl(
    assets: Path = EMBEDDED, *, num_samples: int = 288, sheet: Path | None = None, log: Callable[[str], None] = print
) -> list[BaseGate]:
    """Measure the gates on held-out scenes and on samples of the base model, and print them.

    Base samples are drawn as the default run draws them (its grid and its kind of initial noise), and once more from
    plain noise for comparison: each of the static captions equally often.

    Args:
      assets: Folder with microwan and microeval.
      num_samples: Samples of the base model, a multiple of the 144 captions for a fair mean.
      sheet: Where to write a contact sheet of base samples (PNG), if anywhere.
      log: Takes lines of text.
    Returns:
      The gates, in the order printed.
    Raises:
      ValueError: a model folder is missing.
    """
    from worldr1.models.wan import load_policy

    evaluator = MicroEvaluator.from_pretrained(Path(assets) / "microeval")
    policy = load_policy(ModelConfig(path=Path(assets) / "microwan"), device="cpu")
    truth = held_out()
    decoded = replace(truth, video=decode_truth(policy.vae, truth.video))
    mse = (decoded.video - truth.video).square().flatten(1).mean(1)
    classes, geometry = measure_classes(evaluator, decoded), measure_geometry(evaluator, decoded)
    gates = [
        BaseGate("VAE, PSNR on held-out clips, dB", float((-10.0 * mse.log10()).mean()), 27.0, float("inf")),
        BaseGate("evaluator, motion class on decoded truth", classes["motion"], 0.99, 1.0),
        BaseGate("evaluator, rotation error on decoded truth, degrees", geometry["rotation_deg"], 0.0, 0.5),
    ]
    figures = {}
    modes: tuple[Literal["transport", "plain"], ...] = ("transport", "plain")
    for mode in modes:
        video, clips = base_samples(policy, mode=mode, num_samples=num_samples)
        motion, contents = _classified(evaluator, video)
        right = motion == clips.motion
        content = torch.stack([contents[k] == label for k, label in content_labels(clips.content).items()]).all(0)
        figures[mode] = (float(right.float().mean()), float(content.float().mean()))
        log(f"base from {mode} noise: obedience {figures[mode][0]:.3f}, content {figures[mode][1]:.3f}")
        if sheet is not None and mode == "transport":
            write_sheet(video, Path(sheet))
    obedience, content_share = figures[TrainConfig().noise.mode]
    gates.append(BaseGate("base, obedience of the camera", obedience, 0.45, 0.65))
    gates.append(BaseGate("base, content", content_share, 0.98, 1.0))
    for gate in gates:
        log(str(gate))
    return gates


@torch.no_grad()
def decode_truth(vae: Any, video: Tensor) -> Tensor:
    """What the autoencoder makes of videos [N, F, 3, H, W] in [0, 1]: encoded to the mean and decoded."""
    out = []
    for part in video.split(_CHUNK):
        pixels = part.transpose(1, 2) * 2.0 - 1.0  # [n, 3, F, H, W]
        latents = vae.encode(pixels).latent_dist.mode()
        out.append((vae.decode(latents).sample.transpose(1, 2) * 0.5 + 0.5).clamp(0.0, 1.0))
    return torch.cat(out)


def base_samples(
    policy: Any, *, mode: Literal["transport", "plain"], num_samples: int, seed: int = 0
) -> tuple[Tensor, JudgeClips]:
    """Samples of the base model for the static captions in turn, and what they should show.

    Args:
      policy: A VideoPolicy.
      mode: Kind of initial noise: "transport" or "plain".
      num_samples: N.
      seed: Of the noise.
    Returns:
      video [N, F, 3, H, W] in [0, 1]; the requested viewmats, motion and content (video and depth are empty).
    """
    from worldr1.noise import initial_noise
    from worldr1.rollout import generate
    from worldr1.schedule import euler_sigmas

    base = TrainConfig()
    config = replace(base, seed=seed, noise=replace(base.noise, mode=mode))
    captions = all_captions()
    chosen = [captions[i % len(captions)] for i in range(num_samples)]
    prompts = [c.text for c in chosen]
    viewmats = torch.stack([trajectory_of(c) for c in chosen])
    batch = PromptBatch(
        prompts=prompts,
        group_size=1,
        tokens=[() for _ in prompts],
        viewmats=viewmats,
        sample_ids=torch.arange(num_samples, dtype=torch.int64),
        dynamic=False,
    )
    noise = initial_noise(batch, policy.latent_shape(config.video), config=config)
    sigmas = euler_sigmas(config.schedule.num_steps, config.schedule.shift)
    video = generate(policy, prompts, noise, sigmas=sigmas, adapter=False, micro_batch=_CHUNK)
    requested = JudgeClips(
        video=torch.empty(0),
        depth=torch.empty(0),
        viewmats=viewmats,
        motion=torch.tensor([c.motion_index for c in chosen]),
        content=torch.tensor([c.content_index for c in chosen]),
    )
    return video, requested


def write_sheet(video: Tensor, path: Path, *, rows: int = 9, scale: int = 3) -> None:
    """A contact sheet: one row per motion with all frames of two samples side by side.

    Args:
      video: Shape [N, F, 3, H, W] in [0, 1], captions in the order of `all_captions`.
      path: A .png file; its folder is made.
      rows: Motions shown.
      scale: Enlargement, whole pixels.
    """
    from PIL import Image

    per_motion = max(1, min(len(video), len(all_captions())) // rows)
    strips = []
    for row in range(rows):
        first = row * per_motion + row % max(1, per_motion // 2)  # another content in each row
        pair = [_strip(video[min(k, len(video) - 1)]) for k in (first, first + per_motion // 2)]
        gap = torch.ones(3, pair[0].shape[1], 4)
        strips.append(torch.cat([pair[0], gap, pair[1]], dim=2))
    sheet = (torch.cat(strips, dim=1) * 255.0).round().to(torch.uint8)
    pixels = sheet.repeat_interleave(scale, 1).repeat_interleave(scale, 2).permute(1, 2, 0).numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _strip(video: Tensor) -> Tensor:
    """[F, 3, H, W] -> frames side by side, [3, H, F W]."""
    return video.permute(1, 2, 0, 3).flatten(2)


def _classified(evaluator: MicroEvaluator, video: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Motion class [N] and content classes [N] of videos."""
    results = [evaluator.classify(part) for part in video.split(_CHUNK)]
    motion = torch.cat([m for m, _ in results]).argmax(1)
    return motion, {name: torch.cat([c[name] for _, c in results]).argmax(1) for name in results[0][1]}


def main() -> int:
    """Command line: 0 if every gate is passed."""
    parser = argparse.ArgumentParser(prog="python -m worldr1.microworld.gates", description=before_rl.__doc__)
    parser.add_argument("--assets", type=Path, default=EMBEDDED, help="folder with microwan and microeval")
    parser.add_argument("--num-samples", type=int, default=288, help="samples of the base model")
    parser.add_argument("--sheet", type=Path, default=None, help="write a contact sheet of base samples here (.png)")
    args = parser.parse_args()
    return 0 if all(g.passed for g in before_rl(args.assets, num_samples=args.num_samples, sheet=args.sheet)) else 1


if __name__ == "__main__":
    raise SystemExit(main())
