"""How each reward term answers to known faults, before it is trusted: true clips of rendered scenes and worse versions
of them, scored by the terms of any judges. `python -m worldr1.sensitivity` is the command."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from worldr1.camera.motion import parse_motion
from worldr1.config import RewardConfig
from worldr1.datatypes import GaussianScene, PromptBatch, Reconstruction
from worldr1.microworld.captions import MOTIONS, Caption, make_caption, split_captions
from worldr1.microworld.degrade import KINDS, degrade
from worldr1.microworld.judge_data import blur, wear
from worldr1.microworld.scene import HELD_OUT_SEEDS, Clips, intrinsics, render_clips, trajectory_of
from worldr1.rewards import RewardStack
from worldr1.rewards.base import evenly
from worldr1.rewards.fidelity import fidelity_term
from worldr1.rewards.judges.micro_geo import pixel_gaussians, poses_to_viewmats
from worldr1.rewards.judges.registry import load_judge
from worldr1.rewards.reconstruct import MAX_GAUSSIANS_PER_PIXEL, render, thin
from worldr1_kernels import rasterize

_TRUE_CONFIDENCE = 40.0  # of known depth: Gaussians of opacity .93
_JITTER = (0.01, 0.03)  # radians, scene units; of level 1


@dataclass(frozen=True)
class Settings:
    """What is measured: N clips, their size, and what becomes of true depth where no reconstructor is given."""

    num: int = 8
    height: int = 32
    width: int = 32
    num_frames: int = 9
    detail: float = 0.0
    splat_px: float = 0.3
    ways: bool = False
    first_scene: int = 0
    only: tuple[str, ...] = ()


@dataclass(frozen=True)
class Version:
    """N clips and the geometry that they show."""

    video: Tensor  # [N, F, 3, H, W] in [0, 1]
    depth: Tensor  # [N, F, H, W]
    viewmats: Tensor  # [N, F, 4, 4], identity at frame 0


class TrueGeometry:
    """A Reconstructor that was told depth and poses: what S_recon says of it is said by the distance alone."""

    def __init__(self, clips: Version, K: Tensor, *, splat_px: float) -> None:
        self.clips, self.K, self.splat_px = clips, K, splat_px

    def infer(self, video: Tensor) -> Reconstruction:
        """As rewards.base.Reconstructor, for the clips that it was made for."""
        depth, viewmats = (x.to(video.device) for x in (self.clips.depth, self.clips.viewmats))
        assert video.shape[:2] == depth.shape[:2]
        confidence = torch.full_like(depth, _TRUE_CONFIDENCE)
        K = self.K.to(video.device)
        gaussians = pixel_gaussians(video, depth, confidence, viewmats=viewmats, K=K, splat_px=self.splat_px)
        return Reconstruction(depth, confidence, viewmats, K.expand(*video.shape[:2], 3, 3), gaussians)


@torch.no_grad()
def measure_sensitivity(
    rewards: RewardConfig,
    settings: Settings,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, dict[str, Tensor]]:
    """Score true clips of held-out scenes and captions, all with a moving camera, and faulty versions of them.

    Args:
      rewards: Names the judges; a term whose judge is "" is left out. Without a reconstructor the true depth and poses
        of each version are lifted to a Gaussian a pixel.
      settings: See `Settings`; with `ways` S_recon is also measured with all Gaussians ("recon all"), and on the
        frames whose Gaussians were left out ("recon held out"), all three with `screen_blur` in place of the reward's.
      device: Where the judges run.
      progress: Told what is measured.
    Returns:
      Version -> term -> scores [N], the true clips first; NaN where a clip has none.
    Raises:
      ValueError: a setting, or a judge that is not there or failed on every clip of a version, with its reason.
    """
    device = torch.device(device)
    check_settings(rewards, settings)
    judges = _load(rewards, device)
    captions = [c for c in split_captions()[1] if c.motion != "fixed"]
    captions = [captions[i % len(captions)] for i in range(settings.num)]
    weighted = replace(
        rewards, weight_traj=1.0, weight_recon=float(judges["perceptual"] is not None and not settings.ways),
        weight_meta=float(judges["critic"] is not None), weight_gen=float(judges["aesthetic"] is not None),
        control="none",
    )  # fmt: skip
    stack = RewardStack(weighted, seed=0, device=device, **judges)
    K = intrinsics(settings.height, settings.width)
    # True geometry is of the clips that it was made for; S_recon in other ways is large.
    alone = judges["reconstructor"] is None or settings.ways
    parts = [[i] for i in range(settings.num)] if alone else [list(range(settings.num))]
    out: dict[str, dict[str, Tensor]] = {}
    for name, version in versions(captions, settings):
        found: dict[str, list[Tensor]] = {}
        reasons: set[str] = set()
        for rows in parts:
            progress(f"{name}: clip {rows[-1] + 1} of {settings.num}")
            clips = Version(version.video[rows], version.depth[rows], version.viewmats[rows])
            if judges["reconstructor"] is None:
                stack.reconstructor = TrueGeometry(clips, K, splat_px=settings.splat_px)
            output = stack.judge(_batch([captions[i] for i in rows], rows, settings.num_frames), clips.video)
            reasons |= set(output.reasons.values())
            scores = dict(output.breakdown)
            if settings.ways:
                assert stack.reconstructor is not None
                video = clips.video.to(device)
                scores |= _ways(
                    stack.reconstructor.infer(video), video, judges["perceptual"], eps2d=rewards.screen_blur
                )
            for term, score in scores.items():
                found.setdefault(term, []).append(score.cpu())
        scores = {term: torch.cat(score) for term, score in found.items()}
        if any(bool(score.isnan().all()) for score in scores.values()):
            raise ValueError(f"sensitivity: every clip of {name!r} failed: {'; '.join(sorted(reasons))}")
        out[name] = scores
    return out


def check_settings(rewards: RewardConfig, settings: Settings) -> None:
    """ValueError for what cannot be measured."""
    if not any((rewards.reconstructor, rewards.critic, rewards.aesthetic, rewards.perceptual)):
        raise ValueError(
            "sensitivity: one of --reconstructor --critic --aesthetic --perceptual must be given, got none"
        )
    s = settings
    least = {"num": 2, "height": 32, "width": 32, "num_frames": 5}
    for name, low in least.items():
        if getattr(s, name) < low:
            raise ValueError(f"sensitivity: --{name.replace('_', '-')} must be >= {low}, got {getattr(s, name)}")
    if s.height % 8 or s.width % 8:
        raise ValueError(f"sensitivity: --height and --width must be multiples of 8, got {s.height} and {s.width}")
    if s.splat_px <= 0 or s.detail < 0:
        raise ValueError(f"sensitivity: need --splat-px > 0 and --detail >= 0, got {s.splat_px} and {s.detail}")
    if not 0 <= rewards.screen_blur <= 1:
        raise ValueError(f"sensitivity: --screen-blur must be in [0, 1], got {rewards.screen_blur}")
    if not 0 <= s.first_scene <= len(HELD_OUT_SEEDS) - s.num:
        raise ValueError(
            f"sensitivity: --first-scene must be in [0, {len(HELD_OUT_SEEDS) - s.num}], got {s.first_scene}"
        )
    if s.ways and not rewards.perceptual:
        raise ValueError("sensitivity: --ways needs --perceptual, S_recon is what it measures in other ways")
    unknown = sorted(set(s.only) - set(KIND_NAMES))
    if unknown:
        raise ValueError(f"sensitivity: --only must name some of {', '.join(KIND_NAMES)}, got {', '.join(unknown)}")


def versions(captions: Sequence[Caption], settings: Settings) -> Iterator[tuple[str, Version]]:
    """The clips of these captions and worse versions, the truth first; "KIND LEVEL" where a kind has levels.

    Each comes with the geometry that it shows: of a camera that went elsewhere, its own; of changed pixels, the true.
    """
    maker = _Maker(list(captions), settings)
    truth = maker.clips(None)
    yield "truth", truth
    for name, (make, levels) in _MAKERS.items():
        if not settings.only or name in settings.only:
            for level in levels or (math.nan,):
                generator = torch.Generator().manual_seed(0)  # one level differs from the next in its level alone
                yield (f"{name} {level:g}" if levels else name), make(maker, truth, level, generator)


class _Maker:
    """Renders the scenes along other paths, and changes pixels."""

    def __init__(self, captions: list[Caption], settings: Settings) -> None:
        self.captions, self.settings = captions, settings
        self.seeds = list(HELD_OUT_SEEDS[settings.first_scene :][: len(captions)])

    def clips(self, paths: Tensor | None) -> Version:
        s = self.settings
        size: dict[str, Any] = {"height": s.height, "width": s.width, "num_frames": s.num_frames, "detail": s.detail}
        clips: Clips = render_clips(self.captions, self.seeds, paths=paths, **size)
        return Version(clips.video, clips.depth, clips.viewmats)

    def jitter(self, truth: Version, level: float, generator: torch.Generator) -> Version:
        num, frames = truth.viewmats.shape[:2]
        size = torch.tensor([_JITTER[0]] * 3 + [_JITTER[1]] * 3) * level
        shake = poses_to_viewmats(size * torch.randn(num, frames - 1, 6, generator=generator))
        return self.clips(shake @ truth.viewmats)

    def half(self, truth: Version, level: float, generator: torch.Generator) -> Version:
        frames = truth.video.shape[1]
        stop = torch.arange(frames).clamp_max(frames // 2)
        return Version(truth.video[:, stop], truth.depth[:, stop], truth.viewmats[:, stop])

    def frozen(self, truth: Version, level: float, generator: torch.Generator) -> Version:
        return Version(*(x[:, :1].expand_as(x) for x in (truth.video, truth.depth, truth.viewmats)))

    def reversed(self, truth: Version, level: float, generator: torch.Generator) -> Version:
        return Version(truth.video.flip(1), truth.depth.flip(1), _rooted(truth.viewmats.flip(1)))

    def other_motion(self, truth: Version, level: float, generator: torch.Generator) -> Version:
        moving = [m for m in MOTIONS if m != "fixed"]
        turned = [moving[(moving.index(c.motion) + 1) % len(moving)] for c in self.captions]
        pairs = zip(turned, self.captions, strict=True)
        frames = self.settings.num_frames
        return self.clips(torch.stack([trajectory_of(make_caption(m, c.content_index), frames) for m, c in pairs]))

    def other_scenes(self, truth: Version, level: float, generator: torch.Generator) -> Version:
        num, frames = truth.video.shape[:2]
        scene, time = (torch.arange(num)[:, None] + torch.arange(frames)) % num, torch.arange(frames)
        return Version(truth.video[scene, time], truth.depth[scene, time], _rooted(truth.viewmats[scene, time]))

    def worn(self, truth: Version, level: float, generator: torch.Generator) -> Version:
        return replace(truth, video=wear(truth.video, generator, share=1.0))

    def blur(self, truth: Version, level: float, generator: torch.Generator) -> Version:
        return replace(truth, video=blur(truth.video, level))

    def noise(self, truth: Version, level: float, generator: torch.Generator) -> Version:
        noise = torch.randn(truth.video.shape, generator=generator)
        return replace(truth, video=(truth.video + level * noise).clamp(0.0, 1.0))

    def contrast(self, truth: Version, level: float, generator: torch.Generator) -> Version:
        mean = truth.video.mean((2, 3, 4), keepdim=True)
        return replace(truth, video=mean + (1.0 - level) * (truth.video - mean))

    def floaters(self, truth: Version, level: float, generator: torch.Generator) -> Version:
        return with_floaters(truth, int(level), generator)

    def tear(self, truth: Version, level: float, generator: torch.Generator) -> Version:
        return self._degraded(truth, "tear", level, generator)

    def blocks(self, truth: Version, level: float, generator: torch.Generator) -> Version:
        return self._degraded(truth, "blocks", level, generator)

    def grey(self, truth: Version, level: float, generator: torch.Generator) -> Version:
        return replace(truth, video=torch.full_like(truth.video, 0.5))

    def _degraded(self, truth: Version, kind: str, level: float, generator: torch.Generator) -> Version:
        flat = truth.video.flatten(0, 1)
        kinds, severity = torch.full((len(flat),), KINDS.index(kind)), torch.full((len(flat),), level)
        worse = degrade(flat, kind=kinds, severity=severity, generator=generator)
        return replace(truth, video=worse.view_as(truth.video))


_Make = Callable[[_Maker, Version, float, torch.Generator], Version]
# Levels: jitter in units of _JITTER; blur in pixels; noise as a deviation; contrast as the share that is lost; floaters
# as their number; tear and blocks as the severity of `degrade`.
_MAKERS: dict[str, tuple[_Make, tuple[float, ...]]] = {
    "jitter": (_Maker.jitter, (1.0, 2.0, 4.0)),
    "half-way": (_Maker.half, ()),
    "frozen": (_Maker.frozen, ()),
    "reversed": (_Maker.reversed, ()),
    "other motion": (_Maker.other_motion, ()),
    "other scene each frame": (_Maker.other_scenes, ()),
    "worn": (_Maker.worn, ()),
    "blur": (_Maker.blur, (0.5, 1.0, 2.0, 4.0)),
    "noise": (_Maker.noise, (0.05, 0.1, 0.2)),
    "contrast": (_Maker.contrast, (0.2, 0.4, 0.7)),
    "floaters": (_Maker.floaters, (5, 20, 80)),
    "tear": (_Maker.tear, (0.5,)),
    "blocks": (_Maker.blocks, (0.7,)),
    "grey": (_Maker.grey, ()),
}
KIND_NAMES = tuple(_MAKERS)
"""The kinds of faults, in the order of the table."""


def with_floaters(truth: Version, num: int, generator: torch.Generator) -> Version:
    """Fragments that hang in the air between the camera's path and the scene, at rest there, seen from every camera.

    Opaque Gaussians of random colour, as wide as 1 to 4 % of the image at a place of the first view, at .3 to .8 of the
    depth there. Where they cover the scene, depth is theirs.
    """
    count, frames, _, height, width = truth.video.shape
    K = intrinsics(height, width)
    draws = torch.rand(count, num, 8, generator=generator)
    depth = truth.depth[:, 0].flatten(1).median(1).values[:, None] * (0.3 + 0.5 * draws[..., 0])  # [N, k]
    pixels = torch.stack([draws[..., 1] * width, draws[..., 2] * height, torch.ones(count, num)], -1)
    quats = torch.zeros(count, num, 4)
    quats[..., 0] = 1.0
    scales = ((0.01 + 0.03 * draws[..., 3]) * width / K[0, 0] * depth)[..., None].expand(-1, -1, 3)
    scene = GaussianScene(
        depth[..., None] * (pixels @ torch.linalg.inv(K).T),
        quats,
        scales,
        torch.full_like(depth, 0.99),
        draws[..., 4:7],
    )
    colors, alphas, _ = rasterize(
        scene.means, scene.quats, scene.scales, scene.opacities, scene.colors, truth.viewmats,
        K.expand(count, frames, 3, 3), width, height, render_mode="RGB+ED",
    )  # fmt: skip
    alphas, colors, depth = alphas.movedim(-1, 2), colors[..., :3].movedim(-1, 2), colors[..., 3]
    in_front = depth < truth.depth  # [N, F, H, W]
    covered = truth.video * (1.0 - alphas) + colors  # alphas [N, F, 1, H, W]
    return replace(
        truth,
        video=torch.where(in_front[:, :, None], covered, truth.video).clamp(0.0, 1.0),
        depth=torch.where(in_front & (alphas[:, :, 0] > 0.5), depth, truth.depth),
    )


def _ways(found: Reconstruction, video: Tensor, perceptual: Any, *, eps2d: float) -> dict[str, Tensor]:
    """S_recon [N] as the reward has it, with all Gaussians, and on frames that gave none.

    Held out are the frames between those of which half of the Gaussians, or what the reward keeps, come; NaN where
    Gaussians do not come by frames.
    """
    frames, (height, width) = video.shape[1], video.shape[-2:]
    num = found.gaussians.means.shape[1]
    room = int(MAX_GAUSSIANS_PER_PIXEL * height * width)

    def seen(gaussians: GaussianScene) -> Tensor:
        return render(gaussians, found.viewmats, found.Ks, height=height, width=width, eps2d=eps2d)

    few = thin(found.gaussians, max_gaussians=room, num_frames=frames)
    scores = {"recon": fidelity_term(seen(few), video, perceptual)}
    scores["recon all"] = fidelity_term(seen(found.gaussians), video, perceptual)
    scores["recon held out"] = torch.full((len(video),), math.nan)
    each = num // frames
    limit = min(room, num // 2)
    if num % frames == 0 and limit >= each:
        kept = set(evenly(frames, limit // each))
        others = [t for t in range(frames) if t not in kept]
        pictures = seen(thin(found.gaussians, max_gaussians=limit, num_frames=frames))
        scores["recon held out"] = fidelity_term(pictures[:, others], video[:, others], perceptual)
    return scores


class _Tiled:
    """A distance of images of one size, on squares of that size cut from larger ones; the mean over them."""

    def __init__(self, judge: Any) -> None:
        self.judge = judge

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        size = self.judge.size
        height, width = a.shape[-2:]
        if height % size or width % size:
            raise ValueError(f"distance: images must be multiples of {size} x {size}, got {height} x {width}")
        tiles = [x.unfold(2, size, size).unfold(3, size, size).movedim(1, 3).reshape(-1, 3, size, size) for x in (a, b)]
        return self.judge.distance(*tiles).view(len(a), -1).mean(1)


def _load(rewards: RewardConfig, device: torch.device) -> dict[str, Any]:
    judges: dict[str, Any] = {}
    for role in ("reconstructor", "critic", "aesthetic", "perceptual"):
        source = getattr(rewards, role)
        judges[role] = load_judge(source, role=role, device=device, config=rewards) if source else None
    if hasattr(judges["perceptual"], "size"):  # a network for one size of image
        judges["perceptual"] = _Tiled(judges["perceptual"])
    return judges


def _batch(captions: Sequence[Caption], rows: list[int], num_frames: int) -> PromptBatch:
    paths, ids = torch.stack([trajectory_of(c, num_frames) for c in captions]), torch.tensor(rows)
    return PromptBatch(
        prompts=[c.text for c in captions], group_size=1, tokens=[parse_motion(c.text) for c in captions],
        viewmats=paths, sample_ids=ids, dynamic=False, group_ids=ids,
    )  # fmt: skip


def _rooted(viewmats: Tensor) -> Tensor:
    """Poses relative to the first, [N, F, 4, 4]."""
    return viewmats @ torch.linalg.inv(viewmats[:, :1])
