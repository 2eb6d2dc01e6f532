"""Transport of noise along a plan in plain torch, float32 or float64.

The state is kept as [H W, B, C]: a copy of a pixel is then one copy of B C contiguous numbers. Sums are loops over
element-wise additions, so that neither the batch split nor the thread count can change their order.
"""

import torch

from worldr1_kernels.noise_transport.plan import TransportPlan, sum_by_rank
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


def _step(
    state: torch.Tensor, following: torch.Tensor, plan: TransportPlan, frame: int, sample_ids: torch.Tensor, seed: int
) -> None:
    """Writes the state of the next frame, [H W, B, C], into `following`."""
    fresh, member, hit, merge = (slice(*pair) for pair in plan.offsets[frame : frame + 2].T.tolist())

    def draw(pixels: torch.Tensor, is_target: torch.Tensor) -> torch.Tensor:
        return pixel_normals(
            pixels,
            is_target,
            frame=frame + 1,
            sample_ids=sample_ids,
            num_channels=state.shape[2],
            seed=seed,
            dtype=state.dtype,
        )

    torch.index_select(state, 0, plan.source[frame], out=following)
    new = plan.fresh[fresh]
    following[new] = draw(new, torch.ones_like(new, dtype=torch.bool))

    values = state.new_empty(0)
    if member.stop > member.start:
        size = plan.member_size[member]
        rank = plan.member_rank[member]
        group = torch.cumsum(rank == 0, 0) - 1
        z = draw(plan.member_key[member], plan.member_is_target[member])  # [M, B, C]
        total = sum_by_rank(z, group, rank, int(group[-1]) + 1)
        share = size.to(state.dtype)[:, None, None]
        values = state[plan.member_source[member]] / share.sqrt() + (z - total[group] / share)
        alone = torch.nonzero(plan.member_target[member] >= 0)[:, 0]
        following[plan.member_target[member][alone]] = values[alone]

    if hit.stop > hit.start:
        arriving = state[plan.hit_source[hit]]  # [K, B, C]
        split = torch.nonzero(plan.hit_member[hit] >= 0)[:, 0]
        if len(split):
            arriving[split] = values[plan.hit_member[hit][split]]
        arriving = arriving * plan.hit_weight[hit].to(state.dtype)[:, None, None]
        targets = plan.merge_target[merge]
        following[targets] = sum_by_rank(arriving, plan.hit_merge[hit], plan.hit_rank[hit], len(targets))


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
    # A copy even where the layout is right already: the two buffers below are written in turn.
    state = noise.permute(2, 3, 0, 1).clone(memory_format=torch.contiguous_format)
    state = state.view(height * width, batch, channels)
    spare = torch.empty_like(state)
    for frame in range(captured[-1] + 1):
        if frame > 0:
            _step(state, spare, plan, frame - 1, sample_ids, seed)
            state, spare = spare, state
        if frame % capture == 0:
            out[:, :, frame // capture] = _reduced(state, height, width, reduce)
    return out
