"""Launcher of the C++ plan, and of the transport in C++ and CUDA. Only addresses cross; the tensors are held here."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from worldr1_kernels import _native
from worldr1_kernels._checks import check_finite
from worldr1_kernels.noise_transport.plan import LIST_TENSORS, LISTS, TransportPlan, empty_list


def build_plan(
    fields: Iterable[Tensor], shape: tuple[int, int, int], *, device: torch.device, stride: int, level: str = ""
) -> TransportPlan:
    """The same plan as `plan.build_plan`, bit for bit, on one thread of the CPU.

    Args:
      fields: F - 1 of [2, H, W], float32 or float64, on any device; each is let go before the next is asked for.
      shape: (F - 1, H, W).
      device: Where the plan goes.
      stride: Of the frames whose slots and densities are kept.
      level: Instruction set, "x86-64-v2", "-v3" or "-v4"; "" takes the best this processor has.
    Raises:
      ValueError: the flow is not finite.
      RuntimeError: the module is not built, or the processor lacks `level`.
    """
    module = _native.cpu()
    steps, height, width = shape
    kept = steps // stride + 1
    slots = torch.empty(kept, height * width, dtype=torch.int32)
    density = torch.empty(kept, height, width, dtype=torch.float64)
    offsets = torch.empty(steps + 1, len(LISTS), dtype=torch.int64)
    builder = module.TransportPlanBuilder(
        fields=steps,
        height=height,
        width=width,
        stride=stride,
        slots=slots.data_ptr(),
        density=density.data_ptr(),
        offsets=offsets.data_ptr(),
        level=level,
    )
    for index, field in enumerate(fields):
        host = field.cpu().contiguous()
        if not builder.add(host.data_ptr(), host.dtype == torch.float64):
            check_finite("plan_transport", f"flow[{index}]", host)
            raise AssertionError("build_plan: the C++ module found a value that is not finite, torch did not")
    made = builder.finish()
    lists = {}
    for name in LIST_TENSORS:
        view = getattr(made, name)()
        lists[name] = empty_list(name, 0, slots.device)
        if view.nbytes:
            lists[name] = torch.frombuffer(view, dtype=lists[name].dtype).clone()
    plan = TransportPlan(
        slots=slots,
        density=density,
        offsets=offsets,
        device_offsets=offsets,
        num_slots=made.num_slots,
        stride=stride,
        **lists,
    )
    return plan if device.type == "cpu" else plan.to(device)


def _arguments(
    noise: Tensor, plan: TransportPlan, sample_ids: Tensor, seed: int, capture: int, reduce: int
) -> tuple[dict[str, Any], Tensor, list[Tensor]]:
    """What all transports take, the result that they fill, and what else must live until they have run."""
    batch, channels, height, width = noise.shape
    frames = (plan.num_frames - 1) // capture + 1
    out = noise.new_empty(batch, channels, frames, height // reduce, width // reduce)
    read = [t.contiguous() for t in (noise, sample_ids, plan.slots, *(getattr(plan, n) for n in LIST_TENSORS))]
    addresses = [t.data_ptr() for t in read]
    arguments = dict(
        noise=addresses[0],
        out=out.data_ptr(),
        sample_ids=addresses[1],
        slots=addresses[2],
        lists=addresses[3:],
        num_slots=plan.num_slots,
        plan_stride=plan.stride,
        batch=batch,
        channels=channels,
        height=height,
        width=width,
        num_frames=plan.num_frames,
        capture=capture,
        reduce=reduce,
        seed=seed,
    )
    return arguments, out, read


def _on_device(module: Any, noise: Tensor, plan: TransportPlan, *options: Any, stream: int) -> Tensor:
    """The CUDA kernel, on the device or by the interpreter of `module`; options as those of `transport`."""
    if noise.dtype == torch.float64:
        raise TypeError("noise_transport: backend 'native' on CUDA takes float32, got float64; use 'reference'")
    if not module.noise_transport_fits(*noise.shape):
        raise ValueError(
            f"noise_transport: backend 'native' on CUDA takes B (C / 4) (H W / 64 + 4 H + 4) < 2^31, got "
            f"{list(noise.shape)}; use fewer samples a call"
        )
    arguments, out, held = _arguments(noise, plan, *options)
    state = noise.new_empty(noise.shape[0] * ((noise.shape[1] + 3) // 4), plan.num_slots, 4)
    module.noise_transport_device(
        **arguments, offsets=plan.device_offsets.data_ptr(), state=state.data_ptr(), stream=stream
    )
    del held, state  # torch's allocator keeps their memory for the stream
    return out


def transport_emulated(
    noise: Tensor,
    plan: TransportPlan,
    sample_ids: Tensor,
    seed: int,
    capture: int,
    reduce: int,
    *,
    order: int = 0,
) -> Tensor:
    """As `transport` on CUDA, by the same kernel, run on the CPU by an interpreter; `order` seeds that of its threads."""
    return _on_device(_native.cpu(), noise, plan, sample_ids, seed, capture, reduce, stream=order)


def transport(
    noise: Tensor,
    plan: TransportPlan,
    sample_ids: Tensor,
    seed: int,
    capture: int,
    reduce: int,
    *,
    level: str = "",
    scalar: bool = False,
) -> Tensor:
    """Moves noise [B, C, H, W] along `plan`; frames 0, capture, 2 capture, ... as [B, C, F', H/r, W/r].

    On the CPU it runs on `torch.get_num_threads()` threads; the result does not depend on their number. On CUDA
    everything is enqueued on the current stream, without a synchronisation: a graph may capture it (the plan must live
    as long).

    Args:
      noise: Float32; on the CPU also float64, by scalar code.
      plan: Plan on the same device.
      sample_ids: int64 [B].
      seed: Key.
      capture: Multiple of plan.stride.
      reduce: Divides H and W.
      level: Instruction set of the CPU, as for `build_plan`.
      scalar: Plain loops on the CPU, the CUDA kernel's arithmetic in its order, for tests.
    Raises:
      TypeError: float64 on CUDA.
      ValueError: more noise than the CUDA kernel can number.
      RuntimeError: the module is not built, or the processor lacks `level`.
    """
    if noise.device.type == "cuda":
        with torch.cuda.device(noise.device):
            stream = torch.cuda.current_stream().cuda_stream
            return _on_device(_native.cuda(), noise, plan, sample_ids, seed, capture, reduce, stream=stream)
    arguments, out, held = _arguments(noise, plan, sample_ids, seed, capture, reduce)
    _native.cpu().noise_transport(
        **arguments,
        offsets=plan.offsets.data_ptr(),
        num_threads=torch.get_num_threads(),
        is_double=noise.dtype == torch.float64,
        scalar=scalar,
        level=level,
    )
    del held
    return out
