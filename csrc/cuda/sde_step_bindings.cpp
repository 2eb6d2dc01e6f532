#include "../common/sde_step_bindings.h"

#include "bindings.h"
#include "sde_step.h"

namespace worldr1 {

void bind_sde_step(pybind11::module_& m) {
  m.def("sde_step_chunks", &sde_chunks);
  bind_sde_step_form(m, "sde_step_form",
                     [](SdeForm form, const SdeStepArgs& args) { check_cuda("sde_step", launch_sde_step(form, args)); });
}

}  // namespace worldr1
