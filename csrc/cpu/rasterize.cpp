// Forward driver of the CPU rasterizer: which thread does what. The arithmetic is in rasterize_simd.cpp.
#include "rasterize.h"

#include <cstring>
#include <vector>

#include "rasterize_view.h"

namespace worldr1 {
namespace {

void render_view(const RasterizeArgs& args, const Kernels& kernels, const Scene& scene, int64_t scene_index,
                 int64_t view_index, int threads, Workspace& w) {
  prepare_view(args, kernels, scene, scene_index, view_index, threads, w);
  const int64_t view = scene_index * args.num_views + view_index, pixels = args.width * args.height;
  const TileGrid tiles = tile_grid(args);
  TileTarget target{};
  target.colors = args.render_colors + view * pixels * args.channels;
  target.alphas = args.render_alphas + view * pixels;
  if (args.transmittance != nullptr) {
    target.transmittance = args.transmittance + view * pixels;
    target.last = args.last + view * pixels;
  }
  target.background = args.backgrounds ? args.backgrounds + view * args.channels : nullptr;
  target.width = args.width;
  target.height = args.height;
  target.channels = args.channels;
  target.max_alpha = args.max_alpha;
  int64_t first = 0;
  do {
    const int count = pass_channels(args, first);
    if (first > 0) {
      parallel_for(chunks_of(scene.count), threads, [&](int64_t chunk, int) {
        fill_colors(args, color_row(args, scene_index, view_index), first, chunk, w);
      });
    }
    target.first_channel = first;
    target.num_channels = count;
    target.depth_mode = first + count == args.channels ? args.depth_mode : kNoDepth;
    const Record* records = w.records.data();
    const Pair* pairs = w.pairs.data();
    const int64_t* offsets = w.offsets.data();
    parallel_for(tile_runs(tiles), threads, [&](int64_t run, int) {
      for_each_tile(tiles, run, [&](int64_t tile, int64_t tx, int64_t ty) {
        kernels.blend_tile(records, pairs + offsets[tile], pairs + offsets[tile + 1], tx, ty, target);
      });
    });
    target.alphas = target.transmittance = nullptr;
    first += count;
  } while (first < args.channels);
}

// Moves the rows of those that are seen to the front.
void pack(const RasterizeArgs& args, const Projected& p) {
  const int64_t total = args.num_scenes * args.num_views * args.num_gaussians;
  int64_t next = 0, row = 0;
  for (int64_t scene = 0; scene < args.num_scenes; ++scene) {
    for (int64_t view = 0; view < args.num_views; ++view) {
      for (int64_t g = 0; g < args.num_gaussians; ++g, ++row) {
        if (p.radii[2 * row] == 0) continue;
        std::memmove(p.values + kReported * next, p.values + kReported * row, kReported * sizeof(float));
        std::memmove(p.radii + 2 * next, p.radii + 2 * row, 2 * sizeof(int32_t));
        const int64_t ids[3] = {scene, view, g};
        for (int k = 0; k < 3; ++k) p.ids[k * total + next] = ids[k];
        ++next;
      }
    }
  }
  *p.count = next;
}

}  // namespace

void rasterize(const RasterizeArgs& args, const char* level) {
  constexpr const Kernels* (*table[])() = WR_ISA_TABLE(rasterize_kernels);
  const Kernels& kernels = *table[choose_isa(level)]();
  const int threads = std::max(args.num_threads, 1);
  std::vector<SceneWorkspace> workspaces((size_t)threads);
  for_each_scene(args, threads, [&](int64_t s, int scene_threads, int worker) {
    SceneWorkspace& w = workspaces[(size_t)worker];
    Scene scene;
    prepare_scene(args, kernels, s, scene_threads, scene, w.scene);
    // Views share one prepared scene; tiles are the last resort.
    const bool views_in_parallel = args.num_views >= scene_threads;
    w.views.resize((size_t)(views_in_parallel ? scene_threads : 1));
    const int view_threads = views_in_parallel ? 1 : scene_threads;
    parallel_for(args.num_views, views_in_parallel ? scene_threads : 1, [&](int64_t v, int view_worker) {
      render_view(args, kernels, scene, s, v, view_threads, w.views[(size_t)view_worker]);
    });
  });
  if (args.projected.ids != nullptr) pack(args, args.projected);
}

}  // namespace worldr1
