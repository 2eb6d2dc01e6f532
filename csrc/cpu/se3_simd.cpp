// Kernels of the trajectory functions, compiled once per instruction set: a vector holds kLanes frames of one trajectory.
#include <cstddef>

#include "../common/se3_scores.h"
#include "se3.h"

namespace worldr1 {
namespace {

struct LaneTeam {
  typedef Lanes V;
  static constexpr int64_t kStep = kLanes;
  static constexpr bool kOneSideAtATime = false;

  int64_t first() const { return 0; }
  bool leader() const { return true; }
  void sync() const {}

  Lanes index(int64_t t) const {
    Lanes v{};
    for (int i = 0; i < kLanes; ++i) v[i] = (double)(t + i);
    return v;
  }

  double sum(Lanes v) const {
    double total = v[0];
    for (int i = 1; i < kLanes; ++i) total += v[i];
    return total;
  }
  double largest(Lanes v) const {
    double most = v[0];
    for (int i = 1; i < kLanes; ++i) most = larger(most, v[i]);
    return most;
  }

  Lanes row(const double* row, int64_t t) const {
    Lanes v;
    std::memcpy(&v, row + t, sizeof(v));
    return v;
  }
  void set_row(double* row, int64_t t, Lanes v) const { std::memcpy(row + t, &v, sizeof(v)); }

  // Frames past the end repeat the last one.
  template <class T>
  Lanes value(const T* p, int64_t t, int64_t frames) const {
    Lanes v{};
    for (int i = 0; i < kLanes; ++i) v[i] = (double)p[t + i < frames ? t + i : frames - 1];
    return v;
  }

  template <class T>
  void put(T* p, int64_t t, int64_t frames, Lanes v) const {
    for (int i = 0; i < kLanes && t + i < frames; ++i) p[t + i] = (T)v[i];
  }

  template <class T>
  Pose<Lanes> pose(const T* base, int64_t t, int64_t frames) const {
    const T* p[kLanes];
    for (int i = 0; i < kLanes; ++i) p[i] = base + 16 * (t + i < frames ? t + i : frames - 1);
    Pose<Lanes> out;
    for (int r = 0; r < 3; ++r) {
      Lanes column[4];
      transpose(p, 4 * r, column);
      for (int k = 0; k < 3; ++k) out.r[3 * r + k] = column[k];
      out.t[r] = column[3];
    }
    return out;
  }

  template <class T>
  void put_pose(T* base, int64_t t, int64_t frames, const Pose<Lanes>& pose) const {
    for (int i = 0; i < kLanes && t + i < frames; ++i) {
      T* p = base + 16 * (t + i);
      for (int r = 0; r < 3; ++r) {
        for (int k = 0; k < 3; ++k) p[4 * r + k] = (T)pose.r[3 * r + k][i];
        p[4 * r + 3] = (T)pose.t[r][i];
        p[12 + r] = (T)0;
      }
      p[15] = (T)0;
    }
  }

  // Four values at `offset` of each lane's pointer, as four vectors of one value a lane.
  template <class T>
  static WR_HD void transpose(const T* const* p, int offset, Lanes* out) {
#if defined(__AVX__)
    typedef T Four __attribute__((vector_size(4 * sizeof(T))));
    typedef int64_t Pick __attribute__((vector_size(32)));
    Lanes in[4];
    for (int i = 0; i < 4; ++i) {
      Four four;
      std::memcpy(&four, p[i] + offset, sizeof(four));
      in[i] = __builtin_convertvector(four, Lanes);
    }
    const Lanes a = __builtin_shuffle(in[0], in[1], Pick{0, 4, 2, 6}), b = __builtin_shuffle(in[0], in[1], Pick{1, 5, 3, 7});
    const Lanes c = __builtin_shuffle(in[2], in[3], Pick{0, 4, 2, 6}), d = __builtin_shuffle(in[2], in[3], Pick{1, 5, 3, 7});
    out[0] = __builtin_shuffle(a, c, Pick{0, 1, 4, 5});
    out[1] = __builtin_shuffle(b, d, Pick{0, 1, 4, 5});
    out[2] = __builtin_shuffle(a, c, Pick{2, 3, 6, 7});
    out[3] = __builtin_shuffle(b, d, Pick{2, 3, 6, 7});
#else
    for (int k = 0; k < 4; ++k) {
      Lanes v{};
      for (int i = 0; i < kLanes; ++i) v[i] = (double)p[i][offset + k];
      out[k] = v;
    }
#endif
  }
};

#define WR_TRAJECTORIES(name, Args)                                                                   \
  void name##_all(const Args& args, int64_t begin, int64_t end, double* scratch) {                    \
    for (int64_t n = begin; n < end; ++n) {                                                           \
      if (args.is_double)                                                                             \
        name<double>(LaneTeam{}, args, n, scratch);                                                   \
      else                                                                                            \
        name<float>(LaneTeam{}, args, n, scratch);                                                    \
    }                                                                                                 \
  }
WR_TRAJECTORIES(error_forward, ErrorArgs)
WR_TRAJECTORIES(error_backward, ErrorArgs)
WR_TRAJECTORIES(reward_forward, RewardArgs)
WR_TRAJECTORIES(reward_backward, RewardArgs)

// 3x3 matrices [begin, end) of `base`, one a lane; past the end the last is repeated.
template <class T>
WR_HD void load_rotations(const T* base, int64_t begin, int64_t end, Lanes* out) {
  for (int k = 0; k < 9; ++k) {
    Lanes v{};
    for (int i = 0; i < kLanes; ++i) v[i] = (double)base[9 * (begin + i < end ? begin + i : end - 1) + k];
    out[k] = v;
  }
}

template <class T>
void rotation_forward(const RotationArgs& args, int64_t begin, int64_t end) {
  for (int64_t m = begin; m < end; m += kLanes) {
    Lanes a[9], b[9];
    load_rotations(static_cast<const T*>(args.a), m, end, a);
    load_rotations(static_cast<const T*>(args.b), m, end, b);
    const Turn<Lanes> turn = turn_between(a, b);
    LaneTeam{}.put(static_cast<T*>(args.angle), m, end, arctangent(turn.sine, turn.cosine));
  }
}

template <class T>
void rotation_backward(const RotationArgs& args, int64_t begin, int64_t end) {
  for (int64_t m = begin; m < end; m += kLanes) {
    Lanes a[9], b[9], ga[9] = {}, gb[9] = {};
    load_rotations(static_cast<const T*>(args.a), m, end, a);
    load_rotations(static_cast<const T*>(args.b), m, end, b);
    const TurnGradient<Lanes> g = turn_gradient(turn_between(a, b), LaneTeam{}.value(static_cast<const T*>(args.grad), m, end));
    turn_between_backward(b, g, -1.0, ga);
    turn_between_backward(a, g, 1.0, gb);
    for (int i = 0; i < kLanes && m + i < end; ++i)
      for (int k = 0; k < 9; ++k) {
        static_cast<T*>(args.grad_a)[9 * (m + i) + k] = (T)ga[k][i];
        static_cast<T*>(args.grad_b)[9 * (m + i) + k] = (T)gb[k][i];
      }
  }
}

template <class T>
bool all_rigid(const RigidArgs& args, int64_t begin, int64_t end) {
  const T* base = static_cast<const T*>(args.matrices);
  Lanes ok = Lanes{} + 1.0;
  for (int64_t m = begin; m < end; m += kLanes) {
    if (args.size == 3) {
      Lanes r[9];
      load_rotations(base, m, end, r);
      ok *= is_rotation(r, args.tolerance);
    } else {
      const Pose<Lanes> p = LaneTeam{}.pose(base + 16 * m, 0, end - m);
      ok *= is_rotation(p.r, args.tolerance);
      for (int k = 0; k < 3; ++k) ok = p.t[k] - p.t[k] == 0.0 ? ok : Lanes{};  // an infinity or NaN is not 0
      const T* q[kLanes];
      for (int i = 0; i < kLanes; ++i) q[i] = base + 16 * (m + i < end ? m + i : end - 1);
      Lanes bottom[4];
      LaneTeam::transpose(q, 12, bottom);
      bottom[3] -= 1.0;
      for (int k = 0; k < 4; ++k) ok = larger(bottom[k], -bottom[k]) <= args.tolerance ? ok : Lanes{};
    }
  }
  return LaneTeam{}.sum(ok) == (double)kLanes;
}

void rotation_forward_all(const RotationArgs& args, int64_t begin, int64_t end) {
  args.is_double ? rotation_forward<double>(args, begin, end) : rotation_forward<float>(args, begin, end);
}

void rotation_backward_all(const RotationArgs& args, int64_t begin, int64_t end) {
  args.is_double ? rotation_backward<double>(args, begin, end) : rotation_backward<float>(args, begin, end);
}

bool rigid(const RigidArgs& args, int64_t begin, int64_t end) {
  return args.is_double ? all_rigid<double>(args, begin, end) : all_rigid<float>(args, begin, end);
}

const Se3Kernels kKernels = {error_forward_all,    error_backward_all,    reward_forward_all, reward_backward_all,
                             rotation_forward_all, rotation_backward_all, rigid};

}  // namespace

const Se3Kernels* WR_ISA_NAME(se3_kernels)() { return &kKernels; }

}  // namespace worldr1
