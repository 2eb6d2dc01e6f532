// The trajectory functions' CUDA kernels on the CPU, for tests: their own source, run by the interpreter of
// common/simt_host.h. The stream is the seed of the order in which threads and blocks run.
#include <cmath>

#include "../common/simt.h"

// clang-format off: the kernels need the interpreter's names first
#include "../cuda/se3.cu"
// clang-format on
#include "../common/se3_bindings.h"
#include "bindings.h"

namespace worldr1 {
namespace {

struct Emulator {
  static void error(const ErrorArgs& args, bool backward) { seeded(args), launch_error(args, backward); }
  static void reward(const RewardArgs& args, bool backward) { seeded(args), launch_reward(args, backward); }
  static void rotation(const RotationArgs& args, bool backward) { seeded(args), launch_rotation(args, backward); }
  static void rigid(const RigidArgs& args) { seeded(args), launch_rigid(args); }

 private:
  template <class Args>
  static void seeded(const Args& args) {
    simt::machine().seed = reinterpret_cast<uintptr_t>(args.stream);
  }
};

}  // namespace

void bind_se3_emulated(pybind11::module_& m) {
  auto emulated = m.def_submodule("se3_emulated");
  bind_se3_functions<Emulator>(emulated);
}

}  // namespace worldr1
