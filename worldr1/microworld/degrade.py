"""Frames made worse in graded ways: the training signal of the aesthetic and the perceptual judge."""

from __future__ import annotations

import torch
from torch import Tensor

from worldr1.microworld.judge_data import blur

KINDS = ("blur", "noise", "coarse", "contrast", "colour", "blocks", "shuffle", "tear", "ghost", "holes")
"""What `degrade` can do."""


def degrade(images: Tensor, *, kind: Tensor, severity: Tensor, generator: torch.Generator) -> Tensor:
    """Degrade every image in its own way.

    blur: Gaussian, up to 2.4 px. noise: white, up to .22. coarse: smooth blotches, up to .3. contrast: towards or away
    from the mean colour. colour: a tint and a loss of saturation. blocks: 4 px blocks flattened. shuffle: 8 px blocks
    taken from elsewhere. tear: bands of rows pushed sideways. ghost: another image shines through. holes: black blocks.

    Args:
      images: Shape [N, 3, H, W] in [0, 1]; H and W multiples of 8.
      kind: Index in KINDS, shape [N], int64.
      severity: Shape [N], in [0, 1]; 0 changes nothing.
      generator: Draws everything.
    Returns:
      Of the same shape, in [0, 1].
    """
    out = images.clone()
    for index, name in enumerate(KINDS):
        rows = torch.nonzero(kind == index)[:, 0]
        if len(rows):
            others = torch.randint(len(images), (len(rows),), generator=generator)
            out[rows] = _APPLY[name](images[rows], severity[rows], generator, images[others])
    return out.clamp(0.0, 1.0)


def shift(images: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Move every image by whole pixels, edges repeated: images [N, 3, H, W]; dx, dy [N] int64, pixels."""
    num, _, height, width = images.shape
    ys = (torch.arange(height) - dy[:, None]).clamp(0, height - 1)  # [N, H]
    xs = (torch.arange(width) - dx[:, None]).clamp(0, width - 1)  # [N, W]
    rows = images.gather(2, ys[:, None, :, None].expand(num, 3, height, width))
    return rows.gather(3, xs[:, None, None, :].expand(num, 3, height, width))


def _blur(x: Tensor, s: Tensor, generator: torch.Generator, other: Tensor) -> Tensor:
    levels = torch.stack([x, blur(x, 0.6), blur(x, 1.2), blur(x, 2.4)])  # [4, N, 3, H, W]
    place = 3.0 * s
    low = place.floor().clamp(0, 2).long()
    rows = torch.arange(len(x))
    return torch.lerp(levels[low, rows], levels[low + 1, rows], (place - low)[:, None, None, None])


def _noise(x: Tensor, s: Tensor, generator: torch.Generator, other: Tensor) -> Tensor:
    return x + 0.22 * _wide(s) * torch.randn(x.shape, generator=generator)


def _coarse(x: Tensor, s: Tensor, generator: torch.Generator, other: Tensor) -> Tensor:
    blotches = torch.randn(len(x), 3, 6, 6, generator=generator)
    return x + 0.3 * _wide(s) * torch.nn.functional.interpolate(blotches, size=x.shape[-2:], mode="bilinear")


def _contrast(x: Tensor, s: Tensor, generator: torch.Generator, other: Tensor) -> Tensor:
    mean = x.mean((1, 2, 3), keepdim=True)
    away = torch.rand(len(x), generator=generator) < 0.35
    return mean + (x - mean) * torch.where(away, 1.0 + 0.9 * s, 1.0 - 0.85 * s)[:, None, None, None]


def _colour(x: Tensor, s: Tensor, generator: torch.Generator, other: Tensor) -> Tensor:
    grey = x.mean(1, keepdim=True)
    tint = torch.randn(len(x), 3, 1, 1, generator=generator)
    less = torch.rand(len(x), 1, 1, 1, generator=generator)
    return torch.lerp(x, grey.expand_as(x), _wide(s) * less) + 0.16 * _wide(s) * tint


def _blocks(x: Tensor, s: Tensor, generator: torch.Generator, other: Tensor) -> Tensor:
    flat = torch.nn.functional.avg_pool2d(x, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return torch.where(_chosen(x, 0.15 + 0.85 * s, 4, generator), torch.lerp(x, flat, _wide(s).sqrt()), x)


def _shuffle(x: Tensor, s: Tensor, generator: torch.Generator, other: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    moved = x.roll((height // 4, width // 2), (2, 3))
    return torch.where(_chosen(x, 0.5 * s, 8, generator), moved, x)


def _tear(x: Tensor, s: Tensor, generator: torch.Generator, other: Tensor) -> Tensor:
    num, _, height, width = x.shape
    bands = (8.0 * s[:, None] * torch.randn(num, height // 4, generator=generator)).round().long()
    offset = bands.clamp(-width, width).repeat_interleave(4, 1)  # [N, H]
    xs = (torch.arange(width) - offset[:, :, None]).clamp(0, width - 1)  # [N, H, W]
    return x.gather(3, xs[:, None].expand_as(x))


def _ghost(x: Tensor, s: Tensor, generator: torch.Generator, other: Tensor) -> Tensor:
    return torch.lerp(x, other, 0.6 * _wide(s))


def _holes(x: Tensor, s: Tensor, generator: torch.Generator, other: Tensor) -> Tensor:
    return torch.where(_chosen(x, 0.4 * s, 4, generator), torch.zeros_like(x), x)


def _wide(s: Tensor) -> Tensor:
    return s[:, None, None, None]


def _chosen(x: Tensor, share: Tensor, block: int, generator: torch.Generator) -> Tensor:
    """A mask [N, 1, H, W] of whole blocks, each chosen with probability share [N]."""
    num, _, height, width = x.shape
    mask = torch.rand(num, 1, height // block, width // block, generator=generator) < share[:, None, None, None]
    return mask.repeat_interleave(block, 2).repeat_interleave(block, 3)


_APPLY = {
    "blur": _blur,
    "noise": _noise,
    "coarse": _coarse,
    "contrast": _contrast,
    "colour": _colour,
    "blocks": _blocks,
    "shuffle": _shuffle,
    "tear": _tear,
    "ghost": _ghost,
    "holes": _holes,
}
