"""The transport plan: which pixel goes where, in groups of what size, with which weights. It depends on the flow alone.

Notation of README.md: T(s) forward target of pixel s, b(t) pixel that an unhit target t reads, n(s) size of the group
of s, w density. Everything is integer, sorted, and summed in a fixed order: the same flow gives the same plan.
"""

from dataclasses import dataclass, fields

import torch


@dataclass(frozen=True, eq=False)
class TransportPlan:
    """How noise moves along one flow of F - 1 fields at H x W; shared by all samples and channels, so worth caching.

    Pixels are numbered y W + x. Most targets are plain copies: `source`. The others are listed, frame after frame;
    entries of frame f (from image f to f + 1) are rows `offsets[f] : offsets[f + 1]` of the lists named by the column.
    """

    source: torch.Tensor
    """[F-1, H W] int64: pixel that the target copies; of no meaning where a list below writes the target."""
    density: torch.Tensor
    """[F, H, W] float64: density of the noise at each frame, mean close to 1; all 1 at the first."""
    offsets: torch.Tensor
    """[F, 4] int64, always on the CPU: first row of each frame in the lists of fresh pixels, members, hits, merges."""
    fresh: torch.Tensor
    """[.] int64: targets nobody reaches and that read outside the frame: a new normal."""
    member_source: torch.Tensor
    """[.] int64: source s of each member of a group with n(s) > 1; groups are contiguous, the forward member first."""
    member_key: torch.Tensor
    """[.] int64: pixel that keys the member's random number: s for a forward member, t for an expansion."""
    member_is_target: torch.Tensor
    """[.] bool: the member is an expansion (keyed by its target)."""
    member_target: torch.Tensor
    """[.] int64: target the member fills alone, -1 if it goes into a merge."""
    member_rank: torch.Tensor
    """[.] int64: position inside its group."""
    member_size: torch.Tensor
    """[.] int64: n(s)."""
    hit_source: torch.Tensor
    """[.] int64: source of each contributor to a merge (a target with two or more forward hits), in rising order."""
    hit_member: torch.Tensor
    """[.] int64: index into this frame's members when n(s) > 1, else -1: the value is that of the source itself."""
    hit_merge: torch.Tensor
    """[.] int64: index into this frame's merges."""
    hit_rank: torch.Tensor
    """[.] int64: position inside its merge."""
    hit_weight: torch.Tensor
    """[.] float64: w_s / sqrt(sum w_s^2) over the merge."""
    merge_target: torch.Tensor
    """[.] int64: target of each merge."""

    @property
    def num_frames(self) -> int:
        return self.density.shape[0]

    @property
    def height(self) -> int:
        return self.density.shape[1]

    @property
    def width(self) -> int:
        return self.density.shape[2]

    def tensors(self) -> list[torch.Tensor]:
        """All fields in order, as the op takes them."""
        return [getattr(self, field.name) for field in fields(self)]

    def to(self, device: torch.device | str) -> "TransportPlan":
        """The same plan on another device (`offsets` stays on the CPU)."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "offsets"}
        return TransportPlan(offsets=self.offsets, **moved)


def _runs(sorted_keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For sorted keys: (index of each entry's run, its position inside the run, one key per run)."""
    keys, counts = torch.unique_consecutive(sorted_keys, return_counts=True)
    run = torch.repeat_interleave(torch.arange(len(keys), device=keys.device), counts)
    start = torch.cumsum(counts, 0) - counts
    return run, torch.arange(len(sorted_keys), device=keys.device) - start[run], keys


def tree_sum(values: torch.Tensor) -> torch.Tensor:
    """Sum of a vector by halving: an order that no thread count and no vector width can change."""
    size = 1 << max(0, values.numel() - 1).bit_length()
    values = torch.cat([values, values.new_zeros(size - values.numel())])
    while values.numel() > 1:
        half = values.numel() // 2
        values = values[:half] + values[half:]
    return values[0]


def sum_by_rank(values: torch.Tensor, index: torch.Tensor, rank: torch.Tensor, num: int) -> torch.Tensor:
    """Adds rows of `values` [M, ...] into [num, ...] at `index`, rank after rank: no two writes meet, no atomics."""
    total = values.new_zeros((num, *values.shape[1:]))
    for r in range(int(rank.max()) + 1 if rank.numel() else 0):
        rows = torch.nonzero(rank == r)[:, 0]
        total[index[rows]] = total[index[rows]] + values[rows]
    return total


def normalized(density: torch.Tensor) -> torch.Tensor:
    """(w / mean(w) + 1e-5)^0.9999: keeps the densities from drifting apart over long clips."""
    return (density / (tree_sum(density) / density.numel()) + 1e-5) ** 0.9999


def advance(shift: torch.Tensor, density: torch.Tensor, width: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """One frame of the plan.

    Args:
      shift: Rounded flow (dx, dy), int64 [2, H W].
      density: w of the frame that is left, float64 [H W].
      width: W.
    Returns:
      The lists of `TransportPlan` for this frame, and the raw density [H W] of the next frame: its sum is that of the
      sources that have a group plus one for each fresh pixel.
    """
    pixels = density.numel()
    height = pixels // width
    pixel = torch.arange(pixels, device=density.device)
    x, y = pixel % width, pixel // width

    def move(sign: int) -> tuple[torch.Tensor, torch.Tensor]:
        to_x, to_y = x + sign * shift[0], y + sign * shift[1]
        inside = (to_x >= 0) & (to_x < width) & (to_y >= 0) & (to_y < height)
        return inside, torch.where(inside, to_y * width + to_x, 0)

    leaves_to, forward = move(1)
    hits = torch.bincount(forward[leaves_to], minlength=pixels)
    reads_from, backward = move(-1)
    reads = reads_from & (hits == 0)
    size = leaves_to.long() + torch.bincount(backward[reads], minlength=pixels)  # n(s)
    fresh = torch.nonzero((hits == 0) & ~reads_from)[:, 0]

    source = torch.where(reads, backward, pixel)
    alone = leaves_to & (hits[forward] == 1)
    source[forward[alone]] = pixel[alone]

    members, member_of = _members(pixel, leaves_to, reads, forward, backward, hits, size)
    merging = torch.nonzero(leaves_to & (hits[forward] > 1))[:, 0]
    merging = merging[torch.argsort(forward[merging], stable=True)]
    merge, rank, merge_target = _runs(forward[merging])

    shared = density / size.clamp(min=1)  # w of one member
    weight = shared[merging]
    norm = sum_by_rank(weight.square(), merge, rank, len(merge_target)).sqrt()
    raw = shared[source]
    raw[fresh] = 1.0
    raw[merge_target] = sum_by_rank(weight, merge, rank, len(merge_target))

    lists = {
        "fresh": fresh,
        **members,
        "hit_source": merging,
        "hit_member": torch.where(size[merging] > 1, member_of[merging], -1),
        "hit_merge": merge,
        "hit_rank": rank,
        "hit_weight": weight / norm[merge],
        "merge_target": merge_target,
    }
    return {"source": source, **lists}, raw


def _members(
    pixel: torch.Tensor,
    leaves_to: torch.Tensor,
    reads: torch.Tensor,
    forward: torch.Tensor,
    backward: torch.Tensor,
    hits: torch.Tensor,
    size: torch.Tensor,
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Members of all groups with n(s) > 1, and for each pixel the row of its forward member (-1 if it has none)."""
    going = torch.nonzero(leaves_to & (size > 1))[:, 0]
    reading = torch.nonzero(reads & (size[backward] > 1))[:, 0]
    source = torch.cat([going, backward[reading]])
    order = torch.argsort(source, stable=True)  # forward member first, then expansions by rising target
    _, rank, _ = _runs(source[order])
    target = torch.cat([torch.where(hits[forward[going]] == 1, forward[going], -1), reading])
    is_target = torch.cat([torch.zeros_like(going, dtype=torch.bool), torch.ones_like(reading, dtype=torch.bool)])
    member_of = torch.full_like(pixel, -1)
    row = torch.empty_like(order)
    row[order] = torch.arange(len(order), device=pixel.device)
    member_of[going] = row[: len(going)]
    members = {
        "member_source": source[order],
        "member_key": torch.cat([going, reading])[order],
        "member_is_target": is_target[order],
        "member_target": target[order],
        "member_rank": rank,
        "member_size": size[source[order]],
    }
    return members, member_of


def build_plan(flow: torch.Tensor, *, residual_carry: bool) -> TransportPlan:
    """Plan of a finite flow [F-1, 2, H, W]; with `residual_carry` what rounding leaves is added to the next field."""
    steps, _, height, width = flow.shape
    density = torch.ones(height * width, dtype=torch.float64, device=flow.device)
    # A step of more than H + W leaves the frame all the same, and must not overflow the integers.
    limit = float(height + width)
    residual = torch.zeros_like(flow[0]) if steps else flow.new_zeros(2, height, width)
    densities, frames = [density], []
    for field in flow:
        wanted = field + residual if residual_carry else field
        rounded = torch.round(wanted)  # half to even
        residual = wanted - rounded
        lists, raw = advance(rounded.clamp(-limit, limit).to(torch.int64).flatten(1), density, width)
        density = normalized(raw)
        densities.append(density)
        frames.append(lists)
    counts = [[len(f[n]) for n in ("fresh", "member_source", "hit_source", "merge_target")] for f in frames]
    offsets = torch.tensor([[0] * 4, *counts], dtype=torch.int64).cumsum(0)
    empty = {
        f.name: torch.empty(
            0,
            dtype={"hit_weight": torch.float64, "member_is_target": torch.bool}.get(f.name, torch.int64),
            device=flow.device,
        )
        for f in fields(TransportPlan)
        if f.name not in ("source", "density", "offsets")
    }
    lists = {name: torch.cat([f[name] for f in frames]) if frames else nothing for name, nothing in empty.items()}
    if frames:
        source = torch.stack([f["source"] for f in frames])
    else:
        source = torch.empty(0, height * width, dtype=torch.int64, device=flow.device)
    return TransportPlan(
        source=source, density=torch.stack(densities).view(-1, height, width), offsets=offsets, **lists
    )
