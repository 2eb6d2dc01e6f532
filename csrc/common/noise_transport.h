// Noise transport: the random normals and the three ways in which a value is made, once.
//
// The same lines run per lane on the CPU (V = f8), on four channels at a time on the CPU (Q = f4), and scalar on the CPU and
// in CUDA (Q = Quad<T>), so that the CPU tests check what the GPU runs. Nothing here knows about threads or loops over frames.
// Formulas: worldr1_kernels/noise_transport/README.md; numbers: worldr1_kernels/philox.py.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "host_device.h"
#include "philox.h"

namespace worldr1 {

// Four channels of a value.
template <class T>
struct alignas(4 * sizeof(T)) Quad {
  using Scalar = T;
  T v[4];
};
// Addresses of a TransportPlan's lists, on the host or on the device; see plan.py.
struct TransportLists {
  const int32_t* fresh_pixel;
  const int32_t* fresh_slot;
  const int32_t* group_slot;
  const int64_t* group_start;
  const int32_t* member_pixel;
  const uint8_t* member_is_target;
  const int32_t* member_slot;
  const int32_t* merge_slot;
  const int64_t* merge_start;
  const int32_t* hit_slot;
  const double* hit_weight;
};

// What the random numbers of one frame, sample and block of four channels have in common.
struct DrawKey {
  uint64_t seed;
  uint32_t frame, sample, quad;
};

namespace {

WR_HD double sqrt_of(double a) { return sqrt(a); }

WR_HD int32_t bits_of(float a) {
  int32_t i;
  memcpy(&i, &a, sizeof(i));
  return i;
}
WR_HD float from_bits(int32_t i) {
  float a;
  memcpy(&a, &i, sizeof(a));
  return a;
}
WR_HD float to_float(int32_t i) { return (float)i; }

// Natural logarithm of a normal x in (0, 1]; relative error 1e-7. x = m 2^e with m in [sqrt(1/2), sqrt(2)), the polynomial is
// a near-minimax fit of (ln(1 + f) - f + f^2/2) / f^3.
template <class V>
WR_HD V log_unit(V x) {
  const auto shifted = bits_of(x) + (0x3f800000 - 0x3f3504f3);
  const V e = to_float((shifted >> 23) - 127);
  const V f = from_bits((shifted & 0x007fffff) + 0x3f3504f3) - 1.0f;
  V p = f * -0.07634429633617401f + 0.12761549651622772f;
  p = p * f - 0.131601944565773f;
  p = p * f + 0.14201761782169342f;
  p = p * f - 0.16623356938362122f;
  p = p * f + 0.20001226663589478f;
  p = p * f - 0.250008225440979f;
  p = p * f + 0.3333333134651184f;
  const V ff = f * f;
  // ln 2 in two parts, the first of nine bits: e times it is exact.
  return e * 0.693359375f + (f + (ff * (f * p) - 0.5f * ff - e * 0.00021219444170128554f));
}

// Sine and cosine of |a| <= pi; absolute error 1e-7. a = k pi/2 + r with pi/2 in two parts.
template <class V>
WR_HD void sincos_of(V a, V* sine, V* cosine) {
  const V shifted = a * 0.6366197723675814f + 12582912.0f;  // 1.5 * 2^23: the sum rounds to an integer
  const auto quadrant = bits_of(shifted) - bits_of(12582912.0f);
  const V k = shifted - 12582912.0f;
  const V r = (a - k * 1.5703125f) - k * 0.0004838267923332751f;
  const V z = r * r;
  const V s = r + r * z * ((z * -0.00019517297914717346f + 0.008332177996635437f) * z - 0.16666655242443085f);
  const V c = 1.0f - 0.5f * z + z * z * ((z * 2.443845005473122e-05f - 0.001388736767694354f) * z + 0.04166664555668831f);
  const auto swap = -(quadrant & 1);
  const auto sign_s = (quadrant & 2) << 30, sign_c = ((quadrant + 1) & 2) << 30;
  *sine = from_bits(((bits_of(c) & swap) | (bits_of(s) & ~swap)) ^ sign_s);
  *cosine = from_bits(((bits_of(s) & swap) | (bits_of(c) & ~swap)) ^ sign_c);
}

// Two normals of two words of Philox (as signed integers, single or in lanes).
template <class V, class I>
WR_HD void box_muller(I radius_word, I angle_word, V* cosine, V* sine) {
  const V u = (to_float((radius_word >> 9) & 0x7fffff) + 0.5f) * 1.1920928955078125e-7f;  // 2^-23
  const V angle = (to_float(((angle_word >> 9) & 0x7fffff) - (1 << 22)) + 0.5f) * 7.490140565847857e-7f;  // 2 pi 2^-23
  const V radius = sqrt_of(log_unit(u) * -2.0f);
  V s, c;
  sincos_of(angle, &s, &c);
  *cosine = radius * c;
  *sine = radius * s;
}

WR_HD void box_muller_of(uint32_t radius_word, uint32_t angle_word, float* cosine, float* sine) {
  box_muller<float, int32_t>((int32_t)radius_word, (int32_t)angle_word, cosine, sine);
}

WR_HD void box_muller_of(uint32_t radius_word, uint32_t angle_word, double* cosine, double* sine) {
  const double u = ((double)(radius_word >> 9) + 0.5) * 1.1920928955078125e-7;
  const double angle = ((double)((int32_t)(angle_word >> 9) - (1 << 22)) + 0.5) * (6.283185307179586 * 1.1920928955078125e-7);
  const double radius = sqrt(-2.0 * log(u));
  *cosine = radius * cos(angle);
  *sine = radius * sin(angle);
}

template <class T>
WR_HD Quad<T> operator+(const Quad<T>& a, const Quad<T>& b) {
  return {{a.v[0] + b.v[0], a.v[1] + b.v[1], a.v[2] + b.v[2], a.v[3] + b.v[3]}};
}
template <class T>
WR_HD Quad<T> operator-(const Quad<T>& a, const Quad<T>& b) {
  return {{a.v[0] - b.v[0], a.v[1] - b.v[1], a.v[2] - b.v[2], a.v[3] - b.v[3]}};
}
template <class T>
WR_HD Quad<T> operator*(const Quad<T>& a, T b) {
  return {{a.v[0] * b, a.v[1] * b, a.v[2] * b, a.v[3] * b}};
}
template <class T>
WR_HD Quad<T> operator/(const Quad<T>& a, T b) {
  return {{a.v[0] / b, a.v[1] / b, a.v[2] / b, a.v[3] / b}};
}

WR_HD uint32_t stream_word(bool is_target, uint32_t quad) {
  return ((is_target ? kStreamTransportTarget : kStreamTransportSource) << 16) + quad;
}

template <class T>
WR_HD Quad<T> draw_quad(uint32_t pixel, bool is_target, const DrawKey& key) {
  const Philox4 words = philox4x32(pixel, key.frame, key.sample, stream_word(is_target, key.quad), key.seed);
  Quad<T> z;
  box_muller_of(words.x[0], words.x[1], &z.v[0], &z.v[1]);
  box_muller_of(words.x[2], words.x[3], &z.v[2], &z.v[3]);
  return z;
}

// X_m = q(s) / sqrt(n) + (Z_m - mean Z) for all members of a group; `normal`(m) is Z of row m, and may be where X_m goes.
template <class Q, class T, class Normal>
WR_HD void share_normals(const TransportLists& lists, int64_t group, Q* state, const Normal& normal) {
  const int64_t begin = lists.group_start[group], end = lists.group_start[group + 1];
  const T size = (T)(end - begin);
  Q total = normal(begin);
  for (int64_t m = begin + 1; m < end; ++m) total = total + normal(m);
  const Q mean = total / size, shared = state[lists.group_slot[group]] / sqrt_of(size);
  for (int64_t m = begin; m < end; ++m) state[lists.member_slot[m]] = shared + (normal(m) - mean);
}

// The same where the members' slots hold Z_m beforehand.
template <class Q, class T>
WR_HD void share_group(const TransportLists& lists, int64_t group, Q* state) {
  share_normals<Q, T>(lists, group, state, [&](int64_t m) { return state[lists.member_slot[m]]; });
}

// q' = sum of weight times value over the arrivals.
template <class Q, class T>
WR_HD void sum_merge(const TransportLists& lists, int64_t merge, Q* state) {
  const int64_t begin = lists.merge_start[merge], end = lists.merge_start[merge + 1];
  Q total = state[lists.hit_slot[begin]] * (T)lists.hit_weight[begin];
  for (int64_t k = begin + 1; k < end; ++k) total = total + state[lists.hit_slot[k]] * (T)lists.hit_weight[k];
  state[lists.merge_slot[merge]] = total;
}

// The work of one thread on one row of the list of fresh pixels, of groups.
template <class T>
WR_HD void make_fresh(const TransportLists& lists, int64_t row, const DrawKey& key, Quad<T>* state) {
  state[lists.fresh_slot[row]] = draw_quad<T>((uint32_t)lists.fresh_pixel[row], true, key);
}

template <class T>
WR_HD void make_group(const TransportLists& lists, int64_t group, const DrawKey& key, Quad<T>* state) {
  for (int64_t m = lists.group_start[group]; m < lists.group_start[group + 1]; ++m) {
    state[lists.member_slot[m]] = draw_quad<T>((uint32_t)lists.member_pixel[m], lists.member_is_target[m] != 0, key);
  }
  share_group<Quad<T>, T>(lists, group, state);
}

}  // namespace
}  // namespace worldr1
