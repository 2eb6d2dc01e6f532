// What forward and backward share of the rasterizer's driver: buffers, scene preparation, depth order and tile lists.
#pragma once

#include <algorithm>
#include <vector>

#include "rasterize.h"
#include "thread_pool.h"

namespace worldr1 {

// Memory of earlier calls, kept up to 64 MB in all: fresh pages cost a tenth of a small picture. take_block raises `bytes` to
// what the block really holds.
void* take_block(int64_t& bytes);
void give_block(void* block, int64_t bytes);

// Uninitialised storage that only grows: one worker reuses it from view to view.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  // For std::vector<Band> and std::vector<Workspace>, whose resize moves what is there.
  Buffer(Buffer&& other) noexcept : data_(other.data_), bytes_(other.bytes_) {
    other.data_ = nullptr;
    other.bytes_ = 0;
  }
  Buffer& operator=(Buffer&&) = delete;
  ~Buffer() { give_block(data_, bytes_); }

  T* need(int64_t count) {
    if (count * (int64_t)sizeof(T) > bytes_) {
      give_block(data_, bytes_);
      data_ = nullptr;
      bytes_ = 0;
      int64_t bytes = count * (int64_t)sizeof(T);
      data_ = static_cast<T*>(take_block(bytes));
      bytes_ = bytes;
    }
    return data_;
  }
  T* data() { return data_; }
  const T* data() const { return data_; }

 private:
  T* data_ = nullptr;
  int64_t bytes_ = 0;
};

// A band of tile rows, whose lists one thread makes.
struct Band {
  Buffer<uint64_t> keys, other;     // depth bits << 32 | record
  const uint64_t* order = nullptr;  // those of the records in the band, nearest first, in either
  int64_t count = 0;
};

struct Workspace {
  Buffer<float> scene;
  Buffer<Record> records;
  Buffer<Bounds> bounds;
  Buffer<uint32_t> ids;
  Buffer<int64_t> kept;               // [chunks] number of records
  std::vector<Band> bands;            // one for each thread
  Buffer<int64_t> offsets;            // [tiles + 1]
  Buffer<Pair> pairs;
  Buffer<uint8_t> color_bad;
};

struct SceneWorkspace {
  Workspace scene;
  std::vector<Workspace> views;  // one for each thread that renders a view
};

struct TileGrid {
  int64_t x, y;  // number of tiles
};

inline TileGrid tile_grid(const RasterizeArgs& args) {
  return {(args.width + kTile - 1) / kTile, (args.height + kTile - 1) / kTile};
}

// Tiles are handed to threads in runs of 16, row by row: a run of full tiles is some 20 to 100 microseconds of work.
constexpr int64_t kTileRun = 16;

inline int64_t tile_runs(TileGrid tiles) { return (tiles.x * tiles.y + kTileRun - 1) / kTileRun; }

// Calls visit(tile, x, y) for the tiles of a run.
template <class Visit>
void for_each_tile(TileGrid tiles, int64_t run, const Visit& visit) {
  const int64_t begin = run * kTileRun, end = std::min(begin + kTileRun, tiles.x * tiles.y);
  for (int64_t tile = begin; tile < end; ++tile) visit(tile, tile % tiles.x, tile / tiles.x);
}

// Which of the C (or 1) sets of colours a view takes, times N.
inline int64_t color_row(const RasterizeArgs& args, int64_t scene_index, int64_t view_index) {
  return (args.colors_per_view ? scene_index * args.num_views + view_index : scene_index) * args.num_gaussians;
}

// Calls visit(i) for the records of chunk `chunk`, or of all chunks, in order.
template <class Visit>
void for_each_record(const Workspace& w, int64_t chunk, const Visit& visit) {
  const int64_t begin = chunk * kChunk, end = begin + w.kept.data()[chunk];
  for (int64_t i = begin; i < end; ++i) visit(i);
}

template <class Visit>
void for_all_records(const Workspace& w, int64_t num_chunks, const Visit& visit) {
  for (int64_t chunk = 0; chunk < num_chunks; ++chunk) for_each_record(w, chunk, visit);
}

// Fills `scene`, which lives in `w`; adds what is invalid in all of its views to num_invalid.
void prepare_scene(const RasterizeArgs& args, const Kernels& kernels, int64_t scene_index, int threads, Scene& scene,
                   Workspace& w);

// Records with the channels of the first pass, their bounds and ids, and the lists of each tile, all in `w`, nearest first
// within a tile. Adds what is invalid in this view alone to num_invalid.
void prepare_view(const RasterizeArgs& args, const Kernels& kernels, const Scene& scene, int64_t scene_index,
                  int64_t view_index, int threads, Workspace& w);

// Channels that the pass from channel `first` on blends.
inline int pass_channels(const RasterizeArgs& args, int64_t first) {
  return (int)std::min<int64_t>(kPassChannels, args.channels - first);
}

// Copies the channels of the pass from `first` on into the records of a chunk, depth last.
void fill_colors(const RasterizeArgs& args, int64_t row, int64_t first, int64_t chunk, Workspace& w);

// Calls run(scene_index, threads, worker) for each scene, on one thread each where there are enough scenes: they need no
// hand-over between threads.
template <class Run>
void for_each_scene(const RasterizeArgs& args, int threads, const Run& run) {
  if (args.num_scenes >= threads) {
    parallel_for(args.num_scenes, threads, [&](int64_t scene_index, int worker) { run(scene_index, 1, worker); });
  } else {
    for (int64_t s = 0; s < args.num_scenes; ++s) run(s, threads, 0);
  }
}

}  // namespace worldr1
