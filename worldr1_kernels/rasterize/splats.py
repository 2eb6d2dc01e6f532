"""`Splats`: a scene of 3D Gaussians as a file holds it and `rasterize` takes it."""

import math
from typing import Any, NamedTuple

from torch import Tensor


class _Tensors(NamedTuple):
    means: Tensor
    """[N, 3], scene units."""
    quats: Tensor
    """[N, 4], wxyz, of any length."""
    scales: Tensor
    """[N, 3], standard deviations, scene units."""
    opacities: Tensor
    """[N], in [0, 1]."""
    colors: Tensor
    """[N, K, 3], spherical harmonics coefficients, K = (degree + 1)^2."""


class Splats(_Tensors):
    """Five tensors in the order of `rasterize`, and one attribute that is none of them, so that a scene unpacks:
    `rasterize(*splats, viewmats, Ks, width, height, sh_degree=degree(splats), rasterize_mode=splats.rasterize_mode)`.
    """

    antialiased: bool
    """Whether the Gaussians were fitted with the compensation of `rasterize_mode="antialiased"`."""

    def __new__(
        cls,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        colors: Tensor,
        *,
        antialiased: bool = False,
    ) -> "Splats":
        """The five tensors, and the mode they were fitted in."""
        self = super().__new__(cls, means, quats, scales, opacities, colors)
        self.antialiased = antialiased
        return self

    def _replace(self, **changes: Any) -> "Splats":
        antialiased = changes.pop("antialiased", self.antialiased)
        return Splats(**{**self._asdict(), **changes}, antialiased=antialiased)

    @property
    def rasterize_mode(self) -> str:
        """The argument of `rasterize` that shows the scene as it was fitted."""
        return "antialiased" if self.antialiased else "classic"


def degree(splats: Splats) -> int:
    """Degree of the spherical harmonics, 0 to 4."""
    return math.isqrt(splats.colors.shape[1]) - 1
