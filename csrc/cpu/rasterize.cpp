// Driver of the CPU rasterizer: buffers, depth order, tile lists, threads. The arithmetic is in rasterize_simd.cpp.
#include "rasterize.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "thread_pool.h"

namespace worldr1 {
namespace {

// Uninitialised storage that only grows: one worker reuses it from view to view.
template <class T>
class Buffer {
 public:
  T* need(int64_t count) {
    if (count > capacity_) {
      capacity_ = count + count / 4;
      data_.reset(new T[(size_t)capacity_]);
    }
    return data_.get();
  }
  T* data() { return data_.get(); }

 private:
  std::unique_ptr<T[]> data_;
  int64_t capacity_ = 0;
};

struct Workspace {
  Buffer<float> scene;
  Buffer<Record> records;
  Buffer<Bounds> bounds;
  Buffer<uint32_t> ids;
  Buffer<uint64_t> keys, keys_other;  // depth bits << 32 | record
  Buffer<int64_t> offsets;            // [tiles + 1]
  Buffer<Pair> pairs;
  Buffer<uint8_t> color_bad;
};

// Bits of a float in an order that unsigned comparison respects, negative numbers included.
uint32_t sortable(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits ^ ((bits >> 31) ? 0xffffffffu : 0x80000000u);
}

// Stable sort by the upper 32 bits; the result is in `keys` or `other`, the one returned. Three passes of 11 bits.
uint64_t* sort_by_depth(uint64_t* keys, uint64_t* other, int64_t count) {
  if (count < 256) {
    std::sort(keys, keys + count);  // the record number in the low bits makes it stable
    return keys;
  }
  constexpr int kBits = 11, kPasses = 3, kBins = 1 << kBits;
  std::vector<int64_t> histogram((size_t)kPasses * kBins, 0);
  for (int64_t i = 0; i < count; ++i) {
    for (int p = 0; p < kPasses; ++p) ++histogram[(size_t)(p * kBins) + ((keys[i] >> (32 + p * kBits)) & (kBins - 1))];
  }
  for (int p = 0; p < kPasses; ++p) {
    int64_t* bins = histogram.data() + p * kBins;
    if (bins[(keys[0] >> (32 + p * kBits)) & (kBins - 1)] == count) continue;  // one digit throughout
    int64_t sum = 0;
    for (int b = 0; b < kBins; ++b) {
      const int64_t n = bins[b];
      bins[b] = sum;
      sum += n;
    }
    for (int64_t i = 0; i < count; ++i) other[bins[(keys[i] >> (32 + p * kBits)) & (kBins - 1)]++] = keys[i];
    std::swap(keys, other);
  }
  return keys;
}

// Marks Gaussians with a colour that is not finite. Returns null when there are none.
const uint8_t* find_bad_colors(const float* colors, int64_t count, int64_t size, Buffer<uint8_t>& buffer) {
  // All exponent bits set means infinity or NaN; in integers, so that the compiler vectorises it.
  const int64_t total = count * size;
  uint32_t any = 0;
  for (int64_t i = 0; i < total; ++i) {
    uint32_t bits;
    std::memcpy(&bits, colors + i, sizeof(bits));
    any |= (uint32_t)((bits & 0x7f800000u) == 0x7f800000u);
  }
  if (any == 0) return nullptr;
  uint8_t* bad = buffer.need(count);
  for (int64_t g = 0; g < count; ++g) {
    bool finite = true;
    for (int64_t k = 0; k < size; ++k) finite = finite && std::isfinite(colors[g * size + k]);
    bad[g] = !finite;
  }
  return bad;
}

// Copies channels [first, first + count) of the kept Gaussians into their records, depth last.
void fill_colors(const RasterizeArgs& args, int64_t color_row, int64_t first, int count, int64_t kept, Workspace& w) {
  const int64_t depth_channel = args.depth_mode ? args.channels - 1 : args.channels;
  Record* records = w.records.data();
  const uint32_t* ids = w.ids.data();
  if (args.sh_degree >= 0) return;  // the projection has written red, green, blue, depth
  for (int c = 0; c < count; ++c) {
    const int64_t channel = first + c;
    if (channel == depth_channel) {
      for (int64_t i = 0; i < kept; ++i) records[i].color[c] = records[i].depth;
    } else {
      const float* source = args.colors + color_row * args.color_size + channel;
      for (int64_t i = 0; i < kept; ++i) records[i].color[c] = source[(int64_t)ids[i] * args.color_size];
    }
  }
}

// Lists of (record, rows) per tile, in depth order within a tile. offsets: [tiles + 1].
void build_tile_lists(int64_t kept, int64_t tiles_x, int64_t tiles_y, Workspace& w) {
  const Bounds* bounds = w.bounds.data();
  int64_t* offsets = w.offsets.need(tiles_x * tiles_y + 2);
  std::fill(offsets, offsets + tiles_x * tiles_y + 2, 0);
  int64_t* counts = offsets + 2;  // shifted by two: the scatter below then leaves the starts in place
  for (int64_t i = 0; i < kept; ++i) {
    const Bounds b = bounds[i];
    for (int64_t ty = b.y0 / kTile; ty <= b.y1 / kTile; ++ty) {
      for (int64_t tx = b.x0 / kTile; tx <= b.x1 / kTile; ++tx) {
        ++counts[ty * tiles_x + tx];
      }
    }
  }
  for (int64_t t = 2; t < tiles_x * tiles_y + 2; ++t) offsets[t] += offsets[t - 1];
  Pair* pairs = w.pairs.need(offsets[tiles_x * tiles_y + 1]);
  uint64_t* keys = w.keys.need(kept);
  const Record* records = w.records.data();
  for (int64_t i = 0; i < kept; ++i) keys[i] = ((uint64_t)sortable(records[i].depth) << 32) | (uint64_t)i;
  const uint64_t* order = sort_by_depth(keys, w.keys_other.need(kept), kept);
  int64_t* cursor = offsets + 1;
  for (int64_t k = 0; k < kept; ++k) {
    const uint32_t i = (uint32_t)order[k];
    const Bounds b = bounds[i];
    for (int64_t ty = b.y0 / kTile; ty <= b.y1 / kTile; ++ty) {
      const int first = std::max(b.y0 - (int32_t)ty * kTile, 0), last = std::min(b.y1 - (int32_t)ty * kTile, kTile - 1);
      const uint32_t rows = (0xffu >> (kTile - 1 - last)) & (0xffu << first);
      for (int64_t tx = b.x0 / kTile; tx <= b.x1 / kTile; ++tx) pairs[cursor[ty * tiles_x + tx]++] = {i, rows};
    }
  }
}

void render_view(const RasterizeArgs& args, const Kernels& kernels, const Scene& scene, int64_t scene_index,
                 int64_t view_index, int threads, Workspace& w) {
  const int64_t view = scene_index * args.num_views + view_index;
  const int64_t color_row = (args.colors_per_view ? view : scene_index) * scene.count;
  const uint8_t* color_bad = nullptr;
  if (args.colors_per_view && args.color_size > 0) {
    color_bad = find_bad_colors(args.colors + color_row * args.color_size, scene.count, args.color_size, w.color_bad);
    if (color_bad != nullptr) {
      const float* opacity = scene.array(9);  // NaN where the geometry was found invalid, which is counted already
      for (int64_t g = 0; g < scene.count; ++g) args.num_invalid[view] += color_bad[g] && opacity[g] == opacity[g];
    }
  }
  const ProjectTarget target = {w.records.need(scene.padded), w.bounds.need(scene.padded), w.ids.need(scene.padded)};
  const int64_t kept = kernels.project(args, scene, scene_index, view_index, color_bad, target);
  const int64_t tiles_x = (args.width + kTile - 1) / kTile, tiles_y = (args.height + kTile - 1) / kTile;
  build_tile_lists(kept, tiles_x, tiles_y, w);
  const int64_t* offsets = w.offsets.data();
  const int64_t pixels = args.width * args.height;
  int64_t first = 0;
  do {
    const int count = (int)std::min<int64_t>(kPassChannels, args.channels - first);
    fill_colors(args, color_row, first, count, kept, w);
    const TileTarget tile_target = {args.render_colors + view * pixels * args.channels,
                                    args.render_alphas + view * pixels,
                                    args.backgrounds ? args.backgrounds + view * args.channels : nullptr,
                                    args.width,
                                    args.height,
                                    args.channels,
                                    first,
                                    count,
                                    first == 0,
                                    args.depth_mode == 2 && first + count == args.channels,
                                    args.max_alpha};
    const Record* records = w.records.data();
    const Pair* pairs = w.pairs.data();
    parallel_for(tiles_y, threads, [&](int64_t ty, int) {
      for (int64_t tx = 0; tx < tiles_x; ++tx) {
        const int64_t tile = ty * tiles_x + tx;
        kernels.blend_tile(records, pairs + offsets[tile], pairs + offsets[tile + 1], tx, ty, tile_target);
      }
    });
    first += count;
  } while (first < args.channels);
}

// Prepares a scene; adds what is invalid in all of its views to num_invalid.
void prepare_scene(const RasterizeArgs& args, const Kernels& kernels, int64_t scene_index, int threads, Scene& scene,
                   Workspace& w) {
  scene.count = args.num_gaussians;
  scene.padded = (scene.count + 7) / 8 * 8;
  scene.data = w.scene.need(scene.padded * kSceneArrays);
  const uint8_t* color_bad = nullptr;
  if (!args.colors_per_view && args.color_size > 0) {
    color_bad = find_bad_colors(args.colors + scene_index * scene.count * args.color_size, scene.count, args.color_size,
                                w.color_bad);
  }
  constexpr int64_t kChunk = 8192;
  std::atomic<int64_t> invalid{0};
  parallel_for((scene.count + kChunk - 1) / kChunk, threads, [&](int64_t chunk, int) {
    const int64_t begin = chunk * kChunk, end = std::min(begin + kChunk, scene.count);
    invalid += kernels.prepare(args, scene_index, color_bad, scene, begin, end);
  });
  int64_t* counts = args.num_invalid + scene_index * args.num_views;
  std::fill(counts, counts + args.num_views, invalid.load());
}

}  // namespace

void rasterize(const RasterizeArgs& args, const char* level) {
  constexpr const Kernels* (*table[])() = WR_ISA_TABLE(rasterize_kernels);
  const Kernels& kernels = *table[choose_isa(level)]();
  const int threads = std::max(args.num_threads, 1);
  // Coarsest first: whole scenes need no hand-over between threads, views share one prepared scene, tiles are the last resort.
  if (args.num_scenes >= threads) {
    std::vector<Workspace> workspaces((size_t)threads);
    parallel_for(args.num_scenes, threads, [&](int64_t scene_index, int worker) {
      Workspace& w = workspaces[(size_t)worker];
      Scene scene;
      prepare_scene(args, kernels, scene_index, 1, scene, w);
      for (int64_t v = 0; v < args.num_views; ++v) render_view(args, kernels, scene, scene_index, v, 1, w);
    });
    return;
  }
  const bool views_in_parallel = args.num_views >= threads;
  std::vector<Workspace> workspaces((size_t)(views_in_parallel ? threads : 1));
  Workspace shared;
  for (int64_t s = 0; s < args.num_scenes; ++s) {
    Scene scene;
    prepare_scene(args, kernels, s, threads, scene, shared);
    const int view_threads = views_in_parallel ? 1 : threads;
    parallel_for(args.num_views, views_in_parallel ? threads : 1, [&](int64_t v, int worker) {
      render_view(args, kernels, scene, s, v, view_threads, workspaces[(size_t)worker]);
    });
  }
}

}  // namespace worldr1
