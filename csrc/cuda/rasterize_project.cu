// Gaussians to splats, in one pass. One thread holds one Gaussian, reads it once for all views of the chunk, and keeps position
// and covariance in registers. First it decides in which views there is a splat; then the block finds its place among the
// records (look_back.h); then the records are computed again and written. Within a block splats lie by view, then by index, so
// that those of one view ascend by index: the depth sort is stable, and equal depths keep the lower index first.
//
// Colour rows are of any length and read through shared memory, a warp its 32 rows: neighbouring lanes then read neighbouring
// addresses, and every row is read once, checked and shaded.
#include "look_back.h"
#include "rasterize.h"
#include "rasterize_splats.h"

namespace worldr1 {
namespace tiled {
namespace {

__device__ __forceinline__ bool row_is_finite(const float* row, int64_t size) {
  bool ok = true;
  for (int64_t i = 0; i < size; ++i) ok &= is_finite(row[i]);  // no branch: loads need not wait for each other
  return ok;
}

// Whether position, opacity and covariance are numbers to work with.
__device__ __forceinline__ bool geometry_is_finite(const Chunk& c, int64_t g) {
  const bool ok = row_is_finite(c.means + 3 * g, 3) && is_finite(c.opacities[g]);
  if (c.covars != nullptr) return ok && row_is_finite(c.covars + 6 * g, 6);
  const float* q = c.quats + 4 * g;
  const float norm = q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3];
  return ok && row_is_finite(q, 4) && row_is_finite(c.scales + 3 * g, 3) && norm > 0.0f && is_finite(norm);
}

// Sum over the warp, for all its lanes.
__device__ __forceinline__ unsigned long long warp_sum(unsigned long long value) {
  for (uint32_t distance = 16; distance > 0; distance /= 2) {
    const uint32_t low = __shfl_xor_sync(kAllLanes, (uint32_t)value, distance);
    const uint32_t high = __shfl_xor_sync(kAllLanes, (uint32_t)(value >> 32), distance);
    value += (unsigned long long)high << 32 | low;
  }
  return value;
}

// Colours of a record: features, then depth, where all channels fit; else none (see fill_colors). `row` is in shared memory.
__device__ __forceinline__ void shade(const Chunk& c, const float* row, const Geometry& geometry, const Camera& camera,
                                      float depth, SplatRecord& record) {
  if (c.origins != nullptr) return;
  float rgb[3] = {0.0f, 0.0f, 0.0f};
  const int features = (int)c.channels - (c.depth_mode ? 1 : 0);
  record.color[3] = depth;
  if (c.sh_degree >= 0) {
    sh_color_switch(c.sh_degree, geometry.x - camera.position[0], geometry.y - camera.position[1],
                    geometry.z - camera.position[2], row, rgb);
  } else {
    for (int k = 0; k < 3; ++k) rgb[k] = k < features ? row[k] : 0.0f;
    if (features == 4) record.color[3] = row[3];
  }
  for (int k = 0; k < 3; ++k) record.color[k] = k == features ? depth : rgb[k];
}

__global__ void __launch_bounds__(kThreads, 4) project_kernel(const Chunk c) {
  __shared__ Camera cameras[kMaxViews];
  __shared__ uint32_t starts[kMaxViews][kWarps];
  __shared__ uint32_t block_number;
  __shared__ unsigned long long warp_pairs[kWarps];
  const uint32_t lane = threadIdx.x % 32;
  if (threadIdx.x == 0) block_number = atomicAdd(&c.counters->next_block, 1u);
  load_cameras(c, cameras);
  const uint32_t block = block_number;
  const int64_t first_of_warp = (int64_t)block * kThreads + threadIdx.x / 32 * 32, g = first_of_warp + lane;
  const bool is_inside = g < c.num_gaussians;
  const ColorRows rows = color_rows(c, first_of_warp, 0);
  const int sets = c.colors == nullptr ? 0 : c.colors_per_view ? c.num_views : 1;
  if (sets > 0) rows.start<true>(c.colors);

  uint32_t valid = is_inside && geometry_is_finite(c, g) ? kAllLanes : 0u, bits = 0;
  Geometry geometry{};
  SplatRecord record{};  // of the view looked at last; with one view it need not be computed again
  float opacity = 0.0f, depth = 0.0f;
  if (valid) {
    opacity = c.opacities[g];
    geometry = load_geometry(c, g);
    for (int v = 0; v < c.num_views && opacity >= kAlphaThreshold; ++v) {
      const bool keep = make_record(geometry.x, geometry.y, geometry.z, geometry.covariance, opacity, cameras[v], c.limits,
                                    &record, &depth);
      bits |= (uint32_t)keep << v;
    }
  }
  for (int v = 0; v < sets; ++v) {
    const float* colors = c.colors + v * c.color_view_stride;
    if (v > 0) rows.start<false>(colors);
    rows.wait();
    if (is_inside && !(rows.are_whole() ? row_is_finite(rows.mine(), rows.count)
                                      : row_is_finite(colors + g * c.color_size, c.color_size))) {
      valid &= sets == 1 ? 0u : ~(1u << v);
    }
    if (v + 1 < sets) __syncwarp();  // all have read their rows
  }
  bits &= valid;
  if (c.num_invalid != nullptr) {
    // Shared colours: what is invalid is so in every view, and one count serves them all.
    for (int v = 0; v < (c.colors_per_view ? c.num_views : 1); ++v) {
      const uint32_t invalid = __ballot_sync(kAllLanes, is_inside && !(valid >> v & 1u));
      // Integers: the order of these additions changes nothing.
      if (lane == 0 && invalid) atomicAdd(c.num_invalid + v, (unsigned long long)__popc(invalid));
    }
  }
  if (c.keep != nullptr && is_inside) c.keep[g] = bits;

  find_starts(c.num_views, bits, starts, [&](uint32_t total) {
    const uint32_t before = sum_before(c.sums, block, total);
    if (lane == 0 && c.block_starts != nullptr) c.block_starts[block] = before;
    if (lane == 0 && block == c.num_blocks - 1) c.counters->splats = before + total;
    return before;
  });

  unsigned long long pairs = 0;
  for (int v = 0; v < c.num_views; ++v) {
    const uint32_t slot = slot_in_view(bits, v, starts);
    if (sets > 1) {
      __syncwarp();  // all have read their rows of the view before
      rows.start<false>(c.colors + v * c.color_view_stride);
      rows.wait();
    }
    if (!(bits >> v & 1u)) continue;
    if (c.num_views > 1) {
      make_record(geometry.x, geometry.y, geometry.z, geometry.covariance, opacity, cameras[v], c.limits, &record, &depth);
    }
    shade(c, rows.mine(), geometry, cameras[v], depth, record);
    const TileSpan tiles = tile_span(record.bounds_x, record.bounds_y, c.limits.width, c.limits.height, c.tiles_x,
                                     (uint32_t)v * c.tiles_x * c.tiles_y);
    c.records[slot] = record;
    c.tiles[slot] = tiles;
    c.keys[0][slot] = bits_of(depth);  // in front of near_plane >= 0: the bits order as the numbers do
    c.slots[0][slot] = slot;
    if (c.origins != nullptr) c.origins[slot] = {(uint32_t)g, (uint32_t)v, depth};
    pairs += columns_of(tiles) * rows_of(tiles);
  }
  pairs = warp_sum(pairs);
  if (lane == 0) warp_pairs[threadIdx.x / 32] = pairs;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kWarps; ++w) pairs += warp_pairs[w];
  atomicAdd(&c.counters->pairs, pairs);
}

}  // namespace

int project(const Chunk& c, void* stream) {
  return launch_shared(project_kernel, c.num_blocks, 1, kThreads, color_rows_floats(c) * sizeof(float), stream, c);
}

}  // namespace tiled
}  // namespace worldr1
