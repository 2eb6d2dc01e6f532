// What a caller of the trajectory kernels says, alike for the CPU and CUDA. Pointers are to contiguous float32 or float64.
#pragma once

#include <cstdint>

#include "se3_faults.h"

namespace worldr1 {

constexpr int kErrorFields = 8;  // of TrajectoryError, in its order

// How two paths are brought into comparable units.
enum ScaleMode : int { kLeastSquares = 0, kMaxNorm = 1, kUnscaled = 2, kSimilarity = 3 };

// Doubles of scratch that one trajectory of `frames` frames needs: ten rows, with room for a vector at both ends of each.
constexpr int64_t kScratchRows = 10, kRowPad = 8;
constexpr int64_t scratch_row(int64_t frames) { return (frames + 7) / 8 * 8 + 2 * kRowPad; }

struct TrajectoryArgs {
  const void* pred;    // [N, F, 4, 4]
  const void* target;  // [N, F, 4, 4]
  const void* depth;   // [N] or null
  int64_t num, frames;
  void* grad_pred;     // [N, F, 4, 4]; backward only
  void* grad_target;   // [N, F, 4, 4]; backward only
  // Where it runs: threads and instruction set on a CPU; stream and scratch [N, kScratchRows, scratch_row(F)] on a device.
  bool is_double;
  int num_threads;
  const char* level;
  void* stream;
  double* scratch;
  FaultSink faults;
};

struct ErrorArgs : TrajectoryArgs {
  bool relative;  // to the first camera
  int mode;       // ScaleMode
  void* outputs[kErrorFields];      // forward: rotation [N, F], translation [N, F], six of [N]
  const void* grads[kErrorFields];  // backward: the same shapes; null is zero
};

struct RewardArgs : TrajectoryArgs {
  double k_t, k_r;
  bool metric;
  void* reward;      // [N], forward
  const void* grad;  // [N], backward
};

struct RotationArgs {
  const void* a;     // [M, 3, 3]
  const void* b;     // [M, 3, 3]
  int64_t num;
  void* angle;       // [M], forward
  const void* grad;  // [M], backward
  void* grad_a;      // [M, 3, 3]
  void* grad_b;
  bool is_double;
  int num_threads;
  const char* level;
  void* stream;
  FaultSink faults;
};

// Matrices of `size` rows and columns: 3 for rotations, 4 for world-to-camera.
struct RigidArgs {
  const void* matrices;  // [M, size, size]
  int64_t num;
  int size;
  double tolerance;
  int32_t* bad;  // on a CPU: one number, zeroed by the caller, set to 1 when a matrix is not rigid
  bool is_double;
  int num_threads;
  const char* level;
  void* stream;
  FaultSink faults;  // on a device: of the first input
};

}  // namespace worldr1
