"""Public functions of noise transport: `plan_transport`, `noise_transport`."""

import functools
from collections.abc import Iterator, Sized
from typing import Literal

import torch

from worldr1_kernels._checks import check_dtype, check_same_device, check_shape, check_tensor
from worldr1_kernels._dispatch import requested_backend, resolve_backend
from worldr1_kernels.noise_transport import native_impl
from worldr1_kernels.noise_transport.ops import FLOAT64_PROBES, PLAN_PROBES, TRANSPORT_PROBES, noise_transport_op
from worldr1_kernels.noise_transport.plan import Fields, TransportPlan, build_plan
from worldr1_kernels.noise_transport.plan import dither as dither_offset
from worldr1_kernels.philox import check_sample_ids, check_seed

Backend = Literal["auto", "reference", "triton", "native"]
Capture = Literal["all"] | int

LARGEST_IMAGE = 2**29
"""Slots are numbered in int32, and there may be three for each pixel."""
LONGEST_SIDES = 2**22
"""Of H + W: a float32 flow is rounded by a sum that is exact up to here."""


def _positive(op: str, name: str, value: object, alternative: str = "") -> int:
    """The value as an int >= 1, or ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{op}: {name} must be an int >= 1{alternative}, got {value!r}")
    return value


def _stride(op: str, capture: object) -> int:
    return 1 if capture == "all" else _positive(op, "capture", capture, " or all")


def _fields(op: str, flow: Fields, sizes: dict[str, int], dither: bool) -> Iterator[torch.Tensor]:
    """The fields of a flow one by one, checked, and moved by the dither."""
    for index in range(len(flow)):
        field = flow[index].detach()
        check_shape(op, f"flow[{index}]", field, (2, "H", "W"), sizes=sizes)
        check_dtype(op, f"flow[{index}]", field, (torch.float32, torch.float64))
        if dither:
            field = field + field.new_tensor(dither_offset(index))[:, None, None]
        yield field


def plan_transport(
    flow: torch.Tensor | Fields, *, capture: Capture = "all", dither: bool = False, backend: Backend = "auto"
) -> TransportPlan:
    """Works out where each pixel of noise goes along an optical flow; random numbers and samples play no part.

    Args:
      flow: Forward flow (dx, dy), field f from frame f to f + 1, read at the pixel that is left. Shape [F-1, 2, H, W],
        float32 or float64. Unit: pixels. F = 1 (no field) is allowed: nothing moves. A step out of the image, of any
        length, is no error: what it leaves behind is fresh. Or a sequence of F - 1 >= 1 fields [2, H, W] that computes
        each when it is asked for: no more than one is then in memory. "native" on CUDA may ask for all of them twice.
      capture: Frames that can be asked of the plan: "all", or every `capture`-th from the first. With 4, the plan of 81
        frames at 960x1664 takes a third of the memory.
      dither: Add to each field an offset in (-1/2, 1/2)^2, the same at all pixels, that averages to zero over the
        frames. Every speed is then kept in the mean (0.3 px a frame is no motion otherwise), and whole pixels stay.
      backend: Implementation; only "auto" may pick another.
    Returns:
      TransportPlan on the flow's device. "native" makes that of a CUDA flow there, and the host waits for its length at
      the end; "triton", and "auto" while it takes no CUDA kernels, make it on the CPU, where `plan.density` [F', H, W],
      the density of the noise at the captured frames, then stays. Compute the flow in float64 where plans must agree
      between machines: a value that rounds the other way moves another pixel.
    Raises:
      ValueError: shapes; an image without pixels, or of more than 2^29; H + W > 2^22; not finite; capture < 1; with
        "native" on CUDA, fields on several devices.
      TypeError: fields that are no float32 or float64 tensors.
      RuntimeError: the backend chosen by name is not available.
    """
    op = "plan_transport"
    if isinstance(flow, torch.Tensor):
        first, sizes = flow, check_shape(op, "flow", flow, ("F-1", 2, "H", "W"))
        check_dtype(op, "flow", flow, (torch.float32, torch.float64))
    else:
        if not isinstance(flow, Sized):
            check_tensor(op, "flow", flow)
        if len(flow) == 0:
            raise ValueError(f"{op}: flow must have a field if it is a sequence, got none: pass a tensor [0, 2, H, W]")
        first = flow[0]
        sizes = check_shape(op, "flow[0]", first, (2, "H", "W"))
    height, width = sizes["H"], sizes["W"]
    if height < 1 or width < 1 or height * width > LARGEST_IMAGE or height + width > LONGEST_SIDES:
        raise ValueError(f"{op}: flow must have 1 to 2^29 pixels and H + W <= 2^22, got {list(first.shape)}")
    stride = _stride(op, capture)
    device = first.device
    shape = (len(flow), height, width)
    # On a CUDA device where its kernels are asked for, or "auto" takes them there; else on the CPU, for any device.
    by_kernels = device.type == "cuda" and requested_backend(op, backend) not in ("reference", "triton")
    if by_kernels and resolve_backend(op, backend, device, PLAN_PROBES) == "native":
        fields = functools.partial(_fields, op, flow, sizes, dither)
        return native_impl.build_plan_cuda(fields, shape, device=device, stride=stride)
    chosen = resolve_backend(op, backend, torch.device("cpu"), PLAN_PROBES)
    make = build_plan if chosen == "reference" else native_impl.build_plan
    return make(_fields(op, flow, sizes, dither), shape, device=device, stride=stride)


def noise_transport(
    noise: torch.Tensor,
    plan_or_flow: TransportPlan | torch.Tensor,
    *,
    seed: int,
    sample_ids: torch.Tensor | None = None,
    capture: Capture = "all",
    reduce: int = 1,
    backend: Backend = "auto",
) -> torch.Tensor:
    """Moves white noise along a flow so that every frame is again exactly white, and follows the motion.

        copy            q'(t) = q(s)                                        one pixel to one pixel: bit for bit
        expansion       q'(t) = q(s) / sqrt(n) + Z_t - mean_group Z         one pixel to n
        contraction     q'(t) = sum w_s X_s / sqrt(sum w_s^2)               several to one; w: density
        fresh           q'(t) = Z_t                                         from outside the frame

    Args:
      noise: N(0, 1) of the first frame, shape [B, C, H, W], float32 or float64.
      plan_or_flow: A plan, or a flow [F-1, 2, H, W] in pixels to make one from. A plan can be kept and shared.
      seed: Key of the random numbers, in [0, 2^63); counter (pixel, frame, sample id, channel): the result for a sample
        does not depend on the batch it is in.
      sample_ids: Integer [B] in [0, 2^32). Default 0..B-1.
      capture: Frames to return: "all", or every `capture`-th from the first (F' = (F - 1) // capture + 1); a multiple
        of the plan's.
      reduce: r: each r x r block is summed and divided by r, which keeps unit variance; divides H and W.
      backend: Implementation; only "auto" may pick another.
    Returns:
      [B, C, F', H/r, W/r], dtype of noise. Not differentiable. The density: `plan.density[:: capture // plan.stride]`.
    Raises:
      ValueError: shapes; plan and noise of another size or device; H or W not divisible by reduce; seed, sample_ids,
        capture or reduce out of range; flow not finite; noise that requires a gradient.
      TypeError: dtypes (float32 alone with "triton", and with "native" on CUDA).
      RuntimeError: the backend chosen by name is not available.
    Source: Chang et al., ICLR 2024; Deng et al., ICLR 2025; Burgert et al., CVPR 2025. See README.md.
    """
    op = "noise_transport"
    sizes = check_shape(op, "noise", noise, ("B", "C", "H", "W"))
    check_dtype(op, "noise", noise, (torch.float32, torch.float64))
    if noise.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{op}: noise must not require a gradient (the transport is not differentiable), detach it")
    check_seed(op, seed)
    ids = check_sample_ids(op, sample_ids, sizes["B"], noise.device)
    stride = _stride(op, capture)
    _positive(op, "reduce", reduce)
    if sizes["H"] % reduce or sizes["W"] % reduce:
        raise ValueError(f"{op}: reduce must divide H and W, got reduce {reduce} for {list(noise.shape)}")
    if isinstance(plan_or_flow, TransportPlan):
        plan = plan_or_flow
    else:
        check_shape(op, "flow", plan_or_flow, ("F-1", 2, "H", "W"), sizes=sizes)
        check_same_device(op, {"noise": noise, "flow": plan_or_flow})
        on_device = noise.device.type == "cuda" and requested_backend(op, backend) == "native"
        plan = plan_transport(plan_or_flow, capture=capture, backend="native" if on_device else "auto")
    if (plan.height, plan.width) != (sizes["H"], sizes["W"]):
        raise ValueError(
            f"{op}: noise must have the size of the plan, {plan.height} x {plan.width}, got {list(noise.shape)}"
        )
    if plan.slots.device != noise.device:
        raise ValueError(f"{op}: plan must be on {noise.device} like noise, got {plan.slots.device}: use plan.to(...)")
    if stride % plan.stride:
        raise ValueError(f"{op}: capture must be a multiple of the plan's, {plan.stride}, got {capture}")
    probes = FLOAT64_PROBES if backend == "auto" and noise.dtype == torch.float64 else TRANSPORT_PROBES
    chosen = resolve_backend(op, backend, noise.device, probes)
    return noise_transport_op(noise, plan.tensors(), ids, plan.num_slots, plan.stride, seed, stride, reduce, chosen)
