"""Transport of noise along a plan in plain torch, float32 or float64.

The values live in slots, [S, B, C]: a copy of a pixel moves nothing but the plan's pointer. Sums are loops over
element-wise additions, so that neither the batch split nor the thread count can change their order.
"""

import torch

from worldr1_kernels.noise_transport.plan import TransportPlan, runs, sum_by_rank
from worldr1_kernels.philox import STREAM_TRANSPORT_SOURCE, STREAM_TRANSPORT_TARGET, philox_normal


def pixel_normals(
    pixels: torch.Tensor,
    is_target: torch.Tensor,
    *,
    frame: int,
    sample_ids: torch.Tensor,
    num_channels: int,
    seed: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """N(0, 1) of [P, B, C]: normal c mod 4 of counter (pixel, frame, sample id, stream 2^16 + c div 4).

    Args:
      pixels: int64 [P].
      is_target: bool [P]: stream of targets (expansions, fresh) or of sources (forward members).
      frame: Index of the frame that is entered, from 1.
      sample_ids: int64 [B].
      num_channels: C.
      seed: Key.
      dtype: float32 or float64.
    """
    quads = torch.arange((num_channels + 3) // 4, device=pixels.device)
    stream = torch.where(is_target, STREAM_TRANSPORT_TARGET << 16, STREAM_TRANSPORT_SOURCE << 16)
    normals = philox_normal(
        pixels[:, None, None],
        torch.full((1, 1, 1), frame, dtype=torch.int64, device=pixels.device),
        sample_ids[None, :, None],
        stream[:, None, None] + quads[None, None],
        seed=seed,
        dtype=dtype,
    )  # [P, B, Q, 4]
    return normals.flatten(2)[..., :num_channels]


def _step(state: torch.Tensor, plan: TransportPlan, frame: int, sample_ids: torch.Tensor, seed: int) -> None:
    """Adds the values that are new at `frame` to the slots [S, B, C]."""
    fresh, group, member, merge, hit = (slice(*pair) for pair in plan.offsets[frame - 1 : frame + 1].T.tolist())

    def draw(pixels: torch.Tensor, is_target: torch.Tensor) -> torch.Tensor:
        return pixel_normals(
            pixels.long(),
            is_target,
            frame=frame,
            sample_ids=sample_ids,
            num_channels=state.shape[2],
            seed=seed,
            dtype=state.dtype,
        )

    new = plan.fresh_pixel[fresh]
    state[plan.fresh_slot[fresh]] = draw(new, torch.ones_like(new, dtype=torch.bool))

    start = plan.group_start[group.start : group.stop + 1]
    run, rank = runs(start)
    z = draw(plan.member_pixel[member], plan.member_is_target[member])  # [M, B, C]
    size = start.diff().to(state.dtype)[:, None, None]
    mean = sum_by_rank(z, run, rank, len(size)) / size
    shared = state[plan.group_slot[group]] / size.sqrt()
    state[plan.member_slot[member]] = shared[run] + (z - mean[run])

    run, rank = runs(plan.merge_start[merge.start : merge.stop + 1])
    arriving = state[plan.hit_slot[hit]] * plan.hit_weight[hit].to(state.dtype)[:, None, None]  # [K, B, C]
    state[plan.merge_slot[merge]] = sum_by_rank(arriving, run, rank, merge.stop - merge.start)


def _reduced(state: torch.Tensor, height: int, width: int, reduce: int) -> torch.Tensor:
    """Sum of each reduce x reduce block / reduce, [B, C, H/r, W/r]: rows first, then columns."""
    grid = state.view(height // reduce, reduce, width // reduce, reduce, *state.shape[1:])
    if reduce > 1:
        rows = grid[:, 0].clone()  # [h, w, r, B, C]
        for i in range(1, reduce):
            rows += grid[:, i]
        total = rows[:, :, 0].clone()  # [h, w, B, C]
        for i in range(1, reduce):
            total += rows[:, :, i]
        grid = total / reduce
    else:
        grid = grid[:, 0, :, 0]
    return grid.permute(2, 3, 0, 1)


def transport(
    noise: torch.Tensor, plan: TransportPlan, sample_ids: torch.Tensor, seed: int, capture: int, reduce: int
) -> torch.Tensor:
    """Moves noise [B, C, H, W] along `plan`; frames 0, capture, 2 capture, ... as [B, C, F', H/r, W/r]."""
    batch, channels, height, width = noise.shape
    captured = range(0, plan.num_frames, capture)
    out = noise.new_empty(batch, channels, len(captured), height // reduce, width // reduce)
    state = noise.new_empty(plan.num_slots, batch, channels)
    state[: height * width] = noise.permute(2, 3, 0, 1).flatten(0, 1)
    for frame in range(captured[-1] + 1):
        if frame > 0:
            _step(state, plan, frame, sample_ids, seed)
        if frame % capture == 0:
            image = state.index_select(0, plan.slots[frame // plan.stride])
            out[:, :, frame // capture] = _reduced(image, height, width, reduce)
    return out
