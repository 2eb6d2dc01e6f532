// Driver of the trajectory functions on a CPU: instruction set, threads, scratch. The arithmetic is in se3_simd.cpp.
#include "se3.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "thread_pool.h"

namespace worldr1 {
namespace {

const Se3Kernels& kernels(const char* level) {
  constexpr const Se3Kernels* (*table[])() = WR_ISA_TABLE(se3_kernels);
  return *table[choose_isa(level)]();
}

// Work in chunks of about this many frames or matrices, 50 to 100 us: waking a thread costs 13.
constexpr int64_t kChunk = 2048;

int64_t chunk_of(int64_t frames) { return std::max<int64_t>(1, kChunk / std::max<int64_t>(1, frames)); }

template <class Task>
void in_chunks(int64_t num, int64_t chunk, int num_threads, const Task& task) {
  parallel_for((num + chunk - 1) / chunk, num_threads, [&](int64_t i, int worker) {
    task(i * chunk, std::min(num, (i + 1) * chunk), worker);
  });
}

template <class Args>
void run_trajectories(const Args& args, void (*kernel)(const Args&, int64_t, int64_t, double*)) {
  if (args.num == 0) return;
  const int64_t size = kScratchRows * scratch_row(args.frames);
  // Zeroed once: rows are read a frame beyond their ends, in lanes that are masked out.
  std::vector<double> scratch((size_t)(size * std::max(1, args.num_threads)), 0.0);
  in_chunks(args.num, chunk_of(args.frames), args.num_threads,
            [&](int64_t begin, int64_t end, int worker) { kernel(args, begin, end, scratch.data() + worker * size); });
}

}  // namespace

void run_error(const ErrorArgs& args, bool backward) {
  const Se3Kernels& k = kernels(args.level);
  run_trajectories(args, backward ? k.error_backward : k.error_forward);
}

void run_reward(const RewardArgs& args, bool backward) {
  const Se3Kernels& k = kernels(args.level);
  run_trajectories(args, backward ? k.reward_backward : k.reward_forward);
}

void run_rotation(const RotationArgs& args, bool backward) {
  const Se3Kernels& k = kernels(args.level);
  const auto kernel = backward ? k.rotation_backward : k.rotation_forward;
  in_chunks(args.num, kChunk, args.num_threads,
            [&](int64_t begin, int64_t end, int) { kernel(args, begin, end); });
}

void run_rigid(const RigidArgs& args) {
  const Se3Kernels& k = kernels(args.level);
  std::atomic<bool> all{true};
  in_chunks(args.num, kChunk, args.num_threads, [&](int64_t begin, int64_t end, int) {
    if (!k.rigid(args, begin, end)) all.store(false);
  });
  if (!all.load()) *args.bad = 1;
}

}  // namespace worldr1
