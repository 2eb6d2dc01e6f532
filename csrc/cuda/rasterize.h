// Interfaces of the tiled rasterizer: what the caller says, the capacities of a call, and the stages, each in a .cu of its own.
//
// A call renders views in chunks. The stages of a chunk are queued on one stream and the host reads nothing back: how many
// splats and pairs there are stays in device memory, buffers have a capacity known beforehand, and a chunk whose pairs do not
// fit is filled with NaN and reports how many were missing. Hence a call can be captured in a CUDA graph.
#pragma once

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
  int64_t* num_invalid;      // [B, C if colors_per_view else 1], zeros on entry
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

// What the backward reads and writes beside Args. Gradients are zeros on entry, in the shapes of their inputs; null where the
// input is.
struct BackwardArgs {
  const float* transmittance;  // of the forward
  const int32_t* last;
  const float* render_colors;  // of the forward; read for kExpectedDepth alone
  const float* grad_colors;    // [B, C, H, W, X] or null
  const float* grad_alphas;    // [B, C, H, W, 1] or null
  float *means, *quats, *scales, *covars, *opacities, *colors, *viewmats, *Ks;
  float* means2d;              // [B, C, N, 2]; given, the chain stops there; or null
};

// Capacities of a call, decided on the host from sizes alone.
struct Plan {
  int64_t splats_per_view;   // the number of Gaussians: all of them may be visible
  int64_t pairs_per_view;
  int64_t views_per_chunk;
  int64_t tiles_x, tiles_y;
  int64_t backward_channels; // X when gradients are computed, else 0
  int64_t splats() const { return splats_per_view * views_per_chunk; }
  int64_t pairs() const { return pairs_per_view * views_per_chunk; }
  bool small_keys() const { return views_per_chunk * tiles_x * tiles_y <= 0xffff; }  // (view, tile) in 16 bits
};

// One chunk: inputs of its views, and its share of the workspace. Passed to kernels by value.
struct Chunk {
  const float *means, *quats, *scales, *covars, *opacities;  // of the scene
  const float *colors, *viewmats, *Ks, *backgrounds;          // of the first view
  float *render_colors, *render_alphas, *transmittance;       // of the first view
  int32_t* last;
  unsigned long long* num_invalid;
  int64_t* overflow;
  int64_t num_gaussians, color_size, channels, color_view_stride;
  ViewLimits limits;
  int num_views, sh_degree, depth_mode;
  bool colors_per_view;
  float max_alpha;
  uint32_t tiles_x, tiles_y;

  uint32_t num_blocks;       // of kThreads Gaussians
  uint32_t splat_capacity, pair_capacity;
  uint32_t* valid;           // [N] bit v: finite in view v
  uint32_t* keep;            // [N] bit v: may touch a pixel of view v
  uint32_t* block_counts;    // [views, blocks] and one 0
  uint32_t* block_starts;    // exclusive sums of block_counts: where a block's splats of a view begin; last: number of splats
  SplatRecord* records;      // [splats] by view, then by index
  uint32_t* gaussians;       // [splats] index in the scene
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
  float* partials;  // [pairs, kSums] by pair, in the order of emission: a splat's tiles lie side by side
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
// workspace within `memory_budget` bytes, one at least.
Plan make_plan(int64_t num_gaussians, int64_t num_views, int64_t width, int64_t height, double pairs_per_gaussian,
               int64_t memory_budget, int64_t backward_channels);
size_t workspace_bytes(const Plan& plan);
// Bytes [first, second) of the workspace that nothing may write.
std::vector<std::pair<size_t, size_t>> workspace_gaps(const Plan& plan);
// Renders. `bytes` as workspace_bytes says. Returns 0, or the first cudaError_t.
int rasterize(const Args& args, const Plan& plan, void* workspace, size_t bytes, void* stream);
// Gradients: lists are built again, then replayed back to front. Sums have a fixed order: bit for bit the same every time.
int rasterize_backward(const Args& args, const BackwardArgs& grads, const Plan& plan, void* workspace, size_t bytes,
                       void* stream);

// The stages. Each queues its work on `stream` and returns 0 or a cudaError_t.
int validate(const Chunk& chunk, void* stream);      // valid, num_invalid
int cull(const Chunk& chunk, void* stream);          // keep, block_counts
int write_splats(const Chunk& chunk, void* stream);  // records, gaussians, keys[0], slots[0]
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
int fill_bytes(void* target, int byte, size_t count, void* stream);
int exclusive_sum(void* temp, size_t temp_bytes, const uint32_t* in, uint32_t* out, int64_t count, void* stream);
int sort_u32(void* temp, size_t temp_bytes, uint32_t* const keys[2], uint32_t* const values[2], int64_t count, int bits,
             int* result, void* stream);
int sort_u16(void* temp, size_t temp_bytes, uint16_t* const keys[2], uint32_t* const values[2], int64_t count, int bits,
             int* result, void* stream);

}  // namespace tiled
}  // namespace worldr1
