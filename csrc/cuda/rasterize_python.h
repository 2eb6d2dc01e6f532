// Python functions of the tiled rasterizer, the same for the device and for the interpreter that runs its kernels in tests.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <tuple>

#include "../common/rasterize_bindings.h"
#include "rasterize.h"

namespace worldr1 {
namespace {

tiled::Args read_args(const Reader& read) {
  tiled::Args args{};
  read_inputs(read, args);
  read_limits(read, args.limits);
  read("num_invalid", args.num_invalid);
  read("overflow", args.overflow);
  return args;
}

tiled::Plan read_plan(const Reader& read, int64_t backward_channels) {
  tiled::Plan plan{};
  read("num_gaussians", plan.splats_per_view);
  read("pairs_per_view", plan.pairs_per_view);
  read("views_per_chunk", plan.views_per_chunk);
  plan.tiles_x = (read.get<int64_t>("width") + kTileSize - 1) / kTileSize;
  plan.tiles_y = (read.get<int64_t>("height") + kTileSize - 1) / kTileSize;
  plan.backward_channels = backward_channels;
  return plan;
}

// (bytes of workspace, views a chunk, capacity of pairs a view).
std::tuple<int64_t, int64_t, int64_t> rasterize_plan(int64_t num_gaussians, int64_t num_views, int64_t width, int64_t height,
                                                     double pairs_per_gaussian, int64_t memory_budget,
                                                     int64_t backward_channels) {
  const tiled::Plan plan = tiled::make_plan(num_gaussians, num_views, width, height, pairs_per_gaussian, memory_budget,
                                            backward_channels);
  return {(int64_t)tiled::workspace_bytes(plan), plan.views_per_chunk, plan.pairs_per_view};
}

// Defines the functions. `Runner` has forward(args, plan, workspace, bytes, stream) and backward(args, grads, plan, ...), which
// raise where they fail.
template <class Runner>
void bind_tiled(pybind11::module_& m) {
  namespace py = pybind11;
  m.def("rasterize_tiled_plan", &rasterize_plan, py::kw_only(), py::arg("num_gaussians"), py::arg("num_views"),
        py::arg("width"), py::arg("height"), py::arg("pairs_per_gaussian"), py::arg("memory_budget"),
        py::arg("backward_channels"));
  m.def("rasterize_tiled", [](const py::kwargs& values) {
    const Reader read{values};
    tiled::Args args = read_args(read);
    read_outputs(read, args);
    Runner::forward(args, read_plan(read, 0), read.pointer<void>("workspace"),
                    read.get<size_t>("workspace_bytes"), read.pointer<void>("stream"));
  });
  m.def("rasterize_tiled_backward", [](const py::kwargs& values) {
    const Reader read{values};
    const tiled::Args args = read_args(read);
    tiled::BackwardArgs grads{};
    read_gradients(read, grads);
    Runner::backward(args, grads, read_plan(read, args.channels), read.pointer<void>("workspace"),
                     read.get<size_t>("workspace_bytes"), read.pointer<void>("stream"));
  });
}

}  // namespace
}  // namespace worldr1
