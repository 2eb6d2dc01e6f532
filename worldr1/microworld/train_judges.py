"""The stages that train the judges of the micro world, each reproducible from its seed; `microworld.build` calls them.

Every stage has the form `stage(assets, *, seed, log) -> figures`, writes one folder under `assets` and measures itself
on scenes that it was not trained on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from worldr1.evaluation.micro_evaluator import MicroEvaluator
from worldr1.microworld.captions import NUM_CONTENTS, make_caption
from worldr1.microworld.corrupt import critic_views
from worldr1.microworld.degrade import KINDS, degrade, shift
from worldr1.microworld.judge_data import JudgeClips, content_labels, mirror, render_pool, through_vae, wear
from worldr1.microworld.measure_judges import (
    measure_aesthetic,
    measure_classes,
    measure_critic,
    measure_geometry,
    measure_perceptual,
)
from worldr1.microworld.training import Muon, cosine
from worldr1.rewards.judges.micro_geo import MicroGeo, viewmats_to_poses
from worldr1.rewards.judges.micro_images import MicroAesthetic, MicroCritic, MicroPerceptual, bag_of_words

Log = Callable[[str], None]

# First scene seeds of the reward's reconstructor, the evaluator, the image judges and the critic: disjoint.
_GEO_SCENES, _EVALUATOR_SCENES, _JUDGE_SCENES, _CRITIC_SCENES = 200_000, 400_000, 600_000, 800_000
_LEARNING_RATE = 2e-3
# Clips a step: twice the steps on half the clips take the poses from 11 to 1 degree in the same time.
_BATCH = 16

# What the perceptual distance of a frame and its fully degraded version shall be; two different scenes are 0.7 apart.
_FULL_DISTANCE = {
    "blur": 0.50,
    "noise": 0.40,
    "coarse": 0.40,
    "contrast": 0.30,
    "colour": 0.30,
    "blocks": 0.45,
    "shuffle": 0.60,
    "tear": 0.55,
    "ghost": 0.60,
    "holes": 0.60,
}


def microgeo(
    assets: Path, *, seed: int = 0, log: Log = print, num_clips: int = 6000, num_steps: int = 1200
) -> dict[str, float]:
    """Train the reconstructor of the rewards into assets/microgeo.

    Returns:
      Figures on held-out clips, see `measure_geometry`.
    """
    torch.manual_seed(seed)
    network = MicroGeo()
    pool = render_pool(num_clips, seed=seed, first_scene=_GEO_SCENES)
    pool = _some_decoded(pool, assets, log)
    batches = _clip_batches(pool, seed=seed)

    def loss() -> Tensor:
        clips = next(batches)
        log_depth, log_error, poses = _in_bfloat16(network, clips.video)
        return _geometry_loss(clips, log_depth.float(), log_error.float(), poses.float())

    _fit("microgeo", network, loss, num_steps=num_steps, log=log)
    network.save_pretrained(Path(assets) / "microgeo")
    return measure_geometry(MicroGeo.from_pretrained(Path(assets) / "microgeo"))


def evaluator(
    assets: Path, *, seed: int = 0, log: Log = print, num_clips: int = 6000, num_steps: int = 1500
) -> dict[str, float]:
    """Train the independent evaluator into assets/microeval: another network, scenes and seed than those of MicroGeo.

    Returns:
      Figures on held-out clips, see `measure_geometry` and `measure_classes`.
    """
    seed = seed + 1
    torch.manual_seed(seed)
    network = MicroEvaluator()
    pool = render_pool(num_clips, seed=seed, first_scene=_EVALUATOR_SCENES, exact=0.6)
    pool = _some_decoded(pool, assets, log)
    batches = _clip_batches(pool, seed=seed)
    cross_entropy = nn.CrossEntropyLoss(ignore_index=-1, label_smoothing=0.02)

    def loss() -> Tensor:
        clips = next(batches)
        log_depth, log_error, poses, motion, contents = _in_bfloat16(network, clips.video)
        total = _geometry_loss(clips, log_depth.float(), log_error.float(), poses.float())
        total = total + 0.3 * cross_entropy(motion.float(), clips.motion)
        for name, label in content_labels(clips.content).items():
            total = total + 0.1 * cross_entropy(contents[name].float(), label)
        return total

    _fit("evaluator", network, loss, num_steps=num_steps, log=log)
    network.save_pretrained(Path(assets) / "microeval")
    network = MicroEvaluator.from_pretrained(Path(assets) / "microeval")
    return {**measure_geometry(network), **measure_classes(network)}


def perceptual(
    assets: Path, *, seed: int = 0, log: Log = print, num_clips: int = 1500, num_steps: int = 600
) -> dict[str, float]:
    """Train the perceptual distance into assets/microperceptual: graded changes of a frame, a distance set for each.

    Returns:
      See `measure_perceptual`.
    """
    seed = seed + 2
    torch.manual_seed(seed)
    network = MicroPerceptual()
    pool = render_pool(num_clips, seed=seed, first_scene=_JUDGE_SCENES)
    batches = _frame_batches(pool, seed=seed, size=64)

    def loss() -> Tensor:
        images, _, generator = next(batches)
        changed, distance = _changed(images, generator)
        return ((_in_bfloat16(network, images, changed).float() + 0.01).log() - (distance + 0.01).log()).abs().mean()

    _fit("perceptual", network, loss, num_steps=num_steps, log=log)
    network.save_pretrained(Path(assets) / "microperceptual")
    return measure_perceptual(MicroPerceptual.from_pretrained(Path(assets) / "microperceptual"))


def aesthetic(
    assets: Path, *, seed: int = 0, log: Log = print, num_clips: int = 1500, num_steps: int = 600
) -> dict[str, float]:
    """Train the aesthetic judge into assets/microaesthetic: a Bradley-Terry model of the less degraded of two frames.

    A picture under a prompt that names its content is also preferred to it under one that does not. The scale is then
    set so that clean held-out frames score 5 on average, and those degraded as far as the training went -5.

    Returns:
      See `measure_aesthetic`.
    """
    seed = seed + 3
    torch.manual_seed(seed)
    network = MicroAesthetic()
    pool = render_pool(num_clips, seed=seed, first_scene=_JUDGE_SCENES)
    batches = _frame_batches(pool, seed=seed, size=64)
    words_of = bag_of_words([make_caption("fixed", k).text for k in range(NUM_CONTENTS)])

    def loss() -> Tensor:
        images, content, generator = next(batches)
        num = len(images)
        kind = torch.randint(len(KINDS), (num,), generator=generator)
        less = torch.rand(num, generator=generator) * (torch.rand(num, generator=generator) < 0.5) * 0.8
        more = less + (1.0 - less) * (0.1 + 0.9 * torch.rand(num, generator=generator))
        better = degrade(images, kind=kind, severity=less, generator=generator)
        worse = degrade(images, kind=kind, severity=more, generator=generator)
        other = (content + torch.randint(1, NUM_CONTENTS, (num,), generator=generator)) % NUM_CONTENTS
        right, wrong = words_of[content], words_of[other]
        frames, words = torch.cat([better, worse, images, images]), torch.cat([right, right, right, wrong])
        score = _in_bfloat16(network, frames, words).float()
        first, second, fitting, unfitting = score.chunk(4)
        preferred = torch.cat([first - second, fitting - unfitting])
        return nn.functional.softplus(-preferred).mean() + 1e-3 * score.square().mean()

    _fit("aesthetic", network, loss, num_steps=num_steps, log=log)
    network.eval()
    figures = measure_aesthetic(network)
    network.scale = 10.0 / (figures["clean"] - figures["degraded"])
    network.offset = 5.0 - network.scale * figures["clean"]
    network.settings |= {"scale": network.scale, "offset": network.offset}
    network.save_pretrained(Path(assets) / "microaesthetic")
    return measure_aesthetic(MicroAesthetic.from_pretrained(Path(assets) / "microaesthetic"))


def critic(
    assets: Path, *, seed: int = 0, log: Log = print, num_clips: int = 1000, num_rounds: int = 6, num_steps: int = 600
) -> dict[str, float]:
    """Train the critic into assets/microcritic: novel views of scenes broken to a known degree, graded 9 (whole) to 0.

    Half of the scenes have true depth and poses, half those that assets/microgeo, which must be there, recovers from
    worn clips; either is a 9 as it is.

    Returns:
      See `measure_critic`.
    """
    seed = seed + 4
    torch.manual_seed(seed)
    network = MicroCritic()
    geo = MicroGeo.from_pretrained(Path(assets) / "microgeo")
    pool = render_pool(num_clips, seed=seed, first_scene=_CRITIC_SCENES, dynamic=0.05, exact=0.7)
    images, grades = critic_views(pool, geo, num_rounds=num_rounds, seed=seed)
    log(f"critic: {len(images)} novel views")
    generator = torch.Generator().manual_seed(seed)
    digits = torch.arange(10.0)

    def loss() -> Tensor:
        index = torch.randint(len(images), (64,), generator=generator)
        batch = images[index] + 0.02 * torch.randn(64, *images.shape[1:], generator=generator)
        batch = batch.flip(-1) if torch.rand((), generator=generator) < 0.5 else batch
        target = (-0.5 * ((digits - grades[index, None]) / 0.7).square()).softmax(dim=1)
        return nn.functional.cross_entropy(_in_bfloat16(network, batch).float(), target)

    _fit("critic", network, loss, num_steps=num_steps, log=log)
    network.save_pretrained(Path(assets) / "microcritic")
    return measure_critic(MicroCritic.from_pretrained(Path(assets) / "microcritic"), geo)


def _changed(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A changed version of every image and the distance that it shall have: degraded, shifted, or of another scene."""
    num = len(images)
    kind = torch.randint(len(KINDS), (num,), generator=generator)
    severity = 0.02 + 0.98 * torch.rand(num, generator=generator)
    changed = degrade(images, kind=kind, severity=severity, generator=generator)
    distance = torch.tensor([_FULL_DISTANCE[name] for name in KINDS])[kind] * severity
    dx, dy = torch.randint(-8, 9, (2, num), generator=generator)
    reach = (dx.square() + dy.square()).float().sqrt()
    which = torch.rand(num, generator=generator)
    is_shift, is_other = (which < 0.3) & (reach > 0), which > 0.85
    changed = torch.where(is_shift[:, None, None, None], shift(images, dx, dy), changed)
    distance = torch.where(is_shift, 0.62 * (1.0 - (-reach / 4.0).exp()), distance)
    changed = torch.where(is_other[:, None, None, None], images.roll(1, 0), changed)
    return changed, torch.where(is_other, torch.full_like(distance, 0.7), distance)


def _geometry_loss(clips: JudgeClips, log_depth: Tensor, log_error: Tensor, poses: Tensor) -> Tensor:
    """Laplace likelihood of log depth, and absolute errors of rotation vectors (radians) and centres (scene units)."""
    error = (log_depth - clips.depth.log()).abs()
    depth = (error * (-log_error).exp() + log_error).mean()
    difference = (poses - viewmats_to_poses(clips.viewmats)).abs()
    return 0.2 * depth + 6.0 * difference[..., :3].mean() + 2.0 * difference[..., 3:].mean()


def _some_decoded(pool: JudgeClips, assets: Path, log: Log) -> JudgeClips:
    """A sixth of the clips as the autoencoder gives them back, where assets/microwan/vae is there already."""
    folder = Path(assets) / "microwan" / "vae"
    if not folder.is_dir():
        log(f"no {folder}: learning from rendered clips alone")
        return pool
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan.from_pretrained(folder, local_files_only=True).eval().requires_grad_(False)
    return through_vae(pool, vae, len(pool) // 6)


def _clip_batches(pool: JudgeClips, *, seed: int) -> Iterator[JudgeClips]:
    """Batches of worn and, half of them, mirrored clips, in shuffled epochs, without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for index in torch.randperm(len(pool), generator=generator).split(_BATCH):
            clips = pool.batch(index)
            if torch.rand((), generator=generator) < 0.5:
                clips = mirror(clips)
            yield replace(clips, video=wear(clips.video, generator))


def _frame_batches(pool: JudgeClips, *, seed: int, size: int) -> Iterator[tuple[Tensor, Tensor, torch.Generator]]:
    """Batches of slightly worn frames [size, 3, H, W] with their content [size], and a generator, without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        index = torch.randint(len(pool), (size,), generator=generator)
        frame = torch.randint(pool.video.shape[1], (size,), generator=generator)
        images = pool.video[index, frame].float() / 255.0
        images = wear(images[:, None], generator, strength=0.7, share=0.6)[:, 0]
        if torch.rand((), generator=generator) < 0.5:
            images = images.flip(-1)
        yield images, pool.content[index], generator


def _in_bfloat16(network: nn.Module, *inputs: Tensor):
    """network(*inputs) with its products in bfloat16: half the time on processors that have it."""
    with torch.autocast("cpu", torch.bfloat16):
        return network(*inputs)


def _fit(name: str, network: nn.Module, loss: Callable[[], Tensor], *, num_steps: int, log: Log) -> None:
    """Muon over `num_steps` values of `loss`; the rate warms up, then falls along a cosine."""
    optimizer = Muon(network, learning_rate=_LEARNING_RATE, weight_decay=0.01)
    start, recent = time.perf_counter(), []
    for step in range(num_steps):
        value = loss()
        optimizer.set_learning_rate(_LEARNING_RATE * cosine(step, num_steps, warm_up=max(1, num_steps // 20)))
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        recent.append(float(value.detach()))
        if (step + 1) % 100 == 0 or step + 1 == num_steps:
            mean, seconds = sum(recent) / len(recent), time.perf_counter() - start
            log(f"{name}: step {step + 1}/{num_steps}, loss {mean:.4f}, {seconds:.0f} s")
            recent = []
