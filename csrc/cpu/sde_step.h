// Interfaces between the SDE step's driver (baseline instructions) and its SIMD kernels (one build per instruction set).
// Mathematics: worldr1_kernels/sde_step/README.md.
#pragma once

#include <cstdint>

#include "../common/sde_step_args.h"
#include "isa.h"

namespace worldr1 {

// Sums of a chunk of one sample, in float64.
struct SdeSums {
  double residual;    // (prev_sample - mean)^2
  double difference;  // (velocity - velocity_ref)^2
};

// Elements of a chunk: the unit of work of a thread and the first stage of the sums. Both follow from the sample's size
// alone, so that neither threads nor the batch decide a bit.
constexpr int64_t kSdeChunk = 1 << 14;

struct SdeKernels {
  // Elements [begin, end) of sample n; begin is a multiple of kSdeChunk.
  SdeSums (*draw)(const SdeStepArgs& args, int64_t n, int64_t begin, int64_t end);
  SdeSums (*score)(const SdeStepArgs& args, int64_t n, int64_t begin, int64_t end);
  SdeSums (*backward)(const SdeStepArgs& args, int64_t n, int64_t begin, int64_t end);  // returns zeros
};

WR_ISA_DECLARE(SdeKernels, sde_step_kernels);

// Runs one form. Throws std::bad_alloc, and std::runtime_error as choose_isa.
void sde_step(SdeForm form, const SdeStepArgs& args);

}  // namespace worldr1
