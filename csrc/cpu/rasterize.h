// Interfaces between the rasterizer's driver (baseline instructions) and its SIMD kernels (one build per instruction set).
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"

namespace worldr1 {

constexpr int kTile = 8;         // pixels; one row of a tile is one vector
constexpr int kPassChannels = 4;  // channels blended in one pass over the tile lists

// Gaussians that one task prepares, projects or carries gradients to. A constant, so that sums by chunk have one order at any
// number of threads. The records of chunk c are at [c * kChunk, c * kChunk + number kept).
constexpr int64_t kChunk = 512;

inline int64_t chunks_of(int64_t count) { return (count + kChunk - 1) / kChunk; }

enum DepthMode { kNoDepth, kWeightedDepth, kExpectedDepth, kMedianDepth, kFirstDepth };

// What is reported of all Gaussians in all views, 0 where one is not seen. Null where it is not wanted.
constexpr int kReported = 7;
struct Projected {
  float* values;   // [B, C, N, kReported]: mean x, y; inverse covariance xx, xy, yy; camera z; opacity after compensation
  int32_t* radii;  // [B, C, N, 2] pixels, rounded up
  // Given, the two above hold the rows of those that are seen alone, one after another.
  int64_t* ids;    // [3, B C N] their scene, view and Gaussian
  int64_t* count;  // how many there are
};
constexpr float kMaxRadius = 1073741824.0f;  // 2^30

// Everything the caller says. Pointers are to contiguous float32.
struct RasterizeArgs {
  const float* means;        // [B, N, 3]
  const float* quats;        // [B, N, 4]
  const float* scales;       // [B, N, 3]
  const float* covars;       // [B, N, 6] in place of quats and scales, or null
  const float* opacities;    // [B, N]
  const float* colors;       // [B, N, D], [B, C, N, D], or the same with D = K * 3 for spherical harmonics; may be null
  const float* viewmats;     // [B, C, 4, 4]
  const float* Ks;           // [B, C, 3, 3]
  const float* backgrounds;  // [B, C, X] or null
  float* render_colors;      // [B, C, H, W, X]
  float* render_alphas;      // [B, C, H, W, 1]
  int64_t* num_invalid;      // [B, C]
  float* transmittance;      // [B, C, H, W] left behind the last splat, for the backward; or null, with `last`
  int32_t* last;             // [B, C, H, W] one past the last splat blended, counted in its tile's list
  Projected projected;
  int64_t num_scenes, num_views, num_gaussians;
  int64_t color_size;        // floats a Gaussian in `colors`
  int64_t channels;          // X, the depth channel included
  int64_t width, height;
  int sh_degree;             // -1: colors are used as they are
  int depth_mode;            // DepthMode; depth is the last channel
  int colors_per_view;       // whether `colors` has a C axis
  int antialiased;
  float near_plane, far_plane, radius_clip, eps2d, max_alpha, compensation_floor;
  int num_threads;
};

// What the backward reads and writes beside the arguments of the forward. Gradients are zero on entry, like their inputs in
// shape, null where not wanted.
struct BackwardArgs {
  const float* transmittance;  // of the forward
  const int32_t* last;
  const float* render_colors;  // of the forward; read with kExpectedDepth alone
  const float* grad_colors;    // [B, C, H, W, X] or null
  const float* grad_alphas;    // [B, C, H, W, 1] or null
  float *means, *quats, *scales, *covars, *opacities, *colors, *viewmats, *Ks, *backgrounds;
  float* means2d;              // [B, C, N, 2]; given, the chain stops there; or null
};

// A scene, view-independent part, one array per component, `padded` long (a multiple of 8).
struct Scene {
  int64_t count, padded;
  float* data;                // kSceneArrays arrays
  const float* array(int i) const { return data + (size_t)i * (size_t)padded; }
  float* array(int i) { return data + (size_t)i * (size_t)padded; }
};
// x y z, covariance xx xy xz yy yz zz, opacity (NaN: invalid), extend = sqrt(2 ln(255 opacity)).
constexpr int kSceneArrays = 11;

// What the blending loop reads of one Gaussian in one view. The conic is scaled by log2(e), its squared terms also halved.
struct Record {
  float mean_x, mean_y, a, b, c, opacity, limit, depth;  // limit: exponent_log2 above it means alpha < 1/255
  float color[kPassChannels];
};

// Pixels whose centre may be reached, inclusive.
struct Bounds {
  int32_t x0, x1, y0, y1;
};

// One Gaussian in one tile: bit r of `rows` is set when row r of the tile may be reached.
struct Pair {
  uint32_t record;
  uint32_t rows;
};

struct ProjectTarget {
  Record* records;
  Bounds* bounds;
  uint32_t* ids;  // index of the Gaussian in its scene
};

struct TileTarget {
  float* colors;             // of the view, [H, W, X]
  float* alphas;             // of the view, [H, W]; null after the first pass
  float* transmittance;      // of the view, [H, W], or null, with `last`
  int32_t* last;
  const float* background;   // [X] or null
  int64_t width, height, channels;
  int64_t first_channel;     // of this pass
  int num_channels;          // of this pass, 0 to kPassChannels
  int depth_mode;            // of the last channel of this pass
  float max_alpha;
};

struct TileSource {
  const float* transmittance;  // of the view, [H, W]
  const int32_t* last;         // [H, W]
  const float* render_colors;  // [H, W, X]; read with kExpectedDepth alone
  const float* grad_colors;    // [H, W, X] or null
  const float* grad_alphas;    // [H, W], or null, and after the first pass
  const float* background;     // [X] or null
  int64_t width, height, channels, first_channel;
  int num_channels, depth_mode;
  float max_alpha;
};

// Sums over the pixels of a splat: h, hx, hy, hxx, hxy, hyy (gaussian_backward.h), then the colours of the pass; two floats of
// padding make it three SSE registers.
constexpr int kMoments = 6;
constexpr int kSlot = 12;

// The slot that a record's sums are added to in tile (x, y): base + y * row_stride + x * column_stride. Strides of 0 give the
// record one slot, which is enough where one thread goes through the tiles; else each tile has its own, summed later in the
// same order.
struct Slots {
  int64_t base;
  int32_t row_stride, column_stride;
};

// Sums over the whole view, for a record.
struct RecordGradient {
  float moments[kMoments];
};

// Of one view: rotation, translation, fx, fy, cx, cy, and the camera centre (by spherical harmonics).
constexpr int kCameraValues = 9 + 3 + 4 + 3;

struct Kernels {
  // Fills Gaussians [begin, end) of a scene, begin a multiple of 8; returns how many are not finite (their opacity becomes NaN).
  // `color_bad` (may be null) marks Gaussians whose colours are not finite.
  int64_t (*prepare)(const RasterizeArgs& args, int64_t scene_index, const uint8_t* color_bad, Scene& scene,
                     int64_t begin, int64_t end);
  // Projects Gaussians [begin, end) of a scene, begin a multiple of 8, into view `view_index`; returns how many are kept, in
  // index order.
  int64_t (*project)(const RasterizeArgs& args, const Scene& scene, int64_t scene_index, int64_t view_index,
                     const uint8_t* color_bad, int64_t begin, int64_t end, const ProjectTarget& target);
  // Blends one tile and writes its pixels.
  void (*blend_tile)(const Record* records, const Pair* begin, const Pair* end, int64_t tile_x, int64_t tile_y,
                     const TileTarget& target);
};

struct BackwardKernels {
  // Replays one tile, whose list starts at `pairs`, back to front. Adds to the slots of its records and to `v_background`
  // [channels of the pass].
  void (*tile)(const Record* records, const Slots* slots, const Pair* pairs, int64_t tile_x, int64_t tile_y,
               const TileSource& source, float* partials, float* v_background);
  // Carries records [begin, end) of a view on to the Gaussians and, summed, to `v_camera` [kCameraValues]. v_colors is
  // [records, X] and v_covars [N, 6], of the scene.
  void (*project)(const RasterizeArgs& args, const BackwardArgs& grads, const Scene& scene, int64_t scene_index,
                  int64_t view_index, const uint32_t* ids, const RecordGradient* records, const float* v_colors,
                  int64_t begin, int64_t end, float* v_covars, float* v_camera);
  // From covariances to quaternions and scales, Gaussians [begin, end) of a scene, begin a multiple of 8.
  void (*finish)(const RasterizeArgs& args, const BackwardArgs& grads, const Scene& scene, int64_t scene_index,
                 const float* v_covars, int64_t begin, int64_t end);
};

WR_ISA_DECLARE(Kernels, rasterize_kernels);
WR_ISA_DECLARE(BackwardKernels, rasterize_backward_kernels);

// The whole forward pass with the kernels of one instruction set. Throws std::bad_alloc, and std::runtime_error as choose_isa.
void rasterize(const RasterizeArgs& args, const char* level);

// Its gradients; `args` as in the forward, its outputs ignored.
void rasterize_backward(const RasterizeArgs& args, const BackwardArgs& grads, const char* level);

}  // namespace worldr1
