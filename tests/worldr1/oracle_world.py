"""Clips of the micro world with judges that know the truth about them, so that rewards and gates have known answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from worldr1.camera.motion import parse_motion
from worldr1.camera.trajectory import build_trajectory
from worldr1.config import MICRO_CAMERA
from worldr1.datatypes import MotionToken, PromptBatch, Reconstruction
from worldr1.microworld.captions import COLOURS, FLOORS, MOTIONS, SHAPES, Caption, make_caption
from worldr1.microworld.scene import Clips, render_clips
from worldr1.rewards.judges.micro_geo import pixel_gaussians

NUM_FRAMES = 9
KNOWN_MOTIONS = [MOTIONS[i % 9] for i in range(18)]
KNOWN_PROMPTS = [make_caption(motion, 3).text for motion in KNOWN_MOTIONS]
WRONG_MOTION = {"fixed": "move_left", "push_in": "pull_out", "pan_left": "pan_right", "orbit_right": "orbit_left"}


def path_of(motion: str, *, magnitude: float = 1.0) -> Tensor:
    """viewmats [F, 4, 4] of a motion, float32."""
    return build_trajectory([MotionToken(motion, magnitude)], NUM_FRAMES, MICRO_CAMERA).float()


def jittered(paths: Tensor, *, angle: float = 0.02, shift: float = 0.05, seed: int = 0) -> Tensor:
    """Paths [N, F, 4, 4] with a small random turn (radians) and shift (scene units) of every frame but the first."""
    generator = torch.Generator().manual_seed(seed)
    skew = angle * torch.randn(*paths.shape[:2], 3, generator=generator)
    shake = torch.eye(4).repeat(*paths.shape[:2], 1, 1)
    x, y, z = skew.unbind(-1)
    cross = torch.zeros(*paths.shape[:2], 3, 3)
    cross[..., 0, 1], cross[..., 0, 2], cross[..., 1, 2] = -z, y, -x
    shake[..., :3, :3] = torch.linalg.matrix_exp(cross - cross.transpose(-1, -2))
    shake[..., :3, 3] = shift * torch.randn(*paths.shape[:2], 3, generator=generator)
    shake[:, 0] = torch.eye(4)
    return shake @ paths


def half_way(paths: Tensor) -> Tensor:
    """Paths that stop at their middle frame."""
    stop = torch.arange(paths.shape[1]).clamp_max(paths.shape[1] // 2)
    return paths[:, stop]


def prompt_batch(
    captions: Sequence[Caption], *, group_size: int, dynamic: bool = False, first_id: int = 100
) -> PromptBatch:
    """A batch of these captions."""
    tokens = [parse_motion(c.text) for c in captions]
    paths = [build_trajectory(t, NUM_FRAMES, MICRO_CAMERA).float() for t in tokens]
    ids = torch.arange(first_id, first_id + len(captions) * group_size)
    texts = [c.text for c in captions]
    return PromptBatch(texts, group_size, tokens, torch.stack(paths), ids, dynamic, ids[::group_size])


class Oracle:
    """Reconstructor and evaluator that look a clip up among those rendered, and answer with its truth.

    A clip it was not told of raises RuntimeError, as a judge that fails would.
    """

    def __init__(self, *clips: Clips) -> None:
        self.clips = clips
        self.calls: list[int] = []
        self.keys = torch.cat([c.video.flatten(1)[:, ::101] for c in clips])
        self.depth = torch.cat([c.depth for c in clips])
        self.viewmats = torch.cat([c.viewmats for c in clips])
        self.motion = torch.cat([c.motion for c in clips])
        self.content = torch.cat([c.content for c in clips])

    def _find(self, video: Tensor) -> Tensor:
        distance = torch.cdist(video.flatten(1)[:, ::101], self.keys, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distance.min(dim=1)
        if bool((nearest.values > 1e-3).any()):
            raise RuntimeError("the oracle does not know this clip")
        return nearest.indices

    def infer(self, video: Tensor) -> Reconstruction:
        self.calls.append(len(video))
        found = self._find(video)
        depth, viewmats = self.depth[found], self.viewmats[found]
        K = self.clips[0].K
        confidence = torch.full_like(depth, 20.0)
        keys = [0, 2, 4, 6, 8]
        gaussians = pixel_gaussians(
            video[:, keys], depth[:, keys], confidence[:, keys], viewmats=viewmats[:, keys], K=K
        )
        return Reconstruction(depth, confidence, viewmats, K.expand(*video.shape[:2], 3, 3), gaussians)

    def classify(self, video: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        found = self._find(video)
        content = self.content[found]
        colour, rest = content // 4, content % 4
        one_hot = torch.nn.functional.one_hot
        return one_hot(self.motion[found], len(MOTIONS)).float(), {
            "colour": one_hot(colour, len(COLOURS)).float(),
            "shape": one_hot(rest // 2, len(SHAPES)).float(),
            "floor": one_hot(rest % 2, len(FLOORS)).float(),
        }


class MeanDifference:
    """Perceptual distance: 3 x the mean absolute difference."""

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        return 3.0 * (a - b).abs().flatten(1).mean(1)


class CoverageCritic:
    """Digit 9 with the probability that the picture is covered, else digit 0."""

    def __init__(self, mass: float = 1.0) -> None:
        self.mass = mass

    def digit_probs(self, images: Tensor, prompts: list[str]) -> Tensor:
        assert len(prompts) == len(images)
        covered = (images.amax(1) > 0.02).float().flatten(1).mean(1)
        probs = torch.zeros(len(images), 10)
        probs[:, 9], probs[:, 0] = covered, 1.0 - covered
        return self.mass * probs


class Brightness:
    """Aesthetic score: 20 x the mean brightness - 5, frame by frame."""

    def score(self, frames: Tensor, prompts: list[str]) -> Tensor:
        assert len(prompts) == len(frames)
        return 20.0 * frames.mean((2, 3, 4)) - 5.0


def clips_of(
    motions: Sequence[str], *, content: int = 3, seeds: Sequence[int] | None = None, paths: Tensor | None = None
) -> Clips:
    """Clips of these motions with one content, seeds 2_000_000 ... unless given."""
    captions = [make_caption(motion, content) for motion in motions]
    seeds = range(2_000_000, 2_000_000 + len(captions)) if seeds is None else seeds
    return render_clips(captions, list(seeds), paths=paths)
