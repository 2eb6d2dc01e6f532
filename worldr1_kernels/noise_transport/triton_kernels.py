"""Triton kernels of noise transport. Imported by triton_impl.py at its first use, never with the package.

State: [tasks, num_slots, 4], a task being one sample and four channels. The normals are made as in the SDE step: words
of Philox, then polynomials. Offsets are 64-bit before the first product; every load and store is masked.
"""

import triton
import triton.language as tl

from worldr1_kernels.philox_triton import philox, radius, turn

_SOURCE_STREAM = tl.constexpr(2)  # of worldr1_kernels/philox.py; that of targets is the next
_UNSPECIALISED = ["begin", "end", "num_slots", "quads", "frame", "seed"]


@triton.jit
def _at(task, num_slots, slot):
    """Offsets of the four channels of slots [BLOCK], [BLOCK, 4]."""
    return (task * num_slots + slot.to(tl.int64))[:, None] * 4 + tl.arange(0, 4)[None, :]


@triton.jit(do_not_specialize=_UNSPECIALISED)
def draw_kernel(
    state, sample_ids, pixels, is_target, slots, begin, end, num_slots, quads, frame, seed, BLOCK: tl.constexpr
):
    """Rows [begin, end) of a list: a normal keyed by its pixel into its slot. `is_target` None: all are targets."""
    row = begin.to(tl.int64) + tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    task = tl.program_id(1).to(tl.int64)
    keep = row < end
    c0 = tl.load(pixels + row, mask=keep, other=0).to(tl.uint32)
    zero = c0 * 0
    stream = zero + (_SOURCE_STREAM + 1)
    if is_target is not None:
        stream = tl.load(is_target + row, mask=keep, other=0).to(tl.uint32) + _SOURCE_STREAM
    sample = tl.load(sample_ids + task // quads).to(tl.uint32)
    key = seed.to(tl.int64)
    k0, k1 = zero + (key & 0xFFFFFFFF).to(tl.uint32), zero + (key >> 32).to(tl.uint32)
    c3 = (stream << 16) + (task % quads).to(tl.uint32)
    x0, x1, x2, x3 = philox(c0, zero + frame.to(tl.uint32), zero + sample, c3, k0, k1)
    r0, r2 = radius(x0), radius(x2)
    cos0, sin0 = turn(x1)
    cos2, sin2 = turn(x3)
    z = tl.reshape(tl.join(tl.join(r0 * cos0, r2 * cos2), tl.join(r0 * sin0, r2 * sin2)), [BLOCK, 4])
    slot = tl.load(slots + row, mask=keep, other=0)
    tl.store(state + _at(task, num_slots, slot), z, mask=keep[:, None])


@triton.jit(do_not_specialize=_UNSPECIALISED)
def share_kernel(state, group_slot, group_start, member_slot, begin, end, num_slots, BLOCK: tl.constexpr):
    """Groups [begin, end), whose members' slots hold their normals: X_m = q / sqrt(n) + (Z_m - mean Z)."""
    group = begin.to(tl.int64) + tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    task = tl.program_id(1).to(tl.int64)
    keep = group < end
    first = tl.load(group_start + group, mask=keep, other=0)
    size = tl.load(group_start + group + 1, mask=keep, other=0) - first
    longest = tl.max(size, 0)
    total = tl.zeros([BLOCK, 4], tl.float32)
    for j in range(0, longest):
        inside = j < size
        slot = tl.load(member_slot + first + j, mask=inside, other=0)
        total += tl.load(state + _at(task, num_slots, slot), mask=inside[:, None], other=0.0)
    n = tl.maximum(size, 1).to(tl.float32)[:, None]
    slot = tl.load(group_slot + group, mask=keep, other=0)
    shared = tl.load(state + _at(task, num_slots, slot), mask=keep[:, None], other=0.0) / tl.sqrt(n) - total / n
    for j in range(0, longest):
        inside = j < size
        slot = tl.load(member_slot + first + j, mask=inside, other=0)
        at = state + _at(task, num_slots, slot)
        tl.store(at, tl.load(at, mask=inside[:, None], other=0.0) + shared, mask=inside[:, None])


@triton.jit(do_not_specialize=_UNSPECIALISED)
def merge_kernel(state, merge_slot, merge_start, hit_slot, hit_weight, begin, end, num_slots, BLOCK: tl.constexpr):
    """Merges [begin, end): the sum of weight times value over the arrivals."""
    merge = begin.to(tl.int64) + tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    task = tl.program_id(1).to(tl.int64)
    keep = merge < end
    first = tl.load(merge_start + merge, mask=keep, other=0)
    size = tl.load(merge_start + merge + 1, mask=keep, other=0) - first
    total = tl.zeros([BLOCK, 4], tl.float32)
    for j in range(0, tl.max(size, 0)):
        inside = j < size
        slot = tl.load(hit_slot + first + j, mask=inside, other=0)
        weight = tl.load(hit_weight + first + j, mask=inside, other=0.0).to(tl.float32)[:, None]
        total += tl.load(state + _at(task, num_slots, slot), mask=inside[:, None], other=0.0) * weight
    slot = tl.load(merge_slot + merge, mask=keep, other=0)
    tl.store(state + _at(task, num_slots, slot), total, mask=keep[:, None])


@triton.jit(do_not_specialize=["num_slots", "quads", "channels", "height", "width", "captured", "num_captured"])
def reduce_kernel(
    state, slots, out, num_slots, quads, channels, height, width, captured, num_captured, REDUCE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One captured frame: blocks of REDUCE x REDUCE pixels summed, row after row, and divided by REDUCE."""
    pixel = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    task = tl.program_id(1).to(tl.int64)
    columns = width.to(tl.int64) // REDUCE
    count = (height // REDUCE) * columns
    keep = pixel < count
    corner = (pixel // columns) * REDUCE * width + (pixel % columns) * REDUCE
    total = tl.zeros([BLOCK, 4], tl.float32)
    for i in range(0, REDUCE * REDUCE):
        slot = tl.load(slots + corner + (i // REDUCE) * width + i % REDUCE, mask=keep, other=0)
        total += tl.load(state + _at(task, num_slots, slot), mask=keep[:, None], other=0.0)
    channel = (task % quads) * 4 + tl.arange(0, 4)
    plane = ((task // quads) * channels + channel) * num_captured + captured
    at = out + plane[None, :] * count + pixel[:, None]
    tl.store(at, total / REDUCE, mask=keep[:, None] & (channel < channels)[None, :])
