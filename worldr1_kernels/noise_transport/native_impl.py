"""Launcher of the C++ plan, and of the transport in C++ and CUDA. Only addresses cross; the tensors are held here."""

from collections.abc import Iterable

import torch
from torch import Tensor

from worldr1_kernels import _native
from worldr1_kernels._checks import check_finite
from worldr1_kernels.noise_transport.plan import LISTS, TENSORS, TransportPlan, empty_list


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
    for name in TENSORS[3:]:
        view = getattr(made, name)()
        lists[name] = empty_list(name, 0, slots.device)
        if view.nbytes:
            lists[name] = torch.frombuffer(view, dtype=lists[name].dtype).clone()
    plan = TransportPlan(
        slots=slots, density=density, offsets=offsets, num_slots=made.num_slots, stride=stride, **lists
    )
    return plan if device.type == "cpu" else plan.to(device)


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
