// Trajectory functions on the device, on the same headers as the CPU path: one warp for a trajectory, its lanes share the
// frames; sums by a butterfly of shuffles, so that every lane gets the same number and two runs the same result.
#include "../common/se3_scores.h"
#include "../common/simt.h"
#include "se3.h"

namespace worldr1 {
namespace {

constexpr int kWarp = 32, kWarps = 2, kThreads = kWarp * kWarps;
constexpr unsigned kAll = 0xffffffffu;

struct WarpTeam {
  typedef double V;
  static constexpr int64_t kStep = kWarp;
  static constexpr bool kOneSideAtATime = true;
  int lane;

  __device__ __forceinline__ int64_t first() const { return lane; }
  __device__ __forceinline__ bool leader() const { return lane == 0; }
  // Scratch rows written by one lane are read by its neighbours.
  __device__ __forceinline__ void sync() const { __syncwarp(); }
  __device__ __forceinline__ double index(int64_t t) const { return (double)t; }

  __device__ __forceinline__ double sum(double v) const {
    WR_UNROLL(5) for (int offset = kWarp / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(kAll, v, offset);
    return v;
  }
  __device__ __forceinline__ double largest(double v) const {
    WR_UNROLL(5) for (int offset = kWarp / 2; offset > 0; offset /= 2) v = larger(v, __shfl_xor_sync(kAll, v, offset));
    return v;
  }

  __device__ __forceinline__ double row(const double* row, int64_t t) const { return row[t]; }
  __device__ __forceinline__ void set_row(double* row, int64_t t, double v) const { row[t] = v; }

  template <class T>
  __device__ __forceinline__ double value(const T* p, int64_t t, int64_t) const {
    return (double)p[t];
  }
  template <class T>
  __device__ __forceinline__ void put(T* p, int64_t t, int64_t, double v) const {
    p[t] = (T)v;
  }
  template <class T>
  __device__ __forceinline__ Pose<double> pose(const T* base, int64_t t, int64_t) const {
    return first_pose(base + 16 * t);
  }
  template <class T>
  __device__ __forceinline__ void put_pose(T* base, int64_t t, int64_t, const Pose<double>& pose) const {
    T* p = base + 16 * t;
    for (int r = 0; r < 3; ++r) {
      for (int k = 0; k < 3; ++k) p[4 * r + k] = (T)pose.r[3 * r + k];
      p[4 * r + 3] = (T)pose.t[r];
      p[12 + r] = (T)0;
    }
    p[15] = (T)0;
  }
};

// The trajectory of this warp, -1 past the end: whole warps leave together.
__device__ __forceinline__ int64_t warp_task(int64_t num) {
  const int64_t n = (int64_t)blockIdx.x * kWarps + threadIdx.x / kWarp;
  return n < num ? n : -1;
}

// What is wrong with matrices: a bit for each kind, and by how much.
struct Wrong {
  unsigned kinds = 0;
  float orthogonality = 0.0f, last_row = 0.0f;
};

__device__ __forceinline__ bool is_finite(double a) { return a - a == 0.0; }

// Looks at a 3x3 rotation or a 4x4 world-to-camera matrix.
template <int kSize, class T>
__device__ __forceinline__ void examine(const T* matrix, double tolerance, Wrong& wrong) {
  double m[kSize * kSize];
  bool finite = true;
  for (int k = 0; k < kSize * kSize; ++k) {
    m[k] = (double)matrix[k];
    finite = finite && is_finite(m[k]);
  }
  if (!finite) {
    wrong.kinds |= 1u << kNotFinite;
    return;
  }
  constexpr int kRow = kSize, kNext = 2 * kSize;
  double worst = 0.0;
  for (int i = 0; i < 3; ++i)
    for (int j = i; j < 3; ++j) {
      const double error = m[i] * m[j] + m[kRow + i] * m[kRow + j] + m[kNext + i] * m[kNext + j] - (i == j ? 1.0 : 0.0);
      worst = larger(worst, larger(error, -error));
    }
  const double det = m[0] * (m[kRow + 1] * m[kNext + 2] - m[kRow + 2] * m[kNext + 1]) -
                     m[1] * (m[kRow] * m[kNext + 2] - m[kRow + 2] * m[kNext]) +
                     m[2] * (m[kRow] * m[kNext + 1] - m[kRow + 1] * m[kNext]);
  if (worst > tolerance) {
    wrong.kinds |= 1u << kNotOrthogonal;
    wrong.orthogonality = fmaxf(wrong.orthogonality, (float)worst);
  } else if (det < 0.0) {
    wrong.kinds |= 1u << kReflection;
  }
  if constexpr (kSize == 4) {
    double bottom = 0.0;
    for (int k = 0; k < 4; ++k) {
      const double error = m[12 + k] - (k == 3 ? 1.0 : 0.0);
      bottom = larger(bottom, larger(error, -error));
    }
    if (bottom > tolerance) {
      wrong.kinds |= 1u << kLastRow;
      wrong.last_row = fmaxf(wrong.last_row, (float)bottom);
    }
  }
}

// One store of eight bytes a fault: of several at once any may stay, but none is mixed with another.
__device__ __forceinline__ void tell(const FaultSink& faults, int input, FaultKind kind, int64_t item, float amount) {
  faults.words[input * kFaultKinds + kind] = (uint64_t)(uint32_t)(item + 1) << 32 | __float_as_uint(amount);
  __threadfence_system();  // the word is there before the flag says so
  *faults.flag = 1;
}

__device__ __forceinline__ void tell(const FaultSink& faults, int input, const Wrong& wrong, int64_t item) {
  if (wrong.kinds & 1u << kNotFinite) tell(faults, input, kNotFinite, item, 0.0f);
  if (wrong.kinds & 1u << kNotOrthogonal) tell(faults, input, kNotOrthogonal, item, wrong.orthogonality);
  if (wrong.kinds & 1u << kReflection) tell(faults, input, kReflection, item, 0.0f);
  if (wrong.kinds & 1u << kLastRow) tell(faults, input, kLastRow, item, wrong.last_row);
}

// Whether the inputs of trajectory n are what they must be; tells what is not. The same answer in all lanes.
template <class T>
__device__ __forceinline__ bool sound(const TrajectoryArgs& args, int64_t n, int lane) {
  if (args.faults.words == nullptr) return true;
  bool all = true;
  for (int side = 0; side < 2; ++side) {
    const T* base = static_cast<const T*>(side == 0 ? args.pred : args.target) + n * args.frames * 16;
    Wrong wrong;
    for (int64_t t = lane; t < args.frames; t += kWarp) examine<4>(base + 16 * t, args.faults.tolerance, wrong);
    if (__all_sync(kAll, wrong.kinds == 0)) continue;
    all = false;
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      wrong.kinds |= __shfl_xor_sync(kAll, wrong.kinds, offset);
      wrong.orthogonality = fmaxf(wrong.orthogonality, __shfl_xor_sync(kAll, wrong.orthogonality, offset));
      wrong.last_row = fmaxf(wrong.last_row, __shfl_xor_sync(kAll, wrong.last_row, offset));
    }
    if (lane == 0) tell(args.faults, side, wrong, n);
  }
  if (args.depth == nullptr) return all;
  const double depth = depth_of<T>(args, n);
  if (is_finite(depth) && depth > 0.0) return all;
  if (lane == 0) tell(args.faults, 2, is_finite(depth) ? kNotPositive : kNotFinite, n, (float)depth);
  return false;
}

template <class T>
__device__ __forceinline__ void fill_nan(const ErrorArgs& args, int64_t n, int lane) {
  T* const* out = reinterpret_cast<T* const*>(args.outputs);
  for (int64_t t = lane; t < args.frames; t += kWarp) out[0][n * args.frames + t] = out[1][n * args.frames + t] = (T)NAN;
  if (lane < kErrorFields - 2) out[2 + lane][n] = (T)NAN;
}

template <class T>
__device__ __forceinline__ void fill_nan(const RewardArgs& args, int64_t n, int lane) {
  if (lane == 0) static_cast<T*>(args.reward)[n] = (T)NAN;
}

__device__ __forceinline__ double* scratch_of(const TrajectoryArgs& args, int64_t n) {
  return args.scratch + n * kScratchRows * scratch_row(args.frames);
}

#define WR_TRAJECTORY_KERNELS(name, Args)                                                       \
  template <class T>                                                                            \
  __global__ void __launch_bounds__(kThreads) name##_forward_kernel(const Args args) {          \
    const int64_t n = warp_task(args.num);                                                      \
    const int lane = (int)(threadIdx.x % kWarp);                                                \
    if (n < 0) return;                                                                          \
    if (!sound<T>(args, n, lane)) return fill_nan<T>(args, n, lane);                            \
    name##_forward<T>(WarpTeam{lane}, args, n, scratch_of(args, n));                         \
  }                                                                                             \
  template <class T>                                                                            \
  __global__ void __launch_bounds__(kThreads) name##_backward_kernel(const Args args) {         \
    const int64_t n = warp_task(args.num);                                                      \
    if (n < 0) return;                                                                          \
    name##_backward<T>(WarpTeam{(int)(threadIdx.x % kWarp)}, args, n, scratch_of(args, n));  \
  }
WR_TRAJECTORY_KERNELS(error, ErrorArgs)
WR_TRAJECTORY_KERNELS(reward, RewardArgs)

template <class T>
__device__ __forceinline__ void load_nine(const T* base, double* out) {
  for (int k = 0; k < 9; ++k) out[k] = (double)base[k];
}

template <class T>
__global__ void __launch_bounds__(kThreads) rotation_forward_kernel(const RotationArgs args) {
  const int64_t m = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (m >= args.num) return;
  double a[9], b[9];
  load_nine(static_cast<const T*>(args.a) + 9 * m, a);
  load_nine(static_cast<const T*>(args.b) + 9 * m, b);
  Wrong of_a, of_b;
  if (args.faults.words != nullptr) {
    examine<3>(static_cast<const T*>(args.a) + 9 * m, args.faults.tolerance, of_a);
    examine<3>(static_cast<const T*>(args.b) + 9 * m, args.faults.tolerance, of_b);
    tell(args.faults, 0, of_a, m);
    tell(args.faults, 1, of_b, m);
  }
  const Turn<double> turn = turn_between(a, b);
  const double angle = arctangent(turn.sine, turn.cosine);
  static_cast<T*>(args.angle)[m] = (of_a.kinds | of_b.kinds) == 0 ? (T)angle : (T)NAN;
}

template <class T>
__global__ void __launch_bounds__(kThreads) rotation_backward_kernel(const RotationArgs args) {
  const int64_t m = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (m >= args.num) return;
  double a[9], b[9], ga[9] = {}, gb[9] = {};
  load_nine(static_cast<const T*>(args.a) + 9 * m, a);
  load_nine(static_cast<const T*>(args.b) + 9 * m, b);
  const TurnGradient<double> g = turn_gradient(turn_between(a, b), (double)static_cast<const T*>(args.grad)[m]);
  turn_between_backward(b, g, -1.0, ga);
  turn_between_backward(a, g, 1.0, gb);
  for (int k = 0; k < 9; ++k) {
    static_cast<T*>(args.grad_a)[9 * m + k] = (T)ga[k];
    static_cast<T*>(args.grad_b)[9 * m + k] = (T)gb[k];
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) rigid_kernel(const RigidArgs args) {
  const int64_t m = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (m >= args.num) return;
  Wrong wrong;
  if (args.size == 3)
    examine<3>(static_cast<const T*>(args.matrices) + 9 * m, args.faults.tolerance, wrong);
  else
    examine<4>(static_cast<const T*>(args.matrices) + 16 * m, args.faults.tolerance, wrong);
  tell(args.faults, 0, wrong, m);
}

template <class Args>
int launch_typed(const Args& args, int64_t per_block, void (*as_float)(Args), void (*as_double)(Args)) {
  if (args.num == 0) return 0;
  return launch(args.is_double ? as_double : as_float, (args.num + per_block - 1) / per_block, 1, kThreads, args.stream, args);
}

}  // namespace

int launch_error(const ErrorArgs& args, bool backward) {
  return backward ? launch_typed<ErrorArgs>(args, kWarps, error_backward_kernel<float>, error_backward_kernel<double>)
                  : launch_typed<ErrorArgs>(args, kWarps, error_forward_kernel<float>, error_forward_kernel<double>);
}

int launch_reward(const RewardArgs& args, bool backward) {
  return backward ? launch_typed<RewardArgs>(args, kWarps, reward_backward_kernel<float>, reward_backward_kernel<double>)
                  : launch_typed<RewardArgs>(args, kWarps, reward_forward_kernel<float>, reward_forward_kernel<double>);
}

int launch_rotation(const RotationArgs& args, bool backward) {
  return launch_typed<RotationArgs>(args, kThreads, backward ? rotation_backward_kernel<float> : rotation_forward_kernel<float>,
                                    backward ? rotation_backward_kernel<double> : rotation_forward_kernel<double>);
}

int launch_rigid(const RigidArgs& args) {
  return launch_typed<RigidArgs>(args, kThreads, rigid_kernel<float>, rigid_kernel<double>);
}

}  // namespace worldr1
