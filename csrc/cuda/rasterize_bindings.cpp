#include "bindings.h"
#include "rasterize_python.h"

namespace worldr1 {

void bind_rasterize(pybind11::module_& m) {
  bind_tiled(m, [](const tiled::Args& args, const tiled::Plan& plan, void* workspace, size_t bytes, void* stream) {
    check_cuda("rasterize", tiled::rasterize(args, plan, workspace, bytes, stream));
  });
}

}  // namespace worldr1
