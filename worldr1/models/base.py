"""What the rest of the pipeline needs of a text-to-video model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from worldr1.config import VideoConfig


class VideoPolicy(Protocol):
    """A frozen flow-matching video model with a trainable adapter.

    Flow matching: x_sigma = (1 - sigma) x0 + sigma eps, velocity = eps - x0, sigma 1 (noise) -> 0 (video).
    """

    @property
    def device(self) -> torch.device:
        """Where latents, embeddings and the transformer live."""
        ...

    def latent_shape(self, video: VideoConfig) -> tuple[int, int, int, int]:
        """(C, f, h, w) of one video's latent; ValueError for sizes that the model cannot make."""
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """Text embeddings [N, L, D], remembered by prompt; a prompt's embedding does not depend on its neighbours."""
        ...

    def velocity(
        self, sample: Tensor, sigma: float | Tensor, prompt_embeds: Tensor, *, adapter: bool = True, exact: bool = True
    ) -> Tensor:
        """Velocity [N, C, f, h, w] at `sample` [N, C, f, h, w], in the model's dtype.

        `sigma` is one for all, or [N] float64 on the host; the adapter must act at all of these (ValueError).
        The adapter acts iff `adapter` and sigma is in its range; otherwise this is the base model bit for bit, and no
        graph is recorded. `exact` asks for the training path's own bits; False, for steps without a density, lets the
        last digits differ for speed.
        """
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Video [N, F, 3, H, W] in [0, 1], float32, of latents [N, C, f, h, w]; no gradient."""
        ...

    def adapter_parameters(self) -> list[nn.Parameter]:
        """The trainable parameters, float32, in a fixed order."""
        ...

    def adapter_state(self) -> dict[str, Tensor]:
        """A copy of the adapter by parameter name, on the CPU."""
        ...

    def load_adapter_state(self, state: dict[str, Tensor]) -> None:
        """Overwrite the adapter in place; ValueError when names or shapes differ."""
        ...

    def save_lora(self, folder: Path) -> None:
        """Write the adapter where the model's diffusers pipeline can load it, with its sigma range."""
        ...
