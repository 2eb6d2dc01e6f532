// Splats in depth order to pairs (view and tile, splat), and sorted pairs to the range of each tile.
#include "../common/simt.h"
#include "rasterize.h"

namespace worldr1 {
namespace tiled {
namespace {

// pair_counts[j] for the j-th splat in depth order; 0 in unused places and in the last, whose sum is the number of pairs.
__global__ void __launch_bounds__(kThreads) count_pairs_kernel(const Chunk c) {
  const int64_t j = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (j > c.splat_capacity) return;
  uint32_t count = 0;
  if (j < c.counters->splats) {
    const TileSpan tiles = c.tiles[c.sorted_slots[j]];
    count = columns_of(tiles) * rows_of(tiles);
  }
  c.pair_counts[j] = count;
}

// What a warp knows of its 32 splats while it writes their pairs.
struct EmitSplat {
  uint32_t start, slot, first_key, width;
};

// A warp writes the pairs of 32 splats side by side, 32 at a time, whoever they belong to: a splat over the whole screen costs
// its neighbours nothing, and writes are coalesced.
template <class Key>
__global__ void __launch_bounds__(kThreads) emit_pairs_kernel(const Chunk c) {
  __shared__ EmitSplat shared[kWarps][32];
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t total = c.counters->splats;
  const int64_t first = (int64_t)blockIdx.x * kThreads + warp * 32;
  if (first >= total) return;  // the same for the whole warp
  const int64_t j = first + lane;
  // Also for j == total: where the pairs of the last splat end.
  EmitSplat splat = {c.pair_starts[j < total ? j : total], 0, 0, 1};
  if (j < total) {
    splat.slot = c.sorted_slots[j];
    const TileSpan tiles = c.tiles[splat.slot];
    if (c.first_pair != nullptr) c.first_pair[splat.slot] = splat.start;
    splat.first_key = tiles.first;
    splat.width = columns_of(tiles);
  }
  shared[warp][lane] = splat;
  __syncwarp();
  const EmitSplat* splats = shared[warp];
  uint32_t end = c.pair_starts[first + 32 < total ? first + 32 : total];
  if (end > c.pair_capacity) end = c.pair_capacity;
  Key* keys = static_cast<Key*>(c.tile_keys[0]);
  // Starts saturate at 2^32 - 1, where adding a lane would wrap. Below the capacity, and so 2^31, it cannot.
  const uint32_t begin = splats[0].start;
  if (begin >= end) return;
  for (uint32_t p = begin + lane; p < end; p += 32) {
    int owner = 0;  // the last splat that starts at or before p
    for (int step = 16; step > 0; step /= 2) {
      if (splats[owner + step].start <= p) owner += step;
    }
    const EmitSplat& s = splats[owner];
    const uint32_t k = p - s.start, row = k / s.width, column = k - row * s.width;
    keys[p] = (Key)(s.first_key + row * c.tiles_x + column);
    c.pair_slots[0][p] = s.slot;
  }
}

template <class Key>
__global__ void __launch_bounds__(kThreads) find_ranges_kernel(const Chunk c) {
  const int64_t j = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  const unsigned long long needed = c.counters->pairs;
  const uint32_t capacity = c.pair_capacity, count = needed < capacity ? (uint32_t)needed : capacity;
  if (j < c.num_views) c.overflow[j] = (int64_t)(needed - count);
  if (j >= count) return;
  const Key* tiles = static_cast<const Key*>(c.sorted_tiles);
  const uint32_t tile = tiles[j];
  if (j == 0 || tiles[j - 1] != tile) c.ranges[2 * (size_t)tile] = (uint32_t)j;
  if (j + 1 == count || tiles[j + 1] != tile) c.ranges[2 * (size_t)tile + 1] = (uint32_t)j + 1;
}

}  // namespace

int count_pairs(const Chunk& c, void* stream) {
  return launch(count_pairs_kernel, blocks_of((int64_t)c.splat_capacity + 1), 1, kThreads, stream, c);
}

int emit_pairs(const Chunk& c, void* stream) {
  const int64_t blocks = blocks_of(c.splat_capacity);
  if (c.small_keys) return launch(emit_pairs_kernel<uint16_t>, blocks, 1, kThreads, stream, c);
  return launch(emit_pairs_kernel<uint32_t>, blocks, 1, kThreads, stream, c);
}

int find_ranges(const Chunk& c, void* stream) {
  const int64_t blocks = blocks_of(c.pair_capacity > (uint32_t)c.num_views ? c.pair_capacity : (uint32_t)c.num_views);
  if (c.small_keys) return launch(find_ranges_kernel<uint16_t>, blocks, 1, kThreads, stream, c);
  return launch(find_ranges_kernel<uint32_t>, blocks, 1, kThreads, stream, c);
}

}  // namespace tiled
}  // namespace worldr1
