// The SDE step on the device: one pass over the latents, four elements (one Philox counter) a thread at a time, so that a
// warp's accesses are unbroken runs of 512 bytes (float32) and 256 (bfloat16).
//
// Rounding. mean, prev_sample given z, and the gradients are separate products and sums, as in every backend: the same bits.
// Inside a normal and inside a sum of squares operations are fused: a normal stays within 4 units in the last place of its
// definition, and a square is only added up. Nothing is left to the compiler: every operation on a value is an intrinsic.
#include "sde_step.h"

#include <stdexcept>
#include <type_traits>

#include "../common/normal_polynomials.h"
#include "../common/philox.h"
#include "../common/simt.h"

namespace worldr1 {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kQuad = 4, kQuads = 4;
static_assert(kSdeDeviceChunk == kThreads * kQuad * kQuads, "a thread takes kQuads quads of a chunk");
constexpr unsigned kAll = 0xffffffffu;

struct Quad {
  float x[kQuad];
};

#if defined(__CUDACC__)
// The steps that a correctly rounded square root takes inside its fast range, which holds all of [1e-30, 1e30].
__device__ __forceinline__ float root(float a) {
  float inverse;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(a));
  const float root = __fmul_rn(a, inverse), half = __fmul_rn(inverse, 0.5f);
  return __fmaf_rn(__fmaf_rn(-root, root, a), half, root);
}
// Two floats, each rounded to the nearest bfloat16.
__device__ __forceinline__ uint32_t pack_bfloat16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
// One access each: of an assigned float4 the compiler makes four. Nothing reads here what is stored, so no clobber.
__device__ __forceinline__ void store16(float* p, float a, float b, float c, float d) {
  asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(p)), "f"(a), "f"(b), "f"(c), "f"(d));
}
__device__ __forceinline__ void store8(uint16_t* p, uint32_t a, uint32_t b) {
  asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(p)), "r"(a), "r"(b));
}
#else
inline float root(float a) { return sqrt_of(a); }
inline uint32_t round_bfloat16(float a) {
  const uint32_t bits = __float_as_uint(a);
  return a == a ? (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16 : 0x7FFFu;
}
inline uint32_t pack_bfloat16(float low, float high) { return round_bfloat16(high) << 16 | round_bfloat16(low); }
inline void store16(float* p, float a, float b, float c, float d) { *const_cast<float4*>(as_vector<float4>(p)) = {a, b, c, d}; }
inline void store8(uint16_t* p, uint32_t a, uint32_t b) { *const_cast<uint2*>(as_vector<uint2>(p)) = {a, b}; }
#endif

struct FusedMadd {
  __device__ __forceinline__ float operator()(float a, float b, float c) const { return __fmaf_rn(a, b, c); }
};

// Two normals by Box-Muller: sqrt(-2 ln u) times (cos, sin) of 2 pi (u' - 1/2), u = ((word >> 9) + 1/2) 2^-23. The 23 bits
// become a float by standing behind the exponent of 1 (0x7F), which is exact, and cheaper than a conversion.
__device__ __forceinline__ void two_normals(uint32_t radius_word, uint32_t angle_word, float* z) {
  const float u = __fadd_rn(__uint_as_float(__funnelshift_r(radius_word, 0x7Fu, 9)), -0.999999940395355225f);
  const uint32_t exponent = (__float_as_uint(u) - (uint32_t)kSqrtHalfBits) & 0xFF800000u;  // in units of 2^23
  const float f = __fadd_rn(__uint_as_float(__float_as_uint(u) - exponent), -1.0f);
  const float tail = __fmaf_rn(logarithm_polynomial(f, FusedMadd{}), f, -0.5f);
  const float of_mantissa = __fmaf_rn(__fmul_rn(f, f), tail, f);
  const float logarithm = __fmaf_rn(__int2float_rn((int32_t)exponent), 8.262958317573066e-8f, of_mantissa);  // ln 2 2^-23
  const float radius = root(__fmul_rn(logarithm, -2.0f));

  // The nearest multiple of a quarter turn, the upper two bits of `turned`, is taken off exactly. What is left of the word's
  // 23 bits, r in [-2^20, 2^20), stands in `rest` as 1.5 + r 2^-21.
  const uint32_t turned = angle_word + (1u << 29);
  const float rest = __uint_as_float(__funnelshift_r(turned << 2, 0x7Fu, 9) & ~3u);
  const float a = __fmul_rn(__fadd_rn(rest, -1.49999976158142089844f), kTurnStep * 2097152.0f);  // (r + 1/2) 2^-21
  const float s = __fmul_rn(a, a);
  const float sine = __fmaf_rn(__fmul_rn(a, s), sine_polynomial(s, FusedMadd{}), a);
  const float cosine = __fmaf_rn(__fmaf_rn(cosine_polynomial(s, FusedMadd{}), s, -0.5f), s, 1.0f);
  // As in common/sde_step.h, k mod 4 being enough.
  const bool odd = (int32_t)(2u * angle_word + (1u << 30)) < 0;
  const uint32_t c = __float_as_uint(odd ? sine : cosine) ^ (~(turned + (1u << 30)) & 1u << 31);
  const uint32_t d = __float_as_uint(odd ? cosine : sine) ^ (~turned & 1u << 31);
  z[0] = __fmul_rn(radius, __uint_as_float(c));
  z[1] = __fmul_rn(radius, __uint_as_float(d));
}

// Reads and writes quads. `count` elements of one exist; beyond them there is 0, and nothing is written. Addresses of vector
// accesses are multiples of the quad's size.
__device__ __forceinline__ Quad load_vector(const float* p) {
  const float4 q = *as_vector<float4>(p);
  return {{q.x, q.y, q.z, q.w}};
}
__device__ __forceinline__ Quad load_vector(const uint16_t* p) {
  const uint2 q = *as_vector<uint2>(p);
  return {{__uint_as_float(q.x << 16), __uint_as_float(q.x & 0xFFFF0000u), __uint_as_float(q.y << 16),
           __uint_as_float(q.y & 0xFFFF0000u)}};
}
__device__ __forceinline__ float widen(float a) { return a; }
__device__ __forceinline__ float widen(uint16_t a) { return __uint_as_float((uint32_t)a << 16); }

__device__ __forceinline__ void store_vector(float* p, const Quad& q) { store16(p, q.x[0], q.x[1], q.x[2], q.x[3]); }
__device__ __forceinline__ void store_vector(uint16_t* p, const Quad& q) {
  store8(p, pack_bfloat16(q.x[0], q.x[1]), pack_bfloat16(q.x[2], q.x[3]));
}
__device__ __forceinline__ void narrow(float a, float* p) { *p = a; }
__device__ __forceinline__ void narrow(float a, uint16_t* p) { *p = (uint16_t)pack_bfloat16(a, 0.0f); }

template <bool kWhole, class T>
__device__ __forceinline__ Quad load(const T* p, int count) {
  if constexpr (kWhole) {
    return load_vector(p);
  } else {
    Quad q;
    WR_UNROLL(kQuad) for (int i = 0; i < kQuad; ++i) q.x[i] = i < count ? widen(p[i]) : 0.0f;
    return q;
  }
}

template <bool kWhole, class T>
__device__ __forceinline__ void store(T* p, int count, const Quad& q) {
  if constexpr (kWhole) {
    store_vector(p, q);
  } else {
    WR_UNROLL(kQuad) for (int i = 0; i < kQuad; ++i)
      if (i < count) narrow(q.x[i], p + i);
  }
}

__device__ __forceinline__ float difference(float a, float b) { return __fadd_rn(a, -b); }

// velocity_uncond + guidance_scale (velocity - velocity_uncond)
__device__ __forceinline__ float guide(const SdeStepArgs& args, float v, float u) {
  return __fadd_rn(__fmul_rn(difference(v, u), args.guidance_scale), u);
}

__device__ __forceinline__ float mean_of(const SdeStepArgs& args, float x, float v) {
  return __fadd_rn(__fmul_rn(x, args.coef_sample), __fmul_rn(v, args.coef_velocity));
}

__device__ __forceinline__ double sum_of_squares(const Quad& d) {
  const float first = __fmaf_rn(d.x[0], d.x[0], __fmul_rn(d.x[1], d.x[1]));
  const float second = __fmaf_rn(d.x[2], d.x[2], __fmul_rn(d.x[3], d.x[3]));
  return (double)__fadd_rn(first, second);
}

__device__ __forceinline__ double warp_sum(double value) {
  WR_UNROLL(5) for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kAll, value, offset);
  return value;
}

enum Source { kPhilox, kNoise, kGiven };
// Options of a kernel. kCompared: with velocity_ref, backward with a gradient of kl. kAnyGradients, backward: the gradients of
// mean and of log_prob may be there or not; without it, that of log_prob is and that of mean is not.
constexpr int kGuided = 1, kCompared = 2, kAnyGradients = 4;

// Where a thread is: its first quad in the block's chunk of a sample.
struct Place {
  int64_t sample, offset, left;  // `offset` into [N, D]; elements of the sample from there on
  uint32_t quad;                 // of the sample

  __device__ __forceinline__ Place(const SdeStepArgs& args, int64_t first_sample) {
    const int first = kQuad * (int)threadIdx.x;
    const int64_t begin = (int64_t)blockIdx.x * kSdeDeviceChunk;
    sample = first_sample + blockIdx.y;
    offset = sample * args.num_elements + begin + first;
    left = args.num_elements - begin - first;
    quad = blockIdx.x * (uint32_t)(kSdeDeviceChunk / kQuad) + threadIdx.x;
  }
};

// Runs `quad(whole, e, count)` for the thread's quads, `e` elements from its first one; `whole` is std::true_type where the
// quad is complete and aligned.
template <class Function>
__device__ __forceinline__ void for_each_quad(const Place& place, bool aligned, const Function& quad) {
  constexpr int kStride = kQuad * kThreads;
  // The whole chunk is there for every thread, or for none.
  if (aligned && place.left + kQuad * (int)threadIdx.x >= kSdeDeviceChunk) {
    WR_UNROLL(2) for (int e = 0; e < kQuads * kStride; e += kStride) quad(std::true_type{}, e, kQuad);
  } else {
    WR_UNROLL(1) for (int e = 0; e < kQuads * kStride && e < place.left; e += kStride) {
      if (aligned && place.left - e >= kQuad)
        quad(std::true_type{}, e, kQuad);
      else
        quad(std::false_type{}, e, (int)(place.left - e));
    }
  }
}

// Second stage of the sums, by one warp of each block: the block that comes last adds up the chunks of its sample in their
// order, which is the same whoever comes last, and leaves the count at 0 for the next launch.
template <int kSums>
__device__ __forceinline__ void finish(const SdeStepArgs& args, int64_t n, int64_t chunks, const double* of_chunk) {
  const int lane = (int)threadIdx.x;
  double* const sums[2] = {args.sums + n * chunks, args.sums + (args.num_samples + n) * chunks};
  uint32_t before = 0;
  if (lane == 0) {
    for (int k = 0; k < kSums; ++k) __stcg(sums[k] + blockIdx.x, of_chunk[k]);
    __threadfence();  // the sums are there before the count says so
    before = atomicAdd(args.arrivals + n, 1u);
  }
  if (__shfl_sync(kAll, before, 0) != (uint32_t)chunks - 1) return;
  double mean_square[kSums];
  for (int k = 0; k < kSums; ++k) {
    double total = 0.0;
    for (int64_t c = lane; c < chunks; c += 32) total += __ldcg(sums[k] + c);
    mean_square[k] = warp_sum(total) / (double)args.num_elements;
  }
  if (lane != 0) return;
  args.log_prob[n] = (float)(mean_square[0] * args.log_prob_scale - args.log_prob_shift);
  if constexpr (kSums > 1) args.kl[n] = (float)(mean_square[1] * args.kl_scale);
  args.arrivals[n] = 0;
}

// Blocks of a multiprocessor: 48 registers a thread where nothing is optional, else 64.
constexpr int blocks_for(int options) { return options == 0 ? 5 : 4; }

// Draws or scores. Block (x, y) is chunk x of sample first_sample + y.
template <class T, Source kSource, int kOptions>
__global__ void __launch_bounds__(kThreads, blocks_for(kOptions))
    forward_kernel(const SdeStepArgs args, const PhiloxKeys keys, int64_t first_sample, bool aligned) {
  constexpr bool guided = (kOptions & kGuided) != 0, compared = (kOptions & kCompared) != 0;
  const Place place(args, first_sample);
  const T* const velocity = static_cast<const T*>(args.velocity.data) + place.offset;
  const T* const uncond = static_cast<const T*>(args.velocity_uncond.data) + place.offset;
  const T* const reference = static_cast<const T*>(args.velocity_ref.data) + place.offset;
  const float* const sample = args.sample + place.offset;
  const float* const noise = args.noise + place.offset;
  float* const prev_sample = args.prev_sample + place.offset;
  float* const mean = args.mean + place.offset;
  const bool named = kSource == kPhilox && args.sample_ids != nullptr;
  const uint32_t id = (uint32_t)(named ? args.sample_ids[place.sample] : place.sample);
  double residuals = 0.0, differences = 0.0;

  for_each_quad(place, aligned, [&](auto whole, int e, int count) {
    constexpr bool kWhole = decltype(whole)::value;
    Quad v = load<kWhole>(velocity + e, count), u, r, z, m, p, residual;
    const Quad x = load<kWhole>(sample + e, count);
    if (guided) u = load<kWhole>(uncond + e, count);
    if (compared) r = load<kWhole>(reference + e, count);
    if (kSource == kNoise) z = load<kWhole>(noise + e, count);
    if (kSource == kGiven) p = load<kWhole>(prev_sample + e, count);
    if (kSource == kPhilox) {
      const Philox4 words = philox4x32(place.quad + (uint32_t)(e / kQuad), args.step, id, kStreamSde << 16, keys);
      two_normals(words.x[0], words.x[1], z.x);
      two_normals(words.x[2], words.x[3], z.x + 2);
    }
    WR_UNROLL(kQuad) for (int i = 0; i < kQuad; ++i) {
      if (guided) v.x[i] = guide(args, v.x[i], u.x[i]);
      m.x[i] = mean_of(args, x.x[i], v.x[i]);
      if (kSource != kGiven) p.x[i] = __fadd_rn(__fmul_rn(z.x[i], args.std), m.x[i]);
      // Of the rounded sample, which is what the scoring form will see. Beyond the end a normal is drawn all the same.
      residual.x[i] = kWhole || i < count ? difference(p.x[i], m.x[i]) : 0.0f;
      if (compared) r.x[i] = difference(v.x[i], r.x[i]);
    }
    store<kWhole>(mean + e, count, m);
    if (kSource != kGiven) store<kWhole>(prev_sample + e, count, p);
    residuals += sum_of_squares(residual);
    if (compared) differences += sum_of_squares(r);
  });

  // First stage of the sums: lanes, then warps.
  constexpr int kSums = compared ? 2 : 1;
  __shared__ double of_warp[kSums][kWarps];
  double sums[kSums];
  for (int k = 0; k < kSums; ++k) {
    const double value = warp_sum(k == 0 ? residuals : differences);
    if (threadIdx.x % 32 == 0) of_warp[k][threadIdx.x / 32] = value;
  }
  __syncthreads();
  if (threadIdx.x >= 32) return;
  for (int k = 0; k < kSums; ++k) {
    sums[k] = 0.0;
    for (int w = 0; w < kWarps; ++w) sums[k] += of_warp[k][w];
  }
  finish<kSums>(args, place.sample, gridDim.x, sums);
}

// Gradients of the velocities; blocks as above.
template <class T, int kOptions>
__global__ void __launch_bounds__(kThreads, blocks_for(kOptions))
    backward_kernel(const SdeStepArgs args, int64_t first_sample, bool aligned) {
  constexpr bool guided = (kOptions & kGuided) != 0, compared = (kOptions & kCompared) != 0;
  const bool of_mean = (kOptions & kAnyGradients) != 0 && args.grad_mean != nullptr;
  const bool of_log_prob = (kOptions & kAnyGradients) == 0 || args.grad_log_prob != nullptr;
  const Place place(args, first_sample);
  const T* const velocity = static_cast<const T*>(args.velocity.data) + place.offset;
  const T* const uncond = static_cast<const T*>(args.velocity_uncond.data) + place.offset;
  const T* const reference = static_cast<const T*>(args.velocity_ref.data) + place.offset;
  const float* const sample = args.sample + place.offset;
  const float* const prev_sample = args.prev_sample + place.offset;
  const float* const grad_mean = args.grad_mean + place.offset;
  T* const grad = static_cast<T*>(args.grad_velocity.data) + place.offset;
  T* const grad_uncond = static_cast<T*>(args.grad_velocity_uncond.data) + place.offset;
  const float residual_weight = of_log_prob ? __fmul_rn(args.grad_log_prob[place.sample], args.grad_log_prob_scale) : 0.0f;
  const float difference_weight = compared ? __fmul_rn(args.grad_kl[place.sample], args.grad_kl_scale) : 0.0f;

  for_each_quad(place, aligned, [&](auto whole, int e, int count) {
    constexpr bool kWhole = decltype(whole)::value;
    Quad v = load<kWhole>(velocity + e, count), u, r, x, p, gm, g = {}, gu;
    if (guided) u = load<kWhole>(uncond + e, count);
    if (compared) r = load<kWhole>(reference + e, count);
    if (of_log_prob) x = load<kWhole>(sample + e, count);
    if (of_log_prob) p = load<kWhole>(prev_sample + e, count);
    if (of_mean) gm = load<kWhole>(grad_mean + e, count);
    WR_UNROLL(kQuad) for (int i = 0; i < kQuad; ++i) {
      if (guided) v.x[i] = guide(args, v.x[i], u.x[i]);
      if (of_mean) g.x[i] = __fmul_rn(gm.x[i], args.coef_velocity);
      if (of_log_prob) {
        const float pull = __fmul_rn(difference(p.x[i], mean_of(args, x.x[i], v.x[i])), residual_weight);
        g.x[i] = of_mean ? __fadd_rn(g.x[i], pull) : pull;
      }
      if (compared) g.x[i] = __fadd_rn(g.x[i], __fmul_rn(difference(v.x[i], r.x[i]), difference_weight));
      if (guided) gu.x[i] = __fmul_rn(g.x[i], args.guidance_rest);
      if (guided) g.x[i] = __fmul_rn(g.x[i], args.guidance_scale);
    }
    store<kWhole>(grad + e, count, g);
    if (guided) store<kWhole>(grad_uncond + e, count, gu);
  });
}

template <class T, Source kSource>
auto forward_for(int options) {
  decltype(&forward_kernel<T, kSource, 0>) const kernels[] = {forward_kernel<T, kSource, 0>, forward_kernel<T, kSource, 1>,
                                                              forward_kernel<T, kSource, 2>, forward_kernel<T, kSource, 3>};
  return kernels[options];
}

template <class T>
auto backward_for(int options) {
  decltype(&backward_kernel<T, 0>) const kernels[] = {backward_kernel<T, 0>, backward_kernel<T, 1>, backward_kernel<T, 2>,
                                                      backward_kernel<T, 3>, backward_kernel<T, 4>, backward_kernel<T, 5>,
                                                      backward_kernel<T, 6>, backward_kernel<T, 7>};
  return kernels[options];
}

// Whether quads of all tensors, null ones aside, begin at multiples of their size.
template <class T>
bool all_aligned(const SdeStepArgs& args) {
  uintptr_t narrow = 0, wide = 0;
  for (const SdeTensor& t :
       {args.velocity, args.velocity_uncond, args.velocity_ref, args.grad_velocity, args.grad_velocity_uncond})
    narrow |= reinterpret_cast<uintptr_t>(t.data);
  for (const float* p : {args.sample, args.noise, (const float*)args.prev_sample, (const float*)args.mean, args.grad_mean})
    wide |= reinterpret_cast<uintptr_t>(p);
  return args.num_elements % kQuad == 0 && narrow % (kQuad * sizeof(T)) == 0 && wide % (kQuad * sizeof(float)) == 0;
}

template <class T>
int launch_typed(SdeForm form, const SdeStepArgs& args, int64_t most_samples) {
  const int64_t chunks = sde_chunks(args.num_elements);
  if (chunks > INT32_MAX) throw std::invalid_argument("sde_step: a sample must have fewer than 2^43 elements");
  const bool aligned = all_aligned<T>(args);
  const PhiloxKeys keys = philox_keys(args.seed);
  const bool backward = form == SdeForm::kBackward;
  int options = args.velocity_uncond.data != nullptr ? kGuided : 0;
  if (backward ? args.grad_kl != nullptr : args.velocity_ref.data != nullptr) options |= kCompared;
  if (backward && (args.grad_mean != nullptr || args.grad_log_prob == nullptr)) options |= kAnyGradients;
  for (int64_t first = 0; first < args.num_samples; first += most_samples) {
    const int64_t samples = args.num_samples - first < most_samples ? args.num_samples - first : most_samples;
    int status;
    if (backward) {
      status = launch(backward_for<T>(options), chunks, samples, kThreads, args.stream, args, first, aligned);
    } else {
      const auto kernel = form == SdeForm::kScore  ? forward_for<T, kGiven>(options)
                          : args.noise != nullptr ? forward_for<T, kNoise>(options)
                                                   : forward_for<T, kPhilox>(options);
      status = launch(kernel, chunks, samples, kThreads, args.stream, args, keys, first, aligned);
    }
    if (status != 0) return status;
  }
  return 0;
}

}  // namespace

int launch_sde_step(SdeForm form, const SdeStepArgs& args, int64_t most_samples) {
  for (const SdeTensor& t : {args.velocity_uncond, args.velocity_ref, args.grad_velocity, args.grad_velocity_uncond}) {
    if (t.data != nullptr && t.bfloat16 != args.velocity.bfloat16)
      throw std::invalid_argument("sde_step: velocities and their gradients must share a dtype");
  }
  return args.velocity.bfloat16 ? launch_typed<uint16_t>(form, args, most_samples)
                                : launch_typed<float>(form, args, most_samples);
}

}  // namespace worldr1
