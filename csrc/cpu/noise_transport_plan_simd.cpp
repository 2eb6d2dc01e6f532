// Rounding of a flow field and normalisation of densities, for noise_transport_plan.cpp. Compiled once per instruction set; the
// loops are plain, for the compiler to vectorise.
//
// A multiplication must not be fused with an addition: plan.py promises the same bits, and torch rounds both.
#if defined(__clang__)
#pragma clang fp contract(off)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

#include "noise_transport.h"

namespace worldr1 {
namespace {

// The sum with 1.5 * 2^52 (2^23) rounds to an integer, half to even. Exact up to 2^51 (2^22), which the sizes of images keep to.
constexpr double magic(double) { return 6755399441055744.0; }
constexpr float magic(float) { return 12582912.0f; }

template <class T>
bool round_field(const T* __restrict__ field, int64_t height, int64_t width, int32_t* __restrict__ forward,
                 int32_t* __restrict__ backward) {
  const int64_t pixels = height * width;
  // A step of more than H + W leaves the frame all the same, and must not overflow the integers.
  const T limit = (T)(height + width);
  const int32_t w = (int32_t)width, h = (int32_t)height;
  int32_t bad = 0;
  for (int32_t y = 0; y < h; ++y) {
    const int64_t at = y * width;
    for (int32_t x = 0; x < w; ++x) {
      T u = field[at + x], v = field[pixels + at + x];
      bad |= !((u - u) + (v - v) == (T)0);
      u = u > limit ? limit : u;
      u = u < -limit ? -limit : u;
      v = v > limit ? limit : v;
      v = v < -limit ? -limit : v;
      const int32_t sx = (int32_t)((u + magic(u)) - magic(u)), sy = (int32_t)((v + magic(v)) - magic(v));
      const int32_t tx = x + sx, ty = y + sy, bx = x - sx, by = y - sy;
      const bool goes = ((uint32_t)tx < (uint32_t)w) & ((uint32_t)ty < (uint32_t)h);
      const bool reads = ((uint32_t)bx < (uint32_t)w) & ((uint32_t)by < (uint32_t)h);
      forward[at + x] = goes ? ty * w + tx : -1;
      backward[at + x] = reads ? by * w + bx : -1;
    }
  }
  return bad == 0;
}

double tree_sum(const double* values, int64_t count, double* scratch) {
  int64_t size = 1;
  while (size < count) size *= 2;
  if (size == 1) return values[0];
  int64_t half = size / 2;
  for (int64_t i = 0; i < count - half; ++i) scratch[i] = values[i] + values[i + half];
  for (int64_t i = count - half; i < half; ++i) scratch[i] = values[i];
  while (half > 1) {
    half /= 2;
    for (int64_t i = 0; i < half; ++i) scratch[i] = scratch[i] + scratch[i + half];
  }
  return scratch[0];
}

void normalize(double* density, int64_t count, double* scratch) {
  const double scale = (double)count / tree_sum(density, count, scratch);
  for (int64_t i = 0; i < count; ++i) {
    const double x = density[i] * scale + 1e-5;
    uint64_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    // Mantissa in [sqrt(1/2), sqrt(2)): of a double below sqrt(1/2) in [1/2, 1) the mantissa bits are below these.
    const uint64_t fraction = bits & 0xfffffffffffffull;
    const uint64_t below = fraction < 0x6a09e667f3bcdull ? 1 : 0;
    const uint64_t mantissa_bits = fraction | ((0x3feull + below) << 52);
    double mantissa;
    std::memcpy(&mantissa, &mantissa_bits, sizeof(mantissa));
    const double exponent = (double)((int64_t)(bits >> 52) - 1022 - (int64_t)below);
    const double s = (mantissa - 1.0) / (mantissa + 1.0);
    const double z = s * s;
    double series = 2.0 / 15.0;
    series = series * z + 2.0 / 13.0;
    series = series * z + 2.0 / 11.0;
    series = series * z + 2.0 / 9.0;
    series = series * z + 2.0 / 7.0;
    series = series * z + 2.0 / 5.0;
    series = series * z + 2.0 / 3.0;
    series = series * z + 2.0 / 1.0;
    const double y = (exponent * 0.6931471805599453 + s * series) * -1e-4;
    double power = 1.0 / 120.0;
    power = power * y + 1.0 / 24.0;
    power = power * y + 1.0 / 6.0;
    power = power * y + 0.5;
    power = power * y + 1.0;
    density[i] = x + x * (power * y);
  }
}

const PlanKernels kKernels = {round_field<float>, round_field<double>, normalize};

}  // namespace

const PlanKernels* WR_ISA_NAME(transport_plan_kernels)() { return &kKernels; }

}  // namespace worldr1
