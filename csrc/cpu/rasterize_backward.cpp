// Backward driver of the CPU rasterizer. The lists of the forward are made again, tiles are replayed back to front, and every
// sum has a fixed order: pixels within a tile, tiles of a splat, views of a Gaussian, chunks of a camera. So the gradients do
// not depend on the number of threads. The arithmetic is in rasterize_backward_simd.cpp.
#include <vector>

#include "rasterize.h"
#include "rasterize_view.h"

#include "../common/gaussian_backward.h"

namespace worldr1 {
namespace {

// What one view leaves for its Gaussians.
struct ViewGradients {
  Workspace lists;
  Buffer<Slots> slots;              // [N], by record, as the next four are
  Buffer<int64_t> first_slots;      // [chunks + 1] where the slots of a chunk begin
  Buffer<float> partials;           // [slots, kSlot]
  Buffer<RecordGradient> records;   // [N]
  Buffer<float> colors;             // [N, X]
  Buffer<float> backgrounds;        // [runs of tiles, kPassChannels]
  Buffer<float> cameras;            // [chunks, kCameraValues]
};

struct Call {
  const RasterizeArgs& args;
  const BackwardArgs& grads;
  const Kernels& forward;
  const BackwardKernels& backward;
};

TileSource tile_source(const Call& call, int64_t view) {
  const RasterizeArgs& args = call.args;
  const BackwardArgs& grads = call.grads;
  const int64_t pixel = view * args.width * args.height;
  TileSource s{};
  s.transmittance = grads.transmittance + pixel;
  s.last = grads.last + pixel;
  if (grads.render_colors != nullptr) s.render_colors = grads.render_colors + pixel * args.channels;
  if (grads.grad_colors != nullptr) s.grad_colors = grads.grad_colors + pixel * args.channels;
  if (grads.grad_alphas != nullptr) s.grad_alphas = grads.grad_alphas + pixel;
  if (args.backgrounds != nullptr) s.background = args.backgrounds + view * args.channels;
  s.width = args.width;
  s.height = args.height;
  s.channels = args.channels;
  s.max_alpha = args.max_alpha;
  return s;
}

// Tiles that the bounds of a record touch.
struct TileRect {
  int64_t x, y, columns, rows;
  explicit TileRect(Bounds b)
      : x(b.x0 / kTile), y(b.y0 / kTile), columns(b.x1 / kTile - x + 1), rows(b.y1 / kTile - y + 1) {}
};

// Gives every record one slot or, when several threads share the tiles, one for each tile that it touches, row by row.
void assign_slots(const Call& call, int threads, ViewGradients& v) {
  const int64_t n = call.args.num_gaussians, num_chunks = chunks_of(n);
  Slots* slots = v.slots.need(n);
  const Bounds* bounds = v.lists.bounds.data();
  int64_t* first = v.first_slots.need(num_chunks + 1);
  first[0] = 0;
  parallel_for(num_chunks, threads, [&](int64_t chunk, int) {
    int64_t count = 0;
    for_each_record(v.lists, chunk, [&](int64_t i) {
      const TileRect rect(bounds[i]);
      count += threads == 1 ? 1 : rect.columns * rect.rows;
    });
    first[chunk + 1] = count;
  });
  for (int64_t chunk = 0; chunk < num_chunks; ++chunk) first[chunk + 1] += first[chunk];
  v.partials.need(first[num_chunks] * kSlot);
  parallel_for(num_chunks, threads, [&](int64_t chunk, int) {
    int64_t sum = first[chunk];
    for_each_record(v.lists, chunk, [&](int64_t i) {
      const TileRect rect(bounds[i]);
      if (threads == 1) {
        slots[i] = {sum++, 0, 0};
      } else {
        slots[i] = {sum - rect.y * rect.columns - rect.x, (int32_t)rect.columns, 1};
        sum += rect.columns * rect.rows;
      }
    });
  });
}

// Before a pass: its colours, and zero sums.
void start_pass(const Call& call, int64_t row, int64_t first, int threads, ViewGradients& v) {
  float* partials = v.partials.data();
  const int64_t* first_slots = v.first_slots.data();
  parallel_for(chunks_of(call.args.num_gaussians), threads, [&](int64_t chunk, int) {
    if (first > 0) fill_colors(call.args, row, first, chunk, v.lists);
    std::fill(partials + first_slots[chunk] * kSlot, partials + first_slots[chunk + 1] * kSlot, 0.0f);
  });
}

// Adds the slots of each record up: moments over all passes, colours of this pass.
void sum_slots(const Call& call, int64_t first, int threads, ViewGradients& v) {
  const int64_t channels = call.args.channels;
  const int count = pass_channels(call.args, first);
  const Bounds* bounds = v.lists.bounds.data();
  parallel_for(chunks_of(call.args.num_gaussians), threads, [&](int64_t chunk, int) {
    const float* slot = v.partials.data() + v.first_slots.data()[chunk] * kSlot;
    for_each_record(v.lists, chunk, [&](int64_t i) {
      const TileRect rect(bounds[i]);
      const int64_t num_slots = threads == 1 ? 1 : rect.columns * rect.rows;
      float sums[kSlot] = {};
      for (int64_t n = 0; n < num_slots; ++n, slot += kSlot) {
        for (int k = 0; k < kSlot; ++k) sums[k] += slot[k];
      }
      RecordGradient& record = v.records.data()[i];
      for (int k = 0; k < kMoments; ++k) record.moments[k] = first == 0 ? sums[k] : record.moments[k] + sums[k];
      for (int c = 0; c < count; ++c) v.colors.data()[i * channels + first + c] = sums[kMoments + c];
    });
  });
}

void replay_view(const Call& call, const Scene& scene, int64_t scene_index, int64_t view_index, int threads,
                 ViewGradients& v) {
  const RasterizeArgs& args = call.args;
  const int64_t view = scene_index * args.num_views + view_index;
  prepare_view(args, call.forward, scene, scene_index, view_index, threads, v.lists);
  assign_slots(call, threads, v);
  v.records.need(scene.count);
  v.colors.need(scene.count * args.channels);
  const TileGrid tiles = tile_grid(args);
  float* backgrounds = v.backgrounds.need(tile_runs(tiles) * kPassChannels);
  TileSource source = tile_source(call, view);
  for (int64_t first = 0; first < args.channels; first += kPassChannels) {
    const int count = pass_channels(args, first);
    source.first_channel = first;
    source.num_channels = count;
    source.depth_mode = first + count == args.channels ? args.depth_mode : kNoDepth;
    std::fill(backgrounds, backgrounds + tile_runs(tiles) * kPassChannels, 0.0f);
    start_pass(call, color_row(args, scene_index, view_index), first, threads, v);
    const Record* records = v.lists.records.data();
    const Pair* pairs = v.lists.pairs.data();
    const int64_t* offsets = v.lists.offsets.data();
    float* partials = v.partials.data();
    parallel_for(tile_runs(tiles), threads, [&](int64_t run, int) {
      for_each_tile(tiles, run, [&](int64_t tile, int64_t tx, int64_t ty) {
        call.backward.tile(records, v.slots.data(), pairs + offsets[tile], tx, ty, source, partials,
                           backgrounds + run * kPassChannels);
      });
    });
    sum_slots(call, first, threads, v);
    for (int c = 0; call.grads.backgrounds != nullptr && c < count; ++c) {
      double sum = 0.0;
      for (int64_t run = 0; run < tile_runs(tiles); ++run) sum += backgrounds[run * kPassChannels + c];
      call.grads.backgrounds[view * args.channels + first + c] = (float)sum;
    }
    source.grad_alphas = nullptr;  // counted once
  }
}

// From the sums over Gaussians to viewmats and Ks.
void store_camera(const Call& call, int64_t view, const float* cameras, int64_t chunks) {
  double v[kCameraValues] = {};
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    for (int k = 0; k < kCameraValues; ++k) v[k] += cameras[chunk * kCameraValues + k];
  }
  store_viewmat_gradient(call.args.viewmats + 16 * view, v, v + 16, call.grads.viewmats + 16 * view);
  float* v_k = call.grads.Ks + 9 * view;
  v_k[0] = (float)v[12];
  v_k[4] = (float)v[13];
  v_k[2] = (float)v[14];
  v_k[5] = (float)v[15];
}

void project_view(const Call& call, const Scene& scene, int64_t scene_index, int64_t view_index, int threads,
                  float* v_covars, ViewGradients& v) {
  const int64_t chunks = chunks_of(scene.count);
  float* cameras = v.cameras.need(chunks * kCameraValues);
  std::fill(cameras, cameras + chunks * kCameraValues, 0.0f);
  parallel_for(chunks, threads, [&](int64_t chunk, int) {
    const int64_t begin = chunk * kChunk, end = begin + v.lists.kept.data()[chunk];
    call.backward.project(call.args, call.grads, scene, scene_index, view_index, v.lists.ids.data(), v.records.data(),
                          v.colors.data(), begin, end, v_covars, cameras + chunk * kCameraValues);
  });
  store_camera(call, scene_index * call.args.num_views + view_index, cameras, chunks);
}

struct SceneGradients {
  Workspace scene;
  Buffer<float> covars;
  std::vector<ViewGradients> views;  // those that are replayed at the same time
};

void scene_backward(const Call& call, int64_t s, int threads, SceneGradients& w) {
  const RasterizeArgs& args = call.args;
  Scene scene;
  prepare_scene(args, call.forward, s, threads, scene, w.scene);
  float* v_covars;
  if (args.covars != nullptr) {
    v_covars = call.grads.covars + s * scene.count * 6;
  } else {
    v_covars = w.covars.need(scene.count * 6);
    std::fill(v_covars, v_covars + scene.count * 6, 0.0f);
  }
  const int64_t group = args.num_views >= threads ? threads : 1;
  w.views.resize((size_t)group);
  for (int64_t first = 0; first < args.num_views; first += group) {
    const int64_t count = std::min(group, args.num_views - first);
    parallel_for(count, group > 1 ? threads : 1, [&](int64_t i, int) {
      replay_view(call, scene, s, first + i, group > 1 ? 1 : threads, w.views[(size_t)i]);
    });
    for (int64_t i = 0; i < count; ++i) project_view(call, scene, s, first + i, threads, v_covars, w.views[(size_t)i]);
  }
  if (args.covars != nullptr) return;
  parallel_for(chunks_of(scene.count), threads, [&](int64_t chunk, int) {
    const int64_t begin = chunk * kChunk, end = std::min(begin + kChunk, scene.count);
    call.backward.finish(args, call.grads, scene, s, v_covars, begin, end);
  });
}

}  // namespace

void rasterize_backward(const RasterizeArgs& forward_args, const BackwardArgs& grads, const char* level) {
  constexpr const Kernels* (*forward[])() = WR_ISA_TABLE(rasterize_kernels);
  constexpr const BackwardKernels* (*backward[])() = WR_ISA_TABLE(rasterize_backward_kernels);
  const int isa = choose_isa(level);
  RasterizeArgs args = forward_args;
  std::vector<int64_t> num_invalid((size_t)(args.num_scenes * args.num_views));  // counted again, and not wanted
  args.num_invalid = num_invalid.data();
  const Call call = {args, grads, *forward[isa](), *backward[isa]()};
  const int threads = std::max(args.num_threads, 1);
  std::vector<SceneGradients> workspaces((size_t)threads);
  for_each_scene(args, threads, [&](int64_t s, int scene_threads, int worker) {
    scene_backward(call, s, scene_threads, workspaces[(size_t)worker]);
  });
}

}  // namespace worldr1
