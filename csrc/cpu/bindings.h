// Python module _C_cpu, one file of bindings for each family. Raw pointers and sizes in, nothing out: the caller in Python has
// checked shapes and keeps the tensors alive; no torch header is needed, so one build serves every torch.
#pragma once

#include <pybind11/pybind11.h>

#include "../common/pointer.h"

namespace worldr1 {

void bind_noise_transport(pybind11::module_& m);
void bind_noise_transport_emulated(pybind11::module_& m);
void bind_rasterize(pybind11::module_& m);
void bind_rasterize_emulated(pybind11::module_& m);
void bind_se3(pybind11::module_& m);
void bind_se3_emulated(pybind11::module_& m);
void bind_sde_step(pybind11::module_& m);
void bind_sde_step_emulated(pybind11::module_& m);

}  // namespace worldr1
