"""Launcher of the C++ plan, and of the transport in C++ and CUDA. Only addresses cross; the tensors are held here."""

import torch
from torch import Tensor

from worldr1_kernels import _native
from worldr1_kernels._checks import check_finite
from worldr1_kernels.noise_transport.plan import LISTS, TENSORS, TransportPlan, empty_list


def build_plan(flow: Tensor, *, residual_carry: bool, stride: int, level: str = "") -> TransportPlan:
    """Plan of a flow [F-1, 2, H, W], the same as `plan.build_plan` bit for bit, on one thread of the CPU.

    Args:
      flow: Float32 or float64, any device: the plan goes back to it.
      residual_carry: Add what rounding leaves of a field to the next one.
      stride: Of the frames whose slots and densities are kept.
      level: Instruction set, "x86-64-v2", "-v3" or "-v4"; "" takes the best this processor has.
    Raises:
      ValueError: the flow is not finite.
      RuntimeError: the module is not built, or the processor lacks `level`.
    """
    module = _native.cpu()
    fields, _, height, width = flow.shape
    host = flow.cpu()
    if fields > 0 and not host[0].is_contiguous():  # from field to field any stride will do
        host = host.contiguous()
    kept = fields // stride + 1
    slots = torch.empty(kept, height * width, dtype=torch.int32)
    density = torch.empty(kept, height, width, dtype=torch.float64)
    offsets = torch.empty(fields + 1, len(LISTS), dtype=torch.int64)
    made = module.noise_transport_plan(
        flow=host.data_ptr(),
        is_double=host.dtype == torch.float64,
        frame_stride=host.stride(0),
        fields=fields,
        height=height,
        width=width,
        stride=stride,
        residual_carry=residual_carry,
        slots=slots.data_ptr(),
        density=density.data_ptr(),
        offsets=offsets.data_ptr(),
        level=level,
    )
    if not made.finite:
        check_finite("plan_transport", "flow", flow)
        raise AssertionError("build_plan: the C++ module found a value that is not finite, torch did not")
    lists = {}
    for name in TENSORS[3:]:
        view = getattr(made, name)()
        lists[name] = empty_list(name, 0, host.device)
        if view.nbytes:
            lists[name] = torch.frombuffer(view, dtype=lists[name].dtype).clone()
    plan = TransportPlan(
        slots=slots, density=density, offsets=offsets, num_slots=made.num_slots, stride=stride, **lists
    )
    return plan if flow.device.type == "cpu" else plan.to(flow.device)


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
      scalar: Run the CUDA kernels' arithmetic one element after another on the CPU, for tests.
    Raises:
      TypeError: float64 on CUDA.
      RuntimeError: the module is not built, or the processor lacks `level`.
    """
    batch, channels, height, width = noise.shape
    frames = (plan.num_frames - 1) // capture + 1
    out = noise.new_empty(batch, channels, frames, height // reduce, width // reduce)
    noise, ids = noise.contiguous(), sample_ids.contiguous()
    tensors = dict(zip(TENSORS, (t.contiguous() for t in plan.tensors()), strict=True))
    common = dict(
        noise=noise.data_ptr(),
        out=out.data_ptr(),
        sample_ids=ids.data_ptr(),
        lists=[tensors[name].data_ptr() for name in TENSORS[3:]],
        slots=tensors["slots"].data_ptr(),
        offsets=tensors["offsets"].data_ptr(),
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
    is_double = noise.dtype == torch.float64
    if noise.device.type == "cuda":
        if is_double:
            raise TypeError("noise_transport: backend 'native' on CUDA takes float32, got float64; use 'reference'")
        state = noise.new_empty(batch * ((channels + 3) // 4), plan.num_slots, 4)
        with torch.cuda.device(noise.device):
            stream = torch.cuda.current_stream().cuda_stream
            _native.cuda().noise_transport(**common, state=state.data_ptr(), stream=stream)
        return out
    threads = torch.get_num_threads()
    _native.cpu().noise_transport(**common, num_threads=threads, is_double=is_double, scalar=scalar, level=level)
    return out
