"""What flows between the stages: one frozen dataclass per arrow of the pipeline.

Shapes: N samples of this rank, P pieces of groups, S stochastic steps, F frames, M Gaussians a scene.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor


class MotionToken(NamedTuple):
    """One camera motion: a kind of the taxonomy and its size relative to the configured extent."""

    kind: str
    magnitude: float = 1.0


@dataclass(frozen=True)
class PromptBatch:
    """This rank's samples of one iteration, in pieces of equal size: samples in a row with one prompt.

    A piece is a whole group, or part of one that is dealt to several ranks (`prompts.sampler.prompt_batch`).
    """

    prompts: list[str]  # P, of each piece
    group_size: int  # samples of a piece: G, or a divisor of it where groups are split
    tokens: list[tuple[MotionToken, ...]]  # P
    viewmats: Tensor  # [P, F, 4, 4] world-to-camera, requested, float32
    sample_ids: Tensor  # [N] int64, unique over ranks and iterations: keys of every draw of a sample
    dynamic: bool  # True in the dynamic phase
    group_ids: Tensor  # [P] int64: sample id of the whole group's first sample, here or not: key of what a group shares
    asked: Tensor | None = None  # [P] bool: it asks for a camera motion, or for rest, that was read; None: all do

    @property
    def num_samples(self) -> int:
        """N = P * group_size."""
        return len(self.prompts) * self.group_size

    def repeat(self, x: Tensor) -> Tensor:
        """Values of each piece [P, ...] repeated for every sample: [N, ...]."""
        return x.repeat_interleave(self.group_size, dim=0)

    def rows(self, rows: slice) -> PromptBatch:
        """Some of the samples, each a piece of its own."""
        pieces = [i // self.group_size for i in range(self.num_samples)[rows]]
        return PromptBatch(
            prompts=[self.prompts[p] for p in pieces],
            group_size=1,
            tokens=[self.tokens[p] for p in pieces],
            viewmats=self.viewmats[pieces],
            sample_ids=self.sample_ids[rows],
            dynamic=self.dynamic,
            group_ids=self.group_ids[pieces],
            asked=None if self.asked is None else self.asked[pieces],
        )


@dataclass(frozen=True)
class Rollout:
    """What the sampler hands on: the videos, and what the update needs of the stochastic steps."""

    video: Tensor | None  # [N, F, 3, H, W] uint8, 0 .. 255, on the host; None where they were handed on as they came
    prompt_embeds: Tensor  # [N, L, D]
    negative_embeds: Tensor | None  # [N, L, D] with guidance, else None
    samples: Tensor  # [S, N, C, f, h, w] float32: the latent before each stochastic step
    prev_samples: Tensor  # [S, N, C, f, h, w] float32: the latent drawn by it
    log_prob: Tensor  # [N, S] nats, mean over elements, under the policy that sampled
    steps: tuple[int, ...]  # S indices into sigmas
    sigmas: tuple[float, ...]  # T + 1 grid values, 1 ... 0
    finite: Tensor  # [N] bool: every latent of the sample was finite, and its video
    latents: Tensor | None = None  # [N, C, f, h, w] float32 at sigma 0, with update.estimator forward; else None
    alike: int = 1  # so many samples in a row enter the first stochastic step with one latent, and share its passes


@dataclass(frozen=True)
class GaussianScene:
    """3D Gaussians of N scenes, in the frame of each scene's first camera."""

    means: Tensor  # [N, M, 3]
    quats: Tensor  # [N, M, 4] wxyz
    scales: Tensor  # [N, M, 3]
    opacities: Tensor  # [N, M] in [0, 1]
    colors: Tensor  # [N, M, 3] in [0, 1]


@dataclass(frozen=True)
class Reconstruction:
    """A video lifted to 3D: the interface of Depth Anything 3."""

    depth: Tensor  # [N, F, H, W] z-depth, scene units
    confidence: Tensor  # [N, F, H, W] > 0
    viewmats: Tensor  # [N, F, 4, 4] recovered, world-to-camera; frame 0 is the identity
    Ks: Tensor  # [N, F, 3, 3] pixels
    gaussians: GaussianScene


@dataclass(frozen=True)
class RewardOutput:
    """Rewards of N samples. A term that could not be computed is invalid with a reason, never a number.

    A NaN in a term of a valid sample says that the term does not apply to it; whole groups have it or lack it.
    """

    reward: Tensor  # [N] weighted sum of the terms; NaN where invalid
    valid: Tensor  # [N] bool
    breakdown: dict[str, Tensor] = field(default_factory=dict)  # term -> [N]
    weights: dict[str, float] = field(default_factory=dict)  # term -> weight in this phase
    reasons: dict[int, str] = field(default_factory=dict)  # sample index -> why it is invalid
