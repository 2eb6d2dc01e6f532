// The SDE step's CUDA kernels on the CPU, for tests: their own source, run by the interpreter of common/simt_host.h. The stream
// is the seed of the order in which threads and blocks run.
#if !defined(__clang__)
#pragma GCC optimize("fp-contract=off")  // an operation is one rounding, as the device's intrinsics are
#endif

#include "../common/simt.h"

// clang-format off: the kernels need the interpreter's names first
#include "../cuda/sde_step.cu"
// clang-format on
#include "../common/sde_step_bindings.h"
#include "bindings.h"

namespace worldr1 {

void bind_sde_step_emulated(pybind11::module_& m) {
  m.def("sde_step_chunks", &sde_chunks);
  bind_sde_step_form(m, "sde_step_emulated", [](SdeForm form, const SdeStepArgs& args) {
    simt::machine().seed = reinterpret_cast<uintptr_t>(args.stream);
    launch_sde_step(form, args, 3);  // samples a launch: a fourth needs a second one
  });
}

}  // namespace worldr1
