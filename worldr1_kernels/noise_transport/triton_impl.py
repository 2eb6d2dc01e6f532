"""Launcher of the Triton transport: the values of each frame into their slots, captured frames by one gather."""

import contextlib

import torch
import triton
from torch import Tensor

from worldr1_kernels.noise_transport import triton_kernels as kernels
from worldr1_kernels.noise_transport.plan import TransportPlan

_ROWS = 128
_PIXELS = 32


def transport(noise: Tensor, plan: TransportPlan, sample_ids: Tensor, seed: int, capture: int, reduce: int) -> Tensor:
    """Moves float32 noise [B, C, H, W] along `plan`; every `capture`-th frame as [B, C, F', H/r, W/r].

    Raises:
      TypeError: noise is not float32.
    """
    if noise.dtype != torch.float32:
        raise TypeError("noise_transport: backend 'triton' takes float32, got float64; use backend='reference'")
    batch, channels, height, width = noise.shape
    quads, last = (channels + 3) // 4, (plan.num_frames - 1) // capture
    out = noise.new_empty(batch, channels, last + 1, height // reduce, width // reduce)
    tasks = batch * quads
    if tasks == 0:
        return out
    state = noise.new_empty(batch, quads, plan.num_slots, 4)
    for k in range(4):  # straight into the state: no copy of the noise beside it
        planes = noise[:, k::4]  # [B, quads or one less, H, W]
        lane = state[:, :, : height * width, k].unflatten(2, (height, width))
        lane[:, : planes.shape[1]] = planes
        lane[:, planes.shape[1] :] = 0.0
    ids, num_slots = sample_ids.contiguous(), plan.num_slots

    def grid(count: int, block: int) -> tuple[int, int]:
        return triton.cdiv(count, block), tasks

    with torch.cuda.device(noise.device) if noise.is_cuda else contextlib.nullcontext():
        for frame in range(last * capture + 1):
            if frame > 0:
                rows = plan.offsets[frame - 1 : frame + 1].T.tolist()
                fresh, group, member, merge, _ = rows
                if fresh[1] > fresh[0]:
                    kernels.draw_kernel[grid(fresh[1] - fresh[0], _ROWS)](
                        state, ids, plan.fresh_pixel, None, plan.fresh_slot, *fresh, num_slots, quads, frame, seed,
                        BLOCK=_ROWS,
                    )  # fmt: skip
                if member[1] > member[0]:
                    kernels.draw_kernel[grid(member[1] - member[0], _ROWS)](
                        state, ids, plan.member_pixel, plan.member_is_target.view(torch.uint8), plan.member_slot,
                        *member, num_slots, quads, frame, seed, BLOCK=_ROWS,
                    )  # fmt: skip
                    kernels.share_kernel[grid(group[1] - group[0], _ROWS)](
                        state, plan.group_slot, plan.group_start, plan.member_slot, *group, num_slots, BLOCK=_ROWS
                    )
                if merge[1] > merge[0]:
                    kernels.merge_kernel[grid(merge[1] - merge[0], _ROWS)](
                        state, plan.merge_slot, plan.merge_start, plan.hit_slot, plan.hit_weight, *merge, num_slots,
                        BLOCK=_ROWS,
                    )  # fmt: skip
            if frame % capture == 0:
                kernels.reduce_kernel[grid(out.shape[3] * out.shape[4], _PIXELS)](
                    state, plan.slots[frame // plan.stride], out, num_slots, quads, channels, height, width,
                    frame // capture, last + 1, REDUCE=reduce, BLOCK=_PIXELS,
                )  # fmt: skip
    return out
