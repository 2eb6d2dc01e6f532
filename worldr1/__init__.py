"""Reinforcement learning that makes text-to-video models 3D-consistent (World-R1, arXiv 2604.24764)."""

__version__ = "0.1.0"
