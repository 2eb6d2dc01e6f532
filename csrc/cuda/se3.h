// Launchers of the trajectory kernels; each returns 0 or a cudaError_t.
#pragma once

#include "../common/se3_args.h"

namespace worldr1 {

int launch_error(const ErrorArgs& args, bool backward);
int launch_reward(const RewardArgs& args, bool backward);
int launch_rotation(const RotationArgs& args, bool backward);
int launch_rigid(const RigidArgs& args);

}  // namespace worldr1
