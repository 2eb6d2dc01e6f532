"""The small networks of the micro world: a reconstructor, an independent evaluator, a critic and two image judges."""

from worldr1.microworld.networks.evaluator import MicroEvaluator
from worldr1.microworld.networks.folder import FolderNetwork, read_config
from worldr1.microworld.networks.geo import (
    MicroGeo,
    pinhole,
    pixel_gaussians,
    poses_to_viewmats,
    rotation_error,
    viewmats_to_poses,
)
from worldr1.microworld.networks.judges import MicroAesthetic, MicroCritic, MicroPerceptual, bag_of_words

__all__ = [
    "FolderNetwork",
    "MicroAesthetic",
    "MicroCritic",
    "MicroEvaluator",
    "MicroGeo",
    "MicroPerceptual",
    "bag_of_words",
    "pinhole",
    "pixel_gaussians",
    "poses_to_viewmats",
    "read_config",
    "rotation_error",
    "viewmats_to_poses",
]
