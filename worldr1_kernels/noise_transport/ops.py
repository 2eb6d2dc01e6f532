"""Schema and fake kernel of noise transport. It is a draw: not differentiable."""

import torch

from worldr1_kernels import _native
from worldr1_kernels._dispatch import Probe, always_available, native_unavailable, triton_unavailable
from worldr1_kernels._library import define_op
from worldr1_kernels.noise_transport import native_impl, reference
from worldr1_kernels.noise_transport.plan import TENSORS, TransportPlan


def _triton_transport(
    noise: torch.Tensor, plan: TransportPlan, sample_ids: torch.Tensor, seed: int, capture: int, reduce: int
) -> torch.Tensor:
    from worldr1_kernels.noise_transport import triton_impl  # the package does not import Triton

    return triton_impl.transport(noise, plan, sample_ids, seed, capture, reduce)


_IMPLEMENTATIONS = {
    "reference": reference.transport,
    "native": native_impl.transport,
    "triton": _triton_transport,
}


def _cpp_plan_unavailable(device: torch.device) -> str | None:
    del device
    return _native.cpu_unavailable()


# There is no plan in Triton: a transport in Triton takes that of C++.
PLAN_PROBES: dict[str, Probe] = {
    "native": _native.unavailable,
    "reference": always_available,
    "triton": _cpp_plan_unavailable,
}


# In the order in which "auto" tries them.
TRANSPORT_PROBES: dict[str, Probe] = {
    "native": _native.unavailable,
    "triton": triton_unavailable,
    "reference": always_available,
}


def _no_float64(device: torch.device) -> str | None:
    del device
    return "it takes float32, got float64 noise"


# For float64 noise, where no backend is named. By name the launchers refuse it.
FLOAT64_PROBES: dict[str, Probe] = {
    "native": native_unavailable,
    "triton": _no_float64,
    "reference": always_available,
}


def _transport_impl(
    noise: torch.Tensor,
    plan: list[torch.Tensor],
    sample_ids: torch.Tensor,
    num_slots: int,
    stride: int,
    seed: int,
    capture: int,
    reduce: int,
    backend: str,
) -> torch.Tensor:
    whole = TransportPlan(**dict(zip(TENSORS, plan, strict=True)), num_slots=num_slots, stride=stride)
    return _IMPLEMENTATIONS[backend](noise, whole, sample_ids, seed, capture, reduce)


def _transport_fake(
    noise: torch.Tensor,
    plan: list[torch.Tensor],
    sample_ids: torch.Tensor,
    num_slots: int,
    stride: int,
    seed: int,
    capture: int,
    reduce: int,
    backend: str,
) -> torch.Tensor:
    batch, channels, height, width = noise.shape
    frames = (plan[2].shape[0] - 1) // capture + 1
    return noise.new_empty(batch, channels, frames, height // reduce, width // reduce)


noise_transport_op = define_op(
    "noise_transport(Tensor noise, Tensor[] plan, Tensor sample_ids, int num_slots, int stride, int seed, int capture, "
    "int reduce, str backend) -> Tensor",
    _transport_impl,
    _transport_fake,
)
