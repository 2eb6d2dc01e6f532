#include "../common/se3_bindings.h"

#include "bindings.h"
#include "se3.h"

namespace worldr1 {
namespace {

struct Run {
  static void error(const ErrorArgs& args, bool backward) { check_cuda("trajectory_error", launch_error(args, backward)); }
  static void reward(const RewardArgs& args, bool backward) { check_cuda("trajectory_reward", launch_reward(args, backward)); }
  static void rotation(const RotationArgs& args, bool backward) {
    check_cuda("geodesic_distance", launch_rotation(args, backward));
  }
  static void rigid(const RigidArgs& args) { check_cuda("se3_rigid", launch_rigid(args)); }
};

}  // namespace

void bind_se3(pybind11::module_& m) { bind_se3_functions<Run>(m); }

}  // namespace worldr1
