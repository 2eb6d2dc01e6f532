"""Tile-based rasterization of 3D Gaussians; the mathematics is in README.md."""

from worldr1_kernels.rasterize.api import RasterizeOutput, rasterization, rasterize

__all__ = ["RasterizeOutput", "rasterization", "rasterize"]
