// What the kernels share that walk over Gaussians, a thread each, and over the views of the chunk: geometry, cameras, and the
// record of a Gaussian in a view.
#pragma once

#include "../common/simt.h"
#include "rasterize.h"

namespace worldr1 {
namespace tiled {
namespace {

struct Geometry {
  float x, y, z;
  Covariance3<float> covariance;
};

__device__ __forceinline__ Geometry load_geometry(const Chunk& c, int64_t g) {
  const float* m = c.means + 3 * g;
  if (c.covars != nullptr) {
    const float* v = c.covars + 6 * g;
    return {m[0], m[1], m[2], {v[0], v[1], v[2], v[3], v[4], v[5]}};
  }
  const float *q = c.quats + 4 * g, *s = c.scales + 3 * g;
  return {m[0], m[1], m[2], covariance_world(q[0], q[1], q[2], q[3], s[0], s[1], s[2])};
}

// Cameras of the chunk into shared memory, one by one thread each. Ends with a barrier.
__device__ __forceinline__ void load_cameras(const Chunk& c, Camera* cameras) {
  const int v = (int)threadIdx.x;
  if (v < c.num_views) {
    cameras[v] = make_camera(c.viewmats + 16 * v, c.Ks + 9 * v, (float)c.limits.width, (float)c.limits.height);
  }
  __syncthreads();
}

// Where each warp's splats of a view begin among the records. `bits` are the views that the thread's Gaussian is in.
__device__ __forceinline__ void find_starts(const Chunk& c, uint32_t bits, uint32_t starts[kMaxViews][kWarps]) {
  for (int v = 0; v < c.num_views; ++v) {
    const uint32_t kept = __ballot_sync(kAllLanes, bits >> v & 1u);
    if (threadIdx.x % 32 == 0) starts[v][threadIdx.x / 32] = (uint32_t)__popc(kept);
  }
  __syncthreads();
  if ((int)threadIdx.x < c.num_views) {
    uint32_t next = c.block_starts[(size_t)threadIdx.x * c.num_blocks + blockIdx.x];
    for (int w = 0; w < kWarps; ++w) {
      const uint32_t count = starts[threadIdx.x][w];
      starts[threadIdx.x][w] = next;
      next += count;
    }
  }
  __syncthreads();
}

// The record of the thread's Gaussian in view v, if it is there; all lanes of the warp must ask.
__device__ __forceinline__ uint32_t slot_in_view(uint32_t bits, int v, const uint32_t starts[kMaxViews][kWarps]) {
  const uint32_t kept = __ballot_sync(kAllLanes, bits >> v & 1u), lane = threadIdx.x % 32;
  return starts[v][threadIdx.x / 32] + (uint32_t)__popc(kept & ((1u << lane) - 1u));
}

}  // namespace
}  // namespace tiled
}  // namespace worldr1
