// Python module _C_cuda, one file of bindings for each family: device pointers, sizes and a stream as integers.
#pragma once

#include <cuda_runtime.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "../common/pointer.h"

namespace worldr1 {

// Throws std::runtime_error("<op>: <message of CUDA>") unless status is cudaSuccess.
inline void check_cuda(const char* op, int status) {
  if (status != 0) throw std::runtime_error(std::string(op) + ": " + cudaGetErrorString((cudaError_t)status));
}

void bind_noise_transport(pybind11::module_& m);
void bind_rasterize(pybind11::module_& m);
void bind_sde_step(pybind11::module_& m);
void bind_se3(pybind11::module_& m);

}  // namespace worldr1
