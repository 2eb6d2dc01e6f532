"""MicroCritic, MicroAesthetic and MicroPerceptual: the interfaces of Qwen3-VL, HPSv3 and LPIPS in the small."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from worldr1.rewards.judges.folder import FolderNetwork, Residual, check_images

VOCABULARY = ("red", "green", "blue", "yellow", "ball", "box", "checkered", "wooden")
"""The words of a prompt that MicroAesthetic reads."""

# Pairs at a time: what fits a cache is three times as fast as one call over hundreds of images.
_CHUNK = 32


def _trunk(width: int, deep: int) -> nn.Sequential:
    """[N, 3, H, W] -> [N, deep, H/4, W/4]."""
    return nn.Sequential(
        nn.Conv2d(3, width, 4, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(width, deep, 4, stride=2, padding=1),
        Residual(deep),
        nn.SiLU(),
    )


class MicroCritic(FolderNetwork):
    """A grade of 0..9 for the structure in a render from a novel viewpoint, as a distribution over ten digits.

    Args:
      size: Height and width in pixels.
      width: Channels at half resolution.
      deep: Channels at a quarter of the resolution.
    """

    role = "critic"

    def __init__(self, *, size: int = 32, width: int = 32, deep: int = 64) -> None:
        super().__init__({k: v for k, v in locals().items() if k not in ("self", "__class__")})
        self.size = size
        self.trunk = _trunk(width, deep)
        self.tail = nn.Sequential(nn.Conv2d(deep, deep, 3, stride=2, padding=1), nn.SiLU())
        self.head = nn.Linear(3 * deep, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Digit logits [N, 10] of images [N, 3, H, W] in [0, 1]."""
        check_images("MicroCritic", images, self.size)
        x = self.tail(self.trunk(4.0 * (images - 0.5)))
        return self.head(torch.cat([x.mean((2, 3)), x.amax((2, 3)), x.amin((2, 3))], dim=1))

    @torch.no_grad()
    def digit_probs(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The probabilities of the digits '0'..'9' as the grade of each render.

        Args:
          images: Renders, shape [N, 3, H, W], float32 in [0, 1].
          prompts: N texts; the grade is one of structure, so they are not read, only counted.
        Returns:
          Shape [N, 10], rows sum to 1; the expected digit divided by 9 is the score.
        Raises:
          ValueError: another image size, or prompts and images differ in number.
        """
        if len(prompts) != images.shape[0]:
            raise ValueError(f"digit_probs: prompts must be {images.shape[0]}, one per image, got {len(prompts)}")
        return self(images).softmax(dim=-1)


class MicroAesthetic(FolderNetwork):
    """A preference score of single frames given the prompt, in the range of HPSv3 (mostly -10..10).

    Args:
      size: Height and width in pixels.
      width: Channels at half resolution.
      deep: Channels at a quarter of the resolution.
      scale: Score of one logit of preference.
      offset: Added to the score.
    """

    role = "aesthetic"

    def __init__(
        self, *, size: int = 32, width: int = 32, deep: int = 64, scale: float = 1.0, offset: float = 0.0
    ) -> None:
        super().__init__({k: v for k, v in locals().items() if k not in ("self", "__class__")})
        self.size, self.scale, self.offset = size, scale, offset
        self.trunk = _trunk(width, deep)
        self.tail = nn.Sequential(nn.Conv2d(deep, deep, 3, stride=2, padding=1), nn.SiLU())
        self.head = nn.Sequential(nn.Linear(3 * deep + len(VOCABULARY), 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, images: Tensor, words: Tensor) -> Tensor:
        """Preference logits [N] of images [N, 3, H, W] in [0, 1] under prompts with words [N, len(VOCABULARY)]."""
        check_images("MicroAesthetic", images, self.size)
        x = self.tail(self.trunk(4.0 * (images - 0.5)))
        pooled = torch.cat([x.mean((2, 3)), x.amax((2, 3)), x.amin((2, 3)), words], dim=1)
        return self.head(pooled)[:, 0]

    @torch.no_grad()
    def score(self, frames: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score every frame.

        Args:
          frames: Shape [N, K, 3, H, W], float32 in [0, 1].
          prompts: N texts; of them, the words of VOCABULARY are read.
        Returns:
          Shape [N, K]; a reward is the mean over K divided by 10.
        Raises:
          ValueError: another frame size, or prompts and frames differ in number.
        """
        if len(prompts) != frames.shape[0]:
            raise ValueError(f"score: prompts must be {frames.shape[0]}, one per video, got {len(prompts)}")
        words = bag_of_words(prompts).to(frames).repeat_interleave(frames.shape[1], dim=0)
        logits = self(frames.flatten(0, 1), words).unflatten(0, tuple(frames.shape[:2]))
        return self.offset + self.scale * logits


class MicroPerceptual(FolderNetwork):
    """Perceptual distance: weighted squared differences of unit-length features, summed over three layers.

    d(a, b) = sum_l mean_xy sum_c w_lc (fa_lcxy - fb_lcxy)^2,   f = features scaled to length 1 over c,   w >= 0

    The form of LPIPS (Zhang et al., 2018), with features and weights of the micro world, which work at 32 pixels.

    Args:
      size: Height and width in pixels.
      widths: Channels of the three layers, at half, half and quarter resolution.
    """

    role = "perceptual"

    def __init__(self, *, size: int = 32, widths: Sequence[int] = (32, 48, 64)) -> None:
        super().__init__({k: v for k, v in locals().items() if k not in ("self", "__class__")})
        self.size = size
        a, b, c = widths
        self.layers = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(3, a, 4, stride=2, padding=1), nn.ReLU()),
                nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU()),
                nn.Sequential(nn.Conv2d(b, c, 4, stride=2, padding=1), nn.ReLU()),
            ]
        )
        self.log_weights = nn.ParameterList([nn.Parameter(torch.full((k,), -1.0)) for k in (a, b, c)])

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps of the three layers of images [N, 3, H, W] in [0, 1]."""
        check_images("MicroPerceptual", images, self.size)
        x, out = 4.0 * (images - 0.5), []
        for layer in self.layers:
            x = layer(x)
            out.append(x)
        return out

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance [N] of images a and b, both [N, 3, H, W]; differentiable."""
        features = self.features(torch.cat([a, b]))
        total = torch.zeros(a.shape[0]).to(a)
        for x, log_weight in zip(features, self.log_weights, strict=True):
            fa, fb = (x * torch.rsqrt(x.square().sum(1, keepdim=True) + 1e-6)).chunk(2)
            total = total + ((fa - fb).square() * log_weight.exp()[:, None, None]).sum(1).mean((1, 2))
        return total

    @torch.no_grad()
    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance of two batches of images.

        Args:
          a: Shape [N, 3, H, W], float32 in [0, 1].
          b: Of the same shape.
        Returns:
          Shape [N], >= 0, 0 for equal images, about 0.7 for two different scenes.
        Raises:
          ValueError: shapes differ or another size than the network's.
        """
        if a.shape != b.shape:
            raise ValueError(f"distance: a and b must have one shape, got {list(a.shape)} and {list(b.shape)}")
        parts = [self(x, y) for x, y in zip(a.split(_CHUNK), b.split(_CHUNK), strict=True)]
        return torch.cat(parts) if parts else a.new_zeros(0)


def bag_of_words(prompts: Sequence[str]) -> Tensor:
    """1 where a word of VOCABULARY occurs in the prompt: [N, len(VOCABULARY)] float32."""
    rows = [[float(word in words) for word in VOCABULARY] for words in (set(_words(p)) for p in prompts)]
    return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), len(VOCABULARY))


def _words(prompt: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in prompt.lower()).split()
