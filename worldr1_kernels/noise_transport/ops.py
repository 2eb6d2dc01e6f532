"""Schema and fake kernel of noise transport. It is a draw: not differentiable."""

import torch

from worldr1_kernels._dispatch import Probe, always_available
from worldr1_kernels._library import define_op
from worldr1_kernels.noise_transport import reference
from worldr1_kernels.noise_transport.plan import TransportPlan

PROBES: dict[str, Probe] = {"reference": always_available}
_IMPLEMENTATIONS = {"reference": reference}


def _transport_impl(
    noise: torch.Tensor,
    plan: list[torch.Tensor],
    sample_ids: torch.Tensor,
    seed: int,
    capture: int,
    reduce: int,
    backend: str,
) -> torch.Tensor:
    return _IMPLEMENTATIONS[backend].transport(noise, TransportPlan(*plan), sample_ids, seed, capture, reduce)


def _transport_fake(
    noise: torch.Tensor,
    plan: list[torch.Tensor],
    sample_ids: torch.Tensor,
    seed: int,
    capture: int,
    reduce: int,
    backend: str,
) -> torch.Tensor:
    batch, channels, height, width = noise.shape
    frames = (plan[1].shape[0] - 1) // capture + 1
    return noise.new_empty(batch, channels, frames, height // reduce, width // reduce)


noise_transport_op = define_op(
    "noise_transport(Tensor noise, Tensor[] plan, Tensor sample_ids, int seed, int capture, int reduce, str backend) "
    "-> Tensor",
    _transport_impl,
    _transport_fake,
)
