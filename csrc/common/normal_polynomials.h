// The logarithm, sine and cosine that Philox normals are made of, as polynomials: one list of coefficients for the CPU and CUDA
// (worldr1_kernels/philox_triton.py repeats it). `madd(a, b, c)` is a b + c, in one rounding or two: the caller says.
#pragma once

#include "host_device.h"

namespace worldr1 {
namespace {

constexpr float kTurnStep = 7.490140774280007e-7f;  // 2 pi 2^-23
constexpr int kSqrtHalfBits = 0x3F3504F3;           // of the float sqrt(1/2)

// P of ln(1 + f) = f - f^2/2 + f^3 P(f), 1 + f in [sqrt(1/2), sqrt(2)): least squares reweighted towards equal relative error,
// 6e-9.
template <class V, class Madd>
WR_HD V logarithm_polynomial(V f, const Madd& madd) {
  V p = madd(V{} - 0.07634492963552475f, f, 0.12761574983596802f);
  p = madd(p, f, -0.13160182535648346f);
  p = madd(p, f, 0.14201758801937103f);
  p = madd(p, f, -0.16623356938362122f);
  p = madd(p, f, 0.20001226663589478f);
  p = madd(p, f, -0.2500081956386566f);
  return madd(p, f, 0.3333333134651184f);
}

// S of sin f = f + f s S(s), s = f^2, f in [-pi/4, pi/4].
template <class V, class Madd>
WR_HD V sine_polynomial(V s, const Madd& madd) {
  return madd(madd(s, V{} - 0.00019515282474458218f, 0.00833216030150652f), s, -0.16666655242443085f);
}

// C of cos f = 1 - s/2 + s^2 C(s).
template <class V, class Madd>
WR_HD V cosine_polynomial(V s, const Madd& madd) {
  return madd(madd(s, V{} + 2.44331567955669e-5f, -0.0013887316454201937f), s, 0.04166664555668831f);
}

}  // namespace
}  // namespace worldr1
