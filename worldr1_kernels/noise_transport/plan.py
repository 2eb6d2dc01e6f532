"""The transport plan: which value each pixel holds at each frame, and how new values are made. The flow alone decides.

Values are numbered by slots. A copy moves no number, only the pixel that points at it: every pixel holds a slot of its
own, and only stretched, merged and fresh pixels get a new one. Slots of dead values are taken up again in the order in
which they died.

Notation of README.md: T(s) forward target of pixel s, b(t) pixel that an unhit target t reads, n(s) size of the group
of s, w density. Everything is integer, sorted, and summed in a fixed order: the same flow gives the same plan, here and
in C++, bit by bit but for the last bit of `hit_weight` (torch does not always round a square root to nearest).
"""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from worldr1_kernels._checks import check_finite

LISTS = ("fresh", "group", "member", "merge", "hit")


class Fields(Protocol):
    """The fields of a flow, each [2, H, W]: a tensor, a list, or an object that computes a field when asked for it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class TransportPlan:
    """How noise moves along one flow of F - 1 fields at H x W; shared by all samples and channels, so worth caching.

    Pixels are numbered y W + x. Frame 0 holds its pixels in slots 0 .. H W - 1. Rows of the lists are in order of
    frames: those of frame f (made from frame f - 1) are rows `offsets[f - 1] : offsets[f]` of the list's column.
    """

    slots: Tensor
    """[F', H W] int32: slot of the value that each pixel holds, at frames 0, stride, 2 stride, ..."""
    density: Tensor
    """[F', H, W] float64: density of the noise at these frames, mean close to 1; all 1 at the first. It stays where the
    plan was made: the transport does not read it."""
    offsets: Tensor
    """[F, 5] int64, always on the CPU: rows up to and with each frame of fresh, groups, members, merges, hits."""
    device_offsets: Tensor
    """The same on the plan's device, where the CUDA kernel reads them."""
    fresh_pixel: Tensor
    """[.] int32: targets nobody reaches and that read outside the frame, rising within a frame: a new normal."""
    fresh_slot: Tensor
    """[.] int32: slot of the new value."""
    group_slot: Tensor
    """[.] int32: the value that a group with n(s) > 1 members shares; groups by rising s."""
    group_start: Tensor
    """[G + 1] int64: first row of each group in the list of members, then the length of that list."""
    member_pixel: Tensor
    """[.] int32: pixel that keys the member's random number: s for the forward member, which is the first of its group,
    t for expansions, rising."""
    member_is_target: Tensor
    """[.] bool: the member is an expansion (keyed by its target)."""
    member_slot: Tensor
    """[.] int32: slot of the member's value."""
    merge_slot: Tensor
    """[.] int32: slot of a merge (a target with two or more forward hits); merges by rising target."""
    merge_start: Tensor
    """[M + 1] int64: first row of each merge in the list of hits, then the length of that list."""
    hit_slot: Tensor
    """[.] int32: value that arrives; by rising source within a merge."""
    hit_weight: Tensor
    """[.] float64: w_s / sqrt(sum w_s^2) over the merge."""
    num_slots: int
    """Values that are alive at once, at most: H W and the new values of one frame."""
    stride: int
    """Every how many frames `slots` and `density` are kept."""

    @property
    def num_frames(self) -> int:
        return self.offsets.shape[0]

    @property
    def height(self) -> int:
        return self.density.shape[1]

    @property
    def width(self) -> int:
        return self.density.shape[2]

    def tensors(self) -> list[Tensor]:
        """All tensors in order, as the op takes them."""
        return [getattr(self, name) for name in TENSORS]

    def to(self, device: torch.device | str) -> "TransportPlan":
        """The same plan on another device; `density` and `offsets` stay where they are."""
        moved = {name: getattr(self, name).to(device) for name in ("slots", "device_offsets", *LIST_TENSORS)}
        return dataclasses.replace(self, **moved)


TENSORS = tuple(field.name for field in dataclasses.fields(TransportPlan) if field.type is Tensor)
LIST_TENSORS = TENSORS[TENSORS.index("fresh_pixel") :]
_DTYPES = {
    "group_start": torch.int64, "merge_start": torch.int64, "hit_weight": torch.float64, "member_is_target": torch.bool,
}  # fmt: skip


def empty_list(name: str, length: int, device: torch.device) -> Tensor:
    """An unfilled list of `TransportPlan`, in its dtype."""
    return torch.empty(length, dtype=_DTYPES.get(name, torch.int32), device=device)


def tree_sum(values: Tensor) -> Tensor:
    """Sum of a vector by halving: an order that no thread count and no vector width can change."""
    size = 1 << max(0, values.numel() - 1).bit_length()
    values = torch.cat([values, values.new_zeros(size - values.numel())])
    while values.numel() > 1:
        half = values.numel() // 2
        values = values[:half] + values[half:]
    return values[0]


def sum_by_rank(values: Tensor, index: Tensor, rank: Tensor, num: int) -> Tensor:
    """Adds rows of `values` [M, ...] into [num, ...] at `index`, rank after rank: no two writes meet, no atomics."""
    total = values.new_zeros((num, *values.shape[1:]))
    for r in range(int(rank.max()) + 1 if rank.numel() else 0):
        rows = torch.nonzero(rank == r)[:, 0]
        total[index[rows]] = total[index[rows]] + values[rows]
    return total


def runs(start: Tensor) -> tuple[Tensor, Tensor]:
    """For runs that begin at the rows start[:-1] and end at start[-1]: (run of each row, its position inside)."""
    start = start - start[0]
    run = torch.repeat_interleave(torch.arange(len(start) - 1, device=start.device), start.diff())
    return run, torch.arange(len(run), device=start.device) - start[run]


def normalized(density: Tensor) -> Tensor:
    """(w / mean(w) + 1e-5)^0.9999: keeps the densities from drifting apart over long clips.

    The power is x exp(-1e-4 ln x), in additions, multiplications and one division, each rounded as IEEE 754 says: any
    implementation gets the same bits, which no library's power promises. Relative error below 3e-16.
    """
    total = tree_sum(density)
    # Not number / tensor: torch multiplies by a reciprocal there.
    x = density * (torch.full_like(total, density.numel()) / total) + 1e-5
    mantissa, exponent = torch.frexp(x)  # [1/2, 1)
    below = mantissa < math.sqrt(0.5)
    mantissa = torch.where(below, 2.0 * mantissa, mantissa)
    exponent = exponent.to(x.dtype) - below.to(x.dtype)
    s = (mantissa - 1.0) / (mantissa + 1.0)  # ln m = 2 artanh s, |s| < .172
    z = s * s
    series = torch.full_like(x, 2.0 / 15.0)
    for k in (13, 11, 9, 7, 5, 3, 1):
        series = series * z + 2.0 / k
    y = (exponent * math.log(2.0) + s * series) * -1e-4
    power = torch.full_like(x, 1.0 / 120.0)
    for term in (1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0):
        power = power * y + term
    return x + x * (power * y)


@dataclass
class Slots:
    """Where values live, from frame to frame."""

    held: Tensor
    """[H W] int32: slot of each pixel."""
    free: Tensor
    """[.] int32: slots of dead values, in the order in which they will be taken."""
    count: int
    """All slots so far."""

    def take(self, num: int) -> Tensor:
        """The next `num` slots; new ones where there are not enough free."""
        missing = max(0, num - len(self.free))
        new = torch.arange(self.count, self.count + missing, dtype=torch.int32, device=self.free.device)
        self.count += missing
        slots = torch.cat([self.free, new])
        self.free = slots[num:]
        return slots[:num]


def advance(shift: Tensor, density: Tensor, slots: Slots, width: int) -> tuple[dict[str, Tensor], Tensor]:
    """One frame of the plan; `slots` is brought to the next frame.

    Args:
      shift: Rounded flow (dx, dy), int64 [2, H W].
      density: w of the frame that is left, float64 [H W].
      slots: Slots of that frame.
      width: W.
    Returns:
      The lists of `TransportPlan` for this frame (starts without their last entry), and the raw density [H W] of the
      next frame: its sum is that of the sources that have a group plus one for each fresh pixel.
    """
    pixels = density.numel()
    height = pixels // width
    pixel = torch.arange(pixels, device=density.device)
    x, y = pixel % width, pixel // width

    def move(sign: int) -> tuple[Tensor, Tensor]:
        to_x, to_y = x + sign * shift[0], y + sign * shift[1]
        inside = (to_x >= 0) & (to_x < width) & (to_y >= 0) & (to_y < height)
        return inside, torch.where(inside, to_y * width + to_x, 0)

    leaves_to, forward = move(1)
    hits = torch.bincount(forward[leaves_to], minlength=pixels)
    reads_from, backward = move(-1)
    reads = reads_from & (hits == 0)
    size = leaves_to.long() + torch.bincount(backward[reads], minlength=pixels)  # n(s)
    source = torch.where(reads, backward, pixel)
    alone = leaves_to & (hits[forward] == 1)
    source[forward[alone]] = pixel[alone]

    fresh = torch.nonzero((hits == 0) & ~reads_from)[:, 0]
    # Forward member first, then expansions by rising target: the sort is stable.
    going = torch.nonzero(leaves_to & (size > 1))[:, 0]
    reading = torch.nonzero(reads & (size[backward] > 1))[:, 0]
    order = torch.argsort(torch.cat([going, backward[reading]]), stable=True)
    group = torch.nonzero(size > 1)[:, 0]
    merge = torch.nonzero(hits > 1)[:, 0]
    arriving = torch.nonzero(leaves_to & (hits[forward] > 1))[:, 0]
    arriving = arriving[torch.argsort(forward[arriving], stable=True)]

    taken = slots.take(len(fresh) + len(order) + len(merge))
    fresh_slot, member_slot, merge_slot = taken.split([len(fresh), len(order), len(merge)])
    at_member = torch.empty_like(member_slot)
    at_member[order] = member_slot  # going, then reading
    held, following = slots.held, slots.held[source]
    following[fresh], following[merge], following[reading] = fresh_slot, merge_slot, at_member[len(going) :]
    value = held.clone()  # of what each pixel sends forward
    value[going] = at_member[: len(going)]
    single = hits[forward[going]] == 1
    following[forward[going[single]]] = value[going[single]]
    slots.held = following
    slots.free = torch.cat([slots.free, held[size == 0], held[group], value[arriving]])

    starts = [torch.cumsum(counts, 0) - counts for counts in (size[group], hits[merge])]
    run, rank = runs(torch.cat([starts[1], starts[1].new_tensor([len(arriving)])]))
    shared = density / size.clamp(min=1)  # w of one member
    weight = shared[arriving]
    norm = sum_by_rank(weight * weight, run, rank, len(merge)).sqrt()
    raw = shared[source]
    raw[fresh] = 1.0
    raw[merge] = sum_by_rank(weight, run, rank, len(merge))
    is_target = torch.cat([torch.zeros_like(going, dtype=torch.bool), torch.ones_like(reading, dtype=torch.bool)])
    lists = {
        "fresh_pixel": fresh,
        "fresh_slot": fresh_slot,
        "group_slot": held[group],
        "group_start": starts[0],
        "member_pixel": torch.cat([going, reading])[order],
        "member_is_target": is_target[order],
        "member_slot": member_slot,
        "merge_slot": merge_slot,
        "merge_start": starts[1],
        "hit_slot": value[arriving],
        "hit_weight": weight / norm[run],
    }
    return lists, raw


def dither(index: int) -> tuple[float, float]:
    """Offset (dx, dy) of field `index`, in (-1/2, 1/2): fractions of the multiples of the golden ratio and of sqrt 2,
    evenly spread after any number of fields. A constant speed, rounded with them, is never 2 pixels ahead of or behind
    its path in 120 fields."""
    x, y = (((index + 1) * turn) % 1.0 - 0.5 for turn in ((math.sqrt(5.0) - 1.0) / 2.0, math.sqrt(2.0) - 1.0))
    return x, y


def build_plan(
    fields: Iterable[Tensor], shape: tuple[int, int, int], *, device: torch.device, stride: int
) -> TransportPlan:
    """Plan of F - 1 fields [2, H, W] on `device`; shape: (F - 1, H, W).

    Raises:
      ValueError: a field is not finite.
    """
    steps, height, width = shape
    pixels = height * width
    density = torch.ones(pixels, dtype=torch.float64, device=device)
    held = torch.arange(pixels, dtype=torch.int32, device=device)
    slots = Slots(held, held[:0], pixels)
    # A step of more than H + W leaves the frame all the same, and must not overflow the integers.
    limit = float(height + width)
    kept_slots, densities, frames = [held], [density], []
    offsets = torch.zeros(steps + 1, len(LISTS), dtype=torch.int64)
    for index, field in enumerate(fields, start=1):
        check_finite("plan_transport", f"flow[{index - 1}]", field)
        if index > steps // stride * stride:
            continue
        shift = torch.round(field.clamp(-limit, limit))  # half to even
        lists, raw = advance(shift.to(torch.int64).flatten(1), density, slots, width)
        density = normalized(raw)
        if index % stride == 0:
            kept_slots.append(slots.held)
            densities.append(density)
        lists["group_start"] += offsets[index - 1, LISTS.index("member")].item()
        lists["merge_start"] += offsets[index - 1, LISTS.index("hit")].item()
        lengths = [len(lists[name]) for name in ("fresh_slot", "group_slot", "member_slot", "merge_slot", "hit_slot")]
        offsets[index] = offsets[index - 1] + torch.tensor(lengths)
        frames.append(lists)
    offsets[len(frames) :] = offsets[len(frames)].clone()
    ends = {"group_start": offsets[-1, 2:3], "merge_start": offsets[-1, 4:5]}
    lists = {}
    for name in LIST_TENSORS:
        parts = [f[name] for f in frames] + ([ends[name].to(device)] if name in ends else [])
        nothing = empty_list(name, 0, device)
        lists[name] = torch.cat([nothing, *(part.to(nothing.dtype) for part in parts)])
    return TransportPlan(
        slots=torch.stack(kept_slots),
        density=torch.stack(densities).view(-1, height, width),
        offsets=offsets,
        device_offsets=offsets.to(device),
        num_slots=slots.count,
        stride=stride,
        **lists,
    )
