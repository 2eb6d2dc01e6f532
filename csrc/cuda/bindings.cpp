// The module _C_cuda itself; each family binds its own functions. The CUDA runtime is linked statically: the module imports on
// a machine without a driver and says so.
#include "bindings.h"

#include <utility>

// What the build compiled for, as build.py names it, between colons.
#ifndef WR_CUDA_ARCHS
#error "WR_CUDA_ARCHS must be defined"
#endif
#define WR_TEXT(...) #__VA_ARGS__
#define WR_TEXT_OF(...) WR_TEXT(__VA_ARGS__)

namespace {

std::pair<int, std::string> device_count() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) return {0, cudaGetErrorString(status)};
  return {count, count > 0 ? "" : "no CUDA device"};
}

}  // namespace

PYBIND11_MODULE(_C_cuda, m) {
  m.doc() = "CUDA kernels of worldr1_kernels; call them through the package.";
  m.def("device_count", &device_count, "Number of CUDA devices and, when it is 0, why.");
  m.def(
      "architectures", [] { return pybind11::str(WR_TEXT_OF(WR_CUDA_ARCHS)).attr("split")(":"); },
      "What was compiled for, as build.py names it.");
  worldr1::bind_noise_transport(m);
  worldr1::bind_rasterize(m);
  worldr1::bind_sde_step(m);
  worldr1::bind_se3(m);
}
