// Blending. One block of 256 threads renders a 16x16 tile; a warp owns 8x4 pixels of it and looks only at splats whose bounds
// touch these. Records travel to shared memory by asynchronous copies, one batch ahead of the arithmetic.
#include "../common/simt.h"
#include "rasterize.h"

namespace worldr1 {
namespace tiled {
namespace {

constexpr int kBatch = kThreads;  // records staged at once; two stages take 24 KB

// What the loop keeps beside weighted sums.
enum Kind { kPlain, kOneDepth, kForBackward };

// One batch of a tile's list on its way to shared memory: thread t fetches record t. The index is read a batch ahead of the
// record, so that no copy waits for it.
struct Stager {
  const SplatRecord* records;
  const uint32_t* list;
  uint32_t begin, end;
  uint32_t next_slot;  // of this thread in the batch to come

  __device__ __forceinline__ void prefetch() {
    begin += kBatch;
    if (begin + threadIdx.x < end) next_slot = list[begin + threadIdx.x];
  }

  __device__ __forceinline__ void start(SplatRecord* stage) {
    if (begin + threadIdx.x < end) {
      const char* source = reinterpret_cast<const char*>(records + next_slot);
      char* target = reinterpret_cast<char*>(stage + threadIdx.x);
      for (int i = 0; i < 48; i += 16) copy_async16(target + i, source + i);
    }
    copy_async_commit();  // empty past the end, so that the count of groups stays in step
    prefetch();
  }
};

struct Pixel {
  float x, y;  // centre
  float transmittance;  // negated when the pixel is finished, or none of the image
  float color[kRecordChannels];
  float depth;  // of the one splat that gives it, in the modes where one does
  int32_t last;  // one past the last splat blended, where it is kept

  __device__ __forceinline__ bool is_done() const { return transmittance < 0.0f; }
};

// Whether the splat that took the transmittance from `before` to `after` gives the pixel's depth.
__device__ __forceinline__ bool gives_depth(int depth_mode, float before, float after) {
  return depth_mode == kMedianDepth ? before > 0.5f && after <= 0.5f : before == 1.0f && after < 1.0f;
}

// Blends the `count` staged records, the first of them `position` in the list, over the warp's 32 pixels, in order. Returns true
// when all pixels of the warp are done.
template <int CH, int KIND>
__device__ __forceinline__ bool blend_batch(const SplatRecord* stage, uint32_t count, uint32_t position, int32_t warp_x,
                                            int32_t warp_y, const Chunk& c, const Pass& pass, Pixel& pixel) {
  const uint32_t lane = threadIdx.x % 32;
  for (uint32_t base = 0; base < count; base += 32, stage += 32) {
    const SplatRecord& mine = stage[lane];
    const bool is_near = base + lane < count && touches_warp(mine.bounds_x, mine.bounds_y, warp_x, warp_y, c.limits.width,
                                                             c.limits.height);
    uint32_t todo = __ballot_sync(kAllLanes, is_near);
    for (; todo; todo &= todo - 1) {
      const int i = __ffs(todo) - 1;
      const SplatRecord& g = stage[i];
      const float before = pixel.transmittance;
      if (blend_splat<CH>(g, pixel.x, pixel.y, c.max_alpha, &pixel.transmittance, pixel.color)) {
        if (KIND == kOneDepth && gives_depth(pass.depth_mode, before, pixel.transmittance)) pixel.depth = g.color[pass.count - 1];
        if (KIND == kForBackward) pixel.last = (int32_t)(position + base) + i + 1;
      }
    }
    if (__all_sync(kAllLanes, pixel.is_done())) return true;
  }
  return false;
}

template <int CH, int KIND>
__device__ __forceinline__ void store(const Chunk& c, const Pass& pass, int v, const Pixel& pixel, bool has_overflown) {
  const int64_t index = ((int64_t)v * c.limits.height + (int32_t)pixel.y) * c.limits.width + (int32_t)pixel.x;
  const float alpha = has_overflown ? not_a_number() : 1.0f - pixel.transmittance;
  if (pass.write_alpha) c.render_alphas[index] = alpha;
  if (KIND == kForBackward && pass.write_alpha) {
    c.transmittance[index] = pixel.transmittance;
    c.last[index] = pixel.last;
  }
  for (int k = 0; k < CH; ++k) {
    if (k >= pass.count) break;
    const bool is_last = k == pass.count - 1;
    float value = KIND == kOneDepth && is_last ? pixel.depth : pixel.color[k];
    if (c.backgrounds != nullptr) value += pixel.transmittance * c.backgrounds[v * c.channels + pass.first + k];
    if (pass.depth_mode == kExpectedDepth && is_last) value /= max_of(alpha, 1e-10f);
    c.render_colors[index * c.channels + pass.first + k] = has_overflown ? alpha : value;
  }
}

template <int CH, int KIND>
__global__ void __launch_bounds__(kThreads, KIND == kForBackward ? 6 : 8) blend_kernel(const Chunk c, const Pass pass) {
  __shared__ SplatRecord stages[2][kBatch];
  const int v = (int)blockIdx.y;
  const uint32_t tile = blockIdx.x, tile_x = tile % c.tiles_x, tile_y = tile / c.tiles_x;
  const int32_t warp = (int32_t)threadIdx.x / 32, lane = (int32_t)threadIdx.x % 32;
  const int32_t warp_x = (int32_t)tile_x * kTileSize + warp % 2 * kWarpWidth;
  const int32_t warp_y = (int32_t)tile_y * kTileSize + warp / 2 * kWarpHeight;
  Pixel pixel = {(float)(warp_x + lane % kWarpWidth) + 0.5f, (float)(warp_y + lane / kWarpWidth) + 0.5f, 1.0f, {}, 0.0f, 0};
  const bool is_inside = pixel.x < (float)c.limits.width && pixel.y < (float)c.limits.height;
  if (!is_inside) pixel.transmittance = -1.0f;

  const bool has_overflown = c.counters->pairs > c.pair_capacity;
  const uint32_t* range = c.ranges + 2 * ((size_t)v * c.tiles_x * c.tiles_y + tile);
  uint32_t left = has_overflown ? 0u : range[1] - range[0];
  Stager stager = {c.records, c.sorted_pairs, range[0], range[0] + left, 0};
  if (threadIdx.x < left) stager.next_slot = stager.list[stager.begin + threadIdx.x];
  stager.start(stages[0]);
  bool warp_is_done = false;
  for (int stage = 0; left > 0; stage ^= 1) {
    // Past this barrier the other stage is free: all have blended the batch in it.
    if (__syncthreads_and(pixel.is_done())) break;
    stager.start(stages[stage ^ 1]);
    copy_async_wait<1>();
    __syncthreads();  // the batch that every thread waited for is there for all
    const uint32_t count = left < kBatch ? left : kBatch;
    const uint32_t position = KIND == kForBackward ? range[1] - range[0] - left : 0;
    if (!warp_is_done) warp_is_done = blend_batch<CH, KIND>(stages[stage], count, position, warp_x, warp_y, c, pass, pixel);
    left -= count;
  }
  copy_async_wait<0>();
  pixel.transmittance = size_of(pixel.transmittance);
  if (is_inside) store<CH, KIND>(c, pass, v, pixel, has_overflown);
}

// Puts channels [first, first + count) into the records' colours.
__global__ void __launch_bounds__(kThreads) fill_colors_kernel(const Chunk c, const Pass pass) {
  const int64_t slot = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (slot >= c.counters->splats) return;
  const Origin origin = c.origins[slot];
  const float* row = c.colors + origin.view * c.color_view_stride + origin.gaussian * c.color_size;
  float* color = c.records[slot].color;
  for (int k = 0; k < pass.count; ++k) {
    const int64_t channel = pass.first + k;
    color[k] = c.depth_mode && channel == c.channels - 1 ? origin.depth : row[channel];
  }
}

}  // namespace

int fill_colors(const Chunk& c, const Pass& pass, void* stream) {
  return launch(fill_colors_kernel, blocks_of(c.splat_capacity), 1, kThreads, stream, c, pass);
}

int blend(const Chunk& c, const Pass& pass, void* stream) {
  const int64_t tiles = (int64_t)c.tiles_x * c.tiles_y;
  const bool one_depth = pass.depth_mode == kMedianDepth || pass.depth_mode == kFirstDepth;
  // Few instantiations: 2 channels run as 3, and what is rarer as 4.
  if (c.transmittance != nullptr) return launch(blend_kernel<4, kForBackward>, tiles, c.num_views, kThreads, stream, c, pass);
  if (one_depth) return launch(blend_kernel<4, kOneDepth>, tiles, c.num_views, kThreads, stream, c, pass);
  if (pass.count == 1) return launch(blend_kernel<1, kPlain>, tiles, c.num_views, kThreads, stream, c, pass);
  if (pass.count <= 3) return launch(blend_kernel<3, kPlain>, tiles, c.num_views, kThreads, stream, c, pass);
  return launch(blend_kernel<4, kPlain>, tiles, c.num_views, kThreads, stream, c, pass);
}

}  // namespace tiled
}  // namespace worldr1
