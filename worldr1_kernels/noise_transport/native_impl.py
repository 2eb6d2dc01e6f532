"""Launcher of the plan and of the transport, in C++ and in CUDA. Only addresses cross; the tensors are held here."""

from collections.abc import Callable, Iterable
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


_STATE_VALUES = 15
"""int64 of the plan's state in its workspace: rows 5, counts 6, head, free, number of slots, first field not finite."""
_EXPECTED_ROWS = 1 / 16
"""Of a list, for each pixel and field; a plan with more is made a second time with as many as it has."""


class _NotFinite(Exception):
    """A field of a plan holds NaN or infinity."""

    def __init__(self, field: int) -> None:
        super().__init__(f"flow[{field}] must be finite")
        self.field = field


class _ListsTooShort(Exception):
    """A plan had more rows than its lists; `rows`: how many of each it needs."""

    def __init__(self, rows: list[int]) -> None:
        super().__init__(f"the lists of a plan must hold {rows} rows")
        self.rows = rows


def _plan_once(
    module: Any,
    fields: Iterable[Tensor],
    shape: tuple[int, int, int],
    device: torch.device,
    stride: int,
    room: list[int],
    stream: int,
) -> TransportPlan:
    """A plan by the CUDA kernels with lists of `room` rows; waits for the device once, at the end."""
    steps, height, width = shape
    kept = steps // stride + 1
    slots = torch.empty(kept, height * width, dtype=torch.int32, device=device)
    density = torch.empty(kept, height, width, dtype=torch.float64, device=device)
    offsets = torch.zeros(steps + 1, len(LISTS), dtype=torch.int64, device=device)
    workspace = torch.empty(module.noise_transport_plan_bytes(height, width), dtype=torch.uint8, device=device)
    rows = dict(zip(LISTS, room, strict=True))
    lists = {}
    for name in LIST_TENSORS:
        lists[name] = empty_list(name, rows[name.split("_")[0]] + name.endswith("_start"), device)
    common = dict(
        height=height,
        width=width,
        lists=[t.data_ptr() for t in lists.values()],
        room=room,
        offsets=offsets.data_ptr(),
        workspace=workspace.data_ptr(),
        stream=stream,
    )
    module.noise_transport_plan_begin(**common, slots=slots.data_ptr(), density=density.data_ptr())
    last = steps // stride * stride  # beyond it only the values are looked at
    for frame, field in enumerate(fields, start=1):
        if field.device != slots.device:
            raise ValueError(
                f"plan_transport: flow[{frame - 1}] must be on {slots.device} like flow[0], got {field.device}"
            )
        field = field.contiguous()
        keep = frame % stride == 0
        module.noise_transport_plan_add(
            **common,
            field=field.data_ptr(),
            is_double=field.dtype == torch.float64,
            frame=frame,
            check_only=frame > last,
            slots=slots[frame // stride].data_ptr() if keep else 0,
            density=density[frame // stride].data_ptr() if keep else 0,
        )
    offsets[last + 1 :] = offsets[last].clone()
    state = workspace[: 8 * _STATE_VALUES].view(torch.int64)
    both = torch.cat([state, offsets.flatten()]).cpu()  # the host waits here
    counts, (free, num_slots, bad) = both[5:11].tolist(), both[12:_STATE_VALUES].tolist()
    if bad >= 0:
        raise _NotFinite(bad)
    host_offsets = both[_STATE_VALUES:].view(steps + 1, len(LISTS)).clone()
    needed = host_offsets[-1].tolist()
    if any(n > r for n, r in zip(needed, room, strict=True)):
        raise _ListsTooShort(needed)
    taken = counts[0] + counts[2] + counts[3]  # by the last field: fresh pixels, members, merges
    ends = dict(zip(LISTS, needed, strict=True))
    for name, ends_in in (("group_start", "member"), ("merge_start", "hit")):
        lists[name][ends[name.split("_")[0]]] = ends[ends_in]
    for name in LIST_TENSORS:  # one after the other: what was too long is freed before the next is copied
        lists[name] = lists[name][: ends[name.split("_")[0]] + name.endswith("_start")].clone()
    return TransportPlan(
        slots=slots,
        density=density,
        offsets=host_offsets,
        device_offsets=offsets,
        num_slots=num_slots + max(taken - free, 0),
        stride=stride,
        **lists,
    )


def _plan_on_device(
    module: Any,
    fields: Callable[[], Iterable[Tensor]],
    shape: tuple[int, int, int],
    *,
    device: torch.device,
    stride: int,
    stream: int,
    room: list[int] | None = None,
) -> TransportPlan:
    steps, height, width = shape
    room = room or [int(height * width * max(1.0, steps * _EXPECTED_ROWS))] * len(LISTS)
    try:
        return _plan_once(module, fields(), shape, device, stride, room, stream)
    except _ListsTooShort as error:
        return _plan_once(module, fields(), shape, device, stride, error.rows, stream)
    except _NotFinite as error:
        for index, field in enumerate(fields()):
            if index == error.field:
                check_finite("plan_transport", f"flow[{index}]", field)
        raise AssertionError("build_plan: the kernels found a value that is not finite, torch did not") from None


def build_plan_cuda(
    fields: Callable[[], Iterable[Tensor]], shape: tuple[int, int, int], *, device: torch.device, stride: int
) -> TransportPlan:
    """The plan of `build_plan`, bit for bit, made on a CUDA device; the host waits once, for the lengths of the lists.

    Args:
      fields: Called for F - 1 fields [2, H, W] on `device`, float32 or float64; a second time if the lists were too
        short, or to say which values are not finite.
      shape: (F - 1, H, W).
      device: Of the fields and of the plan.
      stride: Of the frames whose slots and densities are kept.
    Raises:
      ValueError: the flow is not finite.
      RuntimeError: the module is not built, or there is no device.
    """
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream().cuda_stream
        return _plan_on_device(_native.cuda(), fields, shape, device=device, stride=stride, stream=stream)


def build_plan_emulated(
    fields: Callable[[], Iterable[Tensor]],
    shape: tuple[int, int, int],
    *,
    stride: int,
    order: int = 0,
    room: list[int] | None = None,
) -> TransportPlan:
    """As `build_plan_cuda`: its kernels, run on the CPU by an interpreter; `order` seeds the order of the threads.
    `room`: rows of the lists at first."""
    device = torch.device("cpu")
    return _plan_on_device(_native.cpu(), fields, shape, device=device, stride=stride, stream=order, room=room)


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
            f"noise_transport: backend 'native' on CUDA takes B (C / 4) (3 H W / 128 + 6 H + 6) < 2^31, got "
            f"{list(noise.shape)}; use fewer samples a call"
        )
    arguments, out, held = _arguments(noise, plan, *options)
    tasks = noise.shape[0] * ((noise.shape[1] + 3) // 4)
    state = noise.new_empty(tasks, plan.num_slots, 4)
    members = plan.offsets[:, LISTS.index("member")].diff()
    most_members = int(members.max()) if len(members) else 0
    normals = noise.new_empty(2, tasks, most_members, 4)  # of two frames
    module.noise_transport_device(
        **arguments,
        offsets=plan.device_offsets.data_ptr(),
        state=state.data_ptr(),
        normals=normals.data_ptr(),
        most_members=most_members,
        stream=stream,
    )
    del held, state, normals  # torch's allocator keeps their memory for the stream
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
    """As `transport` on CUDA: its kernel, run on the CPU by an interpreter; `order` seeds the order of the threads."""
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
