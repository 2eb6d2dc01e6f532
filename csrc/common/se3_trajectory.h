// The passes over a pair of trajectories that errors and reward are made of, for a team of lanes that share the frames.
//
// A Team is one warp on a device (V = double, a frame a thread) or the lanes of a vector on a CPU (V = Lanes). It loads and
// stores frames and reduces over its lanes in a fixed order. Frames go in groups of Team::kStep; in the last group, lanes
// past the end repeat the last frame and are masked out. Numbers of type `double` here are the same in all lanes.
//
// Scratch rows hold what a second pass needs, so that a pose is brought relative to the first once in a forward pass.
#pragma once

#include "se3.h"
#include "se3_args.h"

namespace worldr1 {
namespace {

constexpr double kStaticShare = 0.01;  // of the median depth: a path within it is a camera at rest

enum Row { kP = 0, kQ = 3, kPP = 6, kQQ = 7, kRotationDifference = 8, kRequested = 9 };

// One trajectory pair; pointers at its first frame.
template <class T>
struct Pair {
  const T* pred;
  const T* target;
  int64_t frames;
  bool relative;
  double* scratch;
  WR_HD double* row(int k) const { return scratch + k * scratch_row(frames) + kRowPad; }
};

template <class T>
WR_HD Pose<double> first_pose(const T* e) {
  Pose<double> p;
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) p.r[3 * i + j] = (double)e[4 * i + j];
    p.t[i] = (double)e[4 * i + 3];
  }
  return p;
}

template <class Mask, class V>
WR_HD Pose<V> identity_where(Mask mask, const Pose<V>& pose) {
  Pose<V> out;
  for (int k = 0; k < 9; ++k) out.r[k] = mask ? V{} + (k % 4 == 0 ? 1.0 : 0.0) : pose.r[k];
  for (int k = 0; k < 3; ++k) out.t[k] = mask ? V{} : pose.t[k];
  return out;
}

struct Sums {
  double inner = 0, pp = 0, qq = 0, p_norms = 0, max_pp = 0, max_qq = 0, angles = 0, requested = 0;
};

// First pass: centres p (predicted) and q (target), their squared lengths, and the angles into the scratch rows; sums of them.
template <bool kAngles, class Team, class T>
WR_HD Sums gather(const Team& team, const Pair<T>& pair, T* rotation) {
  typedef typename Team::V V;
  const Pose<double> first_p = first_pose(pair.pred), first_q = first_pose(pair.target);
  V inner{}, pp{}, qq{}, p_norms{}, max_pp{}, max_qq{}, angles{}, requested{};
  for (int64_t t = team.first(); t < pair.frames; t += Team::kStep) {
    const auto live = team.index(t) < (double)pair.frames;
    Pose<V> a = team.pose(pair.pred, t, pair.frames), b = team.pose(pair.target, t, pair.frames);
    if (pair.relative) {
      // Frame 0 relative to itself is the identity, not the identity with rounding.
      const auto is_first = team.index(t) < 0.5;
      a = identity_where(is_first, relative_pose(a, first_p));
      b = identity_where(is_first, relative_pose(b, first_q));
    }
    V p[3], q[3];
    camera_center(a, p);
    camera_center(b, q);
    const V p2 = dot3(p, p), q2 = dot3(q, q);
    for (int k = 0; k < 3; ++k) {
      team.set_row(pair.row(kP + k), t, p[k]);
      team.set_row(pair.row(kQ + k), t, q[k]);
    }
    team.set_row(pair.row(kPP), t, p2);
    team.set_row(pair.row(kQQ), t, q2);
    V difference{};
    for (int k = 0; k < 9; ++k) difference += (a.r[k] - b.r[k]) * (a.r[k] - b.r[k]);
    difference = difference > kRounding2 ? difference : V{};
    team.set_row(pair.row(kRotationDifference), t, difference);
    inner += live ? dot3(p, q) : V{};
    pp += live ? p2 : V{};
    qq += live ? q2 : V{};
    p_norms += live ? root(p2) : V{};
    max_pp = larger(max_pp, p2);
    max_qq = larger(max_qq, q2);
    if (kAngles) {
      const Turn<V> turn = turn_between(a.r, b.r), asked = turn_of(b.r);
      const V angle = arctangent(turn.sine, turn.cosine), asked_angle = arctangent(asked.sine, asked.cosine);
      if (rotation != nullptr) team.put(rotation, t, pair.frames, angle);
      team.set_row(pair.row(kRequested), t, asked_angle);
      angles += live ? angle : V{};
      requested = larger(requested, asked_angle);
    }
  }
  team.sync();
  Sums s;
  s.inner = team.sum(inner);
  s.pp = team.sum(pp);
  s.qq = team.sum(qq);
  s.p_norms = team.sum(p_norms);
  s.max_pp = team.largest(max_pp);
  s.max_qq = team.largest(max_qq);
  if (kAngles) {
    s.angles = team.sum(angles);
    s.requested = team.largest(requested);
  }
  return s;
}

// Aligned deviation of a frame: d = scale (R) p + offset - goal_scale q; R and offset for a similarity only.
struct Alignment {
  double scale = 1, goal_scale = 1, reported = 1;
  bool turned = false;
  double r[9], offset[3];
};

// 1 / a; 0 for a path without length, which stays where it is.
WR_HD double inverse(double a) { return a > 0.0 ? 1.0 / a : 0.0; }

template <class Team, class T>
WR_HD Alignment align(const Team& team, const Pair<T>& pair, const Sums& s, int mode, double depth) {
  typedef typename Team::V V;
  Alignment out;
  if (mode == kLeastSquares) {
    // depth 0 stands for none
    const bool at_rest = root(s.max_pp) < kStaticShare * depth;
    out.scale = at_rest || !(s.pp > 0.0) ? 0.0 : larger(s.inner, 0.0) / s.pp;
    out.reported = out.scale;
  } else if (mode == kMaxNorm) {
    out.scale = inverse(root(s.max_pp));
    out.goal_scale = inverse(root(s.max_qq));
    out.reported = root(s.max_qq) * out.scale;
  } else if (mode == kSimilarity) {
    V sum_p[3] = {}, sum_q[3] = {}, cov[9] = {}, variance{};
    for (int64_t t = team.first(); t < pair.frames; t += Team::kStep) {
      const auto live = team.index(t) < (double)pair.frames;
      for (int k = 0; k < 3; ++k) {
        sum_p[k] += live ? team.row(pair.row(kP + k), t) : V{};
        sum_q[k] += live ? team.row(pair.row(kQ + k), t) : V{};
      }
    }
    double mean_p[3], mean_q[3], total[9];
    for (int k = 0; k < 3; ++k) {
      mean_p[k] = team.sum(sum_p[k]) / (double)pair.frames;
      mean_q[k] = team.sum(sum_q[k]) / (double)pair.frames;
    }
    for (int64_t t = team.first(); t < pair.frames; t += Team::kStep) {
      const auto live = team.index(t) < (double)pair.frames;
      V p[3], q[3];
      for (int k = 0; k < 3; ++k) {
        p[k] = live ? team.row(pair.row(kP + k), t) - mean_p[k] : V{};
        q[k] = live ? team.row(pair.row(kQ + k), t) - mean_q[k] : V{};
      }
      variance += dot3(p, p);
      for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 3; ++j) cov[3 * i + j] += q[i] * p[j];
    }
    for (int k = 0; k < 9; ++k) total[k] = team.sum(cov[k]);
    const Similarity best = similarity(total, team.sum(variance));
    out.turned = true;
    out.scale = out.reported = best.scale;
    for (int k = 0; k < 9; ++k) out.r[k] = best.r[k];
    for (int i = 0; i < 3; ++i) out.offset[i] = mean_q[i] - best.scale * dot3(best.r + 3 * i, mean_p);
  }
  return out;
}

template <class V>
WR_HD void deviation(const Alignment& al, const V* p, const V* q, V* d) {
  V moved[3], goal[3];
  for (int i = 0; i < 3; ++i) {
    moved[i] = al.turned ? (p[0] * al.r[3 * i] + p[1] * al.r[3 * i + 1] + p[2] * al.r[3 * i + 2]) * al.scale + al.offset[i]
                         : p[i] * al.scale;
    goal[i] = q[i] * al.goal_scale;
    d[i] = moved[i] - goal[i];
  }
  const auto differs = dot3(d, d) > kRounding2 * (dot3(moved, moved) + dot3(goal, goal));
  for (int i = 0; i < 3; ++i) d[i] = differs ? d[i] : V{};
}

// Gradients of a scalar in what a frame contributes: of its translation error, rotation error, CamMC term and requested
// angle. The rows [F] are added to the numbers; null is zero.
template <class T>
struct FrameGradients {
  double translation = 0, cam_mc = 0, rotation = 0, requested = 0;
  const T* translation_row = nullptr;
  const T* rotation_row = nullptr;
};

// Gradient in the deviation d of one frame: g_translation d / |d| + g_cam_mc d / |[R difference | d]|.
template <class V>
WR_HD void deviation_gradient(const V* d, V rotation_difference, V g_translation, double g_cam_mc, V* gd, V& per_pose) {
  const V squares = dot3(d, d), length = root(squares), pose = root(squares + rotation_difference);
  per_pose = pose > 0.0 ? g_cam_mc / pose : V{};
  const V factor = (squares > 0.0 ? g_translation / length : V{}) + per_pose;
  for (int k = 0; k < 3; ++k) gd[k] = factor * d[k];
}

struct Measures {
  double translation = 0, cam_mc = 0, path_p = 0, path_q = 0;  // forward
  double along_p = 0, along_q = 0;                             // backward: sums of gd . p and gd . q
  double ties_p = 0, ties_q = 0, ties_requested = 0;           // frames that share the largest value
};

template <class V>
WR_HD V distance(const V* a, const V* b) {
  const V d[3] = {a[0] - b[0], a[1] - b[1], a[2] - b[2]};
  return root(dot3(d, d));
}

// Second pass: errors and path lengths; with kBackward also what the gradient of the scale needs.
template <bool kBackward, class Team, class T>
WR_HD Measures measure(const Team& team, const Pair<T>& pair, const Sums& s, const Alignment& al,
                       const FrameGradients<T>& g, T* translation) {
  typedef typename Team::V V;
  V sum_translation{}, cam_mc{}, path_p{}, path_q{}, along_p{}, along_q{}, ties_p{}, ties_q{}, ties_requested{};
  for (int64_t t = team.first(); t < pair.frames; t += Team::kStep) {
    const auto live = team.index(t) < (double)pair.frames;
    V p[3], q[3], before_p[3], before_q[3], d[3];
    for (int k = 0; k < 3; ++k) {
      p[k] = team.row(pair.row(kP + k), t);
      q[k] = team.row(pair.row(kQ + k), t);
      before_p[k] = team.row(pair.row(kP + k), t - 1);
      before_q[k] = team.row(pair.row(kQ + k), t - 1);
    }
    const auto has_before = live & (team.index(t) > 0.0);
    path_p += has_before ? distance(p, before_p) : V{};
    path_q += has_before ? distance(q, before_q) : V{};
    deviation(al, p, q, d);
    const V difference = team.row(pair.row(kRotationDifference), t), squares = dot3(d, d), length = root(squares);
    sum_translation += live ? length : V{};
    if (translation != nullptr) team.put(translation, t, pair.frames, length);
    cam_mc += live ? root(squares + difference) : V{};
    if (kBackward) {
      const V g_translation = V{} + g.translation + (g.translation_row ? team.value(g.translation_row, t, pair.frames) : V{});
      V gd[3], per_pose;
      deviation_gradient(d, difference, g_translation, g.cam_mc, gd, per_pose);
      along_p += live ? dot3(gd, p) : V{};
      along_q += live ? dot3(gd, q) : V{};
      const V one = V{} + 1.0;
      ties_p += live & (team.row(pair.row(kPP), t) >= s.max_pp) ? one : V{};
      ties_q += live & (team.row(pair.row(kQQ), t) >= s.max_qq) ? one : V{};
      if (g.requested != 0.0) ties_requested += live & (team.row(pair.row(kRequested), t) >= s.requested) ? one : V{};
    }
  }
  Measures m;
  m.translation = team.sum(sum_translation);
  m.cam_mc = team.sum(cam_mc);
  m.path_p = team.sum(path_p);
  m.path_q = team.sum(path_q);
  if (kBackward) {
    m.along_p = team.sum(along_p);
    m.along_q = team.sum(along_q);
    m.ties_p = team.sum(ties_p);
    m.ties_q = team.sum(ties_q);
    m.ties_requested = team.sum(ties_requested);
  }
  return m;
}

// Gradients of a scalar in the sums over a path. A frame counts for `p_norm` where |p|^2 >= p_floor, and alike for q and the
// requested angle.
struct PathGradients {
  double inner = 0, pp = 0, qq = 0, path_p = 0, path_q = 0;
  double p_norm = 0, p_floor = 0, q_norm = 0, q_floor = 0, requested_floor = 0;
};

// Adds the gradient of a path length to that of the centre at `t`.
template <class Team, class T>
WR_HD void path_gradient(const Team& team, const Pair<T>& pair, int row, int64_t t, double g, typename Team::V* gc) {
  typedef typename Team::V V;
  for (int side = -1; side <= 1; side += 2) {
    const auto exists = side < 0 ? team.index(t) > 0.0 : team.index(t) < (double)pair.frames - 1.0;
    V step[3];
    for (int k = 0; k < 3; ++k) step[k] = team.row(pair.row(row + k), t) - team.row(pair.row(row + k), t + side);
    const V squares = dot3(step, step);
    const V factor = exists & (squares > 0.0) ? g / root(squares) : V{};
    // Where the neighbour does not exist its row is not initialised.
    for (int k = 0; k < 3; ++k) gc[k] += exists ? factor * step[k] : V{};
  }
}

template <class V>
WR_HD void add_norm_gradient(const V* c, V squares, double g, double floor, V* gc) {
  const V factor = (squares >= floor) & (squares > 0.0) ? g / root(squares) : V{};
  for (int k = 0; k < 3; ++k) gc[k] += factor * c[k];
}

// Gradient of the world-to-camera matrix of frame `t`, the target's where kTarget, else the predicted one; adds to the gradient
// of the first camera, but for what the matrix of frame 0 itself gets.
template <bool kTarget, class Team, class T>
WR_HD Pose<typename Team::V> frame_gradient(const Team& team, const Pair<T>& pair, const Alignment& al,
                                            const FrameGradients<T>& g, const PathGradients& path, int64_t t,
                                            const Pose<double>& first,
                                            const Pose<double>& other_first, Pose<typename Team::V>& g_first) {
  typedef typename Team::V V;
  const T* own = kTarget ? pair.target : pair.pred;
  const T* other = kTarget ? pair.pred : pair.target;
  // Relative to the first camera, frame 0 is a constant.
  const auto varies = (team.index(t) < (double)pair.frames) & (team.index(t) > (pair.relative ? 0.5 : -0.5));
  V p[3], q[3], d[3], gd[3], per_pose, gc[3];
  for (int k = 0; k < 3; ++k) {
    p[k] = team.row(pair.row(kP + k), t);
    q[k] = team.row(pair.row(kQ + k), t);
  }
  deviation(al, p, q, d);
  const V g_translation = V{} + g.translation + (g.translation_row ? team.value(g.translation_row, t, pair.frames) : V{});
  deviation_gradient(d, team.row(pair.row(kRotationDifference), t), g_translation, g.cam_mc, gd, per_pose);
  if (kTarget) {
    for (int k = 0; k < 3; ++k) gc[k] = -gd[k] * al.goal_scale + p[k] * path.inner + q[k] * path.qq;
    if (path.q_norm != 0.0) add_norm_gradient(q, team.row(pair.row(kQQ), t), path.q_norm, path.q_floor, gc);
    if (path.path_q != 0.0) path_gradient(team, pair, kQ, t, path.path_q, gc);
  } else {
    for (int k = 0; k < 3; ++k) {
      const V moved = al.turned ? gd[0] * al.r[k] + gd[1] * al.r[3 + k] + gd[2] * al.r[6 + k] : gd[k];
      gc[k] = moved * al.scale + q[k] * path.inner + p[k] * path.pp;
    }
    if (path.p_norm != 0.0) add_norm_gradient(p, team.row(pair.row(kPP), t), path.p_norm, path.p_floor, gc);
    if (path.path_p != 0.0) path_gradient(team, pair, kP, t, path.path_p, gc);
  }
  for (int k = 0; k < 3; ++k) gc[k] = varies ? gc[k] : V{};
  per_pose = varies ? per_pose : V{};

  const Pose<V> e = team.pose(own, t, pair.frames), e_other = team.pose(other, t, pair.frames);
  const Pose<V> a = pair.relative ? relative_pose(e, first) : e;
  const Pose<V> b = pair.relative ? relative_pose(e_other, other_first) : e_other;
  Pose<V> ga;
  clear(ga);
  const V g_rotation = V{} + g.rotation + (g.rotation_row ? team.value(g.rotation_row, t, pair.frames) : V{});
  const Turn<V> turn = kTarget ? turn_between(b.r, a.r) : turn_between(a.r, b.r);
  turn_between_backward(b.r, turn_gradient(turn, varies ? g_rotation : V{}), kTarget ? 1.0 : -1.0, ga.r);
  if (kTarget && g.requested != 0.0) {
    const auto counts = varies & (team.row(pair.row(kRequested), t) >= path.requested_floor);
    turn_of_backward(turn_gradient(turn_of(a.r), counts ? V{} + g.requested : V{}), ga.r);
  }
  for (int k = 0; k < 9; ++k) ga.r[k] += per_pose * (a.r[k] - b.r[k]);
  camera_center_backward(a, gc, ga);
  return pair.relative ? relative_pose_backward(e, first, a, ga, g_first) : ga;
}

// This lane's, or this vector's, share of what the matrix of frame 0 gets.
template <class Team>
WR_HD void add_frame_zero(const Team& team, int64_t t, const Pose<typename Team::V>& g, Pose<typename Team::V>& g_first) {
  typedef typename Team::V V;
  if (t != 0) return;
  const auto is_first = team.index(t) < 0.5;
  for (int k = 0; k < 9; ++k) g_first.r[k] += is_first ? g.r[k] : V{};
  for (int k = 0; k < 3; ++k) g_first.t[k] += is_first ? g.t[k] : V{};
}

template <class Team, class T>
WR_HD void put_first(const Team& team, const Pose<typename Team::V>& g_first, T* grad) {
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 4; ++j) {
      const double total = team.sum(j < 3 ? g_first.r[3 * i + j] : g_first.t[i]);
      if (team.leader()) grad[4 * i + j] = (T)total;
    }
}

template <bool kTarget, class Team, class T>
WR_HD void backpropagate_side(const Team& team, const Pair<T>& pair, const Alignment& al, const FrameGradients<T>& g,
                              const PathGradients& path, T* grad) {
  Pose<typename Team::V> g_first;
  clear(g_first);
  for (int64_t t = team.first(); t < pair.frames; t += Team::kStep) {
    // Read anew for every frame: a device's thread has no registers to keep them in.
    const Pose<double> first_p = first_pose(pair.pred), first_q = first_pose(pair.target);
    const auto ga = frame_gradient<kTarget>(team, pair, al, g, path, t, kTarget ? first_q : first_p,
                                            kTarget ? first_p : first_q, g_first);
    team.put_pose(grad, t, pair.frames, ga);
    add_frame_zero(team, t, ga, g_first);
  }
  put_first(team, g_first, grad);
}

// Last pass: gradients of the world-to-camera matrices. Both sides of a frame at once share most of the work; one side after
// the other needs fewer registers, and a device's thread has not enough for both.
template <class Team, class T>
WR_HD void backpropagate(const Team& team, const Pair<T>& pair, const Alignment& al, const FrameGradients<T>& g,
                         const PathGradients& path, T* grad_pred, T* grad_target) {
  if constexpr (Team::kOneSideAtATime) {
    backpropagate_side<false>(team, pair, al, g, path, grad_pred);
    backpropagate_side<true>(team, pair, al, g, path, grad_target);
  } else {
    const Pose<double> first_p = first_pose(pair.pred), first_q = first_pose(pair.target);
    Pose<typename Team::V> first_gp, first_gq;
    clear(first_gp);
    clear(first_gq);
    for (int64_t t = team.first(); t < pair.frames; t += Team::kStep) {
      const auto ga = frame_gradient<false>(team, pair, al, g, path, t, first_p, first_q, first_gp);
      const auto gb = frame_gradient<true>(team, pair, al, g, path, t, first_q, first_p, first_gq);
      team.put_pose(grad_pred, t, pair.frames, ga);
      team.put_pose(grad_target, t, pair.frames, gb);
      add_frame_zero(team, t, ga, first_gp);
      add_frame_zero(team, t, gb, first_gq);
    }
    put_first(team, first_gp, grad_pred);
    put_first(team, first_gq, grad_target);
  }
}

}  // namespace
}  // namespace worldr1
