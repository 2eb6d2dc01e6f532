"""Deterministic steps of the flow: Euler, a second-order multistep, and UniPC as Wan's pipeline runs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from worldr1_kernels.sde_step import ode_step


class OdeSolver:
    """Steps one batch of latents along a grid, in order; remembers what a multistep method needs.

        euler      x + h v_i,                                  h = sigma_next - sigma
        multistep  x + h (v_i + h / (2 h_before) (v_i - v_before))   (Adams-Bashforth, second order), Euler first
        unipc      diffusers' UniPC of order 2, predictor and corrector

    All three take one velocity a step. The stochastic steps of a rollout break the history: start a new solver after
    them.

    Args:
      name: The method.
      sigmas: The grid, T + 1 values falling to 0. `unipc` needs one that starts below 1 (schedule.unipc_sigmas).
    Raises:
      ValueError: an unknown name, or `unipc` on a grid that starts at 1.
    Source: Hairer, Norsett, Wanner 1993, III.5; Zhao et al. 2023 (UniPC), arXiv 2302.04867.
    """

    def __init__(self, name: Literal["euler", "multistep", "unipc"], sigmas: Sequence[float]) -> None:
        if name not in ("euler", "multistep", "unipc"):
            raise ValueError(f"OdeSolver: name must be euler, multistep or unipc, got {name!r}")
        self.name, self.sigmas = name, tuple(sigmas)
        self._before: tuple[Tensor, float] | None = None  # velocity and length of the step before
        self._unipc = _unipc_scheduler(self.sigmas) if name == "unipc" else None

    @torch.no_grad()
    def step(
        self, velocity: Tensor, sample: Tensor, i: int, *, velocity_uncond: Tensor | None, guidance_scale: float
    ) -> Tensor:
        """The latent at sigmas[i + 1].

        Args:
          velocity: At `sample`, conditional. Shape [n, ...].
          sample: Latent at sigmas[i].
          i: Index of the step; a solver is called with rising ones.
          velocity_uncond: For guidance.
          guidance_scale: 1 without velocity_uncond.
        """
        sigma, after = self.sigmas[i], self.sigmas[i + 1]
        if self.name == "euler":
            return ode_step(
                velocity, sample, sigma, after, velocity_uncond=velocity_uncond, guidance_scale=guidance_scale
            )
        wide = torch.promote_types(velocity.dtype, torch.float32)
        guided = velocity.to(wide)
        if velocity_uncond is not None:
            guided = velocity_uncond.to(wide) + guidance_scale * (guided - velocity_uncond.to(wide))
        if self._unipc is not None:
            return self._unipc.step(guided, self._unipc.timesteps[i], sample, return_dict=False)[0]
        h = after - sigma
        before, self._before = self._before, (guided, h)
        if before is not None:
            guided = guided + 0.5 * h / before[1] * (guided - before[0])
        return ode_step(guided, sample, sigma, after)


def _unipc_scheduler(sigmas: tuple[float, ...]) -> Any:
    from diffusers import UniPCMultistepScheduler

    if not sigmas[0] < 1.0:
        raise ValueError(f"OdeSolver: unipc needs a grid that starts below 1 (unipc_sigmas), got {sigmas[0]}")
    scheduler: Any = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0)
    scheduler.set_timesteps(sigmas=torch.tensor(sigmas[:-1], dtype=torch.float64).numpy())
    return scheduler
