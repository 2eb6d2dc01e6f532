// Gaussians to splats. One thread holds one Gaussian, reads it once for all views of the chunk, and keeps position and
// covariance in registers. Splats are compacted by view, then by index: the depth sort is stable, so equal depths keep the
// lower index first. Two kernels: the first decides (one bit a view) and counts, the second writes; what was decided is
// stored, not computed again, because two kernels may round differently.
#include "../common/simt.h"
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

__global__ void __launch_bounds__(kThreads) validate_kernel(const Chunk c) {
  const int64_t g = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  const bool is_inside = g < c.num_gaussians;
  uint32_t bits = 0;
  if (is_inside) {
    bool ok = geometry_is_finite(c, g);
    const float* row = c.colors + c.color_size * g;
    if (c.colors != nullptr && !c.colors_per_view) ok = ok && row_is_finite(row, c.color_size);
    bits = ok ? kAllLanes : 0u;
    if (ok && c.colors_per_view) {
      for (int v = 0; v < c.num_views; ++v) {
        if (!row_is_finite(row + v * c.color_view_stride, c.color_size)) bits &= ~(1u << v);
      }
    }
    c.valid[g] = bits;
  }
  // Shared colours: what is invalid is so in every view, and one count serves them all.
  const int counters = c.colors_per_view ? c.num_views : 1;
  for (int v = 0; v < counters; ++v) {
    const uint32_t invalid = __ballot_sync(kAllLanes, is_inside && !(bits >> v & 1u));
    // Integers: the order of these additions changes nothing.
    if (threadIdx.x % 32 == 0 && invalid) atomicAdd(c.num_invalid + v, (unsigned long long)__popc(invalid));
  }
}

__global__ void __launch_bounds__(kThreads) cull_kernel(const Chunk c) {
  __shared__ Camera cameras[kMaxViews];
  __shared__ uint32_t counts[kMaxViews][kWarps];
  const int64_t g = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  load_cameras(c, cameras);
  uint32_t bits = 0;
  if (g < c.num_gaussians) {
    const uint32_t valid = c.valid[g];
    const float opacity = c.opacities[g];
    if (valid && opacity >= kAlphaThreshold) {
      const Geometry geometry = load_geometry(c, g);
      for (int v = 0; v < c.num_views; ++v) {
        SplatRecord record;
        float depth;
        const bool keep = make_record(geometry.x, geometry.y, geometry.z, geometry.covariance, opacity, cameras[v], c.limits,
                                      &record, &depth);
        bits |= (uint32_t)keep << v;
      }
      bits &= valid;
    }
    c.keep[g] = bits;
  }
  for (int v = 0; v < c.num_views; ++v) {
    const uint32_t kept = __ballot_sync(kAllLanes, bits >> v & 1u);
    if (lane == 0) counts[v][warp] = (uint32_t)__popc(kept);
  }
  __syncthreads();
  if ((int)threadIdx.x < c.num_views) {
    uint32_t sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += counts[threadIdx.x][w];
    c.block_counts[(size_t)threadIdx.x * c.num_blocks + blockIdx.x] = sum;
  }
}

// Colours of a record: features, then depth, where all channels fit; else the depth alone, in the last place (see fill_colors).
__device__ __forceinline__ void shade(const Chunk& c, int64_t g, int v, const Geometry& geometry, const Camera& camera,
                                      float depth, SplatRecord& record) {
  float rgb[3] = {0.0f, 0.0f, 0.0f};
  const float* row = c.colors + v * c.color_view_stride + g * c.color_size;
  const int features = (int)(c.channels <= kRecordChannels ? c.channels - (c.depth_mode ? 1 : 0) : 0);
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

__global__ void __launch_bounds__(kThreads, 5) write_splats_kernel(const Chunk c) {
  __shared__ Camera cameras[kMaxViews];
  __shared__ uint32_t starts[kMaxViews][kWarps];
  const int64_t g = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  load_cameras(c, cameras);
  const uint32_t bits = g < c.num_gaussians ? c.keep[g] : 0u;
  find_starts(c, bits, starts);
  Geometry geometry{};
  float opacity = 0.0f;
  if (bits) {
    geometry = load_geometry(c, g);
    opacity = c.opacities[g];
  }
  for (int v = 0; v < c.num_views; ++v) {
    const uint32_t slot = slot_in_view(bits, v, starts);
    if (!(bits >> v & 1u)) continue;
    SplatRecord record{};
    float depth = 0.0f;
    make_record(geometry.x, geometry.y, geometry.z, geometry.covariance, opacity, cameras[v], c.limits, &record, &depth);
    shade(c, g, v, geometry, cameras[v], depth, record);
    c.records[slot] = record;
    c.gaussians[slot] = (uint32_t)g;
    c.keys[0][slot] = bits_of(depth);  // in front of near_plane >= 0: the bits order as the numbers do
    c.slots[0][slot] = slot;
  }
}

}  // namespace

int validate(const Chunk& c, void* stream) { return launch(validate_kernel, c.num_blocks, 1, kThreads, stream, c); }

int cull(const Chunk& c, void* stream) { return launch(cull_kernel, c.num_blocks, 1, kThreads, stream, c); }

int write_splats(const Chunk& c, void* stream) { return launch(write_splats_kernel, c.num_blocks, 1, kThreads, stream, c); }

}  // namespace tiled
}  // namespace worldr1
