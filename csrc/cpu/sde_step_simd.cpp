// SIMD kernels of the SDE step. Compiled once per instruction set; only the entry point is external, and no
// standard-library template is used, so that no function built for a newer processor can be picked for an older one.
//
// Products and sums stay separate operations: with fused ones the instruction set would decide the last bit, and mean
// would no longer be the torch reference's, bit for bit. Clang heeds its command line alone: there, the last bit may
// differ.
#if !defined(__clang__)
#pragma GCC optimize("fp-contract=off")
#endif

#include "sde_step.h"

#include "../common/sde_step.h"

namespace worldr1 {
namespace {

// Elements handled at a time: what is staged of them stays in the first-level cache. Staging takes tails, bfloat16 and
// guidance out of the arithmetic, which then always sees whole vectors; padding is zeros, and adds zeros to the sums.
constexpr int kBlock = 256;
static_assert(kSdeChunk % kBlock == 0 && kBlock % 32 == 0, "a chunk is whole blocks, a block whole groups of normals");

typedef uint16_t h8 __attribute__((vector_size(16)));
typedef float f4 __attribute__((vector_size(16)));
typedef double d4 __attribute__((vector_size(32)));

struct Staged {
  alignas(64) float values[kBlock];
};

// Elements [at, at + count) as whole vectors: in place where the block is full, else a copy padded with zeros.
WR_INLINE const float* fetch(const float* source, int64_t at, int count, Staged& stage) {
  if (count == kBlock) return source + at;
  std::memset(stage.values, 0, sizeof(stage.values));
  std::memcpy(stage.values, source + at, sizeof(float) * (size_t)count);
  return stage.values;
}

WR_INLINE const float* fetch(const SdeTensor& tensor, int64_t at, int count, Staged& stage) {
  if (!tensor.bfloat16) return fetch((const float*)tensor.data, at, count, stage);
  alignas(16) uint16_t padded[kBlock];
  const uint16_t* bits = (const uint16_t*)tensor.data + at;
  if (count < kBlock) {
    std::memset(padded, 0, sizeof(padded));
    std::memcpy(padded, bits, sizeof(uint16_t) * (size_t)count);
    bits = padded;
  }
  for (int i = 0; i < kBlock; i += 8) {
    h8 half;
    std::memcpy(&half, bits + i, sizeof(half));
    f8_store(stage.values + i, (f8)(__builtin_convertvector(half, w8) << 16));
  }
  return stage.values;
}

// Where the block's results go: in place where it is full, else to the stage, from which `finish` copies.
WR_INLINE float* begin_store(float* target, int64_t at, int count, Staged& stage) {
  return count == kBlock ? target + at : stage.values;
}

WR_INLINE void finish_store(float* target, int64_t at, int count, const Staged& stage) {
  if (count < kBlock) std::memcpy(target + at, stage.values, sizeof(float) * (size_t)count);
}

// source * factor into a gradient, rounded to the nearest even bfloat16 where it is one.
WR_INLINE void store_scaled(const SdeTensor& tensor, int64_t at, int count, const float* source, float factor) {
  Staged stage;
  if (!tensor.bfloat16) {
    float* out = begin_store((float*)tensor.data, at, count, stage);
    for (int i = 0; i < kBlock; i += 8) f8_store(out + i, f8_load(source + i) * factor);
    finish_store((float*)tensor.data, at, count, stage);
    return;
  }
  alignas(16) uint16_t narrow[kBlock];
  for (int i = 0; i < kBlock; i += 8) {
    const f8 value = f8_load(source + i) * factor;
    const w8 bits = (w8)value, rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    const w8 kept = (w8)select(value == value, (f8)rounded, (f8)w8_set(0x7FC0u));  // NaN stays NaN
    const h8 half = __builtin_convertvector(kept, h8);
    std::memcpy(narrow + i, &half, sizeof(half));
  }
  std::memcpy((uint16_t*)tensor.data + at, narrow, sizeof(uint16_t) * (size_t)count);
}

// velocity_uncond + guidance_scale (velocity - velocity_uncond), or the velocity itself.
WR_INLINE const float* fetch_guided(const SdeStepArgs& args, int64_t at, int count, Staged& stage) {
  const float* v = fetch(args.velocity, at, count, stage);
  if (args.velocity_uncond.data == nullptr) return v;
  Staged other;
  const float* u = fetch(args.velocity_uncond, at, count, other);
  const f8 scale = f8_set(args.guidance_scale);
  for (int i = 0; i < kBlock; i += 8) {
    const f8 base = f8_load(u + i);
    f8_store(stage.values + i, (f8_load(v + i) - base) * scale + base);
  }
  return stage.values;
}

// Squares of differences, added lane by lane in float64: lane e mod 8 of the chunk.
struct SumOfSquares {
  d4 lanes[2];
};

WR_INLINE void add_square(SumOfSquares& sum, f8 difference) {
  const f8 square = difference * difference;
#if defined(__AVX__)
  sum.lanes[0] += (d4)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)square));
  sum.lanes[1] += (d4)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)square, 1));
#else
  f4 halves[2];
  std::memcpy(halves, &square, sizeof(halves));
  for (int i = 0; i < 2; ++i) sum.lanes[i] += __builtin_convertvector(halves[i], d4);
#endif
}

WR_INLINE double total(const SumOfSquares& sum) {
  const d4 pairs = sum.lanes[0] + sum.lanes[1];
  return (pairs[0] + pairs[1]) + (pairs[2] + pairs[3]);
}

WR_INLINE void add_differences(SumOfSquares& sum, const float* v, const SdeTensor& reference, int64_t at, int count) {
  if (reference.data == nullptr) return;
  Staged stage;
  const float* r = fetch(reference, at, count, stage);
  for (int i = 0; i < kBlock; i += 8) add_square(sum, f8_load(v + i) - f8_load(r + i));
}

// The coefficients in registers: the compiler cannot know that the stores of a loop leave `args` alone.
struct Affine {
  f8 of_sample, of_velocity;
};

WR_INLINE Affine affine(const SdeStepArgs& args) { return {f8_set(args.coef_sample), f8_set(args.coef_velocity)}; }

WR_INLINE f8 mean_of(const Affine& c, const float* x, const float* v) {
  return f8_load(x) * c.of_sample + f8_load(v) * c.of_velocity;
}

SdeSums draw(const SdeStepArgs& args, int64_t n, int64_t begin, int64_t end) {
  const int64_t row = n * args.num_elements;
  const uint32_t id = (uint32_t)(args.sample_ids != nullptr ? args.sample_ids[n] : n);
  const Affine c = affine(args);
  const f8 std = f8_set(args.std);
  Staged v_stage, x_stage, z_stage, mean_stage, prev_stage;
  SumOfSquares residual{}, difference{};
  for (int64_t e = begin; e < end; e += kBlock) {
    const int64_t at = row + e;
    const int count = (int)(end - e < kBlock ? end - e : kBlock);
    const float* v = fetch_guided(args, at, count, v_stage);
    const float* x = fetch(args.sample, at, count, x_stage);
    const float* z = z_stage.values;
    if (args.noise != nullptr) {
      z = fetch(args.noise, at, count, z_stage);
    } else {
      const int drawn = (count + 31) & ~31;
      for (int i = 0; i < drawn; i += 32)
        philox_normals32((uint32_t)((e + i) / 4), args.step, id, kStreamSde << 16, args.seed, z_stage.values + i);
      if (count < kBlock) std::memset(z_stage.values + count, 0, sizeof(float) * (size_t)(kBlock - count));
    }
    float* mean = begin_store(args.mean, at, count, mean_stage);
    float* prev = begin_store(args.prev_sample, at, count, prev_stage);
    for (int i = 0; i < kBlock; i += 8) {
      const f8 m = mean_of(c, x + i, v + i), p = f8_load(z + i) * std + m;
      f8_store(mean + i, m);
      f8_store(prev + i, p);
      add_square(residual, p - m);  // of the rounded sample, which is what the scoring form will see
    }
    finish_store(args.mean, at, count, mean_stage);
    finish_store(args.prev_sample, at, count, prev_stage);
    add_differences(difference, v, args.velocity_ref, at, count);
  }
  return {total(residual), total(difference)};
}

SdeSums score(const SdeStepArgs& args, int64_t n, int64_t begin, int64_t end) {
  const int64_t row = n * args.num_elements;
  const Affine c = affine(args);
  Staged v_stage, x_stage, prev_stage, mean_stage;
  SumOfSquares residual{}, difference{};
  for (int64_t e = begin; e < end; e += kBlock) {
    const int64_t at = row + e;
    const int count = (int)(end - e < kBlock ? end - e : kBlock);
    const float* v = fetch_guided(args, at, count, v_stage);
    const float* x = fetch(args.sample, at, count, x_stage);
    const float* prev = fetch(args.prev_sample, at, count, prev_stage);
    float* mean = begin_store(args.mean, at, count, mean_stage);
    for (int i = 0; i < kBlock; i += 8) {
      const f8 m = mean_of(c, x + i, v + i);
      f8_store(mean + i, m);
      add_square(residual, f8_load(prev + i) - m);
    }
    finish_store(args.mean, at, count, mean_stage);
    add_differences(difference, v, args.velocity_ref, at, count);
  }
  return {total(residual), total(difference)};
}

SdeSums backward(const SdeStepArgs& args, int64_t n, int64_t begin, int64_t end) {
  const int64_t row = n * args.num_elements;
  const float of_residual = args.grad_log_prob == nullptr ? 0.0f : args.grad_log_prob[n] * args.grad_log_prob_scale;
  const float of_difference = args.grad_kl == nullptr ? 0.0f : args.grad_kl[n] * args.grad_kl_scale;
  const Affine c = affine(args);
  Staged v_stage, stage, prev_stage, grad;
  for (int64_t e = begin; e < end; e += kBlock) {
    const int64_t at = row + e;
    const int count = (int)(end - e < kBlock ? end - e : kBlock);
    const float* v = fetch_guided(args, at, count, v_stage);
    const bool started = args.grad_mean != nullptr;
    if (started) {
      const float* g = fetch(args.grad_mean, at, count, stage);
      for (int i = 0; i < kBlock; i += 8) f8_store(grad.values + i, f8_load(g + i) * c.of_velocity);
    } else if (args.grad_log_prob == nullptr) {
      std::memset(grad.values, 0, sizeof(grad.values));
    }
    if (args.grad_log_prob != nullptr) {
      const float* x = fetch(args.sample, at, count, stage);
      const float* prev = fetch(args.prev_sample, at, count, prev_stage);
      for (int i = 0; i < kBlock; i += 8) {
        const f8 r = (f8_load(prev + i) - mean_of(c, x + i, v + i)) * of_residual;
        f8_store(grad.values + i, started ? f8_load(grad.values + i) + r : r);
      }
    }
    if (args.grad_kl != nullptr) {
      const float* r = fetch(args.velocity_ref, at, count, stage);
      for (int i = 0; i < kBlock; i += 8) {
        const f8 d = f8_load(v + i) - f8_load(r + i);
        f8_store(grad.values + i, f8_load(grad.values + i) + d * of_difference);
      }
    }
    store_scaled(args.grad_velocity, at, count, grad.values, args.guidance_scale);
    if (args.velocity_uncond.data != nullptr)
      store_scaled(args.grad_velocity_uncond, at, count, grad.values, args.guidance_rest);
  }
  return {};
}

const SdeKernels kKernels = {draw, score, backward};

}  // namespace

const SdeKernels* WR_ISA_NAME(sde_step_kernels)() { return &kKernels; }

}  // namespace worldr1
