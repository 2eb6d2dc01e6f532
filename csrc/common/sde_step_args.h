// What a caller of the SDE step says, alike for the CPU and CUDA. Mathematics: worldr1_kernels/sde_step/README.md.
#pragma once

#include <cstdint>

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
  const int64_t* sample_ids;  // [N], drawing form; null: 0 .. N - 1
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
  // Where it runs. On a CPU:
  int num_threads;
  const char* level;
  // On a device: the stream, sums of chunks [2, N, chunks], and a count of finished chunks [N], 0 before and after.
  void* stream;
  double* sums;
  uint32_t* arrivals;
};

enum class SdeForm { kDraw, kScore, kBackward };

}  // namespace worldr1
