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

// The colour rows of a warp's 32 Gaussians, in shared memory. The start of a row is an odd number of floats from the next: 32
// lanes that read at one place of their rows meet 32 banks. Rows of more than kMostStaged floats are staged as far as shading
// reads them.
constexpr uint32_t kMostStaged = 75;  // degree 4

struct ColorRows {
  uint32_t begin;            // floats into the dynamic shared memory where the warp's rows begin
  uint32_t num, count;       // rows; floats staged of each
  uint32_t size;             // floats from one row to the next in memory
  uint32_t per_float;        // 2^32 / count, rounded up, where the rows need moving apart; else 0
  uint32_t first;            // row

  __device__ __forceinline__ float* warp() const { return block_shared<float>() + begin; }
  __device__ __forceinline__ float* mine() const { return warp() + threadIdx.x % 32 * (count | 1u); }
  __device__ __forceinline__ bool are_whole() const { return count == size; }  // as opposed to cut off
  // All ones where a row here is one float longer than what is staged.
  __device__ __forceinline__ uint32_t spread() const { return count % 2 == 0 ? kAllLanes : 0u; }
  // Whether the rows are one run of floats, here and in memory, that moves by 16 bytes.
  __device__ __forceinline__ bool is_run(const float* memory) const {
    return per_float == 0 && num == 32 && reinterpret_cast<uintptr_t>(memory) % 16 == 0;
  }

  // Starts copying the rows of `source` [N, size]; all before have been read. Ends with wait(). Code for runs costs registers,
  // and is worth it where the rows of a chunk are read once.
  template <bool kRuns>
  __device__ __forceinline__ void start(const float* source) const {
    source += (int64_t)first * size;
    if (kRuns && is_run(source)) {
      for (uint32_t i = threadIdx.x % 32; i < 8 * count; i += 32) copy_async16(warp() + 4 * i, source + 4 * i);
      copy_async_commit();
      return;
    }
    for (uint32_t i = threadIdx.x % 32; i < num * count; i += 32) {
      const uint32_t row = __umulhi(i, per_float);  // i / count, or 0 where source and target are one run of floats
      copy_async4(warp() + i + (row & spread()), source + i + row * (size - count));
    }
    copy_async_commit();
  }
  __device__ __forceinline__ void wait() const {
    copy_async_wait<0>();
    __syncwarp();
  }
  // Zeros in place of the lane's row; only the lane itself may look at it before finish().
  __device__ __forceinline__ void clear() const {
    for (uint32_t k = 0; k < count; ++k) mine()[k] = 0.0f;
  }
  // Stores what was put in place of the rows into `target` [N, size], or adds it.
  __device__ __forceinline__ void finish(float* target, bool adds) const {
    target += (int64_t)first * size;
    __syncwarp();
    for (uint32_t i = threadIdx.x % 32; i < num * count; i += 32) {
      const uint32_t row = __umulhi(i, per_float);
      float* place = target + i + row * (size - count);
      const float value = warp()[i + (row & spread())];
      *place = adds ? *place + value : value;
    }
    __syncwarp();
  }
};

WR_HD uint32_t staged_floats(const Chunk& c) {
  if (c.colors == nullptr) return 0;
  if (c.color_size <= kMostStaged) return (uint32_t)c.color_size;
  return c.sh_degree < 0 ? 0u : 3u * (uint32_t)((c.sh_degree + 1) * (c.sh_degree + 1));
}

WR_HD uint32_t color_rows_floats(const Chunk& c) { return kThreads * (staged_floats(c) | 1u); }

// `begin` floats into the dynamic shared memory, for rows [first, first + 32) of memory.
__device__ __forceinline__ ColorRows color_rows(const Chunk& c, int64_t first, uint32_t begin) {
  ColorRows rows;
  rows.count = staged_floats(c);
  rows.size = (uint32_t)c.color_size;
  rows.begin = begin + threadIdx.x / 32 * 32 * (rows.count | 1u);
  rows.first = (uint32_t)first;
  const int64_t left = c.num_gaussians - first;
  rows.num = (uint32_t)(left < 0 ? 0 : left < 32 ? left : 32);
  rows.per_float = rows.are_whole() && rows.count % 2 ? 0u : 0xffffffffu / (rows.count ? rows.count : 1u) + 1u;
  return rows;
}

// Where each warp's splats of a view begin among the records: the block's lie together, by view, then by index. `bits` are the
// views that the thread's Gaussian is in; `base`(total) says where the block's begin, asked by all lanes of the first warp.
// Ends with a barrier.
template <class Base>
__device__ __forceinline__ void find_starts(int num_views, uint32_t bits, uint32_t starts[kMaxViews][kWarps], Base base) {
  const uint32_t lane = threadIdx.x % 32;
  for (int v = 0; v < num_views; ++v) {
    const uint32_t kept = __ballot_sync(kAllLanes, bits >> v & 1u);
    if (lane == 0) starts[v][threadIdx.x / 32] = (uint32_t)__popc(kept);
  }
  __syncthreads();
  if (threadIdx.x < 32) {  // lane v sees to view v
    uint32_t count = 0, up_to_here;
    for (int w = 0; w < kWarps; ++w) count += (int)lane < num_views ? starts[lane][w] : 0u;
    up_to_here = count;
    for (uint32_t distance = 1; distance < 32; distance *= 2) {
      const uint32_t other = __shfl_up_sync(kAllLanes, up_to_here, distance);
      if (lane >= distance) up_to_here += other;
    }
    // The last lane holds the sum over all views.
    uint32_t total = lane == 31 ? up_to_here : 0u;
    for (uint32_t distance = 16; distance > 0; distance /= 2) total += __shfl_xor_sync(kAllLanes, total, distance);
    uint32_t next = base(total) + up_to_here - count;
    for (int w = 0; w < kWarps && (int)lane < num_views; ++w) {
      const uint32_t here = starts[lane][w];
      starts[lane][w] = next;
      next += here;
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
