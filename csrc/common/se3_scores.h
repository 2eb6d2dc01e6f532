// trajectory_error and trajectory_reward of one pair of trajectories, forward and backward. The formulas are in
// worldr1_kernels/se3/README.md; every branch here takes the subgradient that the torch reference takes.
#pragma once

#include "se3_trajectory.h"

#if !defined(__CUDACC__)
#include <cmath>
#endif

namespace worldr1 {
namespace {

template <class T>
WR_HD Pair<T> pair_of(const TrajectoryArgs& args, int64_t n, bool relative, double* scratch) {
  const int64_t offset = n * args.frames * 16;
  return {static_cast<const T*>(args.pred) + offset, static_cast<const T*>(args.target) + offset, args.frames, relative,
          scratch};
}

template <class T>
WR_HD double depth_of(const TrajectoryArgs& args, int64_t n) {
  return args.depth == nullptr ? 0.0 : (double)static_cast<const T*>(args.depth)[n];
}

template <class T, class Team>
WR_HD void error_forward(const Team& team, const ErrorArgs& args, int64_t n, double* scratch) {
  const Pair<T> pair = pair_of<T>(args, n, args.relative, scratch);
  T* const* out = reinterpret_cast<T* const*>(args.outputs);
  const Sums s = gather<true>(team, pair, out[0] + n * args.frames);
  const Alignment al = align(team, pair, s, args.mode, depth_of<T>(args, n));
  const Measures m = measure<false>(team, pair, s, al, FrameGradients<T>{}, out[1] + n * args.frames);
  if (!team.leader()) return;
  const double fields[] = {al.reported, s.angles, m.translation, m.cam_mc, m.path_p, m.path_q};
  for (int k = 0; k < 6; ++k) out[2 + k][n] = (T)fields[k];
}

template <class T, class Team>
WR_HD void error_backward(const Team& team, const ErrorArgs& args, int64_t n, double* scratch) {
  const Pair<T> pair = pair_of<T>(args, n, args.relative, scratch);
  const T* const* in = reinterpret_cast<const T* const*>(args.grads);
  double given[kErrorFields] = {};
  for (int k = 2; k < kErrorFields; ++k) given[k] = in[k] == nullptr ? 0.0 : (double)in[k][n];
  FrameGradients<T> g;
  g.rotation_row = in[0] == nullptr ? nullptr : in[0] + n * args.frames;
  g.translation_row = in[1] == nullptr ? nullptr : in[1] + n * args.frames;
  g.rotation = given[3];
  g.translation = given[4];
  g.cam_mc = given[5];
  PathGradients path;
  path.path_p = given[6];
  path.path_q = given[7];
  const double depth = depth_of<T>(args, n);
  const Sums s = gather<false>(team, pair, static_cast<T*>(nullptr));
  const Alignment al = align(team, pair, s, args.mode, depth);
  const Measures m = measure<true>(team, pair, s, al, g, static_cast<T*>(nullptr));
  if (args.mode == kLeastSquares && s.pp > 0.0 && !(root(s.max_pp) < kStaticShare * depth)) {
    const double g_scale = m.along_p + given[2];
    path.inner = s.inner >= 0.0 ? g_scale / s.pp : 0.0;
    path.pp = -2.0 * g_scale * al.scale / s.pp;
  } else if (args.mode == kMaxNorm) {
    const double length_p = root(s.max_pp), length_q = root(s.max_qq);
    path.p_floor = s.max_pp;
    path.q_floor = s.max_qq;
    if (length_p > 0.0) {
      path.p_norm = -(m.along_p / s.max_pp + given[2] * length_q / s.max_pp) / m.ties_p;
      path.q_norm = given[2] / length_p / m.ties_q;
    }
    if (length_q > 0.0) path.q_norm += m.along_q / s.max_qq / m.ties_q;
  }
  const int64_t offset = n * args.frames * 16;
  backpropagate(team, pair, al, g, path, static_cast<T*>(args.grad_pred) + offset, static_cast<T*>(args.grad_target) + offset);
}

// Constants of the reward, as in worldr1_kernels/se3/reference.py.
constexpr double kStaticExtent = 1e-5, kMinAngle = 10.0 * 3.14159265358979323846 / 180.0;
constexpr double kDriftShare = 0.05, kDriftWeight = 0.25, kSmallestRatio = 0.01;
constexpr double kRestCharge = 4.60517018598809137;  // -ln kSmallestRatio

struct Score {
  bool fixed, moving;
  double cosine, against, deviation, e_t, e_r, angle_floor, length_ratio, reward;
};

template <class T>
WR_HD Score score(const RewardArgs& args, const Pair<T>& pair, const Sums& s, const Measures& m, double depth) {
  const double frames = (double)pair.frames;
  double c[3];
  camera_center(first_pose(pair.target), c);
  Score out;
  out.fixed = root(s.max_qq) <= kStaticExtent * (1.0 + root(dot3(c, c)));
  out.moving = root(s.max_pp) >= kStaticShare * depth;
  const double product = root(s.pp) * root(s.qq);
  out.cosine = product > 0.0 ? s.inner / product : 0.0;
  out.against = out.moving ? larger(-out.cosine, 0.0) : 0.0;
  out.deviation = m.translation / frames;
  out.e_t = out.fixed ? s.p_norms / frames / (kDriftShare * depth) * kDriftWeight
                      : out.deviation / m.path_q * (1.0 + out.against);
  out.angle_floor = larger(s.requested, kMinAngle);
  out.e_r = s.angles / frames / out.angle_floor;
  double exponent = args.k_t * out.e_t + args.k_r * out.e_r;
  out.length_ratio = out.fixed ? 1.0 : m.path_p / m.path_q;
  if (args.metric && !out.fixed) {
    const double log_ratio = log(larger(out.length_ratio, kSmallestRatio));
    exponent += (log_ratio < 0.0 ? -log_ratio : log_ratio) + kRestCharge * out.against;
  }
  out.reward = exp(-exponent);
  return out;
}

template <class T, class Team>
WR_HD void reward_forward(const Team& team, const RewardArgs& args, int64_t n, double* scratch) {
  const Pair<T> pair = pair_of<T>(args, n, true, scratch);
  const double depth = depth_of<T>(args, n);
  const Sums s = gather<true>(team, pair, static_cast<T*>(nullptr));
  const Alignment al = align(team, pair, s, kLeastSquares, depth);
  const Measures m = measure<false>(team, pair, s, al, FrameGradients<T>{}, static_cast<T*>(nullptr));
  const Score result = score(args, pair, s, m, depth);
  if (team.leader()) static_cast<T*>(args.reward)[n] = (T)result.reward;
}

template <class T, class Team>
WR_HD void reward_backward(const Team& team, const RewardArgs& args, int64_t n, double* scratch) {
  const Pair<T> pair = pair_of<T>(args, n, true, scratch);
  const double depth = depth_of<T>(args, n), frames = (double)args.frames;
  const Sums s = gather<true>(team, pair, static_cast<T*>(nullptr));
  const Alignment al = align(team, pair, s, kLeastSquares, depth);
  FrameGradients<T> g;
  g.translation = 1.0;  // first of the sum of deviations alone; its weight is known once that sum is
  g.requested = 1.0;
  const Measures m = measure<true>(team, pair, s, al, g, static_cast<T*>(nullptr));
  const Score v = score(args, pair, s, m, depth);
  const double g_exponent = -v.reward * (double)static_cast<const T*>(args.grad)[n];
  PathGradients path;
  g.translation = g.requested = 0.0;
  g.rotation = g_exponent * args.k_r / (frames * v.angle_floor);
  if (s.requested >= kMinAngle) {
    g.requested = -g_exponent * args.k_r * v.e_r / v.angle_floor / m.ties_requested;
    path.requested_floor = s.requested;
  }
  if (v.fixed) {
    path.p_norm = g_exponent * args.k_t * kDriftWeight / (kDriftShare * depth * frames);
  } else {
    const double g_e_t = g_exponent * args.k_t;
    g.translation = g_e_t * (1.0 + v.against) / (m.path_q * frames);
    path.path_q = -g_e_t * v.e_t / m.path_q;
    if (s.pp > 0.0 && v.moving) {
      const double g_scale = g.translation * m.along_p;
      path.inner = s.inner >= 0.0 ? g_scale / s.pp : 0.0;
      path.pp = -2.0 * g_scale * al.scale / s.pp;
      if (v.cosine <= 0.0) {
        const double g_cosine = -g_e_t * v.deviation / m.path_q - (args.metric ? g_exponent * kRestCharge : 0.0);
        path.inner += g_cosine * inverse(root(s.pp) * root(s.qq));
        path.pp -= g_cosine * v.cosine / s.pp;
        path.qq -= g_cosine * v.cosine / s.qq;
      }
    }
    if (args.metric && v.length_ratio >= kSmallestRatio && v.length_ratio != 1.0) {
      const double sign = v.length_ratio > 1.0 ? g_exponent : -g_exponent;
      path.path_p = sign / m.path_p;
      path.path_q -= sign / m.path_q;
    }
  }
  const int64_t offset = n * args.frames * 16;
  backpropagate(team, pair, al, g, path, static_cast<T*>(args.grad_pred) + offset, static_cast<T*>(args.grad_target) + offset);
}

}  // namespace
}  // namespace worldr1
