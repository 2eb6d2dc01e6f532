"""Tile-based rasterization of 3D Gaussians; the mathematics is in README.md."""

from worldr1_kernels.rasterize.api import RasterizeOutput, rasterize
from worldr1_kernels.rasterize.dropin import rasterization

__all__ = ["RasterizeOutput", "rasterization", "rasterize"]
