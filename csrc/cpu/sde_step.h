// Interfaces between the SDE step's driver (baseline instructions) and its SIMD kernels (one build per instruction set).
// Mathematics: worldr1_kernels/sde_step/README.md.
#pragma once

#include <cstdint>

#include "isa.h"

namespace worldr1 {

// A velocity or its gradient, float32 or bfloat16; `data` may be null.
struct SdeTensor {
  void* data;
  bool bfloat16;
};

// Everything the caller says. Tensors are contiguous [N, D].
struct SdeStepArgs {
  SdeTensor velocity, velocity_uncond, velocity_ref;  // the last two may be null
  const float* sample;
  const float* noise;         // drawing form; null: draw from Philox
  const int64_t* sample_ids;  // [N], drawing form
  float* prev_sample;         // written by the drawing form, read by the other two
  float* mean;                // written by the drawing and the scoring form
  float* log_prob;            // [N], likewise
  float* kl;                  // [N], likewise, where velocity_ref is given
  const float* grad_mean;      // backward; the three may be null
  const float* grad_log_prob;  // [N]
  const float* grad_kl;        // [N]
  SdeTensor grad_velocity, grad_velocity_uncond;  // backward
  int64_t num_samples, num_elements;
  float guidance_scale, guidance_rest;  // rest = 1 - scale, rounded once from float64
  float coef_sample, coef_velocity, std;
  double log_prob_scale, log_prob_shift;  // log_prob = mean square * scale - shift
  double kl_scale;
  float grad_log_prob_scale, grad_kl_scale;  // d log_prob / d v and d kl / d v per unit of difference
  uint64_t seed;
  uint32_t step;
  int num_threads;
};

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

enum class SdeForm { kDraw, kScore, kBackward };

// Runs one form with the kernels of one instruction set. Throws std::bad_alloc, and std::runtime_error as choose_isa.
void sde_step(SdeForm form, const SdeStepArgs& args, const char* level);

}  // namespace worldr1
