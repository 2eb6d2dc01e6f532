"""Structure from motion without a network: tracks, two views, bundle adjustment, plane sweep."""

from worldr1.evaluation.classical.reconstructor import Classical

__all__ = ["Classical"]
