// Gradients. The lists of the forward are replayed back to front; every sum has a fixed order and no atomic adds floats: pixels
// of a warp by a butterfly, warps of a tile in order, tiles of a splat in order, views of a Gaussian by its own thread, and
// Gaussians of a camera by block. Hence two runs agree bit for bit.
#include "../common/gaussian_backward.h"
#include "rasterize_splats.h"

namespace worldr1 {
namespace tiled {
namespace {

constexpr int kReplayBatch = 32;
constexpr int kPadded = 16;  // kSums, up to a power of two

// Sums `values` [2 * HALF, a power of two] over the warp; returns sum number lane * HALF / 16. Each step halves what a lane
// holds. Recursion, not a loop: indices must be constants, or the array lies in local memory.
template <int HALF>
__device__ __forceinline__ float warp_sums(float* values, uint32_t distance = 16) {
  const bool is_upper = threadIdx.x % 32 & distance;
  for (int k = 0; k < HALF; ++k) {
    const float given = is_upper ? values[k] : values[k + HALF], kept = is_upper ? values[k + HALF] : values[k];
    values[k] = kept + __shfl_xor_sync(kAllLanes, given, distance);
  }
  if constexpr (HALF > 1) return warp_sums<HALF / 2>(values, distance / 2);
  float sum = values[0];
  for (distance /= 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(kAllLanes, sum, distance);
  return sum;
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

// Takes one splat off a pixel; writes what the pixel adds to its sums. False, with nothing written, if it was not blended.
__device__ __forceinline__ bool replay_splat(const SplatRecord& g, float max_alpha, ReplayPixel& p, float* sums) {
  const float dx = p.x - g.mean_x, dy = p.y - g.mean_y;
  const float raw = g.opacity * exp2_of(-exponent_log2(dx, g.a, g.b * dy, g.c * dy * dy));
  if (!(raw >= kAlphaThreshold)) return false;
  const float alpha = min_of(raw, max_alpha);
  // T in front of the splat is T / (1 - alpha) = T + weight, with T what is left behind it.
  const float odds = alpha / (1.0f - alpha), weight = p.transmittance * odds;
  float v_weight = 0.0f;
  for (int k = 0; k < kRecordChannels; ++k) v_weight += p.gradient[k] * g.color[k];
  const float h = raw <= max_alpha ? odds * (p.transmittance * v_weight - p.behind) : 0.0f;
  p.behind += weight * v_weight;
  p.transmittance += weight;
  sums[0] = h;
  sums[1] = h * dx;
  sums[2] = h * dy;
  sums[3] = h * dx * dx;
  sums[4] = h * dx * dy;
  sums[5] = h * dy * dy;
  for (int k = 0; k < kRecordChannels; ++k) sums[kMoments + k] = weight * p.gradient[k];
  return true;
}

__global__ void __launch_bounds__(kThreads) replay_kernel(const Chunk c, const ChunkGradients d, const Pass pass) {
  __shared__ SplatRecord stage[kReplayBatch];
  __shared__ uint32_t slots[kReplayBatch];
  __shared__ float warp_partials[kReplayBatch][kWarps][kSums];
  __shared__ int32_t longest_of[kWarps];
  if (c.counters->pairs > c.pair_capacity) return;  // sum_partials says so
  const int v = (int)blockIdx.y;
  const uint32_t tile = blockIdx.x, tile_x = tile % c.tiles_x, tile_y = tile / c.tiles_x;
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
  const uint32_t* list = c.sorted_pairs + c.ranges[2 * ((size_t)v * c.tiles_x * c.tiles_y + tile)];

  int32_t count;
  for (int32_t end = longest; end > 0; end -= count) {
    count = end < kReplayBatch ? end : kReplayBatch;
    const int32_t first = end - count;
    if ((int32_t)threadIdx.x < count) slots[threadIdx.x] = list[first + threadIdx.x];
    __syncthreads();
    for (int t = (int)threadIdx.x; t < 3 * count; t += kThreads) {
      copy_async16(reinterpret_cast<char*>(stage) + 16 * t, reinterpret_cast<const char*>(c.records + slots[t / 3]) + t % 3 * 16);
    }
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    const bool is_near = lane < count && first + lane < longest_of_warp &&
                         touches_warp(stage[lane].bounds_x, stage[lane].bounds_y, warp_x, warp_y, c.limits.width, c.limits.height);
    const uint32_t todo = __ballot_sync(kAllLanes, is_near);
    for (int32_t i = count - 1; i >= 0; --i) {
      float sums[kPadded] = {};
      bool is_blended = false;
      if ((todo >> i & 1u) && first + i < pixel.last) is_blended = replay_splat(stage[i], c.max_alpha, pixel, sums);
      float sum = 0.0f;
      if (__ballot_sync(kAllLanes, is_blended)) sum = warp_sums<kPadded / 2>(sums);
      if (lane % 2 == 0 && lane / 2 < kSums) warp_partials[i][warp][lane / 2] = sum;
    }
    __syncthreads();
    for (int t = (int)threadIdx.x; t < count * kSums; t += kThreads) {
      const int i = t / kSums, k = t - i * kSums;
      float sum = 0.0f;
      for (int w = 0; w < kWarps; ++w) sum += warp_partials[i][w][k];
      const TileRect rect = tile_rect(stage[i].bounds_x, stage[i].bounds_y, c.limits.width, c.limits.height);
      const size_t pair = c.first_pair[slots[i]] + (tile_y - rect.y) * rect.width + tile_x - rect.x;
      d.partials[pair * kSums + k] = sum;
    }
    __syncthreads();
  }
}

// Sums of a splat over its tiles, into its row. With more than one pass, moments add up and each pass has its own colours.
__global__ void __launch_bounds__(kThreads) sum_partials_kernel(const Chunk c, const ChunkGradients d, const Pass pass) {
  const int64_t t = (int64_t)blockIdx.x * kThreads + threadIdx.x, slot = t / kSums;
  const int k = (int)(t - slot * kSums);
  if (slot >= c.counters->splats) return;
  if (k >= kMoments + pass.count) return;
  float sum = not_a_number();  // the lists are incomplete
  if (c.counters->pairs <= c.pair_capacity) {
    const SplatRecord& record = c.records[slot];
    const TileRect rect = tile_rect(record.bounds_x, record.bounds_y, c.limits.width, c.limits.height);
    const size_t first = c.first_pair[slot], count = (size_t)rect.width * rect.height;
    sum = 0.0f;
    for (size_t p = first; p < first + count; ++p) sum += d.partials[p * kSums + k];
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

// Adds a Gaussian's colour gradient in view v; with spherical harmonics also to its mean and to the camera centre.
__device__ __forceinline__ void color_gradient(const Chunk& c, const ChunkGradients& d, int64_t g, int v, const float* v_color,
                                               const Geometry& geometry, const Camera& camera, float* v_mean,
                                               float* v_position) {
  const int64_t row = v * c.color_view_stride + g * c.color_size;
  if (c.sh_degree < 0) {
    for (int64_t k = 0; k < c.color_size; ++k) d.colors[row + k] += v_color[k];
    return;
  }
  const float direction[3] = {geometry.x - camera.position[0], geometry.y - camera.position[1],
                              geometry.z - camera.position[2]};
  float v_direction[3];
  sh_backward_switch(c.sh_degree, direction, c.colors + row, v_color, d.colors + row, v_direction);
  for (int k = 0; k < 3; ++k) {
    v_mean[k] += v_direction[k];
    v_position[k] -= v_direction[k];
  }
}

// Adds what a Gaussian collected over the views of the chunk: mean, opacity, covariance.
__device__ __forceinline__ void add_gaussian(const Chunk& c, const ChunkGradients& d, int64_t g, const float* v_mean,
                                             float v_opacity, const Covariance3<float>& v_s) {
  for (int k = 0; k < 3; ++k) d.means[3 * g + k] += v_mean[k];
  d.opacities[g] += v_opacity;
  if (c.covars != nullptr) {
    const float values[6] = {v_s.xx, v_s.xy, v_s.xz, v_s.yy, v_s.yz, v_s.zz};
    for (int k = 0; k < 6; ++k) d.covars[6 * g + k] += values[k];
    return;
  }
  const float *q = c.quats + 4 * g, *s = c.scales + 3 * g;
  float v_q[4], v_scale[3];
  covariance_world_backward(q[0], q[1], q[2], q[3], s[0], s[1], s[2], v_s, v_q, v_scale);
  for (int k = 0; k < 4; ++k) d.quats[4 * g + k] += v_q[k];
  for (int k = 0; k < 3; ++k) d.scales[3 * g + k] += v_scale[k];
}

__global__ void __launch_bounds__(kThreads) project_gradients_kernel(const Chunk c, const ChunkGradients d) {
  __shared__ Camera cameras[kMaxViews];
  __shared__ uint32_t starts[kMaxViews][kWarps];
  __shared__ float warp_cameras[kWarps][32];
  const int64_t g = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  load_cameras(c, cameras);
  const uint32_t bits = g < c.num_gaussians ? c.keep[g] : 0u;
  find_starts(c.num_views, bits, starts, [&](uint32_t) { return c.block_starts[blockIdx.x]; });
  Geometry geometry{};
  float opacity = 1.0f, v_opacity = 0.0f, v_mean[3] = {};
  Covariance3<float> v_s{};
  if (bits) {
    geometry = load_geometry(c, g);
    opacity = c.opacities[g];
  }
  for (int v = 0; v < c.num_views; ++v) {
    const uint32_t slot = slot_in_view(bits, v, starts);
    CameraGradient<float> v_camera{};
    float v_position[3] = {};
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
      if (d.colors != nullptr) color_gradient(c, d, g, v, row + kMoments, geometry, cameras[v], v_mean, v_position);
    }
    float values[32] = {};
    for (int k = 0; k < 9; ++k) values[k] = v_camera.r[k];
    for (int k = 0; k < 3; ++k) values[9 + k] = v_camera.t[k];
    values[12] = v_camera.fx;
    values[13] = v_camera.fy;
    values[14] = v_camera.cx;
    values[15] = v_camera.cy;
    for (int k = 0; k < 3; ++k) values[16 + k] = v_position[k];
    const float sum = warp_sums<16>(values);
    __syncthreads();  // the sums of the view before have been read
    warp_cameras[threadIdx.x / 32][threadIdx.x % 32] = sum;
    __syncthreads();
    if (threadIdx.x < kCameraValues) {
      float total = 0.0f;
      for (int w = 0; w < kWarps; ++w) total += warp_cameras[w][threadIdx.x];
      d.cameras[((size_t)v * c.num_blocks + blockIdx.x) * kCameraValues + threadIdx.x] = total;
    }
  }
  if (bits) add_gaussian(c, d, g, v_mean, v_opacity, v_s);
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
  return launch(sum_partials_kernel, blocks_of((int64_t)c.splat_capacity * kSums), 1, kThreads, stream, c, d, pass);
}

int project_gradients(const Chunk& c, const ChunkGradients& d, void* stream) {
  return launch(project_gradients_kernel, c.num_blocks, 1, kThreads, stream, c, d);
}

int camera_gradients(const Chunk& c, const ChunkGradients& d, void* stream) {
  return launch(camera_gradients_kernel, c.num_views, 1, kThreads, stream, c, d);
}

}  // namespace tiled
}  // namespace worldr1
