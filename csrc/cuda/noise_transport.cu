// Noise transport on the device. A value is made once, into its slot; copies move no data; a captured frame gathers the slots
// of its pixels and reduces them. All arithmetic is in csrc/common/noise_transport.h, which the CPU tests run element by element.
#include "noise_transport.h"

#include <cuda_runtime.h>

namespace worldr1 {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kLargestGridY = 65535;

// One sample and block of four channels.
struct Task {
  int64_t sample, quad;
  int planes;  // channels that exist, 1 to 4
};

__device__ __forceinline__ Task task_of(const TransportCudaArgs& args, int64_t index) {
  const int64_t quads = (args.channels + 3) / 4;
  const int64_t sample = index / quads, quad = index - sample * quads;
  const int64_t left = args.channels - 4 * quad;
  return {sample, quad, left < 4 ? (int)left : 4};
}

__device__ __forceinline__ int64_t num_tasks(const TransportCudaArgs& args) { return args.batch * ((args.channels + 3) / 4); }

// Noise into slots 0 .. H W - 1: a thread for each pixel and task.
__global__ void __launch_bounds__(kThreads) load_kernel(const TransportCudaArgs args) {
  const int64_t pixels = args.height * args.width;
  const int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (i >= pixels) return;
  for (int64_t index = blockIdx.y; index < num_tasks(args); index += gridDim.y) {
    const Task task = task_of(args, index);
    const float* plane = args.noise + (task.sample * args.channels + 4 * task.quad) * pixels + i;
    Quad<float> value = {{0.0f, 0.0f, 0.0f, 0.0f}};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (k < task.planes) value.v[k] = plane[k * pixels];
    }
    args.state[index * args.num_slots + i] = value;
  }
}

// Fresh pixels and groups of one frame: a thread for each and each task.
__global__ void __launch_bounds__(kThreads) values_kernel(const TransportCudaArgs args, uint32_t frame, int64_t first_fresh,
                                                          int64_t num_fresh, int64_t first_group, int64_t num_groups) {
  const int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (i >= num_fresh + num_groups) return;
  for (int64_t index = blockIdx.y; index < num_tasks(args); index += gridDim.y) {
    const Task task = task_of(args, index);
    const DrawKey key = {args.seed, frame, (uint32_t)args.sample_ids[task.sample], (uint32_t)task.quad};
    Quad<float>* state = args.state + index * args.num_slots;
    if (i < num_fresh) {
      make_fresh(args.lists, first_fresh + i, key, state);
    } else {
      make_group(args.lists, first_group + (i - num_fresh), key, state);
    }
  }
}

// Merges of one frame, after its groups: a thread for each and each task.
__global__ void __launch_bounds__(kThreads) merges_kernel(const TransportCudaArgs args, int64_t first, int64_t count) {
  const int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (i >= count) return;
  for (int64_t index = blockIdx.y; index < num_tasks(args); index += gridDim.y) {
    sum_merge<Quad<float>, float>(args.lists, first + i, args.state + index * args.num_slots);
  }
}

// One captured frame: `lanes` neighbouring threads for each pixel of the output, a power of two up to a warp.
__global__ void __launch_bounds__(kThreads)
    reduce_kernel(const TransportCudaArgs args, const int32_t* __restrict__ slots, int64_t captured, int64_t num_captured,
                  int lanes) {
  const int64_t columns = args.width / args.reduce, pixels = (args.height / args.reduce) * columns;
  const int64_t thread = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  const int64_t i = thread / lanes;
  const int lane = (int)(thread - i * lanes);
  const int64_t y = i / columns * args.reduce, x = i % columns * args.reduce;
  for (int64_t index = blockIdx.y; index < num_tasks(args); index += gridDim.y) {
    const Task task = task_of(args, index);
    Quad<float> total = {{0.0f, 0.0f, 0.0f, 0.0f}};
    if (i < pixels) {
      total = block_part(slots, args.state + index * args.num_slots, args.width, y, x, args.reduce, lane, lanes);
    }
    for (int half = lanes / 2; half > 0; half /= 2) {
      Quad<float> other;
#pragma unroll
      for (int k = 0; k < 4; ++k) other.v[k] = __shfl_down_sync(0xffffffffu, total.v[k], half, lanes);
      total = total + other;
    }
    if (lane != 0 || i >= pixels) continue;
    const Quad<float> value = total / (float)args.reduce;
    float* plane = args.out + ((task.sample * args.channels + 4 * task.quad) * num_captured + captured) * pixels + i;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (k < task.planes) plane[k * num_captured * pixels] = value.v[k];
    }
  }
}

}  // namespace

int launch_noise_transport(const TransportCudaArgs& args, void* stream) {
  const int64_t tasks = args.batch * ((args.channels + 3) / 4);
  if (tasks == 0) return 0;
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  const auto grid = [&](int64_t threads) {
    return dim3((unsigned)((threads + kThreads - 1) / kThreads), (unsigned)(tasks < kLargestGridY ? tasks : kLargestGridY));
  };
  const int64_t pixels = args.height * args.width, num_captured = (args.num_frames - 1) / args.capture + 1;
  const int lanes = block_lanes(args.reduce);
  load_kernel<<<grid(pixels), kThreads, 0, s>>>(args);
  int status = (int)cudaGetLastError();
  for (int64_t frame = 0; frame <= (num_captured - 1) * args.capture && status == 0; ++frame) {
    if (frame > 0) {
      const int64_t* from = args.offsets + (frame - 1) * 5;
      const int64_t* to = from + 5;
      const int64_t num_fresh = to[0] - from[0], num_groups = to[1] - from[1], num_merges = to[3] - from[3];
      if (num_fresh + num_groups > 0) {
        values_kernel<<<grid(num_fresh + num_groups), kThreads, 0, s>>>(args, (uint32_t)frame, from[0], num_fresh, from[1],
                                                                       num_groups);
        status = (int)cudaGetLastError();
      }
      if (num_merges > 0 && status == 0) {
        merges_kernel<<<grid(num_merges), kThreads, 0, s>>>(args, from[3], num_merges);
        status = (int)cudaGetLastError();
      }
    }
    if (frame % args.capture == 0 && status == 0) {
      const int64_t threads = pixels / args.reduce / args.reduce * lanes;
      reduce_kernel<<<grid(threads), kThreads, 0, s>>>(args, args.slots + frame / args.plan_stride * pixels,
                                                      frame / args.capture, num_captured, lanes);
      status = (int)cudaGetLastError();
    }
  }
  return status;
}

}  // namespace worldr1
