// SIMD kernels of the rasterizer's backward: replay of a tile, projection, quaternions and scales. Compiled once per
// instruction set, on the terms of rasterize_simd.cpp.
#include "rasterize.h"
#include "rasterize_rows.h"
// after simd.h: the templates use its overloads
#include "../common/gaussian_backward.h"

namespace worldr1 {
namespace {

// One tile's pixels on their way from back to front.
template <int CH>
struct Replay {
  f8 transmittance[kTile];  // in front of what has been replayed
  f8 behind[kTile];         // dL/dT of what has been replayed, times its T: what a splat in front of it dims
  f8 gradient[kTile][CH];   // of the image
  i8 last[kTile];
  i8 longest;  // largest `last` of each row
  alignas(32) float y[kTile];  // of the rows' centres
};

// Plain arrays to fill pixel by pixel.
template <class T>
struct Pixels {
  alignas(32) T at[kTile][kTile] = {};
  WR_INLINE void copy(int r, const T* source, int columns) {
    if (columns == kTile) {
      std::memcpy(at[r], source, sizeof(at[r]));  // of constant size: no call
    } else {
      for (int i = 0; i < columns; ++i) at[r][i] = source[i];
    }
  }
  WR_INLINE f8 row(int r) const { return f8_load(at[r]); }
};

// Reads the pixels of a tile. Lanes outside the image get last = 0. Adds T * gradient to v_background.
template <int CH>
WR_INLINE void load_tile(int64_t tile_x, int64_t tile_y, const TileSource& s, Replay<CH>& tile, float* v_background) {
  const int64_t x0 = tile_x * kTile, y0 = tile_y * kTile;
  const int columns = (int)(s.width - x0 < kTile ? s.width - x0 : kTile);
  const int rows = (int)(s.height - y0 < kTile ? s.height - y0 : kTile);
  Pixels<float> transmittance, v_alphas, depth, gradient[CH];
  Pixels<int32_t> last;
  for (int r = 0; r < rows; ++r) {
    const int64_t pixel = (y0 + r) * s.width + x0, at = pixel * s.channels + s.first_channel;
    transmittance.copy(r, s.transmittance + pixel, columns);
    last.copy(r, s.last + pixel, columns);
    if (s.grad_alphas != nullptr) v_alphas.copy(r, s.grad_alphas + pixel, columns);
    if (s.grad_colors != nullptr) {
      for (int i = 0; i < columns; ++i) {
        for (int c = 0; c < CH; ++c) gradient[c].at[r][i] = s.grad_colors[at + i * s.channels + c];
      }
    }
    if (s.depth_mode == kExpectedDepth) {
      for (int i = 0; i < columns; ++i) depth.at[r][i] = s.render_colors[at + i * s.channels + CH - 1];
    }
  }
  f8 shown[4] = {};
  tile.longest = i8{};
  for (int r = 0; r < kTile; ++r) {
    const f8 left = transmittance.row(r);
    f8 v_alpha = v_alphas.row(r), v_left = f8_set(0.0f);
    for (int c = 0; c < CH; ++c) tile.gradient[r][c] = gradient[c].row(r);
    if (s.depth_mode == kExpectedDepth) {  // depth = sum / alpha, alpha = 1 - T
      const f8 alpha = 1.0f - left;
      const f8 v_sum = keep_where(alpha > f8_set(0.0f), tile.gradient[r][CH - 1] / alpha);
      v_alpha -= v_sum * depth.row(r);
      tile.gradient[r][CH - 1] = v_sum;
    }
    for (int c = 0; c < CH; ++c) {
      shown[c] += left * tile.gradient[r][c];
      if (s.background != nullptr) v_left += tile.gradient[r][c] * s.background[s.first_channel + c];
    }
    tile.transmittance[r] = left;
    tile.behind[r] = left * (v_left - v_alpha);
    std::memcpy(&tile.last[r], last.at[r], sizeof(i8));
    for (int i = 0; i < kTile; ++i) tile.longest[r] = last.at[r][i] > tile.longest[r] ? last.at[r][i] : tile.longest[r];
  }
  float sums[4];
  sum_each4(shown[0], shown[1], shown[2], shown[3], sums);
  for (int c = 0; c < CH; ++c) v_background[c] += sums[c];
}

// Which splat of a pixel has the depth of MD and FD, told from the transmittance in front of it and behind.
template <int MODE>
WR_INLINE i8 has_depth(f8 front, f8 behind, f8 alpha) {
  const i8 hit = alpha > f8_set(0.0f), half = (front > f8_set(0.5f)) & (behind <= f8_set(0.5f));
  // Nothing in front: a splat there would leave at most 254/255 of 1, which the replay returns to but for rounding.
  return MODE == kMedianDepth ? hit & half : hit & (front > f8_set(1.0f - 0.5f * kAlphaThreshold));
}

// MODE: the depth mode of the last channel where that is one splat's depth, else kNoDepth.
template <int CH, int MODE>
void replay(const Record* records, const Slots* slots, const Pair* pairs, int64_t tile_x, int64_t tile_y,
            const TileSource& s, float* partials, float* v_background) {
  Replay<CH> tile;
  load_tile<CH>(tile_x, tile_y, s, tile, v_background);
  int32_t longest = 0;
  for (int r = 0; r < kTile; ++r) longest = tile.longest[r] > longest ? tile.longest[r] : longest;
  const f8 pixel_x = f8_iota() + ((float)(tile_x * kTile) + 0.5f), pixel_y = f8_iota() + ((float)(tile_y * kTile) + 0.5f);
  f8_store(tile.y, pixel_y);
  const f8 threshold = f8_set(kAlphaThreshold), max_alpha = f8_set(s.max_alpha);
  Reaching ahead[kAhead];
  float* places[kAhead];
  for (int32_t position = longest; position > 0;) {
    const int32_t until = position > kAhead ? position - kAhead : 0;
    int count = 0;
    for (; position > until; --position) {
      const Pair pair = pairs[position - 1];
      const Slots& place = slots[pair.record];
      places[count] = partials + (place.base + tile_y * place.row_stride + tile_x * place.column_stride) * kSlot;
      __builtin_prefetch(places[count]);
      const Record& g = records[pair.record];
      Reaching& next = ahead[count];
      next.rows = RowTerms(g, pixel_x[0] - g.mean_x, pixel_y - g.mean_y);
      next.record = &g;
      next.position = position;
      next.todo = pair.rows & next.rows.reached & lane_bits(tile.longest >= i8_set(position));
      count += next.todo != 0;
    }
    for (int k = 0; k < count; ++k) {
      const Record& g = *ahead[k].record;
      const RowTerms& row = ahead[k].rows;
      const i8 here = i8_set(ahead[k].position);
      const f8 dx = pixel_x - g.mean_x;
      // Moments in y (h, h dy, h dy^2) per column, then colours; those in x follow from dx, which the rows share.
      f8 sums[3] = {}, colors[4] = {};
      for (uint32_t todo = ahead[k].todo; todo; todo &= todo - 1) {
        const unsigned r = (unsigned)__builtin_ctz(todo);
        const f8 q = exponent_log2(dx, f8_set(g.a), f8_set(row.linear[r]), f8_set(row.constant[r]));
        const f8 raw = exp2_minus(q) * g.opacity;
        f8 alpha = min_of(raw, max_alpha);
        alpha = keep_where((tile.last[r] >= here) & (alpha >= threshold), alpha);
        // T in front of the splat is T / (1 - alpha) = T + weight, with T what is left behind it.
        const f8 odds = alpha / (1.0f - alpha);
        const f8 after = tile.transmittance[r], behind = tile.behind[r];
        const f8 weight = after * odds;
        constexpr int kSums = MODE == kNoDepth ? CH : CH - 1;
        f8 v_weight = kSums == 0 ? f8_set(0.0f) : tile.gradient[r][0] * g.color[0];
        for (int c = 1; c < kSums; ++c) v_weight += tile.gradient[r][c] * g.color[c];
        const f8 h = keep_where(raw <= max_alpha, odds * (after * v_weight - behind));
        tile.behind[r] = behind + weight * v_weight;
        tile.transmittance[r] = after + weight;
        if (MODE != kNoDepth) {
          colors[CH - 1] += keep_where(has_depth<MODE>(after + weight, after, alpha), tile.gradient[r][CH - 1]);
        }
        const float dy = tile.y[r] - g.mean_y;
        sums[0] += h;
        sums[1] += h * dy;
        sums[2] += h * (dy * dy);
        for (int c = 0; c < kSums; ++c) colors[c] += weight * tile.gradient[r][c];
      }
      const f8 h = sums[0], h_dx = h * dx;
      const f8 head[8] = {h, h_dx, sums[1], h_dx * dx, sums[1] * dx, sums[2], colors[0], colors[1]};
      float* slot = places[k];
      f8_store(slot, f8_load(slot) + sum_each(head));
      if (CH > 2) {
        float tail[4];
        sum_each4(colors[2], colors[3], f8{}, f8{}, tail);
        slot[8] += tail[0];
        slot[9] += tail[1];
      }
    }
  }
}

template <int CH>
void replay_mode(const Record* records, const Slots* slots, const Pair* pairs, int64_t tile_x, int64_t tile_y,
                 const TileSource& s, float* partials, float* v_background) {
  if (s.depth_mode == kMedianDepth) {
    return replay<CH, kMedianDepth>(records, slots, pairs, tile_x, tile_y, s, partials, v_background);
  }
  if (s.depth_mode == kFirstDepth) {
    return replay<CH, kFirstDepth>(records, slots, pairs, tile_x, tile_y, s, partials, v_background);
  }
  return replay<CH, kNoDepth>(records, slots, pairs, tile_x, tile_y, s, partials, v_background);
}

void replay_tile(const Record* records, const Slots* slots, const Pair* pairs, int64_t tile_x, int64_t tile_y,
                 const TileSource& s, float* partials, float* v_background) {
  switch (s.num_channels) {
    case 1: return replay_mode<1>(records, slots, pairs, tile_x, tile_y, s, partials, v_background);
    case 2: return replay_mode<2>(records, slots, pairs, tile_x, tile_y, s, partials, v_background);
    case 3: return replay_mode<3>(records, slots, pairs, tile_x, tile_y, s, partials, v_background);
    default: return replay_mode<4>(records, slots, pairs, tile_x, tile_y, s, partials, v_background);
  }
}

// Gradient of the colours of one record; with spherical harmonics also of the mean and the camera centre, by the direction.
void color_backward(const RasterizeArgs& args, const BackwardArgs& grads, const Camera& camera, int64_t gaussian,
                    int64_t color_row, const float* v_color, float* v_mean, float* v_position) {
  float* v_target = grads.colors + color_row * args.color_size;
  if (args.sh_degree < 0) {
    for (int64_t k = 0; k < args.color_size; ++k) v_target[k] += v_color[k];
    return;
  }
  const float* mean = args.means + 3 * gaussian;
  float v_direction[3];
  sh_color_backward(args.sh_degree, mean[0] - camera.position[0], mean[1] - camera.position[1],
                    mean[2] - camera.position[2], args.colors + color_row * args.color_size, v_color, v_target, v_direction);
  for (int k = 0; k < 3; ++k) {
    v_mean[k] += v_direction[k];
    v_position[k] -= v_direction[k];
  }
}

void project_records(const RasterizeArgs& args, const BackwardArgs& grads, const Scene& scene, int64_t scene_index,
                     int64_t view_index, const uint32_t* ids, const RecordGradient* records, const float* v_colors,
                     int64_t begin, int64_t end, float* v_covars, float* v_camera) {
  const int64_t view = scene_index * args.num_views + view_index, row = scene_index * scene.count;
  const int64_t color_row = args.colors_per_view ? view * scene.count : row;
  const Camera camera =
      make_camera(args.viewmats + 16 * view, args.Ks + 9 * view, (float)args.width, (float)args.height);
  const bool has_depth = args.depth_mode != kNoDepth;
  CameraGradient<f8> sums{};
  float* v_position = v_camera + 16;
  for (int64_t base = begin; base < end; base += 8) {
    const int lanes = (int)(end - base < 8 ? end - base : 8);
    alignas(32) float in[10][8], moments[kMoments][8], depth[8];
    for (int i = 0; i < 8; ++i) {  // lanes to spare repeat the last record without a gradient
      const int64_t record = base + (i < lanes ? i : lanes - 1), id = ids[record];
      for (int k = 0; k < 10; ++k) in[k][i] = scene.array(k)[id];
      for (int k = 0; k < kMoments; ++k) moments[k][i] = i < lanes ? records[record].moments[k] : 0.0f;
      depth[i] = has_depth && i < lanes ? v_colors[(record + 1) * args.channels - 1] : 0.0f;
    }
    f8 v[10], m[kMoments];
    for (int k = 0; k < 10; ++k) v[k] = f8_load(in[k]);
    for (int k = 0; k < kMoments; ++k) m[k] = f8_load(moments[k]);
    const GaussianGradient<f8> g = project_backward(
        v[0], v[1], v[2], Covariance3<f8>{v[3], v[4], v[5], v[6], v[7], v[8]}, v[9], camera, args.eps2d,
        args.antialiased != 0, args.compensation_floor, SplatMoments<f8>{m[0], m[1], m[2], m[3], m[4], m[5]},
        f8_load(depth), grads.means2d != nullptr, sums);
    const f8 results[12] = {g.x, g.y, g.z, g.s.xx, g.s.xy, g.s.xz, g.s.yy, g.s.yz, g.s.zz, g.opacity, g.mean_x, g.mean_y};
    alignas(32) float out[12][8];
    for (int k = 0; k < 12; ++k) f8_store(out[k], results[k]);
    for (int i = 0; i < lanes; ++i) {
      const int64_t id = ids[base + i];
      float* v_mean = grads.means + 3 * (row + id);
      for (int k = 0; k < 3; ++k) v_mean[k] += out[k][i];
      for (int k = 0; k < 6; ++k) v_covars[6 * id + k] += out[3 + k][i];
      grads.opacities[row + id] += out[9][i];
      if (grads.means2d != nullptr) {
        for (int k = 0; k < 2; ++k) grads.means2d[2 * (view * scene.count + id) + k] = out[10 + k][i];
      }
      if (grads.colors != nullptr) {
        color_backward(args, grads, camera, row + id, color_row + id, v_colors + (base + i) * args.channels, v_mean,
                       v_position);
      }
    }
  }
  const f8 values[16] = {sums.r[0], sums.r[1], sums.r[2], sums.r[3], sums.r[4], sums.r[5], sums.r[6], sums.r[7],
                         sums.r[8], sums.t[0], sums.t[1], sums.t[2], sums.fx,   sums.fy,   sums.cx,   sums.cy};
  for (int half = 0; half < 2; ++half) f8_store(v_camera + 8 * half, sum_each(values + 8 * half));
}

void finish(const RasterizeArgs& args, const BackwardArgs& grads, const Scene& scene, int64_t scene_index,
            const float* v_covars, int64_t begin, int64_t end) {
  const int64_t row = scene_index * scene.count;
  const float* opacity = scene.array(9);
  for (int64_t base = begin; base < end; base += 8) {
    const int lanes = (int)(end - base < 8 ? end - base : 8);
    alignas(32) float in[13][8] = {};
    for (int i = 0; i < lanes; ++i) {
      const int64_t g = row + base + i;
      for (int k = 0; k < 4; ++k) in[k][i] = args.quats[4 * g + k];
      for (int k = 0; k < 3; ++k) in[4 + k][i] = args.scales[3 * g + k];
      for (int k = 0; k < 6; ++k) in[7 + k][i] = v_covars[6 * (base + i) + k];
    }
    f8 v[13], v_quat[4], v_scale[3];
    for (int k = 0; k < 13; ++k) v[k] = f8_load(in[k]);
    covariance_world_backward(v[0], v[1], v[2], v[3], v[4], v[5], v[6],
                              Covariance3<f8>{v[7], v[8], v[9], v[10], v[11], v[12]}, v_quat, v_scale);
    alignas(32) float out[7][8];
    for (int k = 0; k < 4; ++k) f8_store(out[k], v_quat[k]);
    for (int k = 0; k < 3; ++k) f8_store(out[4 + k], v_scale[k]);
    for (int i = 0; i < lanes; ++i) {
      if (opacity[base + i] != opacity[base + i]) continue;  // invalid: no gradient
      for (int k = 0; k < 4; ++k) grads.quats[4 * (row + base + i) + k] = out[k][i];
      for (int k = 0; k < 3; ++k) grads.scales[3 * (row + base + i) + k] = out[4 + k][i];
    }
  }
}

const BackwardKernels kKernels = {replay_tile, project_records, finish};

}  // namespace

const BackwardKernels* WR_ISA_NAME(rasterize_backward_kernels)() { return &kKernels; }

}  // namespace worldr1
