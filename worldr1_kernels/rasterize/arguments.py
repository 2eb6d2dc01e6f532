"""What every implementation of the rasterizer takes: tensors of one dtype with one batch dimension, and settings."""

from typing import NamedTuple

from torch import Tensor

# Settings.depth_mode
NO_DEPTH, WEIGHTED_DEPTH, EXPECTED_DEPTH, MEDIAN_DEPTH, FIRST_DEPTH = range(5)
# Suffix of a render mode -> depth_mode.
DEPTH_MODES = {"D": WEIGHTED_DEPTH, "ED": EXPECTED_DEPTH, "MD": MEDIAN_DEPTH, "FD": FIRST_DEPTH}


PAIRS_PER_GAUSSIAN = 4.0
"""Default room for (tile, splat) pairs in a CUDA graph, where they cannot be counted first."""


class Inputs(NamedTuple):
    """Checked tensors, all of one floating dtype and on one device. Either quats and scales or covars are given."""

    means: Tensor  # [B, N, 3]
    quats: Tensor | None  # [B, N, 4]
    scales: Tensor | None  # [B, N, 3]
    covars: Tensor | None  # [B, N, 6]: xx, xy, xz, yy, yz, zz
    opacities: Tensor  # [B, N]
    colors: Tensor | None  # [B, 1 or C, N, D] or, with sh_degree >= 0, [B, 1 or C, N, K, 3]; None for depth alone
    viewmats: Tensor  # [B, C, 4, 4]
    Ks: Tensor  # [B, C, 3, 3]
    backgrounds: Tensor | None  # [B, C, X], 0 for depth


class Settings(NamedTuple):
    """Scalars, in the order of the op's schema."""

    width: int
    height: int
    near_plane: float
    far_plane: float
    radius_clip: float
    eps2d: float
    sh_degree: int  # -1: colours as they are
    depth_mode: int  # one of the constants above; depth is the last channel
    antialiased: bool
    max_alpha: float
    compensation_floor: float
    pairs_per_gaussian: float = PAIRS_PER_GAUSSIAN

    def channels(self, colors: Tensor | None) -> int:
        """X: number of rendered channels."""
        features = 0 if colors is None else (3 if self.sh_degree >= 0 else colors.shape[-1])
        return features + (1 if self.depth_mode != NO_DEPTH else 0)


class BackwardInputs(NamedTuple):
    """What the backward takes beside Inputs and Settings, in the order of the op's schema."""

    render_colors: Tensor | None  # [B, C, H, W, X] of the forward; for expected depth alone
    transmittance: Tensor  # [B, C, H, W] of the forward
    last: Tensor  # [B, C, H, W] int32 of the forward
    grad_colors: Tensor | None  # of render_colors; None: zero
    grad_alphas: Tensor | None  # [B, C, H, W, 1] of render_alphas; None: zero
