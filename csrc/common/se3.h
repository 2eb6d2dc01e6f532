// Rigid motions frame by frame: relative poses, camera centres, angles, and their gradients. The mathematics once, for
// V = double (a CUDA thread) and V = Lanes (a CPU vector, one frame a lane).
//
// Conditionals are single selects, so that one line serves a number and a vector. Everything sits in an unnamed namespace:
// the CPU file is compiled once per instruction set, and functions with external linkage would be merged across them.
#pragma once

#include <cstdint>

#include "host_device.h"

#if !defined(__CUDACC__)
#include <cstring>
#endif

namespace worldr1 {
namespace {

#if defined(__CUDACC__)

WR_HD double root(double a) { return sqrt(a); }
WR_HD double arctangent(double sine, double cosine) { return atan2(sine, cosine); }
WR_HD double larger(double a, double b) { return a > b ? a : b; }

#else

// One AVX register of doubles, else one SSE or NEON register: gcc takes comparisons of wider vectors apart lane by lane.
#if defined(__AVX__)
constexpr int kLanes = 4;
#else
constexpr int kLanes = 2;
#endif
typedef double Lanes __attribute__((vector_size(8 * kLanes)));

WR_HD double root(double a) { return __builtin_sqrt(a); }
WR_HD double arctangent(double sine, double cosine) { return __builtin_atan2(sine, cosine); }
WR_HD double larger(double a, double b) { return a > b ? a : b; }
WR_HD Lanes larger(Lanes a, Lanes b) { return a > b ? a : b; }

WR_HD Lanes root(Lanes a) {
  Lanes r{};
  for (int i = 0; i < kLanes; ++i) r[i] = __builtin_sqrt(a[i]);
  return r;
}

// atan2 for sine >= 0, 1 ulp: the quotient is brought into [-tan(pi/8), tan(pi/8)] with one division, then a polynomial in
// its square (Chebyshev interpolation of atan(z) / z, error 1e-17).
WR_HD Lanes arctangent(Lanes sine, Lanes cosine) {
  constexpr double kPi = 3.14159265358979323846, kHalfPi = kPi / 2, kQuarterPi = kPi / 4, kTanEighth = 0.41421356237309503;
  const Lanes x = cosine < 0.0 ? -cosine : cosine;
  const auto steep = sine > x;
  const Lanes low = steep ? x : sine, high = steep ? sine : x;
  const auto wide = low > kTanEighth * high;
  const Lanes z = (wide ? low - high : low) / (wide ? low + high : high);
  const Lanes w = z * z;
  Lanes p = Lanes{} - 0.019176887119062259;
  p = p * w + 0.0392316582955871913;
  p = p * w - 0.0508544973794025986;
  p = p * w + 0.0585814891280220988;
  p = p * w - 0.06664511447381948;
  p = p * w + 0.0769218319082608656;
  p = p * w - 0.0909090457812390189;
  p = p * w + 0.111111110152563617;
  p = p * w - 0.142857142846665429;
  p = p * w + 0.199999999999955207;
  p = p * w - 0.333333333333333302;
  const Lanes tail = z * w * p;  // atan(z) = z + z^3 (...): the rounding of the small term does not reach the result
  Lanes angle = (wide ? tail + z + kQuarterPi : tail + z);
  angle = steep ? kHalfPi - angle : angle;
  return cosine < 0.0 ? kPi - angle : angle;
}

#endif

// Differences below this times what is compared are rounding and count as 0: their direction would be noise, and a gradient
// of length one along noise. FMA rounds otherwise than two operations do, so "exactly equal" is not an option.
constexpr double kRounding = 1e-14, kRounding2 = kRounding * kRounding;

// World-to-camera [R | t], row-major.
template <class V>
struct Pose {
  V r[9], t[3];
};

template <class V>
WR_HD void clear(Pose<V>& p) {
  for (int i = 0; i < 9; ++i) p.r[i] = V{};
  for (int i = 0; i < 3; ++i) p.t[i] = V{};
}

// E E_0^-1 = [R R_0^T | t - R R_0^T t_0].
template <class V>
WR_HD Pose<V> relative_pose(const Pose<V>& e, const Pose<double>& first) {
  Pose<V> out;
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j)
      out.r[3 * i + j] =
          e.r[3 * i] * first.r[3 * j] + e.r[3 * i + 1] * first.r[3 * j + 1] + e.r[3 * i + 2] * first.r[3 * j + 2];
    out.t[i] =
        e.t[i] - (out.r[3 * i] * first.t[0] + out.r[3 * i + 1] * first.t[1] + out.r[3 * i + 2] * first.t[2]);
  }
  return out;
}

// Gradient of relative_pose: `g` is that of its result `rel`; adds to `g_first`, returns that of `e`.
template <class V>
WR_HD Pose<V> relative_pose_backward(const Pose<V>& e, const Pose<double>& first, const Pose<V>& rel, const Pose<V>& g,
                                     Pose<V>& g_first) {
  Pose<V> gr, out;
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) gr.r[3 * i + j] = g.r[3 * i + j] - g.t[i] * first.t[j];
    out.t[i] = g.t[i];
    g_first.t[i] -= rel.r[i] * g.t[0] + rel.r[3 + i] * g.t[1] + rel.r[6 + i] * g.t[2];
  }
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) {
      out.r[3 * i + j] = gr.r[3 * i] * first.r[j] + gr.r[3 * i + 1] * first.r[3 + j] + gr.r[3 * i + 2] * first.r[6 + j];
      g_first.r[3 * i + j] += gr.r[i] * e.r[j] + gr.r[3 + i] * e.r[3 + j] + gr.r[6 + i] * e.r[6 + j];
    }
  return out;
}

// Camera centre -R^T t.
template <class V>
WR_HD void camera_center(const Pose<V>& p, V* c) {
  for (int j = 0; j < 3; ++j) c[j] = -(p.r[j] * p.t[0] + p.r[3 + j] * p.t[1] + p.r[6 + j] * p.t[2]);
}

template <class V>
WR_HD void camera_center_backward(const Pose<V>& p, const V* gc, Pose<V>& g) {
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) g.r[3 * i + j] -= p.t[i] * gc[j];
    g.t[i] -= p.r[3 * i] * gc[0] + p.r[3 * i + 1] * gc[1] + p.r[3 * i + 2] * gc[2];
  }
}

// Angle of a rotation by its sine (skew part) and cosine (trace), both doubled: exact near 0 and near pi.
template <class V>
struct Turn {
  V skew[3], sine, cosine;
};

template <class V>
WR_HD V dot3(const V* a, const V* b) {
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
}

template <class V>
WR_HD Turn<V> turn_of(const V* m) {
  Turn<V> t;
  t.skew[0] = m[7] - m[5];
  t.skew[1] = m[2] - m[6];
  t.skew[2] = m[3] - m[1];
  const V squares = dot3(t.skew, t.skew);
  t.sine = squares > kRounding2 ? root(squares) : V{};
  t.cosine = m[0] + m[4] + m[8] - 1.0;
  return t;
}

// Of A^T B.
template <class V>
WR_HD Turn<V> turn_between(const V* a, const V* b) {
  V m[9];
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) m[3 * i + j] = a[i] * b[j] + a[3 + i] * b[3 + j] + a[6 + i] * b[6 + j];
  return turn_of(m);
}

// Gradient of g * angle in the matrix: `diagonal` on its diagonal, `skew` as the skew part. The axis is undefined at 0 and pi:
// there the gradient is 0.
template <class V>
struct TurnGradient {
  V diagonal, skew[3];
};

template <class V>
WR_HD TurnGradient<V> turn_gradient(const Turn<V>& t, V g) {
  const V scaled = g / (t.sine * t.sine + t.cosine * t.cosine);
  const V along = t.sine > 0.0 ? scaled * t.cosine / t.sine : V{};
  return {-scaled * t.sine, {along * t.skew[0], along * t.skew[1], along * t.skew[2]}};
}

template <class V>
WR_HD void turn_of_backward(const TurnGradient<V>& g, V* gm) {
  for (int k = 0; k < 9; k += 4) gm[k] += g.diagonal;
  gm[7] += g.skew[0];
  gm[5] -= g.skew[0];
  gm[2] += g.skew[1];
  gm[6] -= g.skew[1];
  gm[3] += g.skew[2];
  gm[1] -= g.skew[2];
}

// For the turn between A and B: adds to the gradient of B from A (side 1), or to that of A from B (side -1).
template <class V>
WR_HD void turn_between_backward(const V* other, const TurnGradient<V>& g, double side, V* gr) {
  const V x = g.skew[0] * side, y = g.skew[1] * side, z = g.skew[2] * side;
  for (int k = 0; k < 3; ++k) {
    const V* o = other + 3 * k;
    gr[3 * k] += o[0] * g.diagonal + o[1] * z - o[2] * y;
    gr[3 * k + 1] += o[1] * g.diagonal + o[2] * x - o[0] * z;
    gr[3 * k + 2] += o[2] * g.diagonal + o[0] * y - o[1] * x;
  }
}

// 1 where the 3x3 is a finite rotation to within `tolerance` (R^T R = I, determinant not negative), else 0.
template <class V>
WR_HD V is_rotation(const V* r, double tolerance) {
  V ok = V{} + 1.0;
  for (int i = 0; i < 3; ++i)
    for (int j = i; j < 3; ++j) {
      const V error = r[i] * r[j] + r[3 + i] * r[3 + j] + r[6 + i] * r[6 + j] - (i == j ? 1.0 : 0.0);
      // Written so that a NaN fails.
      ok = larger(error, -error) <= tolerance ? ok : V{};
    }
  const V det = r[0] * (r[4] * r[8] - r[5] * r[7]) - r[1] * (r[3] * r[8] - r[5] * r[6]) + r[2] * (r[3] * r[7] - r[4] * r[6]);
  return det >= 0.0 ? ok : V{};
}

// Turns the symmetric m, and the vectors v with it, so that m[a][b] becomes 0.
WR_HD void jacobi_rotation(double (*m)[4], double (*v)[4], int a, int b) {
  if (m[a][b] == 0.0) return;
  const double half = (m[b][b] - m[a][a]) / (2.0 * m[a][b]);
  const double t = (half >= 0.0 ? 1.0 : -1.0) / ((half >= 0.0 ? half : -half) + root(half * half + 1.0));
  const double c = 1.0 / root(t * t + 1.0), s = t * c;
  for (int k = 0; k < 4; ++k) {
    const double ka = m[k][a], kb = m[k][b];
    m[k][a] = c * ka - s * kb;
    m[k][b] = s * ka + c * kb;
  }
  for (int k = 0; k < 4; ++k) {
    const double ak = m[a][k], bk = m[b][k], va = v[k][a], vb = v[k][b];
    m[a][k] = c * ak - s * bk;
    m[b][k] = s * ak + c * bk;
    v[k][a] = c * va - s * vb;
    v[k][b] = s * va + c * vb;
  }
  m[a][b] = m[b][a] = 0.0;
}

// Similarity q ~ scale R p + offset by least squares, from the covariance sum (q - mean q)(p - mean p)^T. The rotation is the
// eigenvector of the largest eigenvalue of Horn's symmetric 4x4, as a quaternion; the scale is that eigenvalue over
// sum |p - mean p|^2. B. K. P. Horn, JOSA A 4(4), 1987.
struct Similarity {
  double scale, r[9];
};

WR_HD Similarity similarity(const double* cov, double variance) {
  const double xx = cov[0], xy = cov[3], xz = cov[6], yx = cov[1], yy = cov[4], yz = cov[7], zx = cov[2], zy = cov[5],
               zz = cov[8];  // ab = sum p_a q_b
  double m[4][4] = {{xx + yy + zz, yz - zy, zx - xz, xy - yx},
                    {yz - zy, xx - yy - zz, xy + yx, zx + xz},
                    {zx - xz, xy + yx, -xx + yy - zz, yz + zy},
                    {xy - yx, zx + xz, yz + zy, -xx - yy + zz}};
  double v[4][4] = {{1, 0, 0, 0}, {0, 1, 0, 0}, {0, 0, 1, 0}, {0, 0, 0, 1}};
  for (int sweep = 0; sweep < 12; ++sweep) {  // cyclic Jacobi: converges quadratically, 6 or 7 sweeps reach rounding
    jacobi_rotation(m, v, 0, 1);
    jacobi_rotation(m, v, 0, 2);
    jacobi_rotation(m, v, 0, 3);
    jacobi_rotation(m, v, 1, 2);
    jacobi_rotation(m, v, 1, 3);
    jacobi_rotation(m, v, 2, 3);
  }
  // By selects, not by an index that is only known at run time: on a device such an array lies in memory.
  double most = m[0][0], w = v[0][0], x = v[1][0], y = v[2][0], z = v[3][0];
  for (int k = 1; k < 4; ++k) {
    const bool more = m[k][k] > most;
    most = more ? m[k][k] : most;
    w = more ? v[0][k] : w;
    x = more ? v[1][k] : x;
    y = more ? v[2][k] : y;
    z = more ? v[3][k] : z;
  }
  return {variance > 0.0 ? most / variance : 0.0,
          {1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y), 2 * (x * y + w * z), 1 - 2 * (x * x + z * z),
           2 * (y * z - w * x), 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)}};
}

}  // namespace
}  // namespace worldr1
