#include "bindings.h"
#include "rasterize_python.h"

namespace worldr1 {
namespace {

struct Device {
  static tiled::Counters prepare(const tiled::Args& args, const tiled::Sizes& sizes, const tiled::Views& views,
                                 const tiled::Parts& parts, bool wait, void* stream) {
    tiled::Counters *counters, found{};
    check_cuda("rasterize", tiled::prepare(args, sizes, views, parts, &counters, stream));
    if (!wait) return found;
    int status;
    {
      pybind11::gil_scoped_release others_may_run;
      status = tiled::read_counters(counters, &found, stream);
    }
    check_cuda("rasterize", status);
    return found;
  }
  static int finish(const tiled::Args& args, const tiled::Sizes& sizes, const tiled::Views& views, bool has_images,
                    const tiled::Parts& parts, size_t list_bytes, void* stream) {
    int sorted = 0;
    check_cuda("rasterize", tiled::finish(args, sizes, views, has_images, parts, list_bytes, &sorted, stream));
    return sorted;
  }
  static void backward(const tiled::Args& args, const tiled::BackwardArgs& grads, const tiled::Sizes& sizes,
                       const tiled::Views& views, const tiled::Parts& parts, void* stream) {
    check_cuda("rasterize_backward", tiled::backward(args, grads, sizes, views, parts, stream));
  }
};

}  // namespace

void bind_rasterize(pybind11::module_& m) { bind_tiled<Device>(m); }

}  // namespace worldr1
