// Python module _C_cuda. The CUDA runtime is linked statically: the module imports on a machine without a driver and says so.
#include <cuda_runtime.h>
#include <pybind11/pybind11.h>

#include <string>
#include <utility>

#include "cuda/project.h"

namespace py = pybind11;

namespace {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

std::pair<int, std::string> device_count() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) return {0, cudaGetErrorString(status)};
  return {count, count > 0 ? "" : "no CUDA device"};
}

void project(uintptr_t means, uintptr_t quats, uintptr_t scales, uintptr_t viewmat, uintptr_t k, int64_t num_gaussians,
             int width, int height, float eps2d, float near_plane, float far_plane, uintptr_t means2d, uintptr_t conics,
             uintptr_t depths, uintptr_t stream) {
  const int status = worldr1::launch_project(
      pointer<const float>(means), pointer<const float>(quats), pointer<const float>(scales), pointer<const float>(viewmat),
      pointer<const float>(k), num_gaussians, width, height, eps2d, near_plane, far_plane, pointer<float>(means2d),
      pointer<float>(conics), pointer<float>(depths), pointer<void>(stream));
  if (status != 0) throw std::runtime_error(std::string("project: ") + cudaGetErrorString((cudaError_t)status));
}

}  // namespace

PYBIND11_MODULE(_C_cuda, m) {
  m.doc() = "CUDA kernels of worldr1_kernels; call them through the package.";
  m.def("device_count", &device_count, "Number of CUDA devices and, when it is 0, why.");
  m.def("project", &project, "Projects Gaussians into one view; device pointers and a stream as integers.");
}
