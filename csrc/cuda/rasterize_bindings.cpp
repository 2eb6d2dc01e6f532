#include "bindings.h"
#include "project.h"

namespace py = pybind11;

namespace worldr1 {
namespace {

void project(uintptr_t means, uintptr_t quats, uintptr_t scales, uintptr_t viewmat, uintptr_t k, int64_t num_gaussians,
             int width, int height, float eps2d, float near_plane, float far_plane, uintptr_t means2d, uintptr_t conics,
             uintptr_t depths, uintptr_t stream) {
  check_cuda("project",
             launch_project(pointer<const float>(means), pointer<const float>(quats), pointer<const float>(scales),
                            pointer<const float>(viewmat), pointer<const float>(k), num_gaussians, width, height, eps2d,
                            near_plane, far_plane, pointer<float>(means2d), pointer<float>(conics), pointer<float>(depths),
                            pointer<void>(stream)));
}

}  // namespace

void bind_rasterize(py::module_& m) {
  m.def("project", &project, "Projects Gaussians into one view; device pointers and a stream as integers.");
}

}  // namespace worldr1
