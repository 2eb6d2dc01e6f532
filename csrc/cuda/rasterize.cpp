// Driver of the tiled rasterizer: capacities, workspace, and the order of the stages. Host code that never waits for a device.
#include "rasterize.h"

#include <algorithm>
#include <numeric>

namespace worldr1 {
namespace tiled {
namespace {

constexpr size_t kAlignment = 256;
constexpr int64_t kMaxItems = 0x7ffffffe;      // of one chunk's sort: indices are 32 bits wide
constexpr int64_t kSmallPairs = 1 << 20;       // pairs of a view that are always worth having room for

int bit_width(uint64_t x) {
  int bits = 0;
  for (; x; x >>= 1) ++bits;
  return bits;
}

// Hands out parts of the workspace, with a gap after each. With a null base it only measures.
class Arena {
 public:
  explicit Arena(void* base = nullptr) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(size_t count) {
    const size_t begin = used_, end = begin + count * sizeof(T);
    used_ = (end / kAlignment + 2) * kAlignment;
    gaps_.emplace_back(end, used_);
    return base_ ? reinterpret_cast<T*>(base_ + begin) : nullptr;
  }
  size_t used() const { return used_; }
  const std::vector<std::pair<size_t, size_t>>& gaps() const { return gaps_; }

 private:
  char* base_;
  size_t used_ = 0;
  std::vector<std::pair<size_t, size_t>> gaps_;
};

// Points a chunk at its parts of memory. With null parts it only measures; what the sorts and sums need comes last in kLists.
std::array<Arena, kParts> lay_out(const Sizes& s, const Parts& parts, Chunk& c, ChunkGradients& d) {
  std::array<Arena, kParts> arenas;
  for (int p = 0; p < kParts; ++p) arenas[p] = Arena(parts[p]);
  const size_t n = (size_t)s.gaussians, splats = (size_t)s.splats, pairs = (size_t)s.pairs, tiles = (size_t)s.tiles();
  Arena& kept_splats = arenas[kKeptSplats];
  c.counters = kept_splats.take<Counters>(1);
  if (s.for_backward) {
    c.keep = kept_splats.take<uint32_t>(n);
    c.block_starts = kept_splats.take<uint32_t>((size_t)s.blocks());
  }
  const size_t most = (size_t)s.most();
  c.records = kept_splats.take<SplatRecord>(most);
  c.tiles = kept_splats.take<TileSpan>(most);
  if (s.channels > kRecordChannels) c.origins = kept_splats.take<Origin>(most);
  c.sums = arenas[kSplats].take<unsigned long long>((size_t)s.blocks());
  c.keys[0] = arenas[kSplats].take<uint32_t>(most + 1);
  c.slots[0] = arenas[kSplats].take<uint32_t>(most);
  c.pair_slots[0] = arenas[kPairs0].take<uint32_t>(pairs);
  c.pair_slots[1] = arenas[kPairs1].take<uint32_t>(pairs);
  c.ranges = arenas[kKeptLists].take<uint32_t>(2 * tiles);
  if (s.for_backward) c.first_pair = arenas[kKeptLists].take<uint32_t>(splats);
  c.keys[1] = arenas[kLists].take<uint32_t>(splats + 1);
  c.slots[1] = arenas[kLists].take<uint32_t>(splats);
  for (int i = 0; i < 2; ++i) c.tile_keys[i] = arenas[kLists].take<char>(pairs * (s.small_keys() ? 2 : 4));
  if (s.for_backward) {
    d.partials = arenas[kGradients].take<float>(pairs * kSums);
    d.ends = arenas[kGradients].take<uint32_t>(tiles);
    d.sums = arenas[kGradients].take<float>(splats * (size_t)(kMoments + s.channels));
    d.cameras = arenas[kGradients].take<float>((size_t)(s.views * s.blocks()) * kCameraValues);
  }
  c.temp = parts[kLists] ? static_cast<char*>(parts[kLists]) + arenas[kLists].used() : nullptr;
  return arenas;
}

// Points a chunk at its views of a scene.
void set_views(const Args& args, const Sizes& sizes, const Views& views, Chunk& c) {
  const int64_t n = args.num_gaussians, scene = views.scene, view = scene * args.num_views + views.first;
  const int64_t pixels = (int64_t)args.limits.width * args.limits.height;
  c.means = args.means + scene * n * 3;
  c.quats = args.covars ? nullptr : args.quats + scene * n * 4;
  c.scales = args.covars ? nullptr : args.scales + scene * n * 3;
  c.covars = args.covars ? args.covars + scene * n * 6 : nullptr;
  c.opacities = args.opacities + scene * n;
  c.color_size = args.color_size;
  c.color_view_stride = args.colors_per_view ? n * args.color_size : 0;
  c.colors = args.colors ? args.colors + (args.colors_per_view ? view : scene) * n * args.color_size : nullptr;
  c.viewmats = args.viewmats + view * 16;
  c.Ks = args.Ks + view * 9;
  c.backgrounds = args.backgrounds ? args.backgrounds + view * args.channels : nullptr;
  c.render_colors = args.render_colors + view * pixels * args.channels;
  c.render_alphas = args.render_alphas + view * pixels;
  c.transmittance = args.transmittance ? args.transmittance + view * pixels : nullptr;
  c.last = args.last + view * pixels;
  // With shared colours the first views of a scene count for all.
  if (views.first == 0 || args.colors_per_view) {
    c.num_invalid = reinterpret_cast<unsigned long long*>(args.num_invalid) + (args.colors_per_view ? view : scene);
  }
  c.overflow = args.overflow + view;
  c.num_gaussians = n;
  c.channels = args.channels;
  c.limits = args.limits;
  c.num_views = (int)sizes.views;
  c.sh_degree = args.sh_degree;
  c.depth_mode = args.depth_mode;
  c.colors_per_view = args.colors_per_view;
  c.max_alpha = args.max_alpha;
  c.tiles_x = (uint32_t)sizes.tiles_x;
  c.tiles_y = (uint32_t)sizes.tiles_y;
  c.num_blocks = (uint32_t)sizes.blocks();
  c.splat_capacity = (uint32_t)sizes.splats;
  c.pair_capacity = (uint32_t)sizes.pairs;
  c.small_keys = sizes.small_keys();
  c.is_exact = sizes.is_exact;
}

void set_gradients(const Args& args, const BackwardArgs& grads, const Views& views, ChunkGradients& d) {
  const int64_t n = args.num_gaussians, scene = views.scene, view = scene * args.num_views + views.first;
  const int64_t pixels = (int64_t)args.limits.width * args.limits.height;
  d.transmittance = grads.transmittance + view * pixels;
  d.last = grads.last + view * pixels;
  d.render_colors = grads.render_colors ? grads.render_colors + view * pixels * args.channels : nullptr;
  d.grad_colors = grads.grad_colors ? grads.grad_colors + view * pixels * args.channels : nullptr;
  d.grad_alphas = grads.grad_alphas ? grads.grad_alphas + view * pixels : nullptr;
  d.adds = views.first > 0;
  d.means = grads.means + scene * n * 3;
  d.quats = grads.quats ? grads.quats + scene * n * 4 : nullptr;
  d.scales = grads.scales ? grads.scales + scene * n * 3 : nullptr;
  d.covars = grads.covars ? grads.covars + scene * n * 6 : nullptr;
  d.opacities = grads.opacities + scene * n;
  d.colors = grads.colors ? grads.colors + (args.colors_per_view ? view : scene) * n * args.color_size : nullptr;
  d.viewmats = grads.viewmats + view * 16;
  d.Ks = grads.Ks + view * 9;
  d.means2d = grads.means2d ? grads.means2d + view * n * 2 : nullptr;
}

// Runs what comes after `status` only if it is 0.
#define WR_TRY(call)                    \
  do {                                  \
    const int wr_status = (call);       \
    if (wr_status != 0) return wr_status; \
  } while (0)

// The order of the splats by depth.
int sort_splats(Chunk& c, void* stream) {
  int result = 0;
  WR_TRY(sort_u32(c.temp, c.temp_bytes, c.keys, c.slots, c.splat_capacity, 32, &result, stream));
  c.sorted_slots = c.slots[result];
  c.pair_counts = c.keys[0];  // depths are not needed any more
  c.pair_starts = c.keys[1];
  return 0;
}

// Lists of splats per (view, tile), nearest first: emitted in depth order, then sorted stably.
int build_tile_lists(Chunk& c, int* sorted, void* stream) {
  const uint64_t tiles = (uint64_t)c.num_views * c.tiles_x * c.tiles_y;
  WR_TRY(count_pairs(c, stream));
  WR_TRY(exclusive_sum(c.temp, c.temp_bytes, c.pair_counts, c.pair_starts, (int64_t)c.splat_capacity + 1, stream));
  if (!c.is_exact) WR_TRY(fill_bytes(c.tile_keys[0], 0xff, (size_t)c.pair_capacity * (c.small_keys ? 2 : 4), stream));
  WR_TRY(emit_pairs(c, stream));
  // As many bits as hold `tiles`, one more than the largest key: all ones, where no pair was written, come last.
  const int bits = bit_width(tiles);
  int result = 0;
  if (c.small_keys) {
    uint16_t* const keys[2] = {static_cast<uint16_t*>(c.tile_keys[0]), static_cast<uint16_t*>(c.tile_keys[1])};
    WR_TRY(sort_u16(c.temp, c.temp_bytes, keys, c.pair_slots, c.pair_capacity, bits, &result, stream));
  } else {
    uint32_t* const keys[2] = {static_cast<uint32_t*>(c.tile_keys[0]), static_cast<uint32_t*>(c.tile_keys[1])};
    WR_TRY(sort_u32(c.temp, c.temp_bytes, keys, c.pair_slots, c.pair_capacity, bits, &result, stream));
  }
  c.sorted_tiles = c.tile_keys[result];
  c.sorted_pairs = c.pair_slots[result];
  *sorted = result;
  WR_TRY(fill_bytes(c.ranges, 0, (size_t)tiles * 2 * sizeof(uint32_t), stream));
  return find_ranges(c, stream);
}

// Runs `use`(pass) for channels by fours, with the records holding their colours.
template <class Use>
int over_passes(const Chunk& c, void* stream, Use use) {
  for (int64_t first = 0; first < c.channels; first += kRecordChannels) {
    const int count = (int)std::min<int64_t>(kRecordChannels, c.channels - first);
    const Pass pass = {first, count, first == 0, first + count == c.channels ? c.depth_mode : kNoDepth};
    if (c.origins != nullptr) WR_TRY(fill_colors(c, pass, stream));
    WR_TRY(use(pass));
  }
  return 0;
}

}  // namespace

Plan make_plan(const Sizes& one_view, int64_t num_views, double pairs_per_gaussian, int64_t memory_budget) {
  const int64_t n = one_view.gaussians, tiles = one_view.tiles_x * one_view.tiles_y;
  // Exact where the worst case is small: then nothing can overflow.
  const double worst = (double)n * (double)tiles;
  const double wanted = std::max((double)kSmallPairs, (double)n * pairs_per_gaussian);
  Plan plan{};
  plan.pairs_per_view = (int64_t)std::min(std::min(worst, wanted), (double)kMaxItems);
  // Keys of 16 bits where one view's tiles allow them: the tile sort then moves less.
  const int64_t most_tiles = tiles <= 0xffff ? 0xffff : 0x7fffffff;
  const int64_t most_items = kMaxItems / std::max({n, plan.pairs_per_view, (int64_t)1});
  const int64_t most = std::min({(int64_t)kMaxViews, num_views, most_tiles / tiles, most_items});
  plan.views_per_chunk = std::max<int64_t>(most, 1);
  Sizes sizes = one_view;
  for (;; --plan.views_per_chunk) {
    sizes.views = plan.views_per_chunk;
    sizes.splats = sizes.most();
    sizes.pairs = plan.pairs_per_view * sizes.views;
    const auto bytes = part_bytes(sizes);
    if (plan.views_per_chunk == 1 || std::accumulate(bytes.begin(), bytes.end(), size_t{0}) <= (size_t)memory_budget) return plan;
  }
}

std::array<size_t, kParts> part_bytes(const Sizes& sizes) {
  Chunk chunk{};
  ChunkGradients gradients{};
  const auto arenas = lay_out(sizes, Parts{}, chunk, gradients);
  std::array<size_t, kParts> bytes;
  for (int p = 0; p < kParts; ++p) bytes[p] = arenas[p].used();
  if (sizes.splats > 0) bytes[kLists] += primitive_bytes(sizes.splats, sizes.pairs, sizes.splats + 1, sizes.small_keys());
  return bytes;
}

std::vector<std::pair<size_t, size_t>> part_gaps(const Sizes& sizes, Part part) {
  Chunk chunk{};
  ChunkGradients gradients{};
  return lay_out(sizes, Parts{}, chunk, gradients)[part].gaps();
}

int prepare(const Args& args, const Sizes& sizes, const Views& views, const Parts& parts, Counters** counters, void* stream) {
  Chunk chunk{};
  ChunkGradients gradients{};
  lay_out(sizes, parts, chunk, gradients);
  set_views(args, sizes, views, chunk);
  *counters = chunk.counters;
  WR_TRY(fill_bytes(chunk.counters, 0, sizeof(Counters), stream));
  WR_TRY(fill_bytes(chunk.sums, 0, chunk.num_blocks * sizeof(*chunk.sums), stream));
  // Not by the caller: the views of a chunk that turned out too large are prepared again, with fewer beside them.
  if (chunk.num_invalid != nullptr) {
    const size_t counters = args.colors_per_view ? (size_t)sizes.views : 1;
    WR_TRY(fill_bytes(chunk.num_invalid, 0, counters * sizeof(*chunk.num_invalid), stream));
  }
  // Slots without a splat keep the largest key and sort to the end.
  if (!sizes.is_exact) WR_TRY(fill_bytes(chunk.keys[0], 0xff, (size_t)sizes.most() * sizeof(uint32_t), stream));
  return project(chunk, stream);
}

int finish(const Args& args, const Sizes& sizes, const Views& views, bool has_images, const Parts& parts, size_t list_bytes,
           int* sorted, void* stream) {
  Chunk chunk{};
  ChunkGradients gradients{};
  chunk.temp_bytes = list_bytes - lay_out(sizes, parts, chunk, gradients)[kLists].used();
  set_views(args, sizes, views, chunk);
  *sorted = 0;
  if (sizes.splats == 0) {  // nothing to sort, and no memory for it
    WR_TRY(fill_bytes(chunk.ranges, 0, (size_t)sizes.tiles() * 2 * sizeof(uint32_t), stream));
  } else {
    WR_TRY(sort_splats(chunk, stream));
    WR_TRY(build_tile_lists(chunk, sorted, stream));
  }
  if (!has_images) return 0;
  return over_passes(chunk, stream, [&](const Pass& pass) { return blend(chunk, pass, stream); });
}

int backward(const Args& args, const BackwardArgs& grads, const Sizes& sizes, const Views& views, const Parts& parts,
             void* stream) {
  Chunk chunk{};
  ChunkGradients gradients{};
  lay_out(sizes, parts, chunk, gradients);
  set_views(args, sizes, views, chunk);
  set_gradients(args, grads, views, gradients);
  chunk.sorted_pairs = chunk.pair_slots[0];
  WR_TRY(over_passes(chunk, stream, [&](const Pass& pass) {
    WR_TRY(replay(chunk, gradients, pass, stream));
    return sum_partials(chunk, gradients, pass, stream);
  }));
  WR_TRY(project_gradients(chunk, gradients, stream));
  return camera_gradients(chunk, gradients, stream);
}

#undef WR_TRY

}  // namespace tiled
}  // namespace worldr1
