// SIMD kernels of the rasterizer: scene preparation, projection, blending of a tile. Compiled once per instruction set; only
// the entry point is external, and no standard-library template is used, so that no function built for a newer processor can
// be picked by the linker for an older one.
#include "rasterize.h"
#include "rasterize_rows.h"

namespace worldr1 {
namespace {

// x - x is 0 for a finite number, NaN otherwise.
WR_INLINE i8 finite(f8 x) { return (x - x) == f8_set(0.0f); }

// Natural logarithm of a positive normal number, absolute error about 1e-7 per octave: only used for the extent of a splat.
// x = 2^n m with m in [1/sqrt(2), sqrt(2)), ln m = 2 artanh(s), s = (m - 1) / (m + 1), by its series to s^9.
WR_INLINE f8 log_of(f8 x) {
  const i8 bits = (i8)x, n = (bits - 0x3f3504f3) >> 23;
  const f8 m = (f8)(bits - (n << 23)), s = (m - 1.0f) / (m + 1.0f), z = s * s;
  const f8 series = (((z * (1.0f / 9.0f) + 1.0f / 7.0f) * z + 1.0f / 5.0f) * z + 1.0f / 3.0f) * z + 1.0f;
  return 2.0f * s * series + 0.6931471805599453f * __builtin_convertvector(n, f8);
}

// A covariance from quaternion and scales, lanes transposed by hand. `ok` loses lanes that are not finite.
WR_INLINE Covariance3<f8> load_rotated(const RasterizeArgs& args, int64_t first, int lanes, i8& ok) {
  alignas(32) float in[7][8] = {};
  for (int i = 0; i < lanes; ++i) {
    for (int k = 0; k < 4; ++k) in[k][i] = args.quats[4 * (first + i) + k];
    for (int k = 0; k < 3; ++k) in[4 + k][i] = args.scales[3 * (first + i) + k];
  }
  f8 v[7];
  for (int k = 0; k < 7; ++k) {
    v[k] = f8_load(in[k]);
    ok &= finite(v[k]);
  }
  const f8 norm = v[0] * v[0] + v[1] * v[1] + v[2] * v[2] + v[3] * v[3];
  ok &= (norm > f8_set(0.0f)) & finite(norm);
  return covariance_world(v[0], v[1], v[2], v[3], v[4], v[5], v[6]);
}

WR_INLINE Covariance3<f8> load_covariance(const RasterizeArgs& args, int64_t first, int lanes, i8& ok) {
  alignas(32) float in[6][8] = {};
  for (int i = 0; i < lanes; ++i) {
    for (int k = 0; k < 6; ++k) in[k][i] = args.covars[6 * (first + i) + k];
  }
  f8 v[6];
  for (int k = 0; k < 6; ++k) {
    v[k] = f8_load(in[k]);
    ok &= finite(v[k]);
  }
  return {v[0], v[1], v[2], v[3], v[4], v[5]};
}

int64_t prepare(const RasterizeArgs& args, int64_t scene_index, const uint8_t* color_bad, Scene& scene, int64_t begin,
                int64_t end) {
  const int64_t n = scene.count, row = scene_index * n;
  int64_t invalid = 0;
  for (int64_t base = begin; base < end; base += 8) {
    const int lanes = (int)(n - base < 8 ? n - base : 8);
    alignas(32) float in[4][8] = {};
    for (int i = 0; i < lanes; ++i) {
      const int64_t g = row + base + i;
      for (int k = 0; k < 3; ++k) in[k][i] = args.means[3 * g + k];
      in[3][i] = args.opacities[g];
    }
    const f8 x = f8_load(in[0]), y = f8_load(in[1]), z = f8_load(in[2]);
    f8 opacity = f8_load(in[3]);
    i8 ok = finite(x) & finite(y) & finite(z) & finite(opacity);
    const Covariance3<f8> s = args.covars != nullptr ? load_covariance(args, row + base, lanes, ok)
                                                     : load_rotated(args, row + base, lanes, ok);
    if (color_bad != nullptr) {
      for (int i = 0; i < lanes; ++i) ok[i] = color_bad[base + i] ? 0 : ok[i];
    }
    invalid += lanes - __builtin_popcount(lane_bits(ok) & ((1u << lanes) - 1u));
    opacity = select(ok, opacity, f8_set(__builtin_nanf("")));  // NaN fails every test of the projection
    const f8 extend = sqrt_of(2.0f * log_of(max_of(opacity * 255.0f, 1.0f)));
    const f8 out[kSceneArrays] = {x, y, z, s.xx, s.xy, s.xz, s.yy, s.yz, s.zz, opacity, extend};
    for (int k = 0; k < kSceneArrays; ++k) f8_store(scene.array(k) + base, out[k]);
  }
  return invalid;
}

// Index of the first and last pixel whose centre is within [low, high], clamped to [0, size - 1]; an empty range stays empty.
WR_INLINE void pixel_range(float low, float high, int64_t size, int32_t* first, int32_t* last) {
  const float limit = (float)size;
  low = min_of(max_of(low - 0.5f, -1.0f), limit);
  high = min_of(max_of(high - 0.5f, -1.0f), limit);
  const int32_t f = (int32_t)__builtin_ceilf(low), l = (int32_t)__builtin_floorf(high);
  *first = f < 0 ? 0 : f;
  *last = l > (int32_t)size - 1 ? (int32_t)size - 1 : l;
}

// Eight Gaussians in a view; `seen` are the lanes that may touch a pixel, and nothing else is set where there are none.
struct Look {
  Splat<f8> p;
  f8 opacity;           // after the compensation of antialiasing
  f8 extend;            // standard deviations from the mean where alpha falls to 1/255
  f8 radius_x, radius_y;  // as reported, before rounding up
  f8 reach_x, reach_y;
  i8 seen;
};

WR_INLINE Look look_at(const RasterizeArgs& args, const Scene& scene, const Camera& camera, int64_t base) {
  Look out{};
  f8 opacity = f8_load(scene.array(9) + base);
  i8 ok = opacity >= f8_set(kAlphaThreshold);
  const f8 x = f8_load(scene.array(0) + base), y = f8_load(scene.array(1) + base), z = f8_load(scene.array(2) + base);
  const Covariance3<f8> s = {f8_load(scene.array(3) + base), f8_load(scene.array(4) + base), f8_load(scene.array(5) + base),
                             f8_load(scene.array(6) + base), f8_load(scene.array(7) + base), f8_load(scene.array(8) + base)};
  const Splat<f8> p = project(x, y, z, s, camera, args.eps2d);
  ok &= (p.depth > f8_set(args.near_plane)) & (p.depth < f8_set(args.far_plane)) & (p.det > f8_set(0.0f)) & finite(p.det);
  if (!lane_bits(ok)) return out;
  f8 extend = f8_load(scene.array(10) + base);
  if (args.antialiased) {
    opacity = opacity * compensation(p.det_ratio, args.compensation_floor);
    ok &= opacity >= f8_set(kAlphaThreshold);
    extend = sqrt_of(2.0f * log_of(max_of(opacity * 255.0f, 1.0f)));
  }
  const f8 sigma_x = sqrt_of(p.cov_xx), sigma_y = sqrt_of(p.cov_yy);
  // The exact test is alpha >= 1/255 per pixel; the bounds only have to contain it, hence the slack.
  const f8 reach_x = extend * sigma_x * 1.0001f + 1e-3f, reach_y = extend * sigma_y * 1.0001f + 1e-3f;
  const f8 width = f8_set((float)args.width), height = f8_set((float)args.height);
  ok &= (p.mean_x + reach_x > f8_set(0.0f)) & (p.mean_x - reach_x < width) & (p.mean_y + reach_y > f8_set(0.0f)) &
        (p.mean_y - reach_y < height);
  const f8 capped = min_of(extend, kMaxExtend);
  const f8 radius_x = capped * sigma_x, radius_y = capped * sigma_y;
  // gsplat compares the rounded-up radius with radius_clip; ceil(r) <= clip is r <= floor(clip).
  const f8 clip = f8_set(__builtin_floorf(args.radius_clip));
  ok &= (radius_x > clip) | (radius_y > clip);
  return {p, opacity, extend, radius_x, radius_y, reach_x, reach_y, ok};
}

// Rows [row, row + lanes) of what is reported of a view.
WR_INLINE void report(const Look& g, i8 seen, int64_t row, int lanes, const Projected& target) {
  const f8 zero = f8_set(0.0f), scale = 1.0f / g.p.det;
  const f8 values[kReported] = {g.p.mean_x, g.p.mean_y, g.p.cov_yy * scale, -g.p.cov_xy * scale, g.p.cov_xx * scale,
                                g.p.depth,  g.opacity};
  alignas(32) float out[kReported][8];
  for (int k = 0; k < kReported; ++k) f8_store(out[k], select(seen, values[k], zero));
  alignas(32) int32_t radii[2][8];
  const f8 exact[2] = {g.radius_x, g.radius_y};
  for (int k = 0; k < 2; ++k) {
    const f8 radius = select(seen, min_of(exact[k], kMaxRadius), zero);
    const i8 down = __builtin_convertvector(radius, i8);
    const i8 up = down - (i8)(__builtin_convertvector(down, f8) < radius);  // a true comparison is -1
    std::memcpy(radii[k], &up, sizeof(up));
  }
  for (int i = 0; i < lanes; ++i) {
    for (int k = 0; k < kReported; ++k) target.values[kReported * (row + i) + k] = out[k][i];
    for (int k = 0; k < 2; ++k) target.radii[2 * (row + i) + k] = radii[k][i];
  }
}

int64_t project_view(const RasterizeArgs& args, const Scene& scene, int64_t scene_index, int64_t view_index,
                     const uint8_t* color_bad, int64_t begin, int64_t end, const ProjectTarget& target) {
  const int64_t view = scene_index * args.num_views + view_index;
  const Camera camera =
      make_camera(args.viewmats + 16 * view, args.Ks + 9 * view, (float)args.width, (float)args.height);
  const int64_t color_row = (args.colors_per_view ? view : scene_index) * scene.count;
  int64_t kept = 0;
  for (int64_t base = begin; base < end; base += 8) {
    const Look g = look_at(args, scene, camera, base);
    i8 seen = g.seen;
    const int lanes = (int)(end - base < 8 ? end - base : 8);
    if (color_bad != nullptr) {
      for (int i = 0; i < lanes; ++i) seen[i] = color_bad[base + i] ? 0 : seen[i];
    }
    if (args.projected.values != nullptr) report(g, seen, view * scene.count + base, lanes, args.projected);
    unsigned bits = lane_bits(seen);
    if (!bits) continue;
    const Splat<f8>& p = g.p;
    const f8 scale = kLog2E / p.det;
    alignas(32) float out[10][8];
    f8_store(out[0], p.mean_x);
    f8_store(out[1], p.mean_y);
    f8_store(out[2], 0.5f * p.cov_yy * scale);
    f8_store(out[3], -p.cov_xy * scale);
    f8_store(out[4], 0.5f * p.cov_xx * scale);
    f8_store(out[5], g.opacity);
    f8_store(out[6], g.extend * g.extend * (0.5f * kLog2E) + 1e-3f);
    f8_store(out[7], p.depth);
    f8_store(out[8], g.reach_x);
    f8_store(out[9], g.reach_y);
    for (; bits; bits &= bits - 1) {
      const int i = __builtin_ctz(bits);
      const int64_t id = base + i;
      Bounds& bounds = target.bounds[kept];
      pixel_range(out[0][i] - out[8][i], out[0][i] + out[8][i], args.width, &bounds.x0, &bounds.x1);
      pixel_range(out[1][i] - out[9][i], out[1][i] + out[9][i], args.height, &bounds.y0, &bounds.y1);
      if (bounds.x0 > bounds.x1 || bounds.y0 > bounds.y1) continue;
      Record& record = target.records[kept];
      record = {out[0][i], out[1][i], out[2][i], out[3][i], out[4][i], out[5][i], out[6][i], out[7][i], {}};
      target.ids[kept] = (uint32_t)id;
      ++kept;
      if (args.sh_degree < 0) continue;
      const float* mean = args.means + 3 * (scene_index * scene.count + id);
      sh_color(args.sh_degree, mean[0] - camera.position[0], mean[1] - camera.position[1], mean[2] - camera.position[2],
               args.colors + (color_row + id) * args.color_size, record.color);
      record.color[3] = record.depth;
    }
  }
  return kept;
}

// The first lanes of a vector. A whole one is the common case, and no call to memcpy, which a loop alone would become.
template <class T, class V>
WR_INLINE void store_row(T* out, V v, int columns) {
  if (columns == kTile) {
    std::memcpy(out, &v, sizeof(v));
  } else {
    for (int i = 0; i < columns; ++i) out[i] = v[i];
  }
}

// What else than weighted sums the loop keeps; all but kPlain also what the backward reads.
enum BlendKind { kPlain, kForBackward, kMedian, kFirst };

template <int CH>
struct PixelRow {
  f8 transmittance, color[CH];
  i8 live, last;
};

template <int CH, int KIND>
void blend(const Record* records, const Pair* begin, const Pair* end, int64_t tile_x, int64_t tile_y,
           const TileTarget& t) {
  const int64_t x0 = tile_x * kTile, y0 = tile_y * kTile;
  const int rows = (int)(t.height - y0 < kTile ? t.height - y0 : kTile);
  const int columns = (int)(t.width - x0 < kTile ? t.width - x0 : kTile);
  PixelRow<CH> tile[kTile];
  for (PixelRow<CH>& row : tile) row = {f8_set(1.0f), {}, f8_iota() < f8_set((float)columns), i8{}};
  const f8 pixel_x = f8_iota() + ((float)x0 + 0.5f), pixel_y = f8_iota() + ((float)y0 + 0.5f);
  const f8 threshold = f8_set(kAlphaThreshold), stop_at = f8_set(kTransmittanceStop), max_alpha = f8_set(t.max_alpha);
  uint32_t live_rows = (1u << rows) - 1u;
  Reaching ahead[kAhead];
  for (const Pair* pair = begin; pair != end && live_rows;) {
    const Pair* const until = end - pair > kAhead ? pair + kAhead : end;
    int count = 0;
    for (; pair != until; ++pair) {
      const Record& g = records[pair->record];
      Reaching& next = ahead[count];
      next.rows = RowTerms(g, pixel_x[0] - g.mean_x, pixel_y - g.mean_y);
      next.record = &g;
      next.position = (int32_t)(pair - begin) + 1;
      next.todo = pair->rows & live_rows & next.rows.reached;
      count += next.todo != 0;
    }
    for (const Reaching* splat = ahead; splat != ahead + count; ++splat) {
      const Record& g = *splat->record;
      const f8 dx = pixel_x - g.mean_x;
      for (uint32_t todo = splat->todo & live_rows; todo; todo &= todo - 1) {
        const unsigned r = (unsigned)__builtin_ctz(todo);
        PixelRow<CH>& row = tile[r];
        // The exponent cannot be negative: only positive definite conics pass the projection. Rounding below 0 is harmless.
        const f8 q = exponent_log2(dx, f8_set(g.a), f8_set(splat->rows.linear[r]), f8_set(splat->rows.constant[r]));
        f8 alpha = min_of(exp2_minus(q) * g.opacity, max_alpha);
        alpha = keep_where(row.live & (alpha >= threshold), alpha);  // below g.limit, too, by an opacity of up to 1e30
        const f8 before = row.transmittance;
        f8 weight = before * alpha;
        if (__builtin_expect(any_at_most(before - weight, stop_at), 0)) {
          const i8 stop = (before - weight) <= stop_at;
          alpha = keep_where(~stop, alpha);
          weight = before * alpha;
          row.live &= ~stop;
          if (!lane_bits(row.live)) live_rows &= ~(1u << r);
        }
        const f8 after = before - weight;
        row.transmittance = after;
        constexpr int kSums = KIND == kMedian || KIND == kFirst ? CH - 1 : CH;
        for (int c = 0; c < kSums; ++c) row.color[c] += weight * g.color[c];
        if (KIND != kPlain) row.last = select(alpha > f8_set(0.0f), i8_set(splat->position), row.last);
        if (KIND == kMedian) {
          const f8 half = f8_set(0.5f);
          row.color[kSums] = select((before > half) & (after <= half), f8_set(g.color[kSums]), row.color[kSums]);
        }
        if (KIND == kFirst) {
          const f8 one = f8_set(1.0f);
          row.color[kSums] = select((before == one) & (after < one), f8_set(g.color[kSums]), row.color[kSums]);
        }
      }
    }
  }
  for (int r = 0; r < rows; ++r) {
    const int64_t pixel = (y0 + r) * t.width + x0;
    const PixelRow<CH>& row = tile[r];
    const f8 alpha = 1.0f - row.transmittance;
    if (t.alphas != nullptr) store_row(t.alphas + pixel, alpha, columns);
    if (KIND != kPlain && t.transmittance != nullptr) {
      store_row(t.transmittance + pixel, row.transmittance, columns);
      store_row(t.last + pixel, row.last, columns);
    }
    for (int c = 0; c < CH; ++c) {
      const int64_t channel = t.first_channel + c;
      f8 value = row.color[c];
      if (t.background != nullptr) value += row.transmittance * t.background[channel];
      if (t.depth_mode == kExpectedDepth && c == CH - 1) value /= max_of(alpha, 1e-10f);
      float* out = t.colors + pixel * t.channels + channel;
      for (int i = 0; i < columns; ++i) out[i * t.channels] = value[i];
    }
  }
}

template <int CH>
void blend_kind(const Record* records, const Pair* begin, const Pair* end, int64_t tile_x, int64_t tile_y,
                          const TileTarget& t) {
  if (t.depth_mode == kMedianDepth) return blend<CH, kMedian>(records, begin, end, tile_x, tile_y, t);
  if (t.depth_mode == kFirstDepth) return blend<CH, kFirst>(records, begin, end, tile_x, tile_y, t);
  if (t.transmittance != nullptr) return blend<CH, kForBackward>(records, begin, end, tile_x, tile_y, t);
  return blend<CH, kPlain>(records, begin, end, tile_x, tile_y, t);
}

void blend_tile(const Record* records, const Pair* begin, const Pair* end, int64_t tile_x, int64_t tile_y,
                const TileTarget& t) {
  switch (t.num_channels) {
    case 1: return blend_kind<1>(records, begin, end, tile_x, tile_y, t);
    case 2: return blend_kind<2>(records, begin, end, tile_x, tile_y, t);
    case 3: return blend_kind<3>(records, begin, end, tile_x, tile_y, t);
    default: return blend_kind<4>(records, begin, end, tile_x, tile_y, t);
  }
}

const Kernels kKernels = {prepare, project_view, blend_tile};

}  // namespace

const Kernels* WR_ISA_NAME(rasterize_kernels)() { return &kKernels; }

}  // namespace worldr1
