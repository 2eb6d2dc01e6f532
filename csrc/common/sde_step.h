// Philox normals, 32 at a time: eight counters in eight lanes, four normals each (definition: worldr1_kernels/philox.py).
//
// Logarithm, sine and cosine are polynomials in plain multiplications and additions, no fused ones, so that every
// instruction set, and the Triton kernel that evaluates the same ones (worldr1_kernels/sde_step/triton_impl.py), draws
// the same bits. Each normal is within 4 units in the last place of its definition. Needs simd.h.
#pragma once

#include "normal_polynomials.h"
#include "philox.h"
#include "simd.h"

namespace worldr1 {
namespace {

typedef uint32_t w8 __attribute__((vector_size(32)));

WR_INLINE w8 w8_set(uint32_t v) { return w8{v, v, v, v, v, v, v, v}; }

#if defined(__clang__) || __GNUC__ >= 12
#define WR_SHUFFLE8(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define WR_SHUFFLE8(a, b, ...) __builtin_shuffle(a, b, i8{__VA_ARGS__})
#endif

WR_INLINE void multiply_wide(w8 a, uint32_t factor, w8* high, w8* low) {
#if defined(__AVX2__)
  const __m256i f = _mm256_set1_epi32((int)factor), x = (__m256i)a;
  const __m256i even = _mm256_mul_epu32(x, f), odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), f);
  *low = (w8)_mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
  *high = (w8)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
#else
  for (int i = 0; i < 8; ++i) {
    const uint64_t product = (uint64_t)a[i] * factor;
    (*low)[i] = (uint32_t)product;
    (*high)[i] = (uint32_t)(product >> 32);
  }
#endif
}

struct Words8 {
  w8 x[4];
};

// philox4x32 of philox.h on eight values of c0.
WR_INLINE Words8 philox4x32_8(w8 c0, uint32_t step, uint32_t id, uint32_t stream, uint64_t seed) {
  w8 c1 = w8_set(step), c2 = w8_set(id), c3 = w8_set(stream);
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    w8 high0, low0, high1, low1;
    multiply_wide(c0, 0xD2511F53u, &high0, &low0);
    multiply_wide(c2, 0xCD9E8D57u, &high1, &low1);
    c0 = high1 ^ c1 ^ w8_set(k0);
    c2 = high0 ^ c3 ^ w8_set(k1);
    c1 = low1;
    c3 = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

struct SeparateMadd {
  WR_INLINE f8 operator()(f8 a, f8 b, float c) const { return a * b + c; }
};

// sqrt(-2 ln u), u = (w + 1/2) 2^-23, w a 23-bit integer. u = m 2^e with m in [sqrt(1/2), sqrt(2)).
WR_INLINE f8 normal_radius(i8 w) {
  const f8 h = __builtin_convertvector(w, f8) + 0.5f;
  const i8 exponent = ((i8)h - kSqrtHalfBits) >> 23;
  const f8 f = (f8)((i8)h - (exponent << 23)) - 1.0f;
  const f8 e = __builtin_convertvector(exponent - 23, f8);
  const f8 s = f * f;
  f8 y = logarithm_polynomial(f, SeparateMadd{}) * (s * f);
  y = y + e * 1.428606765330187e-6f;  // ln 2 in two parts: the product with the upper one is exact
  y = y - 0.5f * s;
  return sqrt_of(-2.0f * ((f + y) + e * 0.693145751953125f));
}

// (cos, sin) of 2 pi (u - 1/2), u as above: the nearest multiple k of a quarter turn is taken off exactly, in integers.
WR_INLINE void turn(i8 w, f8* cosine, f8* sine) {
  const i8 k = (w + (1 << 20)) >> 21;  // 0 .. 4
  const f8 f = (__builtin_convertvector(w - (k << 21), f8) + 0.5f) * kTurnStep;  // in [-pi/4, pi/4]
  const f8 s = f * f;
  const f8 sf = f + f * s * sine_polynomial(s, SeparateMadd{});
  const f8 cf = (1.0f - 0.5f * s) + s * s * cosine_polynomial(s, SeparateMadd{});
  // Angle f + k pi/2 - pi: cosine -c s c -s -c, sine -s -c s c -s for k = 0 .. 4.
  const i8 odd = -(k & 1);
  *cosine = (f8)((i8)select(odd, sf, cf) ^ (~((k + 1) << 30) & INT32_MIN));
  *sine = (f8)((i8)select(odd, cf, sf) ^ (~(k << 30) & INT32_MIN));
}

// Normals of counters (quad .. quad + 7, step, id, stream), 32 floats in the order of their elements.
WR_INLINE void philox_normals32(uint32_t quad, uint32_t step, uint32_t id, uint32_t stream, uint64_t seed, float* out) {
  // Even quads in the lower half, odd ones in the upper: the interleaving below never crosses the halves.
  const Words8 words = philox4x32_8(w8_set(quad) + w8{0, 2, 4, 6, 1, 3, 5, 7}, step, id, stream, seed);
  f8 z[4];
  for (int j = 0; j < 4; j += 2) {
    const f8 radius = normal_radius((i8)(words.x[j] >> 9));
    turn((i8)(words.x[j + 1] >> 9), &z[j], &z[j + 1]);
    z[j] = radius * z[j];
    z[j + 1] = radius * z[j + 1];
  }
  const f8 a = WR_SHUFFLE8(z[0], z[1], 0, 8, 1, 9, 4, 12, 5, 13), b = WR_SHUFFLE8(z[0], z[1], 2, 10, 3, 11, 6, 14, 7, 15);
  const f8 c = WR_SHUFFLE8(z[2], z[3], 0, 8, 1, 9, 4, 12, 5, 13), d = WR_SHUFFLE8(z[2], z[3], 2, 10, 3, 11, 6, 14, 7, 15);
  f8_store(out, WR_SHUFFLE8(a, c, 0, 1, 8, 9, 4, 5, 12, 13));
  f8_store(out + 8, WR_SHUFFLE8(a, c, 2, 3, 10, 11, 6, 7, 14, 15));
  f8_store(out + 16, WR_SHUFFLE8(b, d, 0, 1, 8, 9, 4, 5, 12, 13));
  f8_store(out + 24, WR_SHUFFLE8(b, d, 2, 3, 10, 11, 6, 7, 14, 15));
}

}  // namespace
}  // namespace worldr1
