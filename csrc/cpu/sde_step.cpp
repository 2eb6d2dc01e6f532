#include "sde_step.h"

#include <vector>

#include "thread_pool.h"

namespace worldr1 {
namespace {

// Below this many elements a second thread costs more than it saves.
constexpr int64_t kThreadThreshold = 1 << 17;

const SdeKernels& kernels(const char* level) {
  using Entry = const SdeKernels* (*)();
  static const Entry table[] = WR_ISA_TABLE(sde_step_kernels);
  return *table[choose_isa(level)]();
}

}  // namespace

void sde_step(SdeForm form, const SdeStepArgs& args) {
  const SdeKernels& k = kernels(args.level);
  const auto run = form == SdeForm::kDraw ? k.draw : form == SdeForm::kScore ? k.score : k.backward;
  const int64_t chunks = (args.num_elements + kSdeChunk - 1) / kSdeChunk;
  const int64_t tasks = args.num_samples * chunks;
  const int threads = args.num_samples * args.num_elements < kThreadThreshold ? 1 : args.num_threads;
  std::vector<SdeSums> sums((size_t)tasks);
  parallel_for(tasks, threads, [&](int64_t task, int) {
    const int64_t begin = task % chunks * kSdeChunk;
    const int64_t end = begin + kSdeChunk < args.num_elements ? begin + kSdeChunk : args.num_elements;
    sums[(size_t)task] = run(args, task / chunks, begin, end);
  });
  if (form == SdeForm::kBackward) return;
  for (int64_t n = 0; n < args.num_samples; ++n) {
    SdeSums total{};
    for (int64_t c = 0; c < chunks; ++c) {
      total.residual += sums[(size_t)(n * chunks + c)].residual;
      total.difference += sums[(size_t)(n * chunks + c)].difference;
    }
    const double count = (double)args.num_elements;
    args.log_prob[n] = (float)(total.residual / count * args.log_prob_scale - args.log_prob_shift);
    if (args.kl != nullptr) args.kl[n] = (float)(total.difference / count * args.kl_scale);
  }
}

}  // namespace worldr1
