// Driver of the tiled rasterizer: capacities, workspace, and the order of the stages. Host code that never waits for a device.
#include "rasterize.h"

#include <algorithm>

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
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
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

// Parts of the workspace for chunks of up to plan.views_per_chunk views, all but that of the sorts, which comes last.
void take_workspace(const Plan& plan, Arena& arena, Chunk& c, ChunkGradients& d) {
  const size_t n = (size_t)plan.splats_per_view, splats = (size_t)plan.splats(), pairs = (size_t)plan.pairs();
  const size_t blocks = (size_t)(plan.views_per_chunk * blocks_of(plan.splats_per_view));
  c.valid = arena.take<uint32_t>(n);
  c.keep = arena.take<uint32_t>(n);
  c.block_counts = arena.take<uint32_t>(blocks + 1);
  c.block_starts = arena.take<uint32_t>(blocks + 1);
  c.records = arena.take<SplatRecord>(splats);
  c.gaussians = arena.take<uint32_t>(splats);
  for (int i = 0; i < 2; ++i) {
    c.keys[i] = arena.take<uint32_t>(splats + 1);
    c.slots[i] = arena.take<uint32_t>(splats);
    c.tile_keys[i] = arena.take<char>(pairs * (plan.small_keys() ? 2 : 4));
    c.pair_slots[i] = arena.take<uint32_t>(pairs);
  }
  c.ranges = arena.take<uint32_t>((size_t)(2 * plan.views_per_chunk * plan.tiles_x * plan.tiles_y));
  if (plan.backward_channels == 0) return;
  c.first_pair = arena.take<uint32_t>(splats);
  d.partials = arena.take<float>(pairs * kSums);
  d.sums = arena.take<float>(splats * (size_t)(kMoments + plan.backward_channels));
  d.cameras = arena.take<float>(blocks * kCameraValues);
}

// Points a chunk at views [first, first + count) of a scene.
void set_views(const Args& args, int64_t scene, int64_t first, int64_t count, const Plan& plan, Chunk& c) {
  const int64_t n = args.num_gaussians, view = scene * args.num_views + first;
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
  c.num_invalid = reinterpret_cast<unsigned long long*>(args.num_invalid) + (args.colors_per_view ? view : scene);
  c.overflow = args.overflow + view;
  c.num_gaussians = n;
  c.channels = args.channels;
  c.limits = args.limits;
  c.num_views = (int)count;
  c.sh_degree = args.sh_degree;
  c.depth_mode = args.depth_mode;
  c.colors_per_view = args.colors_per_view;
  c.max_alpha = args.max_alpha;
  c.tiles_x = (uint32_t)plan.tiles_x;
  c.tiles_y = (uint32_t)plan.tiles_y;
  c.num_blocks = (uint32_t)blocks_of(n);
  c.splat_capacity = (uint32_t)(n * count);
  c.pair_capacity = (uint32_t)(plan.pairs_per_view * count);
  c.small_keys = plan.small_keys();
}

void set_gradients(const Args& args, const BackwardArgs& grads, int64_t scene, int64_t first, ChunkGradients& d) {
  const int64_t n = args.num_gaussians, view = scene * args.num_views + first;
  const int64_t pixels = (int64_t)args.limits.width * args.limits.height;
  d.transmittance = grads.transmittance + view * pixels;
  d.last = grads.last + view * pixels;
  d.render_colors = grads.render_colors ? grads.render_colors + view * pixels * args.channels : nullptr;
  d.grad_colors = grads.grad_colors ? grads.grad_colors + view * pixels * args.channels : nullptr;
  d.grad_alphas = grads.grad_alphas ? grads.grad_alphas + view * pixels : nullptr;
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

// Splats of all views of the chunk, by view and then by index, and their order by depth.
int project_and_sort(Chunk& c, void* stream) {
  const int64_t counts = (int64_t)c.num_views * c.num_blocks + 1;
  WR_TRY(fill_bytes(c.block_counts, 0, (size_t)counts * sizeof(uint32_t), stream));
  WR_TRY(cull(c, stream));
  WR_TRY(exclusive_sum(c.temp, c.temp_bytes, c.block_counts, c.block_starts, counts, stream));
  // Slots without a splat keep the largest key and sort to the end.
  WR_TRY(fill_bytes(c.keys[0], 0xff, (size_t)c.splat_capacity * sizeof(uint32_t), stream));
  WR_TRY(write_splats(c, stream));
  int result = 0;
  WR_TRY(sort_u32(c.temp, c.temp_bytes, c.keys, c.slots, c.splat_capacity, 32, &result, stream));
  c.sorted_slots = c.slots[result];
  c.pair_counts = c.keys[0];  // depths are not needed any more
  c.pair_starts = c.keys[1];
  return 0;
}

// Lists of splats per (view, tile), nearest first: emitted in depth order, then sorted stably.
int build_tile_lists(Chunk& c, void* stream) {
  const uint64_t tiles = (uint64_t)c.num_views * c.tiles_x * c.tiles_y;
  WR_TRY(count_pairs(c, stream));
  WR_TRY(exclusive_sum(c.temp, c.temp_bytes, c.pair_counts, c.pair_starts, (int64_t)c.splat_capacity + 1, stream));
  WR_TRY(fill_bytes(c.tile_keys[0], 0xff, (size_t)c.pair_capacity * (c.small_keys ? 2 : 4), stream));
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
  WR_TRY(fill_bytes(c.ranges, 0, (size_t)tiles * 2 * sizeof(uint32_t), stream));
  return find_ranges(c, stream);
}

// Blends all channels. With more than one pass, the last runs first: the records still hold the depth it needs.
int blend_passes(const Chunk& c, void* stream) {
  const int64_t passes = (c.channels + kRecordChannels - 1) / kRecordChannels;
  for (int64_t p = passes - 1; p >= 0; --p) {
    const int64_t first = p * kRecordChannels;
    const int count = (int)std::min<int64_t>(kRecordChannels, c.channels - first);
    const Pass pass = {first, count, p == 0, p == passes - 1 ? c.depth_mode : kNoDepth};
    if (passes > 1) WR_TRY(fill_colors(c, pass, stream));
    WR_TRY(blend(c, pass, stream));
  }
  return 0;
}

// Gradients of a chunk whose lists are built. The passes run as in the forward, last first.
int replay_passes(const Chunk& c, const ChunkGradients& d, void* stream) {
  const int64_t passes = (c.channels + kRecordChannels - 1) / kRecordChannels;
  for (int64_t p = passes - 1; p >= 0; --p) {
    const int64_t first = p * kRecordChannels;
    const int count = (int)std::min<int64_t>(kRecordChannels, c.channels - first);
    const bool is_last = p == passes - 1;  // which runs first
    const Pass pass = {first, count, is_last, is_last ? c.depth_mode : kNoDepth};
    if (passes > 1) WR_TRY(fill_colors(c, pass, stream));
    // Pairs behind the last splat of every pixel are not visited.
    WR_TRY(fill_bytes(d.partials, 0, (size_t)c.pair_capacity * kSums * sizeof(float), stream));
    WR_TRY(replay(c, d, pass, stream));
    WR_TRY(sum_partials(c, d, pass, stream));
  }
  return 0;
}

// Builds the lists of one chunk of views after the other, and has `use`(scene, first view, chunk, gradients) run on each.
template <class Use>
int over_chunks(const Args& args, const Plan& plan, void* workspace, size_t bytes, void* stream, Use use) {
  Chunk chunk{};
  ChunkGradients gradients{};
  Arena arena(workspace);
  take_workspace(plan, arena, chunk, gradients);
  chunk.temp = static_cast<char*>(workspace) + arena.used();
  chunk.temp_bytes = bytes - arena.used();
  for (int64_t scene = 0; scene < args.num_scenes; ++scene) {
    for (int64_t first = 0; first < args.num_views; first += plan.views_per_chunk) {
      set_views(args, scene, first, std::min(plan.views_per_chunk, args.num_views - first), plan, chunk);
      if (first == 0 || args.colors_per_view) WR_TRY(validate(chunk, stream));
      WR_TRY(project_and_sort(chunk, stream));
      WR_TRY(build_tile_lists(chunk, stream));
      WR_TRY(use(scene, first, chunk, gradients));
    }
  }
  return 0;
}

}  // namespace

Plan make_plan(int64_t num_gaussians, int64_t num_views, int64_t width, int64_t height, double pairs_per_gaussian,
               int64_t memory_budget, int64_t backward_channels) {
  Plan plan{};
  plan.backward_channels = backward_channels;
  plan.splats_per_view = num_gaussians;
  plan.tiles_x = (width + kTileSize - 1) / kTileSize;
  plan.tiles_y = (height + kTileSize - 1) / kTileSize;
  const int64_t tiles = plan.tiles_x * plan.tiles_y;
  // Exact where the worst case is small: then nothing can overflow.
  const double worst = (double)num_gaussians * (double)tiles;
  const double wanted = std::max((double)kSmallPairs, (double)num_gaussians * pairs_per_gaussian);
  plan.pairs_per_view = (int64_t)std::min(std::min(worst, wanted), (double)kMaxItems);
  // Keys of 16 bits where one view's tiles allow them: the tile sort then moves less.
  const int64_t most_tiles = tiles <= 0xffff ? 0xffff : 0x7fffffff;
  const int64_t most_items = kMaxItems / std::max({num_gaussians, plan.pairs_per_view, (int64_t)1});
  const int64_t most = std::min({(int64_t)kMaxViews, num_views, most_tiles / tiles, most_items});
  plan.views_per_chunk = std::max<int64_t>(most, 1);
  while (plan.views_per_chunk > 1 && workspace_bytes(plan) > (size_t)memory_budget) --plan.views_per_chunk;
  return plan;
}

size_t workspace_bytes(const Plan& plan) {
  Arena arena(nullptr);
  Chunk chunk{};
  ChunkGradients gradients{};
  take_workspace(plan, arena, chunk, gradients);
  const int64_t counts = plan.views_per_chunk * blocks_of(plan.splats_per_view) + 1;
  return arena.used() + primitive_bytes(plan.splats(), plan.pairs(), std::max(plan.splats() + 1, counts), plan.small_keys());
}

std::vector<std::pair<size_t, size_t>> workspace_gaps(const Plan& plan) {
  Arena arena(nullptr);
  Chunk chunk{};
  ChunkGradients gradients{};
  take_workspace(plan, arena, chunk, gradients);
  return arena.gaps();
}

int rasterize(const Args& args, const Plan& plan, void* workspace, size_t bytes, void* stream) {
  return over_chunks(args, plan, workspace, bytes, stream, [&](int64_t, int64_t, const Chunk& chunk, ChunkGradients&) {
    return blend_passes(chunk, stream);
  });
}

int rasterize_backward(const Args& args, const BackwardArgs& grads, const Plan& plan, void* workspace, size_t bytes,
                       void* stream) {
  return over_chunks(args, plan, workspace, bytes, stream,
                     [&](int64_t scene, int64_t first, const Chunk& chunk, ChunkGradients& gradients) {
                       set_gradients(args, grads, scene, first, gradients);
                       WR_TRY(replay_passes(chunk, gradients, stream));
                       WR_TRY(project_gradients(chunk, gradients, stream));
                       return camera_gradients(chunk, gradients, stream);
                     });
}

#undef WR_TRY

}  // namespace tiled
}  // namespace worldr1
