// Driver of the CPU transport: state, order of frames, threads. The arithmetic is in noise_transport_simd.cpp and, for the
// scalar twin of the CUDA kernels, in csrc/common/noise_transport.h.
#include "noise_transport.h"

#include <algorithm>
#include <memory>

#include "thread_pool.h"

namespace worldr1 {
namespace {

constexpr int64_t kRowsPerTask = 2048;  // of a list, when threads share one sample

// One sample and block of four channels, whose state is one array of slots.
struct Task {
  int64_t sample, quad;
  int planes;  // channels that exist, 1 to 4
};

Task task_of(const TransportArgs& args, int64_t index) {
  const int64_t quads = (args.channels + 3) / 4;
  const int64_t sample = index / quads, quad = index % quads;
  return {sample, quad, (int)std::min<int64_t>(4, args.channels - 4 * quad)};
}

int64_t captured_frames(const TransportArgs& args) { return (args.num_frames - 1) / args.capture + 1; }

template <class T>
const T* noise_plane(const TransportArgs& args, const Task& task, int k) {
  const int64_t channel = task.sample * args.channels + 4 * task.quad + k;
  return static_cast<const T*>(args.noise) + channel * args.height * args.width;
}

template <class T>
T* out_plane(const TransportArgs& args, const Task& task, int k, int64_t captured) {
  const int64_t channel = task.sample * args.channels + 4 * task.quad + k;
  const int64_t pixels = (args.height / args.reduce) * (args.width / args.reduce);
  return static_cast<T*>(args.out) + (channel * captured_frames(args) + captured) * pixels;
}

const int32_t* slots_at(const TransportArgs& args, int64_t frame) {
  return args.slots + frame / args.plan_stride * (args.height * args.width);
}

// Calls function(begin, end) for pieces of [begin, end), on several threads where there is enough to share.
template <class F>
void in_pieces(int64_t begin, int64_t end, int threads, const F& function) {
  if (threads == 1 || end - begin < 2 * kRowsPerTask) {
    if (begin < end) function(begin, end);
    return;
  }
  const int64_t pieces = (end - begin + kRowsPerTask - 1) / kRowsPerTask;
  parallel_for(pieces, threads, [&](int64_t piece, int) {
    const int64_t first = begin + piece * kRowsPerTask;
    function(first, std::min(first + kRowsPerTask, end));
  });
}

void run_task(const TransportArgs& args, const TransportKernels& kernels, const Task& task, int threads, f4* state,
              std::vector<f4>& sums) {
  const float* planes[4] = {};
  for (int k = 0; k < task.planes; ++k) planes[k] = noise_plane<float>(args, task, k);
  kernels.load(planes, args.height * args.width, state);
  DrawKey key = {args.seed, 0, (uint32_t)args.sample_ids[task.sample], (uint32_t)task.quad};
  const int64_t last = (captured_frames(args) - 1) * args.capture;
  const int64_t rows = args.height / args.reduce, columns = args.width / args.reduce;
  for (int64_t frame = 0; frame <= last; ++frame) {
    if (frame > 0) {
      key.frame = (uint32_t)frame;
      const int64_t* from = args.offsets + (frame - 1) * kPlanLists;
      const int64_t* to = from + kPlanLists;
      in_pieces(from[0], to[0], threads, [&](int64_t b, int64_t e) { kernels.make_fresh(args.lists, b, e, key, state); });
      in_pieces(from[1], to[1], threads, [&](int64_t b, int64_t e) { kernels.make_groups(args.lists, b, e, key, state); });
      in_pieces(from[3], to[3], threads, [&](int64_t b, int64_t e) { kernels.make_merges(args.lists, b, e, state); });
    }
    if (frame % args.capture) continue;
    float* out[4] = {};
    for (int k = 0; k < task.planes; ++k) out[k] = out_plane<float>(args, task, k, frame / args.capture);
    const int32_t* slots = slots_at(args, frame);
    parallel_for(rows, threads, [&](int64_t row, int worker) {
      float* line[4];
      for (int k = 0; k < 4; ++k) line[k] = out[k] ? out[k] + row * columns : nullptr;
      kernels.reduce_row(slots, state, args.width, row, args.reduce, sums.data() + worker * args.width, line);
    });
  }
}

template <class T>
void run_scalar(const TransportArgs& args, const Task& task, Quad<T>* state) {
  const int64_t pixels = args.height * args.width;
  for (int64_t i = 0; i < pixels; ++i) {
    for (int k = 0; k < 4; ++k) state[i].v[k] = k < task.planes ? noise_plane<T>(args, task, k)[i] : (T)0;
  }
  DrawKey key = {args.seed, 0, (uint32_t)args.sample_ids[task.sample], (uint32_t)task.quad};
  const int64_t last = (captured_frames(args) - 1) * args.capture;
  const int64_t columns = args.width / args.reduce;
  for (int64_t frame = 0; frame <= last; ++frame) {
    if (frame > 0) {
      key.frame = (uint32_t)frame;
      const int64_t* from = args.offsets + (frame - 1) * kPlanLists;
      const int64_t* to = from + kPlanLists;
      for (int64_t i = from[0]; i < to[0]; ++i) make_fresh(args.lists, i, key, state);
      for (int64_t i = from[1]; i < to[1]; ++i) make_group(args.lists, i, key, state);
      for (int64_t i = from[3]; i < to[3]; ++i) sum_merge<Quad<T>, T>(args.lists, i, state);
    }
    if (frame % args.capture) continue;
    const int32_t* slots = slots_at(args, frame);
    for (int64_t i = 0; i < pixels / args.reduce / args.reduce; ++i) {
      const int32_t* corner = slots + i / columns * args.reduce * args.width + i % columns * args.reduce;
      Quad<T> total;
      for (int64_t x = 0; x < args.reduce; ++x) {
        Quad<T> column = state[corner[x]];
        for (int64_t y = 1; y < args.reduce; ++y) column = column + state[corner[y * args.width + x]];
        total = x == 0 ? column : total + column;
      }
      const Quad<T> value = total / (T)args.reduce;
      for (int k = 0; k < task.planes; ++k) out_plane<T>(args, task, k, frame / args.capture)[i] = value.v[k];
    }
  }
}

// Uninitialised: each page is first touched by the thread that uses it.
template <class Q>
std::unique_ptr<Q[]> new_state(const TransportArgs& args) {
  return std::unique_ptr<Q[]>(new Q[(size_t)args.num_slots]);
}

}  // namespace

void transport(const TransportArgs& args, const char* level) {
  constexpr const TransportKernels* (*table[])() = WR_ISA_TABLE(transport_kernels);
  const TransportKernels& kernels = *table[choose_isa(level)]();
  const int64_t tasks = args.batch * ((args.channels + 3) / 4);
  // A state for each thread: four channels of one sample, small enough to stay in a cache. With fewer of them than threads, the
  // threads share the lists and rows instead.
  const int threads = std::max(args.num_threads, 1);
  const bool apart = tasks >= threads;
  const int outer = apart ? threads : 1, inner = apart ? 1 : threads;
  std::vector<std::unique_ptr<f4[]>> states((size_t)outer);
  std::vector<std::vector<f4>> sums((size_t)outer);
  parallel_for(tasks, outer, [&](int64_t index, int worker) {
    auto& state = states[(size_t)worker];
    auto& sum = sums[(size_t)worker];
    if (!state) {
      state = new_state<f4>(args);
      sum.resize((size_t)(args.width * inner));
    }
    run_task(args, kernels, task_of(args, index), inner, state.get(), sum);
  });
}

template <class T>
void transport_scalar(const TransportArgs& args) {
  const int64_t tasks = args.batch * ((args.channels + 3) / 4);
  const int threads = std::max(args.num_threads, 1);
  std::vector<std::unique_ptr<Quad<T>[]>> states((size_t)threads);
  parallel_for(tasks, threads, [&](int64_t index, int worker) {
    auto& state = states[(size_t)worker];
    if (!state) state = new_state<Quad<T>>(args);
    run_scalar<T>(args, task_of(args, index), state.get());
  });
}

template void transport_scalar<float>(const TransportArgs& args);
template void transport_scalar<double>(const TransportArgs& args);

}  // namespace worldr1
