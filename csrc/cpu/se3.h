// Interfaces between the driver of the trajectory functions and their SIMD kernels (one build per instruction set).
#pragma once

#include "../common/se3_args.h"
#include "isa.h"

namespace worldr1 {

// Each works on trajectories, or matrices, [begin, end); `scratch` holds kScratchRows rows of one trajectory.
struct Se3Kernels {
  void (*error_forward)(const ErrorArgs& args, int64_t begin, int64_t end, double* scratch);
  void (*error_backward)(const ErrorArgs& args, int64_t begin, int64_t end, double* scratch);
  void (*reward_forward)(const RewardArgs& args, int64_t begin, int64_t end, double* scratch);
  void (*reward_backward)(const RewardArgs& args, int64_t begin, int64_t end, double* scratch);
  void (*rotation_forward)(const RotationArgs& args, int64_t begin, int64_t end);
  void (*rotation_backward)(const RotationArgs& args, int64_t begin, int64_t end);
  bool (*rigid)(const RigidArgs& args, int64_t begin, int64_t end);
};

WR_ISA_DECLARE(Se3Kernels, se3_kernels);

// Whole calls. Throw std::bad_alloc, and std::runtime_error as choose_isa.
void run_error(const ErrorArgs& args, bool backward);
void run_reward(const RewardArgs& args, bool backward);
void run_rotation(const RotationArgs& args, bool backward);
void run_rigid(const RigidArgs& args);

}  // namespace worldr1
