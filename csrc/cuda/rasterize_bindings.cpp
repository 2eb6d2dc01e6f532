#include "bindings.h"
#include "rasterize_python.h"

namespace worldr1 {
namespace {

struct Device {
  static void forward(const tiled::Args& args, const tiled::Plan& plan, void* workspace, size_t bytes, void* stream) {
    check_cuda("rasterize", tiled::rasterize(args, plan, workspace, bytes, stream));
  }
  static void backward(const tiled::Args& args, const tiled::BackwardArgs& grads, const tiled::Plan& plan, void* workspace,
                       size_t bytes, void* stream) {
    check_cuda("rasterize_backward", tiled::rasterize_backward(args, grads, plan, workspace, bytes, stream));
  }
};

}  // namespace

void bind_rasterize(pybind11::module_& m) { bind_tiled<Device>(m); }

}  // namespace worldr1
