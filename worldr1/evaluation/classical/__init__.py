"""Structure from motion without a network: tracks, two views, bundle adjustment, plane sweep. Shares nothing with a reward."""

from worldr1.evaluation.classical.reconstructor import Classical

__all__ = ["Classical"]
