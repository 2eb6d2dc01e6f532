// What the tiled rasterizer decides about one Gaussian, one tile or one pixel, apart from gaussian.h's mathematics: culling,
// pixel bounds, the 48-byte record, the rectangle of tiles, the sub-tile test, one blending step. Scalar, host and device.
#pragma once

#include <cstdint>
#include <cstring>

#include "gaussian.h"

namespace worldr1 {

constexpr int kTileSize = 16;                   // pixels a side; one block of threads
constexpr int kWarpWidth = 8, kWarpHeight = 4;  // pixels of one warp: two columns, four rows of warps make a tile
constexpr int kRecordChannels = 4;              // channels blended in one pass

// Scalars of a call that decide what is drawn.
struct ViewLimits {
  int32_t width, height;
  float near_plane, far_plane, radius_clip, eps2d, compensation_floor;
  bool antialiased;
};

// What the blending loop reads of one Gaussian in one view: three 16-byte words. The conic is scaled by log2(e), its squared
// terms also halved.
struct alignas(16) SplatRecord {
  float mean_x, mean_y, a, b;
  float c, opacity;
  uint32_t bounds_x, bounds_y;
  float color[kRecordChannels];
};
static_assert(sizeof(SplatRecord) == 48, "three 16-byte words");

// The tiles of a splat in its chunk, in 8 bytes: the first, counted over the views of the chunk, then over rows; columns less one
// in the low half of `size`, rows less one in the high half.
struct TileSpan {
  uint32_t first, size;
};

namespace {

WR_HD float log_of(float x) {
#if defined(__CUDA_ARCH__)
  return logf(x);
#else
  return __builtin_logf(x);
#endif
}

// 2^x. On the device one instruction, relative error 2^-22; it flushes results below 2^-126, far under the threshold.
WR_HD float exp2_of(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return __builtin_exp2f(x);
#endif
}

WR_HD float floor_of(float x) {
#if defined(__CUDA_ARCH__)
  return floorf(x);
#else
  return __builtin_floorf(x);
#endif
}

WR_HD float ceil_of(float x) { return -floor_of(-x); }

WR_HD uint32_t bits_of(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
#endif
}

WR_HD float not_a_number() { return __builtin_nanf(""); }

// min_of two numbers that are not NaN: one instruction.
WR_HD float smaller_of(float a, float b) {
#if defined(__CUDA_ARCH__)
  return fminf(a, b);
#else
  return min_of(a, b);
#endif
}

// 1 / x, on the device in one instruction: relative error 2^-23, for 2^-126 <= |x| <= 2^126.
WR_HD float reciprocal_of(float x) {
#if defined(__CUDA_ARCH__)
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.0f / x;
#endif
}

WR_HD float size_of(float x) { return __builtin_fabsf(x); }

// x - x is 0 for a finite number, NaN otherwise.
WR_HD bool is_finite(float x) { return x - x == 0.0f; }

// Pixel bounds of one axis in one word: the first pixel in 20 bits, last - first in 12. A span of 4095 or more reads "to the
// edge": bounds only have to contain the splat, the exact test is made per pixel.
constexpr uint32_t kSpanBits = 12, kLongSpan = (1u << kSpanBits) - 1;

WR_HD uint32_t pack_bounds(int32_t first, int32_t last) {
  const uint32_t span = last > first ? (uint32_t)(last - first) : 0u;
  return (uint32_t)first | ((span < kLongSpan ? span : kLongSpan) << 20);
}

WR_HD int32_t first_of(uint32_t bounds) { return (int32_t)(bounds & 0xfffffu); }

WR_HD int32_t last_of(uint32_t bounds, int32_t size) {
  const uint32_t span = bounds >> 20;
  return span == kLongSpan ? size - 1 : first_of(bounds) + (int32_t)span;
}

// First and last pixel whose centre lies within [low, high], clamped to the image; an empty range has last < first.
WR_HD void pixel_range(float low, float high, int32_t size, int32_t* first, int32_t* last) {
  const float limit = (float)size;
  low = min_of(max_of(low - 0.5f, -1.0f), limit);
  high = min_of(max_of(high - 0.5f, -1.0f), limit);
  const int32_t f = (int32_t)ceil_of(low), l = (int32_t)floor_of(high);
  *first = f < 0 ? 0 : f;
  *last = l > size - 1 ? size - 1 : l;
}

// Projects a Gaussian into a view and fills everything of `record` but the colours. False: it cannot touch a pixel.
WR_HD bool make_record(float x, float y, float z, const Covariance3<float>& covariance, float opacity, const Camera& camera,
                       const ViewLimits& view, SplatRecord* record, float* depth) {
  const Splat<float> p = project(x, y, z, covariance, camera, view.eps2d);
  bool keep = p.depth > view.near_plane && p.depth < view.far_plane && p.det > 0.0f && is_finite(p.det);
  if (view.antialiased) opacity = opacity * compensation(p.det_ratio, view.compensation_floor);
  keep = keep && opacity >= kAlphaThreshold;
  if (!keep) return false;
  const float extend = sqrt_of(2.0f * log_of(max_of(opacity * 255.0f, 1.0f)));
  const float sigma_x = sqrt_of(p.cov_xx), sigma_y = sqrt_of(p.cov_yy);
  // The exact test is alpha >= 1/255 per pixel; the bounds only have to contain it, hence the slack.
  const float reach_x = extend * sigma_x * 1.0001f + 1e-3f, reach_y = extend * sigma_y * 1.0001f + 1e-3f;
  keep = p.mean_x + reach_x > 0.0f && p.mean_x - reach_x < (float)view.width && p.mean_y + reach_y > 0.0f &&
         p.mean_y - reach_y < (float)view.height;
  // gsplat compares the rounded-up radius with radius_clip; ceil(r) <= clip is r <= floor(clip).
  const float capped = min_of(extend, kMaxExtend), clip = floor_of(view.radius_clip);
  keep = keep && (capped * sigma_x > clip || capped * sigma_y > clip);
  if (!keep) return false;
  int32_t x0, x1, y0, y1;
  pixel_range(p.mean_x - reach_x, p.mean_x + reach_x, view.width, &x0, &x1);
  pixel_range(p.mean_y - reach_y, p.mean_y + reach_y, view.height, &y0, &y1);
  if (x0 > x1 || y0 > y1) return false;
  const float scale = kLog2E / p.det;
  record->mean_x = p.mean_x;
  record->mean_y = p.mean_y;
  record->a = 0.5f * p.cov_yy * scale;
  record->b = -p.cov_xy * scale;
  record->c = 0.5f * p.cov_xx * scale;
  record->opacity = opacity;
  record->bounds_x = pack_bounds(x0, x1);
  record->bounds_y = pack_bounds(y0, y1);
  *depth = p.depth;
  return true;
}

// Spherical harmonics of a degree known only at run time, with code for each: a loop over a run-time count would keep the basis
// in local memory.
WR_HD void sh_color_switch(int degree, float dx, float dy, float dz, const float* coeffs, float* rgb) {
  switch (degree) {
    case 0: return sh_color(0, dx, dy, dz, coeffs, rgb);
    case 1: return sh_color(1, dx, dy, dz, coeffs, rgb);
    case 2: return sh_color(2, dx, dy, dz, coeffs, rgb);
    case 3: return sh_color(3, dx, dy, dz, coeffs, rgb);
    default: return sh_color(4, dx, dy, dz, coeffs, rgb);
  }
}

// Tiles that a splat's bounds touch: columns [x, x + width), rows [y, y + height).
struct TileRect {
  uint32_t x, y, width, height;
};

WR_HD TileRect tile_rect(uint32_t bounds_x, uint32_t bounds_y, int32_t width, int32_t height) {
  const uint32_t x = (uint32_t)first_of(bounds_x) / kTileSize, y = (uint32_t)first_of(bounds_y) / kTileSize;
  return {x, y, (uint32_t)last_of(bounds_x, width) / kTileSize - x + 1,
          (uint32_t)last_of(bounds_y, height) / kTileSize - y + 1};
}

WR_HD TileSpan tile_span(uint32_t bounds_x, uint32_t bounds_y, int32_t width, int32_t height, uint32_t tiles_x,
                         uint32_t first_of_view) {
  const TileRect rect = tile_rect(bounds_x, bounds_y, width, height);
  return {first_of_view + rect.y * tiles_x + rect.x, (rect.width - 1) | (rect.height - 1) << 16};
}

// Where the pair of a tile, one of the span, lies among those of the splat, which go by rows.
WR_HD uint32_t pair_in_span(TileSpan span, uint32_t tile, uint32_t tiles_x) {
  const uint32_t row = (tile - span.first) / tiles_x;
  return (tile - span.first) - row * (tiles_x - ((span.size & 0xffffu) + 1));
}

WR_HD uint32_t columns_of(TileSpan span) { return (span.size & 0xffffu) + 1; }
WR_HD uint32_t rows_of(TileSpan span) { return (span.size >> 16) + 1; }

// Whether bounds touch the pixels [x, x + kWarpWidth) x [y, y + kWarpHeight).
WR_HD bool touches_warp(uint32_t bounds_x, uint32_t bounds_y, int32_t x, int32_t y, int32_t width, int32_t height) {
  // Without branches: & in place of &&.
  return (first_of(bounds_x) < x + kWarpWidth) & (last_of(bounds_x, width) >= x) & (first_of(bounds_y) < y + kWarpHeight) &
         (last_of(bounds_y, height) >= y);
}

// Blends one splat over one pixel; true if it was. A pixel that is finished, by a splat that is then left out, has its transmittance
// negated: nothing is blended over it any more, and no second condition is needed.
template <int CH>
WR_HD bool blend_splat(const SplatRecord& g, float pixel_x, float pixel_y, float max_alpha, float* transmittance,
                       float* color) {
  const float dx = pixel_x - g.mean_x, dy = pixel_y - g.mean_y;
  const float raw = g.opacity * exp2_of(-exponent_log2(dx, g.a, g.b * dy, g.c * dy * dy));
  if (!(raw >= kAlphaThreshold)) return false;  // false for NaN as well
  const float weight = *transmittance * smaller_of(raw, max_alpha), after = *transmittance - weight;
  const bool is_blended = after > kTransmittanceStop;
  *transmittance = is_blended ? after : -size_of(*transmittance);
  if (!is_blended) return false;
  for (int c = 0; c < CH; ++c) color[c] += weight * g.color[c];
  return true;
}

// a + b, at most 2^32 - 1: associative, so a scan may use it, and a count of pairs can never wrap.
struct SaturatingAdd {
  WR_HD uint32_t operator()(uint32_t a, uint32_t b) const { return a + b < a ? 0xffffffffu : a + b; }
};

}  // namespace
}  // namespace worldr1
