"""What the launchers take, native and Triton alike: the values of an op, in the order of its schema, by name.

The reference takes the same values one by one, and knows nothing of these.
"""

from typing import NamedTuple

from torch import Tensor


class Draw(NamedTuple):
    """Arguments of `sde_sample`, but the backend."""

    velocity: Tensor  # [N, ...], as all latents and velocities
    sample: Tensor
    velocity_uncond: Tensor | None
    velocity_ref: Tensor | None
    noise: Tensor | None  # None: drawn by Philox
    sample_ids: Tensor | None  # int64 [N]; None: 0..N-1
    guidance_scale: float
    coef_sample: float
    coef_velocity: float
    std: float
    seed: int
    step: int


class Score(NamedTuple):
    """Arguments of `sde_log_prob`, and of `sde_log_prob_backward` behind the three gradients, but the backend."""

    velocity: Tensor  # [N, ...], as all latents and velocities
    sample: Tensor
    prev_sample: Tensor
    velocity_uncond: Tensor | None
    velocity_ref: Tensor | None
    guidance_scale: float
    coef_sample: float
    coef_velocity: float
    std: float
