// Interfaces of the tiled rasterizer: what the caller says, the capacities of a call, and the stages, each in a .cu of its own.
//
// A call renders views in chunks, each in two steps on one stream. prepare() projects, and counts splats and (tile, splat)
// pairs; finish() sorts and blends. In between the caller may read the two counts and allocate what they take, or read nothing,
// so that the call can be captured in a CUDA graph: then it gives capacities, and a chunk whose pairs do not fit is filled with
// NaN and says how many were missing.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "../common/raster_tile.h"

namespace worldr1 {
namespace tiled {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr uint32_t kAllLanes = 0xffffffffu;
constexpr int kMaxViews = 32;  // of one chunk: a Gaussian's views are the bits of one word

inline int64_t blocks_of(int64_t count) { return (count + kThreads - 1) / kThreads; }

// As Settings.depth_mode in Python.
enum DepthMode { kNoDepth, kWeightedDepth, kExpectedDepth, kMedianDepth, kFirstDepth };

// Everything the caller says. Pointers are to contiguous float32, unless said otherwise.
struct Args {
  const float* means;        // [B, N, 3]
  const float* quats;        // [B, N, 4]
  const float* scales;       // [B, N, 3]
  const float* covars;       // [B, N, 6] in place of quats and scales, or null
  const float* opacities;    // [B, N]
  const float* colors;       // [B, 1 or C, N, D], D = K * 3 for spherical harmonics; may be null
  const float* viewmats;     // [B, C, 4, 4]
  const float* Ks;           // [B, C, 3, 3]
  const float* backgrounds;  // [B, C, X] or null
  float* render_colors;      // [B, C, H, W, X]
  float* render_alphas;      // [B, C, H, W, 1]
  float* transmittance;      // [B, C, H, W] left behind the last splat, for the backward; or null, with `last`
  int32_t* last;             // [B, C, H, W] one past the last splat blended, counted in its tile's list
  int64_t* num_invalid;      // [B, C if colors_per_view else 1]
  int64_t* overflow;         // [B, C]: pairs that did not fit into the chunk of this view; above 0 the view is NaN
  int64_t num_scenes, num_views, num_gaussians;
  int64_t color_size;        // floats a Gaussian in `colors`
  int64_t channels;          // X, the depth channel included
  ViewLimits limits;
  int sh_degree;             // -1: colors are used as they are
  int depth_mode;            // DepthMode; depth is the last channel
  bool colors_per_view;
  float max_alpha;
};

// What the backward reads and writes beside Args. Gradients are in the shapes of their inputs; null where the input is. Those of
// viewmats, Ks, and of colours of more than 75 floats are zeros on entry.
struct BackwardArgs {
  const float* transmittance;  // of the forward
  const int32_t* last;
  const float* render_colors;  // of the forward; read for kExpectedDepth alone
  const float* grad_colors;    // [B, C, H, W, X] or null
  const float* grad_alphas;    // [B, C, H, W, 1] or null
  float *means, *quats, *scales, *covars, *opacities, *colors, *viewmats, *Ks;
  float* means2d;              // [B, C, N, 2]; given, the chain stops there; or null
};

// What a chunk needs memory for. Splats and pairs: as counted, or capacities; prepare() reads neither, and has room for `most`.
struct Sizes {
  int64_t gaussians;  // of a scene
  int64_t views, splats, pairs;
  int64_t tiles_x, tiles_y, channels;
  bool for_backward;
  bool is_exact;      // finish() is given what was counted, not capacities
  int64_t blocks() const { return blocks_of(gaussians); }
  int64_t tiles() const { return views * tiles_x * tiles_y; }
  int64_t most() const { return gaussians * views; }  // splats
  bool small_keys() const { return tiles() <= 0xffff; }  // (view, tile) in 16 bits
};

// The memory of a chunk, each part an allocation of its own: what prepare() and finish() write and the backward reads again (a
// caller may keep it or have it built anew), and what is free when finish() has been queued.
enum Part {
  kKeptSplats,  // this one and the next are for prepare()
  kSplats,
  kPairs0,      // one of these two holds the sorted pairs, see finish()
  kPairs1,
  kKeptLists,
  kLists,
  kGradients,   // of the backward
  kParts,
};
using Parts = std::array<void*, kParts>;

// What prepare() counts in a chunk.
struct Counters {
  unsigned long long pairs;
  uint32_t splats;
  uint32_t next_block;  // of the projection; see there
};

// Decided on the host from sizes alone.
struct Plan {
  int64_t views_per_chunk, pairs_per_view;
};

// Where a record comes from, for colours that are blended in more than one pass.
struct Origin {
  uint32_t gaussian, view;
  float depth;
};

// One chunk: inputs of its views, and its share of the workspace. Passed to kernels by value.
struct Chunk {
  const float *means, *quats, *scales, *covars, *opacities;  // of the scene
  const float *colors, *viewmats, *Ks, *backgrounds;          // of the first view
  float *render_colors, *render_alphas, *transmittance;       // of the first view
  int32_t* last;
  unsigned long long* num_invalid;  // null where they have been counted
  int64_t* overflow;
  int64_t num_gaussians, color_size, channels, color_view_stride;
  ViewLimits limits;
  int num_views, sh_degree, depth_mode;
  bool colors_per_view;
  float max_alpha;
  uint32_t tiles_x, tiles_y;

  uint32_t num_blocks;       // of kThreads Gaussians
  uint32_t splat_capacity, pair_capacity;
  bool is_exact;             // the capacities are the counts
  Counters* counters;
  unsigned long long* sums;  // [blocks] running sums of splats, see look_back.h
  uint32_t* keep;            // [N] bit v: a splat in view v; null in the forward alone
  uint32_t* block_starts;    // [blocks] where a block's splats begin; null as `keep`
  SplatRecord* records;      // [splats] by block of kThreads Gaussians, then by view, then by index
  TileSpan* tiles;           // [splats] of a record
  Origin* origins;           // [splats] of a record; null where one pass blends all channels
  uint32_t *keys[2], *slots[2];        // [splats + 1] depth sort; [splats] index of the record
  uint32_t *sorted_slots, *pair_counts, *pair_starts;  // among the above, after the depth sort
  void* tile_keys[2];        // [pairs] of uint16_t or uint32_t
  uint32_t* pair_slots[2];   // [pairs]
  const void* sorted_tiles;
  const uint32_t* sorted_pairs;
  uint32_t* ranges;          // [views * tiles, 2] begin and end in sorted_pairs
  uint32_t* first_pair;      // [splats] where a record's pairs begin in the order of emission; null in the forward
  bool small_keys;
  void* temp;                // of the sorts and sums
  size_t temp_bytes;
};

// Sums over the pixels of one splat in one tile: h, hx, hy, hxx, hxy, hyy (gaussian_backward.h), then the colours of a pass.
constexpr int kMoments = 6, kSums = kMoments + kRecordChannels;
// Of one view: rotation, translation, fx, fy, cx, cy, camera centre.
constexpr int kCameraValues = 9 + 3 + 4 + 3;

// The gradients of one chunk, beside its Chunk. Pointers as in BackwardArgs, of the scene or of the first view.
struct ChunkGradients {
  const float* transmittance;
  const int32_t* last;
  const float *render_colors, *grad_colors, *grad_alphas;
  float *means, *quats, *scales, *covars, *opacities, *colors, *viewmats, *Ks, *means2d;
  bool adds;        // to what the chunks before have found for the Gaussians of the scene; the first stores
  float* partials;  // [pairs, kSums] by pair, in the order of emission: a splat's tiles lie side by side
  uint32_t* ends;   // [views * tiles] one past the last pair, by emission, that a pixel of the tile was given; 0 without one
  float* sums;      // [splats, kMoments + X] by record
  float* cameras;   // [views, blocks, kCameraValues]
};

// A pass blends `count` channels from the records' colours into channels [first, first + count).
struct Pass {
  int64_t first;
  int count;
  bool write_alpha;
  int depth_mode;  // of the last of these channels
};

// The driver (rasterize.cpp).
// Room for `pairs_per_gaussian` N pairs a view, or for the worst case where that is less; as many views a chunk as keep the
// memory of such a chunk within `memory_budget` bytes, one at least. `sizes` is of one view; splats and pairs are not read.
// The answer is the same for the forward and for the backward of one call.
Plan make_plan(const Sizes& sizes, int64_t num_views, double pairs_per_gaussian, int64_t memory_budget);
// Bytes of each part; before anything is counted those of kKeptSplats and kSplats are of use.
std::array<size_t, kParts> part_bytes(const Sizes& sizes);
// Bytes [first, second) of a part that nothing may write.
std::vector<std::pair<size_t, size_t>> part_gaps(const Sizes& sizes, Part part);
// Which views: [first, first + sizes.views) of a scene.
struct Views {
  int64_t scene, first;
};
// Queues the projection into kKeptSplats and kSplats. Returns 0, or the first cudaError_t, as do all below. `counters` is where
// the counts will be in device memory.
int prepare(const Args& args, const Sizes& sizes, const Views& views, const Parts& parts, Counters** counters, void* stream);
// Queues the rest: lists into kPairs0 or 1, as `sorted` says, and kKeptLists; then, if `has_images`, the images. `list_bytes` are
// those of kLists.
int finish(const Args& args, const Sizes& sizes, const Views& views, bool has_images, const Parts& parts, size_t list_bytes,
           int* sorted, void* stream);
// Queues gradients: the lists of finish(), with the sorted pairs in kPairs0, replayed back to front. Sums have a fixed order:
// bit for bit the same every time.
int backward(const Args& args, const BackwardArgs& grads, const Sizes& sizes, const Views& views, const Parts& parts,
             void* stream);

// The stages. Each queues its work on `stream` and returns 0 or a cudaError_t.
int project(const Chunk& chunk, void* stream);       // counters to slots[0]
int count_pairs(const Chunk& chunk, void* stream);   // pair_counts
int emit_pairs(const Chunk& chunk, void* stream);    // tile_keys[0], pair_slots[0]
int find_ranges(const Chunk& chunk, void* stream);   // ranges, overflow
int fill_colors(const Chunk& chunk, const Pass& pass, void* stream);  // colours of the records
int blend(const Chunk& chunk, const Pass& pass, void* stream);        // render_colors, render_alphas

int replay(const Chunk& chunk, const ChunkGradients& grads, const Pass& pass, void* stream);         // partials
int sum_partials(const Chunk& chunk, const ChunkGradients& grads, const Pass& pass, void* stream);   // sums
int project_gradients(const Chunk& chunk, const ChunkGradients& grads, void* stream);                // of the Gaussians; cameras
int camera_gradients(const Chunk& chunk, const ChunkGradients& grads, void* stream);                 // viewmats, Ks

// Primitives, from CUB on the device. Both sorts are stable; the result's buffer (0 or 1) is written to `result`.
size_t primitive_bytes(int64_t splats, int64_t pairs, int64_t sums, bool small_keys);
size_t shared_bytes();  // that a block may have on the current device
int read_counters(const Counters* counters, Counters* target, void* stream);  // waits for the stream
int fill_bytes(void* target, int byte, size_t count, void* stream);
int exclusive_sum(void* temp, size_t temp_bytes, const uint32_t* in, uint32_t* out, int64_t count, void* stream);
int sort_u32(void* temp, size_t temp_bytes, uint32_t* const keys[2], uint32_t* const values[2], int64_t count, int bits,
             int* result, void* stream);
int sort_u16(void* temp, size_t temp_bytes, uint16_t* const keys[2], uint32_t* const values[2], int64_t count, int bits,
             int* result, void* stream);

}  // namespace tiled
}  // namespace worldr1
