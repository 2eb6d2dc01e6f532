// Trajectory functions on the device, on the same headers as the CPU path: one warp for a trajectory, its lanes share the
// frames; sums by a butterfly of shuffles, so that every lane gets the same number and two runs the same result.
#include "se3.h"

#include <cuda_runtime.h>

#include "../common/se3_scores.h"

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
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(kAll, v, offset);
    return v;
  }
  __device__ __forceinline__ double largest(double v) const {
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) v = larger(v, __shfl_xor_sync(kAll, v, offset));
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

#define WR_TRAJECTORY_KERNEL(name, Args)                                                       \
  template <class T>                                                                           \
  __global__ void __launch_bounds__(kThreads) name##_kernel(const Args args) {                 \
    const int64_t n = warp_task(args.num);                                                     \
    if (n < 0) return;                                                                         \
    double* scratch = args.scratch + n * kScratchRows * scratch_row(args.frames);              \
    name<T>(WarpTeam{(int)(threadIdx.x % kWarp)}, args, n, scratch);                           \
  }
WR_TRAJECTORY_KERNEL(error_forward, ErrorArgs)
WR_TRAJECTORY_KERNEL(error_backward, ErrorArgs)
WR_TRAJECTORY_KERNEL(reward_forward, RewardArgs)
WR_TRAJECTORY_KERNEL(reward_backward, RewardArgs)

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
  const Turn<double> turn = turn_between(a, b);
  static_cast<T*>(args.angle)[m] = (T)arctangent(turn.sine, turn.cosine);
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

// Every thread that finds a fault writes the same 1: no atomics are needed.
template <class T>
__global__ void __launch_bounds__(kThreads) rigid_kernel(const RigidArgs args) {
  const int64_t m = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (m >= args.num) return;
  const T* base = static_cast<const T*>(args.matrices) + (int64_t)args.size * args.size * m;
  bool ok;
  if (args.size == 3) {
    double r[9];
    load_nine(base, r);
    ok = is_rotation(r, args.tolerance) > 0.0;
  } else {
    const Pose<double> p = first_pose(base);
    ok = is_rotation(p.r, args.tolerance) > 0.0;
    for (int k = 0; k < 3; ++k) ok = ok && p.t[k] - p.t[k] == 0.0;
    for (int k = 0; k < 4; ++k) {
      const double error = (double)base[12 + k] - (k == 3 ? 1.0 : 0.0);
      ok = ok && larger(error, -error) <= args.tolerance;
    }
  }
  if (!ok) *args.bad = 1;
}

template <class Args>
int launch(const Args& args, int64_t per_block, void (*as_float)(Args), void (*as_double)(Args)) {
  if (args.num == 0) return 0;
  const int64_t blocks = (args.num + per_block - 1) / per_block;
  void (*kernel)(Args) = args.is_double ? as_double : as_float;
  kernel<<<(unsigned)blocks, kThreads, 0, static_cast<cudaStream_t>(args.stream)>>>(args);
  return (int)cudaGetLastError();
}

}  // namespace

int launch_error(const ErrorArgs& args, bool backward) {
  return backward ? launch<ErrorArgs>(args, kWarps, error_backward_kernel<float>, error_backward_kernel<double>)
                  : launch<ErrorArgs>(args, kWarps, error_forward_kernel<float>, error_forward_kernel<double>);
}

int launch_reward(const RewardArgs& args, bool backward) {
  return backward ? launch<RewardArgs>(args, kWarps, reward_backward_kernel<float>, reward_backward_kernel<double>)
                  : launch<RewardArgs>(args, kWarps, reward_forward_kernel<float>, reward_forward_kernel<double>);
}

int launch_rotation(const RotationArgs& args, bool backward) {
  return backward ? launch<RotationArgs>(args, kThreads, rotation_backward_kernel<float>, rotation_backward_kernel<double>)
                  : launch<RotationArgs>(args, kThreads, rotation_forward_kernel<float>, rotation_forward_kernel<double>);
}

int launch_rigid(const RigidArgs& args) { return launch<RigidArgs>(args, kThreads, rigid_kernel<float>, rigid_kernel<double>); }

}  // namespace worldr1
