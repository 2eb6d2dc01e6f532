// Eight floats as one value, on GCC's and Clang's vector extension: one AVX register, or two SSE or NEON ones.
//
// Why not auto-vectorisation: gcc 12 leaves the blending loop scalar, and expf is only vectorised under -ffast-math, which
// also deletes the rounding trick below. Everything sits in an unnamed namespace: the including file is compiled once per
// instruction set, and a function with external linkage would be merged across them by the linker.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace worldr1 {
namespace {

typedef float f8 __attribute__((vector_size(32)));
typedef int32_t i8 __attribute__((vector_size(32)));

#define WR_INLINE inline __attribute__((always_inline))

WR_INLINE f8 f8_set(float v) { return f8{v, v, v, v, v, v, v, v}; }

WR_INLINE i8 i8_set(int32_t v) { return i8{v, v, v, v, v, v, v, v}; }

WR_INLINE f8 f8_iota() { return f8{0, 1, 2, 3, 4, 5, 6, 7}; }

WR_INLINE f8 f8_load(const float* p) {
  f8 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

WR_INLINE void f8_store(float* p, f8 v) { std::memcpy(p, &v, sizeof(v)); }

// Comparisons of vectors give -1 or 0 per lane.
WR_INLINE f8 select(i8 mask, f8 a, f8 b) { return (f8)((mask & (i8)a) | (~mask & (i8)b)); }

WR_INLINE i8 select(i8 mask, i8 a, i8 b) { return (mask & a) | (~mask & b); }

WR_INLINE f8 keep_where(i8 mask, f8 a) { return (f8)(mask & (i8)a); }

WR_INLINE f8 min_of(f8 a, f8 b) {
#if defined(__AVX__)
  return (f8)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return select(a < b, a, b);
#endif
}

WR_INLINE f8 max_of(f8 a, f8 b) {
#if defined(__AVX__)
  return (f8)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return select(a > b, a, b);
#endif
}

WR_INLINE f8 min_of(f8 a, float b) { return min_of(a, f8_set(b)); }
WR_INLINE f8 max_of(f8 a, float b) { return max_of(a, f8_set(b)); }

WR_INLINE f8 sqrt_of(f8 a) {
#if defined(__AVX__)
  return (f8)_mm256_sqrt_ps((__m256)a);
#else
  f8 r;
  for (int i = 0; i < 8; ++i) r[i] = __builtin_sqrtf(a[i]);
  return r;
#endif
}

// One bit per lane of a comparison.
WR_INLINE unsigned lane_bits(i8 mask) {
#if defined(__AVX__)
  return (unsigned)_mm256_movemask_ps((__m256)mask);
#elif defined(__SSE2__)
  __m128 half[2];
  std::memcpy(half, &mask, sizeof(half));
  return (unsigned)(_mm_movemask_ps(half[0]) | (_mm_movemask_ps(half[1]) << 4));
#else
  unsigned bits = 0;
  for (int i = 0; i < 8; ++i) bits |= (unsigned)(mask[i] & 1) << i;
  return bits;
#endif
}

// Whether a <= b in any lane.
WR_INLINE bool any_at_most(f8 a, f8 b) {
#if defined(__AVX512VL__)
  return _mm256_cmp_ps_mask((__m256)a, (__m256)b, _CMP_LE_OQ) != 0;
#else
  return lane_bits(a <= b) != 0;
#endif
}

// Lane i of the result is the sum of v[i]'s lanes.
WR_INLINE f8 sum_each(const f8* v) {
#if defined(__AVX__)
  __m256 pair[4], quad[2];
  for (int i = 0; i < 4; ++i) pair[i] = _mm256_hadd_ps((__m256)v[2 * i], (__m256)v[2 * i + 1]);
  for (int i = 0; i < 2; ++i) quad[i] = _mm256_hadd_ps(pair[2 * i], pair[2 * i + 1]);
  return (f8)_mm256_add_ps(_mm256_permute2f128_ps(quad[0], quad[1], 0x20), _mm256_permute2f128_ps(quad[0], quad[1], 0x31));
#else
  f8 sums;
  for (int i = 0; i < 8; ++i) {
    sums[i] = ((v[i][0] + v[i][1]) + (v[i][2] + v[i][3])) + ((v[i][4] + v[i][5]) + (v[i][6] + v[i][7]));
  }
  return sums;
#endif
}

// The same for four, written to `out`.
WR_INLINE void sum_each4(f8 a, f8 b, f8 c, f8 d, float* out) {
#if defined(__AVX__)
  const __m256 quad = _mm256_hadd_ps(_mm256_hadd_ps((__m256)a, (__m256)b), _mm256_hadd_ps((__m256)c, (__m256)d));
  _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(quad), _mm256_extractf128_ps(quad, 1)));
#else
  const f8 v[8] = {a, b, c, d};
  const f8 sums = sum_each(v);
  std::memcpy(out, &sums, 4 * sizeof(float));
#endif
}

// 2^-x for x >= 0, relative error 1e-7. Subtracting from 1.5 * 2^23 rounds -x to an integer n held in the low mantissa bits;
// 2^(-x - n) by a polynomial (Chebyshev interpolation on [-1/2, 1/2]); n goes into the exponent by an integer add. The clamp at
// 110 keeps the result normal: denormals made the loop five times slower.
WR_INLINE f8 exp2_minus(f8 x) {
  const f8 magic = f8_set(12582912.0f);
  x = min_of(x, 110.0f);
  const f8 shifted = magic - x;
  const f8 f = (magic - shifted) - x;
  f8 p = f8_set(0.001339086336353527f);
  p = p * f + 0.009676031918255982f;
  p = p * f + 0.05550357114222094f;
  p = p * f + 0.2402210748530968f;
  p = p * f + 0.6931471880262273f;
  p = p * f + 1.0f;
  return (f8)((i8)p + ((i8)shifted << 23));
}

}  // namespace
}  // namespace worldr1
