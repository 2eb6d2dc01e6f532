#include "rasterize_view.h"

#include <atomic>
#include <cmath>
#include <cstring>
#include <mutex>
#include <new>
#include <vector>

#include "thread_pool.h"

namespace worldr1 {
namespace {

constexpr int64_t kKeptBytes = 64 << 20;

struct Block {
  void* data;
  int64_t bytes;
};

// The mutex is only tried: after a fork it may stay locked for ever.
struct BlockCache {
  std::mutex mutex;
  std::vector<Block> blocks;
  int64_t bytes = 0;
};

// Leaked on purpose, like the thread pool: threads may outlive static objects.
BlockCache& cache = *new BlockCache;

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
  std::vector<uint32_t> histogram((size_t)kPasses * kBins, 0);  // 24 KB stay in the nearest cache; count < 2^31
  for (int64_t i = 0; i < count; ++i) {
    for (int p = 0; p < kPasses; ++p) ++histogram[(size_t)(p * kBins) + ((keys[i] >> (32 + p * kBits)) & (kBins - 1))];
  }
  for (int p = 0; p < kPasses; ++p) {
    uint32_t* bins = histogram.data() + p * kBins;
    if (bins[(keys[0] >> (32 + p * kBits)) & (kBins - 1)] == count) continue;  // one digit throughout
    uint32_t sum = 0;
    for (int b = 0; b < kBins; ++b) {
      const uint32_t n = bins[b];
      bins[b] = sum;
      sum += n;
    }
    for (int64_t i = 0; i < count; ++i) other[bins[(keys[i] >> (32 + p * kBits)) & (kBins - 1)]++] = keys[i];
    std::swap(keys, other);
  }
  return keys;
}

// Marks those of the Gaussians [begin, end) with a colour that is not finite. Returns null when there are none.
const uint8_t* find_bad_colors(const float* colors, int64_t begin, int64_t end, int64_t size, uint8_t* bad) {
  // All exponent bits set means infinity or NaN; in integers, so that the compiler vectorises it.
  uint32_t any = 0;
  for (int64_t i = begin * size; i < end * size; ++i) {
    uint32_t bits;
    std::memcpy(&bits, colors + i, sizeof(bits));
    any |= (uint32_t)((bits & 0x7f800000u) == 0x7f800000u);
  }
  if (any == 0) return nullptr;
  for (int64_t g = begin; g < end; ++g) {
    bool finite = true;
    for (int64_t k = 0; k < size; ++k) finite = finite && std::isfinite(colors[g * size + k]);
    bad[g] = !finite;
  }
  return bad;
}

// Depth order of the records that touch tile rows [top, bottom], and how many of them touch each tile.
void sort_band(int64_t num_chunks, TileGrid tiles, int64_t top, int64_t bottom, const Workspace& w, Band& band,
               int64_t* counts) {
  const Bounds* bounds = w.bounds.data();
  const Record* records = w.records.data();
  const auto is_inside = [&](const Bounds& b) { return b.y1 / kTile >= top && b.y0 / kTile <= bottom; };
  band.count = 0;
  for_all_records(w, num_chunks, [&](int64_t i) { band.count += is_inside(bounds[i]); });
  uint64_t* keys = band.keys.need(band.count);
  int64_t next = 0;
  for_all_records(w, num_chunks, [&](int64_t i) {
    const Bounds b = bounds[i];
    if (!is_inside(b)) return;
    keys[next++] = ((uint64_t)sortable(records[i].depth) << 32) | (uint64_t)i;
    const int64_t end = std::min<int64_t>(b.y1 / kTile, bottom);
    for (int64_t ty = std::max<int64_t>(b.y0 / kTile, top); ty <= end; ++ty) {
      for (int64_t tx = b.x0 / kTile; tx <= b.x1 / kTile; ++tx) ++counts[ty * tiles.x + tx];
    }
  });
  band.order = sort_by_depth(keys, band.other.need(band.count), band.count);
}

// Appends the records of a band to the lists of its tiles. `cursor` is where each list goes on.
void scatter_band(TileGrid tiles, int64_t top, int64_t bottom, const Workspace& w, const Band& band, int64_t* cursor,
                  Pair* pairs) {
  const Bounds* bounds = w.bounds.data();
  for (int64_t k = 0; k < band.count; ++k) {
    const uint32_t i = (uint32_t)band.order[k];
    const Bounds b = bounds[i];
    const int64_t end = std::min<int64_t>(b.y1 / kTile, bottom);
    for (int64_t ty = std::max<int64_t>(b.y0 / kTile, top); ty <= end; ++ty) {
      const int first = std::max(b.y0 - (int32_t)ty * kTile, 0), last = std::min(b.y1 - (int32_t)ty * kTile, kTile - 1);
      const uint32_t rows = (0xffu >> (kTile - 1 - last)) & (0xffu << first);
      for (int64_t tx = b.x0 / kTile; tx <= b.x1 / kTile; ++tx) pairs[cursor[ty * tiles.x + tx]++] = {i, rows};
    }
  }
}

// Lists of (record, rows) per tile, in depth order within a tile. Each thread makes those of a band of tile rows.
void build_tile_lists(int64_t num_chunks, TileGrid tiles, int threads, Workspace& w) {
  int64_t* offsets = w.offsets.need(tiles.x * tiles.y + 2);
  std::fill(offsets, offsets + tiles.x * tiles.y + 2, 0);
  const int64_t bands = std::min<int64_t>(threads, tiles.y);
  w.bands.resize((size_t)bands);
  const auto first_row = [&](int64_t band) { return band * tiles.y / bands; };
  // Counts are shifted by two: the scatter then leaves the starts in place.
  parallel_for(bands, threads, [&](int64_t b, int) {
    sort_band(num_chunks, tiles, first_row(b), first_row(b + 1) - 1, w, w.bands[(size_t)b], offsets + 2);
  });
  for (int64_t t = 2; t < tiles.x * tiles.y + 2; ++t) offsets[t] += offsets[t - 1];
  Pair* pairs = w.pairs.need(offsets[tiles.x * tiles.y + 1]);
  parallel_for(bands, threads, [&](int64_t b, int) {
    scatter_band(tiles, first_row(b), first_row(b + 1) - 1, w, w.bands[(size_t)b], offsets + 1, pairs);
  });
}

}  // namespace

void* take_block(int64_t& bytes) {
  std::unique_lock<std::mutex> lock(cache.mutex, std::try_to_lock);
  if (lock.owns_lock()) {
    size_t best = cache.blocks.size();
    for (size_t i = 0; i < cache.blocks.size(); ++i) {
      const int64_t size = cache.blocks[i].bytes;
      if (size < bytes || size / 4 > bytes + 4096) continue;  // too small, or better kept for something larger
      if (best == cache.blocks.size() || size < cache.blocks[best].bytes) best = i;
    }
    if (best != cache.blocks.size()) {
      const Block block = cache.blocks[best];
      cache.blocks[best] = cache.blocks.back();
      cache.blocks.pop_back();
      cache.bytes -= block.bytes;
      bytes = block.bytes;
      return block.data;
    }
    lock.unlock();
  }
  bytes += bytes / 4;
  return ::operator new((size_t)bytes);
}

void give_block(void* block, int64_t bytes) {
  if (block == nullptr) return;
  std::unique_lock<std::mutex> lock(cache.mutex, std::try_to_lock);
  if (!lock.owns_lock() || bytes > kKeptBytes / 4) return ::operator delete(block);
  if (cache.bytes + bytes > kKeptBytes) {  // what is there does not fit today's calls
    for (const Block& old : cache.blocks) ::operator delete(old.data);
    cache.blocks.clear();
    cache.bytes = 0;
  }
  cache.blocks.push_back({block, bytes});
  cache.bytes += bytes;
}

void prepare_scene(const RasterizeArgs& args, const Kernels& kernels, int64_t scene_index, int threads, Scene& scene,
                   Workspace& w) {
  scene.count = args.num_gaussians;
  scene.padded = (scene.count + 7) / 8 * 8;
  scene.data = w.scene.need(scene.padded * kSceneArrays);
  const bool check_colors = !args.colors_per_view && args.color_size > 0;
  const float* colors = args.colors + scene_index * scene.count * args.color_size;
  uint8_t* bad = check_colors ? w.color_bad.need(scene.count) : nullptr;
  std::atomic<int64_t> invalid{0};
  parallel_for(chunks_of(scene.count), threads, [&](int64_t chunk, int) {
    const int64_t begin = chunk * kChunk, end = std::min(begin + kChunk, scene.count);
    const uint8_t* color_bad = check_colors ? find_bad_colors(colors, begin, end, args.color_size, bad) : nullptr;
    const int64_t found = kernels.prepare(args, scene_index, color_bad, scene, begin, end);
    if (found) invalid += found;
  });
  int64_t* counts = args.num_invalid + scene_index * args.num_views;
  std::fill(counts, counts + args.num_views, invalid.load());
}

void prepare_view(const RasterizeArgs& args, const Kernels& kernels, const Scene& scene, int64_t scene_index,
                  int64_t view_index, int threads, Workspace& w) {
  const int64_t row = color_row(args, scene_index, view_index), num_chunks = chunks_of(scene.count);
  const bool check_colors = args.colors_per_view && args.color_size > 0;
  const float* colors = args.colors + row * args.color_size;
  uint8_t* bad = check_colors ? w.color_bad.need(scene.count) : nullptr;
  w.records.need(scene.padded);
  w.bounds.need(scene.padded);
  w.ids.need(scene.padded);
  int64_t* kept = w.kept.need(num_chunks);
  std::atomic<int64_t> invalid{0};
  parallel_for(num_chunks, threads, [&](int64_t chunk, int) {
    const int64_t begin = chunk * kChunk, end = std::min(begin + kChunk, scene.count);
    const uint8_t* color_bad = check_colors ? find_bad_colors(colors, begin, end, args.color_size, bad) : nullptr;
    if (color_bad != nullptr) {
      const float* opacity = scene.array(9);  // NaN where the geometry was found invalid, which is counted already
      for (int64_t g = begin; g < end; ++g) invalid += color_bad[g] && opacity[g] == opacity[g];
    }
    const ProjectTarget target = {w.records.data() + begin, w.bounds.data() + begin, w.ids.data() + begin};
    kept[chunk] = kernels.project(args, scene, scene_index, view_index, color_bad, begin, end, target);
    fill_colors(args, row, 0, chunk, w);
  });
  args.num_invalid[scene_index * args.num_views + view_index] += invalid.load();
  build_tile_lists(num_chunks, tile_grid(args), threads, w);
}

void fill_colors(const RasterizeArgs& args, int64_t row, int64_t first, int64_t chunk, Workspace& w) {
  if (args.sh_degree >= 0) return;  // the projection has written red, green, blue, depth
  const int64_t depth_channel = args.depth_mode ? args.channels - 1 : args.channels;
  Record* records = w.records.data();
  const uint32_t* ids = w.ids.data();
  for (int c = 0; c < pass_channels(args, first); ++c) {
    const int64_t channel = first + c;
    if (channel == depth_channel) {
      for_each_record(w, chunk, [&](int64_t i) { records[i].color[c] = records[i].depth; });
    } else {
      const float* source = args.colors + row * args.color_size + channel;
      for_each_record(w, chunk, [&](int64_t i) { records[i].color[c] = source[(int64_t)ids[i] * args.color_size]; });
    }
  }
}

}  // namespace worldr1
