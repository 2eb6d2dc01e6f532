#include <string>

#include "../common/rasterize_bindings.h"
#include "bindings.h"
#include "rasterize.h"

namespace py = pybind11;

namespace worldr1 {
namespace {

RasterizeArgs read_args(const Reader& read) {
  RasterizeArgs args{};
  read_inputs(read, args);
  read_limits(read, args);
  read("num_threads", args.num_threads);
  return args;
}

void forward(const py::kwargs& kwargs) {
  const Reader read{kwargs};
  RasterizeArgs args = read_args(read);
  read_outputs(read, args);
  read("num_invalid", args.num_invalid);
  read("projected", args.projected.values);
  read("radii", args.projected.radii);
  read("projected_ids", args.projected.ids);
  read("projected_count", args.projected.count);
  const auto level = read.get<std::string>("level");
  py::gil_scoped_release release;
  rasterize(args, level.c_str());
}

void backward(const py::kwargs& kwargs) {
  const Reader read{kwargs};
  const RasterizeArgs args = read_args(read);
  BackwardArgs grads{};
  read_gradients(read, grads);
  read("v_backgrounds", grads.backgrounds);
  const auto level = read.get<std::string>("level");
  py::gil_scoped_release release;
  rasterize_backward(args, grads, level.c_str());
}

}  // namespace

void bind_rasterize(py::module_& m) {
  m.def("rasterize_forward", &forward);
  m.def("rasterize_backward", &backward);
}

}  // namespace worldr1
