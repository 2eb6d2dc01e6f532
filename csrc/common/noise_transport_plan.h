// Arithmetic of the transport plan, once for the CPU and the device: the rounding of a flow and the normalisation of densities.
//
// plan.py promises the same bits everywhere, and torch rounds every operation: a multiplication must not be fused with an
// addition. On the device the intrinsics below see to it; a C++ file that includes this one turns contraction off before.
#pragma once

#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace worldr1 {
namespace {

WR_HD double times(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

WR_HD double plus(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dadd_rn(a, b);
#else
  return a + b;
#endif
}

// The sum with 1.5 * 2^52 (2^23) rounds to an integer, half to even. Exact up to 2^51 (2^22), which the sizes of images keep to.
WR_HD double rounding_term(double) { return 6755399441055744.0; }
WR_HD float rounding_term(float) { return 12582912.0f; }

// The step rounded to a whole pixel. One of more than `limit` = H + W leaves the frame all the same, and must not overflow the
// integers.
template <class T>
WR_HD int32_t whole_step(T step, T limit) {
  step = step > limit ? limit : step;
  step = step < -limit ? -limit : step;
  return (int32_t)((step + rounding_term(step)) - rounding_term(step));
}

// (w scale + 1e-5)^0.9999, scale being 1 / mean(w): x exp(-1e-4 ln x) in single IEEE operations; see plan.py.
WR_HD double normalized_density(double density, double scale) {
  const double x = plus(times(density, scale), 1e-5);
  uint64_t bits;
  memcpy(&bits, &x, sizeof(bits));
  // Mantissa in [sqrt(1/2), sqrt(2)): of a double below sqrt(1/2) in [1/2, 1) the mantissa bits are below these.
  const uint64_t fraction = bits & 0xfffffffffffffull;
  const uint64_t below = fraction < 0x6a09e667f3bcdull ? 1 : 0;
  const uint64_t mantissa_bits = fraction | ((0x3feull + below) << 52);
  double mantissa;
  memcpy(&mantissa, &mantissa_bits, sizeof(mantissa));
  const double exponent = (double)((int64_t)(bits >> 52) - 1022 - (int64_t)below);
  const double s = (mantissa - 1.0) / (mantissa + 1.0);
  const double z = times(s, s);
  double series = 2.0 / 15.0;
  series = plus(times(series, z), 2.0 / 13.0);
  series = plus(times(series, z), 2.0 / 11.0);
  series = plus(times(series, z), 2.0 / 9.0);
  series = plus(times(series, z), 2.0 / 7.0);
  series = plus(times(series, z), 2.0 / 5.0);
  series = plus(times(series, z), 2.0 / 3.0);
  series = plus(times(series, z), 2.0 / 1.0);
  const double y = times(plus(times(exponent, 0.6931471805599453), times(s, series)), -1e-4);
  double power = 1.0 / 120.0;
  power = plus(times(power, y), 1.0 / 24.0);
  power = plus(times(power, y), 1.0 / 6.0);
  power = plus(times(power, y), 0.5);
  power = plus(times(power, y), 1.0);
  return plus(x, times(x, times(power, y)));
}

}  // namespace
}  // namespace worldr1
