#include "../common/sde_step_bindings.h"

#include "bindings.h"
#include "sde_step.h"

namespace worldr1 {

void bind_sde_step(pybind11::module_& m) { bind_sde_step_form(m, "sde_step_form", sde_step); }

}  // namespace worldr1
