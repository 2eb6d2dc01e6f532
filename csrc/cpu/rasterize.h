// Interfaces between the rasterizer's driver (baseline instructions) and its SIMD kernels (one build per instruction set).
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"

namespace worldr1 {

constexpr int kTile = 8;         // pixels; one row of a tile is one vector
constexpr int kPassChannels = 4;  // channels blended in one pass over the tile lists

// Everything the caller says. Pointers are to contiguous float32.
struct RasterizeArgs {
  const float* means;        // [B, N, 3]
  const float* quats;        // [B, N, 4]
  const float* scales;       // [B, N, 3]
  const float* opacities;    // [B, N]
  const float* colors;       // [B, N, D], [B, C, N, D], or the same with D = K * 3 for spherical harmonics; may be null
  const float* viewmats;     // [B, C, 4, 4]
  const float* Ks;           // [B, C, 3, 3]
  const float* backgrounds;  // [B, C, X] or null
  float* render_colors;      // [B, C, H, W, X]
  float* render_alphas;      // [B, C, H, W, 1]
  int64_t* num_invalid;      // [B, C]
  int64_t num_scenes, num_views, num_gaussians;
  int64_t color_size;        // floats a Gaussian in `colors`
  int64_t channels;          // X, the depth channel included
  int64_t width, height;
  int sh_degree;             // -1: colors are used as they are
  int depth_mode;            // 0 none, 1 D, 2 ED; depth is the last channel
  int colors_per_view;       // whether `colors` has a C axis
  int antialiased;
  float near_plane, far_plane, radius_clip, eps2d, max_alpha, compensation_floor;
  int num_threads;
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
  float* alphas;             // of the view, [H, W]
  const float* background;   // [X] or null
  int64_t width, height, channels;
  int64_t first_channel;     // of this pass
  int num_channels;          // of this pass, 0 to kPassChannels
  bool write_alpha;          // first pass only
  bool expected_depth;       // the last channel of this pass is divided by alpha
  float max_alpha;
};

struct Kernels {
  // Fills Gaussians [begin, end) of a scene, begin a multiple of 8; returns how many are not finite (their opacity becomes NaN).
  // `color_bad` (may be null) marks Gaussians whose colours are not finite.
  int64_t (*prepare)(const RasterizeArgs& args, int64_t scene_index, const uint8_t* color_bad, Scene& scene,
                     int64_t begin, int64_t end);
  // Projects a scene into view `view_index`; returns the number of Gaussians kept, in index order.
  int64_t (*project)(const RasterizeArgs& args, const Scene& scene, int64_t scene_index, int64_t view_index,
                     const uint8_t* color_bad, const ProjectTarget& target);
  // Blends one tile and writes its pixels.
  void (*blend_tile)(const Record* records, const Pair* begin, const Pair* end, int64_t tile_x, int64_t tile_y,
                     const TileTarget& target);
};

WR_ISA_DECLARE(Kernels, rasterize_kernels);

// The whole forward pass with the kernels of one instruction set. Throws std::bad_alloc, and std::runtime_error as choose_isa.
void rasterize(const RasterizeArgs& args, const char* level);

}  // namespace worldr1
