// Projection, covariance, spherical harmonics and blending of 3D Gaussians: the mathematics of the rasterizer, once.
//
// The same lines run in three places: per lane on the CPU (V = f8), scalar on the CPU (V = float), per thread in CUDA
// (V = float), so that the CPU tests check what the GPU runs. Nothing here knows about tiles, threads or memory layout.
// Camera convention: OpenCV, world-to-camera, quaternions wxyz, pixel centres at +0.5.
#pragma once

#include "host_device.h"

namespace worldr1 {
namespace {

constexpr float kAlphaThreshold = 1.0f / 255.0f;
constexpr float kTransmittanceStop = 1e-4f;
constexpr float kMaxExtend = 3.33f;  // in standard deviations; gsplat's cap, used for the reported radius
constexpr float kLog2E = 1.4426950408889634f;

WR_HD float min_of(float a, float b) { return a < b ? a : b; }
WR_HD float max_of(float a, float b) { return a > b ? a : b; }
WR_HD float keep_where(bool mask, float a) { return mask ? a : 0.0f; }

template <class V>
struct Covariance3 {
  V xx, xy, xz, yy, yz, zz;
};

// (R S)(R S)^T of a quaternion of any non-zero length.
template <class V>
WR_HD Covariance3<V> covariance_world(V qw, V qx, V qy, V qz, V sx, V sy, V sz) {
  const V inverse = 1.0f / sqrt_of(qw * qw + qx * qx + qy * qy + qz * qz);
  const V w = qw * inverse, x = qx * inverse, y = qy * inverse, z = qz * inverse;
  const V m00 = (1.0f - 2.0f * (y * y + z * z)) * sx, m01 = 2.0f * (x * y - w * z) * sy, m02 = 2.0f * (x * z + w * y) * sz;
  const V m10 = 2.0f * (x * y + w * z) * sx, m11 = (1.0f - 2.0f * (x * x + z * z)) * sy, m12 = 2.0f * (y * z - w * x) * sz;
  const V m20 = 2.0f * (x * z - w * y) * sx, m21 = 2.0f * (y * z + w * x) * sy, m22 = (1.0f - 2.0f * (x * x + y * y)) * sz;
  return {m00 * m00 + m01 * m01 + m02 * m02, m00 * m10 + m01 * m11 + m02 * m12, m00 * m20 + m01 * m21 + m02 * m22,
          m10 * m10 + m11 * m11 + m12 * m12, m10 * m20 + m11 * m21 + m12 * m22, m20 * m20 + m21 * m21 + m22 * m22};
}

struct Camera {
  float r[9], t[3];          // world to camera
  float fx, fy, cx, cy;      // pixels
  float u_min, u_max, v_min, v_max;  // x/z and y/z are clamped to these in the Jacobian
  float position[3];         // camera centre in the world, for the view direction of spherical harmonics
};

// Camera centre -R^-1 t, for rows of R of any common scale from 1e-12 to 1e12. R^-1 has the cross products of R's rows, over the
// determinant, as columns; 0 where there is no inverse.
WR_HD void camera_center(const float* r, const float* t, float* center) {
  const float det = r[0] * (r[4] * r[8] - r[5] * r[7]) + r[1] * (r[5] * r[6] - r[3] * r[8]) +
                    r[2] * (r[3] * r[7] - r[4] * r[6]);
  const float factor = det != 0.0f ? -1.0f / det : 0.0f;
  for (int j = 0; j < 3; ++j) {
    const int k = (j + 1) % 3, l = (j + 2) % 3;
    center[j] = factor * (t[0] * (r[3 + k] * r[6 + l] - r[3 + l] * r[6 + k]) + t[1] * (r[6 + k] * r[l] - r[6 + l] * r[k]) +
                          t[2] * (r[k] * r[3 + l] - r[l] * r[3 + k]));
  }
}

// `viewmat` is row-major 4x4 whose upper three rows may have any scale, `k` row-major 3x3; skew is ignored, as in gsplat.
WR_HD Camera make_camera(const float* viewmat, const float* k, float width, float height) {
  Camera c;
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) c.r[3 * i + j] = viewmat[4 * i + j];
    c.t[i] = viewmat[4 * i + 3];
  }
  c.fx = k[0];
  c.fy = k[4];
  c.cx = k[2];
  c.cy = k[5];
  const float margin_x = 0.3f * 0.5f * width / c.fx, margin_y = 0.3f * 0.5f * height / c.fy;
  c.u_min = -(c.cx / c.fx + margin_x);
  c.u_max = (width - c.cx) / c.fx + margin_x;
  c.v_min = -(c.cy / c.fy + margin_y);
  c.v_max = (height - c.cy) / c.fy + margin_y;
  camera_center(c.r, c.t, c.position);
  return c;
}

template <class V>
struct Splat {
  V depth, mean_x, mean_y;       // camera z; pixels
  V cov_xx, cov_xy, cov_yy;      // pixels^2, blurred by eps2d
  V det;                         // of the blurred covariance; <= 0 or NaN: cull
  V det_ratio;                   // det before the blur / det: antialiasing compensation squared
};

// What project() computes on its way, and its backward again. Unpacked by position: the order counts.
template <class V>
struct Projection {
  V zc, inverse_z, u, v;     // camera z and its inverse, x/z, y/z
  V uc, vc;                  // u, v clamped
  V jx, jy;                  // fx/z, fy/z
  V d0, d1, d2, e0, e1, e2;  // rows of R: the first less uc times the third, the second less vc times the third
  V a0, a1, a2, b0, b1, b2;  // rows of J R, where J = [[fx/z, 0, -fx u/z], [0, fy/z, -fy v/z]]
  V p0, p1, p2, q0, q1, q2;  // s a, s b
  V raw_xx, cov_xy, raw_yy;  // pixels^2, before the blur
};

template <class V>
WR_HD Projection<V> projection(V x, V y, V z, const Covariance3<V>& s, const Camera& c) {
  const V xc = c.r[0] * x + c.r[1] * y + c.r[2] * z + c.t[0];
  const V yc = c.r[3] * x + c.r[4] * y + c.r[5] * z + c.t[1];
  const V zc = c.r[6] * x + c.r[7] * y + c.r[8] * z + c.t[2];
  const V inverse_z = 1.0f / zc;
  const V u = xc * inverse_z, v = yc * inverse_z;
  const V uc = min_of(max_of(u, c.u_min), c.u_max);
  const V vc = min_of(max_of(v, c.v_min), c.v_max);
  const V jx = c.fx * inverse_z, jy = c.fy * inverse_z;
  const V d0 = c.r[0] - uc * c.r[6], d1 = c.r[1] - uc * c.r[7], d2 = c.r[2] - uc * c.r[8];
  const V e0 = c.r[3] - vc * c.r[6], e1 = c.r[4] - vc * c.r[7], e2 = c.r[5] - vc * c.r[8];
  const V a0 = jx * d0, a1 = jx * d1, a2 = jx * d2;
  const V b0 = jy * e0, b1 = jy * e1, b2 = jy * e2;
  const V p0 = s.xx * a0 + s.xy * a1 + s.xz * a2;
  const V p1 = s.xy * a0 + s.yy * a1 + s.yz * a2;
  const V p2 = s.xz * a0 + s.yz * a1 + s.zz * a2;
  const V q0 = s.xx * b0 + s.xy * b1 + s.xz * b2;
  const V q1 = s.xy * b0 + s.yy * b1 + s.yz * b2;
  const V q2 = s.xz * b0 + s.yz * b1 + s.zz * b2;
  const V raw_xx = a0 * p0 + a1 * p1 + a2 * p2;
  const V cov_xy = b0 * p0 + b1 * p1 + b2 * p2;
  const V raw_yy = b0 * q0 + b1 * q1 + b2 * q2;
  return {zc, inverse_z, u, v, uc, vc, jx, jy, d0, d1, d2, e0, e1, e2, a0, a1, a2, b0, b1, b2, p0, p1, p2, q0, q1, q2,
          raw_xx, cov_xy, raw_yy};
}

template <class V>
WR_HD Splat<V> project(V x, V y, V z, const Covariance3<V>& s, const Camera& c, float eps2d) {
  const Projection<V> f = projection(x, y, z, s, c);
  const V cov_xx = f.raw_xx + eps2d, cov_yy = f.raw_yy + eps2d;
  const V det = cov_xx * cov_yy - f.cov_xy * f.cov_xy;
  const V det_raw = f.raw_xx * f.raw_yy - f.cov_xy * f.cov_xy;
  return {f.zc, c.fx * f.u + c.cx, c.fy * f.v + c.cy, cov_xx, f.cov_xy, cov_yy, det, det_raw / det};
}

// Antialiasing compensation. gsplat 1.6 keeps it above .005, 1.5 lets it reach 0.
template <class V>
WR_HD V compensation(V det_ratio, float floor) {
  return sqrt_of(max_of(det_ratio, floor * floor));
}

// log2(e) * ((A dx^2 + C dy^2) / 2 + B dx dy), where the conic is scaled by log2(e) beforehand (a, c also halved) and the
// two terms that depend on the row alone are given: row_linear = b dy, row_constant = c dy^2.
template <class V>
WR_HD V exponent_log2(V dx, V a, V row_linear, V row_constant) {
  return (a * dx + row_linear) * dx + row_constant;
}

// Real spherical harmonics basis up to degree 4 at the unit direction (x, y, z); writes (degree + 1)^2 values.
// P.-P. Sloan, Efficient Spherical Harmonic Evaluation, JCGT 2(2), 2013.
WR_HD void sh_basis(int degree, float x, float y, float z, float* basis) {
  basis[0] = 0.2820947917738781f;
  if (degree < 1) return;
  basis[1] = -0.48860251190292f * y;
  basis[2] = 0.48860251190292f * z;
  basis[3] = -0.48860251190292f * x;
  if (degree < 2) return;
  const float zz = z * z, c1 = x * x - y * y, s1 = 2.0f * x * y;
  basis[4] = 0.5462742152960395f * s1;
  basis[5] = -1.092548430592079f * z * y;
  basis[6] = 0.9461746957575601f * zz - 0.3153915652525201f;
  basis[7] = -1.092548430592079f * z * x;
  basis[8] = 0.5462742152960395f * c1;
  if (degree < 3) return;
  const float third = -2.285228997322329f * zz + 0.4570457994644658f;
  const float c2 = x * c1 - y * s1, s2 = x * s1 + y * c1;
  basis[9] = -0.5900435899266435f * s2;
  basis[10] = 1.445305721320277f * z * s1;
  basis[11] = third * y;
  basis[12] = z * (1.865881662950577f * zz - 1.119528997770346f);
  basis[13] = third * x;
  basis[14] = 1.445305721320277f * z * c1;
  basis[15] = -0.5900435899266435f * c2;
  if (degree < 4) return;
  const float fourth = z * (-4.683325804901025f * zz + 2.007139630671868f);
  const float fourth_second = 3.31161143515146f * zz - 0.47308734787878f;
  const float c3 = x * c2 - y * s2, s3 = x * s2 + y * c2;
  basis[16] = 0.6258357354491763f * s3;
  basis[17] = -1.770130769779931f * z * s2;
  basis[18] = fourth_second * s1;
  basis[19] = fourth * y;
  basis[20] = 1.984313483298443f * z * basis[12] - 1.006230589874905f * basis[6];
  basis[21] = fourth * x;
  basis[22] = fourth_second * c1;
  basis[23] = -1.770130769779931f * z * c2;
  basis[24] = 0.6258357354491763f * c3;
}

// Colour seen from direction (dx, dy, dz), any length: max(sum_k basis_k coeffs[k] + 1/2, 0). coeffs is [K, 3] row-major.
WR_HD void sh_color(int degree, float dx, float dy, float dz, const float* coeffs, float* rgb) {
  float basis[25];
  const float inverse = 1.0f / max_of(sqrt_of(dx * dx + dy * dy + dz * dz), 1e-12f);
  sh_basis(degree, dx * inverse, dy * inverse, dz * inverse, basis);
  float r = 0.5f, g = 0.5f, b = 0.5f;
  const int count = (degree + 1) * (degree + 1);
  for (int k = 0; k < count; ++k) {
    r += basis[k] * coeffs[3 * k];
    g += basis[k] * coeffs[3 * k + 1];
    b += basis[k] * coeffs[3 * k + 2];
  }
  rgb[0] = max_of(r, 0.0f);
  rgb[1] = max_of(g, 0.0f);
  rgb[2] = max_of(b, 0.0f);
}

}  // namespace
}  // namespace worldr1
