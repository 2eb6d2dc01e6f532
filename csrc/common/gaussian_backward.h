// Gradients of gaussian.h, written out by hand: what the raster pass hands over for a splat, back to the Gaussian, the
// camera and the colours. Like gaussian.h it runs per lane (V = f8), scalar, and per thread in CUDA.
//
// A name v_x holds the derivative of the loss with respect to x.
#pragma once

#include "gaussian.h"

namespace worldr1 {
namespace {

// What a splat collects from its pixels. With h = alpha * dL/dalpha at a pixel where alpha is not clipped at max_alpha (else
// 0), and (dx, dy) from the mean to the pixel centre: sums of h, h dx, h dy, h dx^2, h dx dy, h dy^2. Every gradient of the
// projected mean, the conic and the opacity follows from them.
template <class V>
struct SplatMoments {
  V h, hx, hy, hxx, hxy, hyy;
};

template <class V>
struct GaussianGradient {
  V x, y, z;              // mean
  Covariance3<V> s;       // covariance in the world; an entry off the diagonal stands for both of its places
  V opacity;
  V mean_x, mean_y;       // mean on the screen
};

template <class V>
struct CameraGradient {
  V r[9], t[3], fx, fy, cx, cy;
};

// Backward of project() and compensation(). v_depth: gradient of the camera z that was blended as a colour. With
// `split_mean` the gradient of the projected mean is returned but not carried on. Adds to `v_camera`.
template <class V>
WR_HD GaussianGradient<V> project_backward(V x, V y, V z, const Covariance3<V>& s, V opacity, const Camera& c, float eps2d,
                                           bool antialiased, float floor, const SplatMoments<V>& m, V v_depth,
                                           bool split_mean, CameraGradient<V>& v_camera) {
  const auto [zc, inverse_z, u, v, uc, vc, jx, jy, d0, d1, d2, e0, e1, e2, a0, a1, a2, b0, b1, b2, p0, p1, p2, q0, q1, q2,
              raw_xx, cov_xy, raw_yy] = projection(x, y, z, s, c);
  const V cov_xx = raw_xx + eps2d, cov_yy = raw_yy + eps2d;
  const V inverse_det = 1.0f / (cov_xx * cov_yy - cov_xy * cov_xy);

  // Conic L = inverse of the 2D covariance: v_mean = L (hx, hy), v_cov = L H L / 2 with H the second moments.
  const V la = cov_yy * inverse_det, lb = -cov_xy * inverse_det, lc = cov_xx * inverse_det;
  GaussianGradient<V> out;
  out.mean_x = la * m.hx + lb * m.hy;
  out.mean_y = lb * m.hx + lc * m.hy;
  const V g00 = la * m.hxx + lb * m.hxy, g01 = la * m.hxy + lb * m.hyy;
  const V g10 = lb * m.hxx + lc * m.hxy, g11 = lb * m.hxy + lc * m.hyy;
  V v_xx = 0.5f * (g00 * la + g01 * lb);
  V v_xy = g00 * lb + g01 * lc;
  V v_yy = 0.5f * (g10 * lb + g11 * lc);
  out.opacity = m.h / opacity;  // antialiased too: the compensation cancels
  if (antialiased) {
    const V ratio = (raw_xx * raw_yy - cov_xy * cov_xy) * inverse_det;
    const V above = max_of(ratio, floor * floor);
    const V v_ratio = keep_where(above == ratio, 0.5f * m.h / above) * inverse_det;
    v_xx += v_ratio * (raw_yy - ratio * cov_yy);
    v_xy -= v_ratio * 2.0f * cov_xy * (1.0f - ratio);
    v_yy += v_ratio * (raw_xx - ratio * cov_xx);
  }

  // cov = (a, b)^T s (a, b): n = v_cov (a, b), v_s = n (a, b)^T.
  const V half = 0.5f * v_xy;
  const V na0 = v_xx * a0 + half * b0, na1 = v_xx * a1 + half * b1, na2 = v_xx * a2 + half * b2;
  const V nb0 = half * a0 + v_yy * b0, nb1 = half * a1 + v_yy * b1, nb2 = half * a2 + v_yy * b2;
  out.s = {na0 * a0 + nb0 * b0,          2.0f * (na0 * a1 + nb0 * b1), 2.0f * (na0 * a2 + nb0 * b2),
           na1 * a1 + nb1 * b1,          2.0f * (na1 * a2 + nb1 * b2), na2 * a2 + nb2 * b2};

  // a = jx d, d = r0 - uc r2; b = jy e, e = r1 - vc r2.
  const V v_a0 = 2.0f * v_xx * p0 + v_xy * q0, v_a1 = 2.0f * v_xx * p1 + v_xy * q1, v_a2 = 2.0f * v_xx * p2 + v_xy * q2;
  const V v_b0 = v_xy * p0 + 2.0f * v_yy * q0, v_b1 = v_xy * p1 + 2.0f * v_yy * q1, v_b2 = v_xy * p2 + 2.0f * v_yy * q2;
  const V v_jx = v_a0 * d0 + v_a1 * d1 + v_a2 * d2, v_jy = v_b0 * e0 + v_b1 * e1 + v_b2 * e2;
  const V v_d0 = jx * v_a0, v_d1 = jx * v_a1, v_d2 = jx * v_a2;
  const V v_e0 = jy * v_b0, v_e1 = jy * v_b1, v_e2 = jy * v_b2;
  const V v_uc = -(v_d0 * c.r[6] + v_d1 * c.r[7] + v_d2 * c.r[8]);
  const V v_vc = -(v_e0 * c.r[6] + v_e1 * c.r[7] + v_e2 * c.r[8]);
  const V v_mx = split_mean ? 0.0f * out.mean_x : out.mean_x, v_my = split_mean ? 0.0f * out.mean_y : out.mean_y;
  // Where u is clamped, it is at a bound that depends on cx and fx: uc = (constant - cx) / fx.
  const V v_uin = keep_where(uc == u, v_uc), v_vin = keep_where(vc == v, v_vc);
  const V v_ubound = (v_uc - v_uin) / c.fx, v_vbound = (v_vc - v_vin) / c.fy;
  v_camera.fx += v_jx * inverse_z + v_mx * u - v_ubound * uc;
  v_camera.fy += v_jy * inverse_z + v_my * v - v_vbound * vc;
  v_camera.cx += v_mx - v_ubound;
  v_camera.cy += v_my - v_vbound;
  const V v_u = v_uin + v_mx * c.fx, v_v = v_vin + v_my * c.fy;
  const V v_xc = v_u * inverse_z, v_yc = v_v * inverse_z;
  const V v_zc = v_depth - (v_jx * jx + v_jy * jy + v_u * u + v_v * v) * inverse_z;

  v_camera.r[0] += v_d0 + v_xc * x;
  v_camera.r[1] += v_d1 + v_xc * y;
  v_camera.r[2] += v_d2 + v_xc * z;
  v_camera.r[3] += v_e0 + v_yc * x;
  v_camera.r[4] += v_e1 + v_yc * y;
  v_camera.r[5] += v_e2 + v_yc * z;
  v_camera.r[6] += v_zc * x - uc * v_d0 - vc * v_e0;
  v_camera.r[7] += v_zc * y - uc * v_d1 - vc * v_e1;
  v_camera.r[8] += v_zc * z - uc * v_d2 - vc * v_e2;
  v_camera.t[0] += v_xc;
  v_camera.t[1] += v_yc;
  v_camera.t[2] += v_zc;
  out.x = c.r[0] * v_xc + c.r[3] * v_yc + c.r[6] * v_zc;
  out.y = c.r[1] * v_xc + c.r[4] * v_yc + c.r[7] * v_zc;
  out.z = c.r[2] * v_xc + c.r[5] * v_yc + c.r[8] * v_zc;
  return out;
}

// Inverse of the upper 3x3 R of a row-major 4x4; all 0 where there is none.
WR_HD void inverse_of_upper(const float* m, double* inverse) {
  double det = 0.0;
  for (int i = 0; i < 3; ++i) {
    const float *p = m + 4 * ((i + 1) % 3), *q = m + 4 * ((i + 2) % 3);
    for (int j = 0; j < 3; ++j) {
      const int k = (j + 1) % 3, l = (j + 2) % 3;
      inverse[3 * j + i] = (double)p[k] * q[l] - (double)p[l] * q[k];
      if (i == 0) det += m[j] * inverse[3 * j];
    }
  }
  for (int i = 0; i < 9; ++i) inverse[i] = det != 0.0 ? inverse[i] / det : 0.0;
}

// From the sums over Gaussians, `v` = dR [9] and dt [3] of the projection, to the 12 numbers of a viewmat's upper rows, row-major:
// adds what comes through the camera centre p = -R^-1 t, of which dp = -R^-1 (dR p + dt).
WR_HD void store_viewmat_gradient(const float* viewmat, const double* v, const double* v_position, float* v_viewmat) {
  double inverse[9], position[3];
  inverse_of_upper(viewmat, inverse);
  for (int j = 0; j < 3; ++j) {
    position[j] = -(inverse[3 * j] * viewmat[3] + inverse[3 * j + 1] * viewmat[7] + inverse[3 * j + 2] * viewmat[11]);
  }
  for (int i = 0; i < 3; ++i) {
    const double back = -(inverse[i] * v_position[0] + inverse[3 + i] * v_position[1] + inverse[6 + i] * v_position[2]);
    for (int j = 0; j < 3; ++j) v_viewmat[4 * i + j] = (float)(v[3 * i + j] + back * position[j]);
    v_viewmat[4 * i + 3] = (float)(v[9 + i] + back);
  }
}

// Backward of covariance_world(): v_q [4] wxyz, v_scale [3].
template <class V>
WR_HD void covariance_world_backward(V qw, V qx, V qy, V qz, V sx, V sy, V sz, const Covariance3<V>& v_s, V* v_q,
                                     V* v_scale) {
  const V inverse = 1.0f / sqrt_of(qw * qw + qx * qx + qy * qy + qz * qz);
  const V w = qw * inverse, x = qx * inverse, y = qy * inverse, z = qz * inverse;
  const V q[9] = {1.0f - 2.0f * (y * y + z * z), 2.0f * (x * y - w * z),        2.0f * (x * z + w * y),
                  2.0f * (x * y + w * z),        1.0f - 2.0f * (x * x + z * z), 2.0f * (y * z - w * x),
                  2.0f * (x * z - w * y),        2.0f * (y * z + w * x),        1.0f - 2.0f * (x * x + y * y)};
  const V g[9] = {2.0f * v_s.xx, v_s.xy, v_s.xz, v_s.xy, 2.0f * v_s.yy, v_s.yz, v_s.xz, v_s.yz, 2.0f * v_s.zz};
  const V scale[3] = {sx, sy, sz};
  V v[9];  // of the rotation
  for (int k = 0; k < 3; ++k) {
    const V w0 = g[0] * q[k] + g[1] * q[3 + k] + g[2] * q[6 + k];
    const V w1 = g[3] * q[k] + g[4] * q[3 + k] + g[5] * q[6 + k];
    const V w2 = g[6] * q[k] + g[7] * q[3 + k] + g[8] * q[6 + k];
    v_scale[k] = (w0 * q[k] + w1 * q[3 + k] + w2 * q[6 + k]) * scale[k];
    const V square = scale[k] * scale[k];
    v[k] = w0 * square;
    v[3 + k] = w1 * square;
    v[6 + k] = w2 * square;
  }
  const V v_w = 2.0f * (x * (v[7] - v[5]) + y * (v[2] - v[6]) + z * (v[3] - v[1]));
  const V v_x = 2.0f * (y * (v[1] + v[3]) + z * (v[2] + v[6]) + w * (v[7] - v[5]) - 2.0f * x * (v[4] + v[8]));
  const V v_y = 2.0f * (x * (v[1] + v[3]) + z * (v[5] + v[7]) + w * (v[2] - v[6]) - 2.0f * y * (v[0] + v[8]));
  const V v_z = 2.0f * (x * (v[2] + v[6]) + y * (v[5] + v[7]) + w * (v[3] - v[1]) - 2.0f * z * (v[0] + v[4]));
  const V along = w * v_w + x * v_x + y * v_y + z * v_z;  // normalising takes this part out
  v_q[0] = (v_w - w * along) * inverse;
  v_q[1] = (v_x - x * along) * inverse;
  v_q[2] = (v_y - y * along) * inverse;
  v_q[3] = (v_z - z * along) * inverse;
}

// Backward of sh_basis(): the gradient of the direction. `basis` is what sh_basis wrote; v_basis is overwritten.
WR_HD void sh_basis_backward(int degree, float x, float y, float z, const float* basis, float* v_basis, float* v_direction) {
  float v_x = 0.0f, v_y = 0.0f, v_z = 0.0f, v_zz = 0.0f;
  float v_c1 = 0.0f, v_s1 = 0.0f, v_c2 = 0.0f, v_s2 = 0.0f;
  const float zz = z * z, c1 = x * x - y * y, s1 = 2.0f * x * y;
  const float c2 = x * c1 - y * s1, s2 = x * s1 + y * c1;
  if (degree >= 4) {
    const float fourth = z * (-4.683325804901025f * zz + 2.007139630671868f);
    const float fourth_second = 3.31161143515146f * zz - 0.47308734787878f;
    const float v_s3 = 0.6258357354491763f * v_basis[16], v_c3 = 0.6258357354491763f * v_basis[24];
    const float v_fourth = y * v_basis[19] + x * v_basis[21];
    v_s2 += -1.770130769779931f * z * v_basis[17] + x * v_s3 - y * v_c3;
    v_c2 += -1.770130769779931f * z * v_basis[23] + y * v_s3 + x * v_c3;
    v_s1 += fourth_second * v_basis[18];
    v_c1 += fourth_second * v_basis[22];
    v_x += fourth * v_basis[21] + s2 * v_s3 + c2 * v_c3;
    v_y += fourth * v_basis[19] + c2 * v_s3 - s2 * v_c3;
    v_z += -1.770130769779931f * (s2 * v_basis[17] + c2 * v_basis[23]) + 1.984313483298443f * basis[12] * v_basis[20] +
           (-4.683325804901025f * zz + 2.007139630671868f) * v_fourth;
    v_zz += 3.31161143515146f * (s1 * v_basis[18] + c1 * v_basis[22]) - 4.683325804901025f * z * v_fourth;
    v_basis[12] += 1.984313483298443f * z * v_basis[20];
    v_basis[6] -= 1.006230589874905f * v_basis[20];
  }
  if (degree >= 3) {
    const float third = -2.285228997322329f * zz + 0.4570457994644658f;
    v_s2 += -0.5900435899266435f * v_basis[9];
    v_c2 += -0.5900435899266435f * v_basis[15];
    v_s1 += 1.445305721320277f * z * v_basis[10] + x * v_s2 - y * v_c2;
    v_c1 += 1.445305721320277f * z * v_basis[14] + y * v_s2 + x * v_c2;
    v_x += third * v_basis[13] + s1 * v_s2 + c1 * v_c2;
    v_y += third * v_basis[11] + c1 * v_s2 - s1 * v_c2;
    v_z += 1.445305721320277f * (s1 * v_basis[10] + c1 * v_basis[14]) +
           (1.865881662950577f * zz - 1.119528997770346f) * v_basis[12];
    v_zz += 1.865881662950577f * z * v_basis[12] - 2.285228997322329f * (y * v_basis[11] + x * v_basis[13]);
  }
  if (degree >= 2) {
    v_s1 += 0.5462742152960395f * v_basis[4];
    v_c1 += 0.5462742152960395f * v_basis[8];
    v_x += -1.092548430592079f * z * v_basis[7] + 2.0f * (x * v_c1 + y * v_s1);
    v_y += -1.092548430592079f * z * v_basis[5] + 2.0f * (x * v_s1 - y * v_c1);
    v_zz += 0.9461746957575601f * v_basis[6];
    v_z += -1.092548430592079f * (y * v_basis[5] + x * v_basis[7]) + 2.0f * z * v_zz;
  }
  if (degree >= 1) {
    v_x -= 0.48860251190292f * v_basis[3];
    v_y -= 0.48860251190292f * v_basis[1];
    v_z += 0.48860251190292f * v_basis[2];
  }
  v_direction[0] = v_x;
  v_direction[1] = v_y;
  v_direction[2] = v_z;
}

// Backward of sh_color(): adds to v_coeffs [K, 3], writes the gradient of (dx, dy, dz).
WR_HD void sh_color_backward(int degree, float dx, float dy, float dz, const float* coeffs, const float* v_rgb,
                             float* v_coeffs, float* v_direction) {
  float basis[25], v_basis[25];
  const float inverse = 1.0f / max_of(sqrt_of(dx * dx + dy * dy + dz * dz), 1e-12f);
  const float x = dx * inverse, y = dy * inverse, z = dz * inverse;
  sh_basis(degree, x, y, z, basis);
  const int count = (degree + 1) * (degree + 1);
  float rgb[3] = {0.5f, 0.5f, 0.5f}, v[3];
  for (int k = 0; k < count; ++k) {
    for (int i = 0; i < 3; ++i) rgb[i] += basis[k] * coeffs[3 * k + i];
  }
  for (int i = 0; i < 3; ++i) v[i] = rgb[i] >= 0.0f ? v_rgb[i] : 0.0f;
  for (int k = 0; k < count; ++k) {
    v_basis[k] = coeffs[3 * k] * v[0] + coeffs[3 * k + 1] * v[1] + coeffs[3 * k + 2] * v[2];
    for (int i = 0; i < 3; ++i) v_coeffs[3 * k + i] += basis[k] * v[i];
  }
  sh_basis_backward(degree, x, y, z, basis, v_basis, v_direction);
  const float along = x * v_direction[0] + y * v_direction[1] + z * v_direction[2];
  v_direction[0] = (v_direction[0] - x * along) * inverse;
  v_direction[1] = (v_direction[1] - y * along) * inverse;
  v_direction[2] = (v_direction[2] - z * along) * inverse;
}

}  // namespace
}  // namespace worldr1
