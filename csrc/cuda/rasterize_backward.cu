// Gradients. The lists of the forward are replayed back to front, by each warp the splats that touch its pixels. Every sum has a
// fixed order and no atomic adds floats: pixels of a warp by a butterfly, warps of a tile in order, tiles of a splat in order,
// views of a Gaussian by its own thread, and Gaussians of a camera by block. Hence two runs agree bit for bit.
#include "../common/gaussian_backward.h"
#include "rasterize_splats.h"

namespace worldr1 {
namespace tiled {
namespace {

constexpr int kReplayBatch = 32;
constexpr size_t kOwnShared = 8 << 10;  // more than project_gradients_kernel declares

// Sums each of NUM values over the warp; a lane returns sum number sum_of_lane<NUM>(lane). Each step halves what a lane holds.
// Recursion, not a loop: indices must be constants, or the array lies in local memory.
template <int NUM>
__device__ __forceinline__ float warp_sums(float* values, uint32_t distance = 16) {
  if constexpr (NUM > 1) {
    constexpr int kHalf = (NUM + 1) / 2;
    const bool is_upper = threadIdx.x % 32 & distance;
    for (int k = 0; k < kHalf; ++k) {
      const float upper = k + kHalf < NUM ? values[k + kHalf] : 0.0f;
      const float given = is_upper ? values[k] : upper, kept = is_upper ? upper : values[k];
      values[k] = kept + __shfl_xor_sync(kAllLanes, given, distance);
    }
    return warp_sums<kHalf>(values, distance / 2);
  }
  float sum = values[0];
  for (; distance > 0; distance /= 2) sum += __shfl_xor_sync(kAllLanes, sum, distance);
  return sum;
}

// Which sum of warp_sums<NUM> a lane has to write; -1 for none.
template <int NUM>
__device__ __forceinline__ int sum_of_lane(uint32_t lane, uint32_t distance = 16) {
  if constexpr (NUM > 1) {
    constexpr int kHalf = (NUM + 1) / 2;
    const int number = sum_of_lane<kHalf>(lane, distance / 2);
    const int shifted = lane & distance ? number + kHalf : number;
    return number < 0 || shifted >= NUM ? -1 : shifted;
  }
  return lane & (distance > 0 ? 2 * distance - 1 : 0u) ? -1 : 0;
}

// A pixel on its way from back to front.
struct ReplayPixel {
  float x, y;                       // centre
  float transmittance;              // in front of what has been replayed
  float behind;                     // dL/dT of what has been replayed, times its T: what a splat in front of it dims
  float gradient[kRecordChannels];  // of the image
  int32_t last;
};

__device__ __forceinline__ ReplayPixel load_pixel(const Chunk& c, const ChunkGradients& d, const Pass& pass, int v, float x,
                                                  float y) {
  ReplayPixel p = {x, y, 1.0f, 0.0f, {}, 0};
  if (x >= (float)c.limits.width || y >= (float)c.limits.height) return p;
  const int64_t index = ((int64_t)v * c.limits.height + (int32_t)y) * c.limits.width + (int32_t)x;
  const int64_t at = index * c.channels + pass.first;
  const bool is_expected = pass.depth_mode == kExpectedDepth;
  p.transmittance = d.transmittance[index];
  p.last = d.last[index];
  float v_alpha = pass.write_alpha && d.grad_alphas != nullptr ? d.grad_alphas[index] : 0.0f, v_left = 0.0f;
  for (int k = 0; k < kRecordChannels; ++k) {
    if (k >= pass.count || d.grad_colors == nullptr) break;
    float gradient = d.grad_colors[at + k];
    if (is_expected && k == pass.count - 1) {  // depth = sum / alpha, alpha = 1 - T
      const float alpha = 1.0f - p.transmittance;
      gradient = alpha > 0.0f ? gradient / alpha : 0.0f;
      v_alpha -= gradient * d.render_colors[at + k];
    }
    p.gradient[k] = gradient;
    if (c.backgrounds != nullptr) v_left += gradient * c.backgrounds[v * c.channels + pass.first + k];
  }
  p.behind = p.transmittance * (v_left - v_alpha);
  return p;
}

// Takes one splat off a pixel, and writes what the pixel adds to its sums: zeros if it was not blended there. True if it was.
__device__ __forceinline__ bool replay_splat(const SplatRecord& g, bool is_reached, float max_alpha, ReplayPixel& p, float* sums) {
  const float dx = p.x - g.mean_x, dy = p.y - g.mean_y;
  const float raw = g.opacity * exp2_of(-exponent_log2(dx, g.a, g.b * dy, g.c * dy * dy));
  const bool is_blended = is_reached && raw >= kAlphaThreshold;
  const float alpha = smaller_of(raw, max_alpha);
  // T in front of the splat is T / (1 - alpha) = T + weight, with T what is left behind it.
  const float odds = is_blended ? alpha * reciprocal_of(1.0f - alpha) : 0.0f, weight = p.transmittance * odds;
  float v_weight = 0.0f;
  for (int k = 0; k < kRecordChannels; ++k) v_weight += p.gradient[k] * g.color[k];
  const float h = raw <= max_alpha ? odds * (p.transmittance * v_weight - p.behind) : 0.0f;
  p.behind += weight * v_weight;
  p.transmittance += weight;
  sums[0] = h;
  sums[1] = h * dx;
  sums[2] = h * dy;
  sums[3] = sums[1] * dx;
  sums[4] = sums[1] * dy;
  sums[5] = sums[2] * dy;
  for (int k = 0; k < kRecordChannels; ++k) sums[kMoments + k] = weight * p.gradient[k];
  return is_blended;
}

// Splats of a batch, on their way to shared memory while the batch behind it is replayed: three threads a splat.
struct ReplayStager {
  const uint32_t* list;  // of the tile
  uint32_t next_slot;    // of this thread in the batch to come; read ahead, so that no copy waits for it

  __device__ __forceinline__ void prefetch(int32_t end) {
    const int32_t count = end < kReplayBatch ? end : kReplayBatch;
    if ((int32_t)threadIdx.x < 3 * count) next_slot = list[end - count + (int32_t)threadIdx.x / 3];
  }
  // Begins to fetch the batch that ends at `end`, of which next_slot is.
  __device__ __forceinline__ void start(const Chunk& c, uint32_t tile, int32_t end, SplatRecord* stage, uint32_t* pairs) {
    const int32_t count = end < kReplayBatch ? end : kReplayBatch;
    const int32_t t = (int32_t)threadIdx.x, i = t / 3;
    if (t < 3 * count) {
      copy_async16(reinterpret_cast<char*>(stage) + 16 * t,
                   reinterpret_cast<const char*>(c.records + next_slot) + (t - 3 * i) * 16);
      if (t == 3 * i) pairs[i] = c.first_pair[next_slot] + pair_in_span(c.tiles[next_slot], tile, c.tiles_x);
    }
    copy_async_commit();
    prefetch(end - count);
  }
};

__global__ void __launch_bounds__(kThreads, 4) replay_kernel(const Chunk c, const ChunkGradients d, const Pass pass) {
  __shared__ SplatRecord stages[2][kReplayBatch];
  __shared__ uint32_t pairs[2][kReplayBatch];  // of a splat and this tile
  __shared__ float warp_partials[kReplayBatch][kWarps * kSums];
  __shared__ uint32_t live_of[kWarps];  // bit i: the warp has partials of splat i
  __shared__ int32_t longest_of[kWarps];
  if (c.counters->pairs > c.pair_capacity) return;  // sum_partials says so
  const int v = (int)blockIdx.y;
  const uint32_t tile_x = blockIdx.x % c.tiles_x, tile_y = blockIdx.x / c.tiles_x;
  const uint32_t tile = (uint32_t)v * c.tiles_x * c.tiles_y + blockIdx.x;
  const int32_t warp = (int32_t)threadIdx.x / 32, lane = (int32_t)threadIdx.x % 32;
  const int32_t warp_x = (int32_t)tile_x * kTileSize + warp % 2 * kWarpWidth;
  const int32_t warp_y = (int32_t)tile_y * kTileSize + warp / 2 * kWarpHeight;
  ReplayPixel pixel = load_pixel(c, d, pass, v, (float)(warp_x + lane % kWarpWidth) + 0.5f,
                                 (float)(warp_y + lane / kWarpWidth) + 0.5f);
  int32_t longest = pixel.last;
  for (uint32_t distance = 16; distance > 0; distance /= 2) {
    const int32_t other = __shfl_xor_sync(kAllLanes, longest, distance);
    longest = other > longest ? other : longest;
  }
  const int32_t longest_of_warp = longest;
  if (lane == 0) longest_of[warp] = longest;
  __syncthreads();
  for (int w = 0; w < kWarps; ++w) longest = longest_of[w] > longest ? longest_of[w] : longest;
  if (threadIdx.x == 0 && longest == 0) d.ends[tile] = 0;

  ReplayStager stager = {c.sorted_pairs + c.ranges[2 * (size_t)tile], 0};
  stager.prefetch(longest);
  stager.start(c, tile, longest, stages[0], pairs[0]);
  // Where in a splat's row of warp_partials the lane puts a sum; -1: nowhere.
  int place = sum_of_lane<kSums>((uint32_t)lane);
  if (place >= 0) place += warp * kSums;
  asm volatile("" : "+r"(place));  // computed here, not again for every splat
  int32_t count, now = 0;
  for (int32_t end = longest; end > 0; end -= count, now ^= 1) {
    count = end < kReplayBatch ? end : kReplayBatch;
    const int32_t first = end - count;
    copy_async_wait<0>();
    // Past this barrier the batch is there for all, and all are done with the one before it.
    __syncthreads();
    if (first > 0) stager.start(c, tile, first, stages[now ^ 1], pairs[now ^ 1]);
    const SplatRecord* stage = stages[now];
    const bool is_near = lane < count && first + lane < longest_of_warp &&
                         touches_warp(stage[lane].bounds_x, stage[lane].bounds_y, warp_x, warp_y, c.limits.width, c.limits.height);
    uint32_t todo = __ballot_sync(kAllLanes, is_near), live = 0;
    while (todo != 0) {
      const int i = 31 - __clz(todo);
      todo ^= 1u << i;
      float sums[kSums];
      const bool is_blended = replay_splat(stage[i], first + i < pixel.last, c.max_alpha, pixel, sums);
      if (__ballot_sync(kAllLanes, is_blended) == 0) continue;
      live |= 1u << i;
      const float sum = warp_sums<kSums>(sums);
      if (place >= 0) warp_partials[i][place] = sum;
    }
    if (lane == 0) live_of[warp] = live;
    __syncthreads();
    for (int t = (int)threadIdx.x; t < count * kSums; t += kThreads) {
      const int i = t / kSums, k = t - i * kSums;
      float sum = 0.0f;
      for (int w = 0; w < kWarps; ++w) {
        if (live_of[w] >> i & 1u) sum += warp_partials[i][w * kSums + k];
      }
      d.partials[(size_t)pairs[now][i] * kSums + k] = sum;
    }
    if (threadIdx.x == 0 && end == longest) d.ends[tile] = pairs[now][count - 1] + 1;
  }
}

// Sums of a splat over its tiles, into its row. With more than one pass, moments add up and each pass has its own colours.
__global__ void __launch_bounds__(kThreads) sum_partials_kernel(const Chunk c, const ChunkGradients d, const Pass pass) {
  // kSums blocks see to kThreads splats.
  const uint32_t t = blockIdx.x % kSums * kThreads + threadIdx.x;
  const int64_t slot = (int64_t)(blockIdx.x / kSums) * kThreads + t / kSums;
  const int k = (int)(t % kSums);
  if (slot >= c.counters->splats) return;
  if (k >= kMoments + pass.count) return;
  float sum = not_a_number();  // the lists are incomplete
  if (c.counters->pairs <= c.pair_capacity) {
    const TileSpan tiles = c.tiles[slot];
    uint32_t pair = c.first_pair[slot];
    const float* partial = d.partials + (size_t)pair * kSums + k;
    sum = 0.0f;
    for (uint32_t y = 0, tile = tiles.first; y < rows_of(tiles); ++y, tile += c.tiles_x) {
      for (uint32_t x = 0; x < columns_of(tiles); ++x, ++pair, partial += kSums) {
        // Pairs of a tile ascend from front to back; behind the last that a pixel was given nothing has been written.
        if (pair < d.ends[tile + x]) sum += *partial;
      }
    }
  }
  float* row = d.sums + slot * (kMoments + c.channels);
  const bool is_first = pass.first == 0;  // of the passes
  if (k < kMoments) {
    row[k] = is_first ? sum : row[k] + sum;
  } else {
    row[pass.first + k] = sum;
  }
}

__device__ __forceinline__ void sh_backward_switch(int degree, const float* direction, const float* coeffs, const float* v_rgb,
                                                   float* v_coeffs, float* v_direction) {
  const float x = direction[0], y = direction[1], z = direction[2];
  switch (degree) {
    case 0: return sh_color_backward(0, x, y, z, coeffs, v_rgb, v_coeffs, v_direction);
    case 1: return sh_color_backward(1, x, y, z, coeffs, v_rgb, v_coeffs, v_direction);
    case 2: return sh_color_backward(2, x, y, z, coeffs, v_rgb, v_coeffs, v_direction);
    case 3: return sh_color_backward(3, x, y, z, coeffs, v_rgb, v_coeffs, v_direction);
    default: return sh_color_backward(4, x, y, z, coeffs, v_rgb, v_coeffs, v_direction);
  }
}

// Adds the gradient of a Gaussian's harmonics, of which `row` has the coefficients, to `v_row`, its mean and the camera centre.
__device__ __forceinline__ void harmonics_gradient(const Chunk& c, const float* row, const float* v_color,
                                                   const Geometry& geometry, const Camera& camera, float* v_row, float* v_mean,
                                                   float* v_position) {
  const float direction[3] = {geometry.x - camera.position[0], geometry.y - camera.position[1],
                              geometry.z - camera.position[2]};
  float v_direction[3];
  sh_backward_switch(c.sh_degree, direction, row, v_color, v_row, v_direction);
  for (int k = 0; k < 3; ++k) {
    v_mean[k] += v_direction[k];
    v_position[k] -= v_direction[k];
  }
}

__device__ __forceinline__ void put(float* target, float value, bool adds) { *target = adds ? *target + value : value; }

// Stores what a Gaussian collected over the views of the chunk, or adds it: mean, opacity, covariance. Zeros without a splat.
__device__ __forceinline__ void put_gaussian(const Chunk& c, const ChunkGradients& d, int64_t g, bool has_splat,
                                             const float* v_mean, float v_opacity, const Covariance3<float>& v_s) {
  for (int k = 0; k < 3; ++k) put(d.means + 3 * g + k, v_mean[k], d.adds);
  put(d.opacities + g, v_opacity, d.adds);
  if (c.covars != nullptr) {
    const float values[6] = {v_s.xx, v_s.xy, v_s.xz, v_s.yy, v_s.yz, v_s.zz};
    for (int k = 0; k < 6; ++k) put(d.covars + 6 * g + k, values[k], d.adds);
    return;
  }
  float v_q[4] = {}, v_scale[3] = {};
  if (has_splat) {  // else the quaternion may be none
    const float *q = c.quats + 4 * g, *s = c.scales + 3 * g;
    covariance_world_backward(q[0], q[1], q[2], q[3], s[0], s[1], s[2], v_s, v_q, v_scale);
  }
  for (int k = 0; k < 4; ++k) put(d.quats + 4 * g + k, v_q[k], d.adds);
  for (int k = 0; k < 3; ++k) put(d.scales + 3 * g + k, v_scale[k], d.adds);
}

// Gradients of colours go through shared memory, `v_rows`, as colours do in the projection; so do the coefficients of harmonics,
// `rows`, where there is room for both. Features of more than kMostStaged channels are added to memory as they come.
enum Colors { kFeatures, kHarmonics, kStagedHarmonics };  // or none, with the code of features

template <int COLORS>
__global__ void __launch_bounds__(kThreads) project_gradients_kernel(const Chunk c, const ChunkGradients d) {
  __shared__ Camera cameras[kMaxViews];
  __shared__ uint32_t starts[kMaxViews][kWarps];
  __shared__ float warp_cameras[kWarps][kCameraValues];
  const int64_t g = (int64_t)blockIdx.x * kThreads + threadIdx.x, first_of_warp = g - threadIdx.x % 32;
  constexpr bool kStaged = COLORS == kStagedHarmonics;
  const bool has_rows = d.colors != nullptr && staged_floats(c) > 0;
  const ColorRows v_rows = color_rows(c, first_of_warp, 0), rows = color_rows(c, first_of_warp, color_rows_floats(c));
  if (kStaged) rows.start<true>(c.colors);
  if (has_rows) v_rows.clear();
  load_cameras(c, cameras);
  const uint32_t bits = g < c.num_gaussians ? c.keep[g] : 0u;
  find_starts(c.num_views, bits, starts, [&](uint32_t) { return c.block_starts[blockIdx.x]; });
  Geometry geometry{};
  float opacity = 1.0f, v_opacity = 0.0f, v_mean[3] = {};
  Covariance3<float> v_s{};
  const int number = sum_of_lane<kCameraValues>(threadIdx.x % 32);
  if (bits) {
    geometry = load_geometry(c, g);
    opacity = c.opacities[g];
  }
  for (int v = 0; v < c.num_views; ++v) {
    const uint32_t slot = slot_in_view(bits, v, starts);
    CameraGradient<float> v_camera{};
    float v_position[3] = {};
    if (kStaged && v > 0 && c.colors_per_view) {
      __syncwarp();  // all have read their rows of the view before
      rows.start<false>(c.colors + v * c.color_view_stride);
    }
    if (kStaged) rows.wait();
    if (bits >> v & 1u) {
      const float* row = d.sums + slot * (size_t)(kMoments + c.channels);
      const SplatMoments<float> moments = {row[0], row[1], row[2], row[3], row[4], row[5]};
      const float v_depth = c.depth_mode != kNoDepth ? row[kMoments + c.channels - 1] : 0.0f;
      const GaussianGradient<float> out = project_backward(
          geometry.x, geometry.y, geometry.z, geometry.covariance, opacity, cameras[v], c.limits.eps2d, c.limits.antialiased,
          c.limits.compensation_floor, moments, v_depth, d.means2d != nullptr, v_camera);
      v_mean[0] += out.x;
      v_mean[1] += out.y;
      v_mean[2] += out.z;
      v_opacity += out.opacity;
      v_s = {v_s.xx + out.s.xx, v_s.xy + out.s.xy, v_s.xz + out.s.xz,
             v_s.yy + out.s.yy, v_s.yz + out.s.yz, v_s.zz + out.s.zz};
      if (d.means2d != nullptr) {
        d.means2d[2 * (v * c.num_gaussians + g)] = out.mean_x;
        d.means2d[2 * (v * c.num_gaussians + g) + 1] = out.mean_y;
      }
      if (COLORS != kFeatures) {
        const float* coefficients = kStaged ? rows.mine() : c.colors + v * c.color_view_stride + g * c.color_size;
        harmonics_gradient(c, coefficients, row + kMoments, geometry, cameras[v], v_rows.mine(), v_mean, v_position);
      } else if (has_rows) {
        for (uint32_t k = 0; k < v_rows.count; ++k) v_rows.mine()[k] += row[kMoments + k];
      } else if (d.colors != nullptr) {
        float* v_row = d.colors + v * c.color_view_stride + g * c.color_size;
        for (int64_t k = 0; k < c.color_size; ++k) v_row[k] += row[kMoments + k];
      }
    } else if (d.means2d != nullptr && g < c.num_gaussians) {
      d.means2d[2 * (v * c.num_gaussians + g)] = 0.0f;
      d.means2d[2 * (v * c.num_gaussians + g) + 1] = 0.0f;
    }
    if (has_rows && (c.colors_per_view || v + 1 == c.num_views)) {
      v_rows.finish(d.colors + v * c.color_view_stride, d.adds && !c.colors_per_view);
      if (v + 1 < c.num_views) v_rows.clear();
    }
    float values[kCameraValues];
    for (int k = 0; k < 9; ++k) values[k] = v_camera.r[k];
    for (int k = 0; k < 3; ++k) values[9 + k] = v_camera.t[k];
    values[12] = v_camera.fx;
    values[13] = v_camera.fy;
    values[14] = v_camera.cx;
    values[15] = v_camera.cy;
    for (int k = 0; k < 3; ++k) values[16 + k] = v_position[k];
    const float sum = warp_sums<kCameraValues>(values);
    __syncthreads();  // the sums of the view before have been read
    if (number >= 0) warp_cameras[threadIdx.x / 32][number] = sum;
    __syncthreads();
    if (threadIdx.x < kCameraValues) {
      float total = 0.0f;
      for (int w = 0; w < kWarps; ++w) total += warp_cameras[w][threadIdx.x];
      d.cameras[((size_t)v * c.num_blocks + blockIdx.x) * kCameraValues + threadIdx.x] = total;
    }
  }
  if (g < c.num_gaussians) put_gaussian(c, d, g, bits != 0, v_mean, v_opacity, v_s);
}

// One block a view: sums over blocks, then viewmats and Ks.
__global__ void __launch_bounds__(kThreads) camera_gradients_kernel(const Chunk c, const ChunkGradients d) {
  __shared__ double sums[kWarps][32];
  const int v = (int)blockIdx.x;
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  double sum = 0.0;
  if (lane < kCameraValues) {
    const float* rows = d.cameras + (size_t)v * c.num_blocks * kCameraValues;
    for (uint32_t block = warp; block < c.num_blocks; block += kWarps) sum += rows[(size_t)block * kCameraValues + lane];
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  double total[kCameraValues];
  for (int k = 0; k < kCameraValues; ++k) {
    total[k] = 0.0;
    for (int w = 0; w < kWarps; ++w) total[k] += sums[w][k];
  }
  store_viewmat_gradient(c.viewmats + 16 * v, total, total + 16, d.viewmats + 16 * v);
  d.Ks[9 * v] = (float)total[12];
  d.Ks[9 * v + 4] = (float)total[13];
  d.Ks[9 * v + 2] = (float)total[14];
  d.Ks[9 * v + 5] = (float)total[15];
}

}  // namespace

int replay(const Chunk& c, const ChunkGradients& d, const Pass& pass, void* stream) {
  return launch(replay_kernel, (int64_t)c.tiles_x * c.tiles_y, c.num_views, kThreads, stream, c, d, pass);
}

int sum_partials(const Chunk& c, const ChunkGradients& d, const Pass& pass, void* stream) {
  return launch(sum_partials_kernel, blocks_of(c.splat_capacity) * kSums, 1, kThreads, stream, c, d, pass);
}

int project_gradients(const Chunk& c, const ChunkGradients& d, void* stream) {
  const size_t rows = d.colors == nullptr ? 0 : color_rows_floats(c) * sizeof(float);
  const auto run = [&](auto kernel, size_t bytes) {
    return launch_shared(kernel, c.num_blocks, 1, kThreads, bytes, stream, c, d);
  };
  if (d.colors == nullptr || c.sh_degree < 0) return run(project_gradients_kernel<kFeatures>, rows);
  if (2 * rows > shared_bytes() - kOwnShared) return run(project_gradients_kernel<kHarmonics>, rows);
  return run(project_gradients_kernel<kStagedHarmonics>, 2 * rows);
}

int camera_gradients(const Chunk& c, const ChunkGradients& d, void* stream) {
  return launch(camera_gradients_kernel, c.num_views, 1, kThreads, stream, c, d);
}

}  // namespace tiled
}  // namespace worldr1
