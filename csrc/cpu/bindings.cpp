// The module _C_cpu itself; each family binds its own functions.
#include "bindings.h"

#include <stdexcept>
#include <string>

#include "isa.h"

PYBIND11_MODULE(_C_cpu, m) {
  m.doc() = "CPU kernels of worldr1_kernels; call them through the package.";
  m.def("instruction_set", [] { return worldr1::isa_name(worldr1::choose_isa("")); });
  m.def("has_instruction_set", [](const std::string& level) {
    try {
      worldr1::choose_isa(level.c_str());
      return true;
    } catch (const std::runtime_error&) {
      return false;
    }
  });
  worldr1::bind_noise_transport(m);
  worldr1::bind_noise_transport_emulated(m);
  worldr1::bind_rasterize(m);
  worldr1::bind_rasterize_emulated(m);
  worldr1::bind_se3(m);
  worldr1::bind_se3_emulated(m);
  worldr1::bind_sde_step(m);
  worldr1::bind_sde_step_emulated(m);
}
