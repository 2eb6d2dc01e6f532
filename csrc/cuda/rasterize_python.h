// Python functions of the tiled rasterizer, the same for the device and for the interpreter that runs its kernels in tests.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <tuple>
#include <vector>

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

tiled::Sizes read_sizes(const Reader& read) {
  tiled::Sizes sizes{};
  read("num_gaussians", sizes.gaussians);
  read("views", sizes.views);
  read("splats", sizes.splats);
  read("pairs", sizes.pairs);
  sizes.tiles_x = (read.get<int64_t>("width") + kTileSize - 1) / kTileSize;
  sizes.tiles_y = (read.get<int64_t>("height") + kTileSize - 1) / kTileSize;
  read("channels", sizes.channels);
  read("for_backward", sizes.for_backward);
  read("is_exact", sizes.is_exact);
  return sizes;
}

tiled::Views read_views(const Reader& read) { return {read.get<int64_t>("scene"), read.get<int64_t>("first_view")}; }

tiled::Parts read_parts(const Reader& read) {
  tiled::Parts parts{};
  const auto addresses = read.get<std::vector<uintptr_t>>("parts");
  if (addresses.size() > parts.size()) throw std::runtime_error("rasterize: parts must be at most 7");
  for (size_t p = 0; p < addresses.size(); ++p) parts[p] = pointer<void>(addresses[p]);
  return parts;
}

// Defines the functions. `Runner` has prepare, finish and backward, which take what those of rasterize.h do and raise where they
// fail; its prepare returns the counts if it is to wait for them.
template <class Runner>
void bind_tiled(pybind11::module_& m) {
  namespace py = pybind11;
  // (views a chunk, capacity of pairs a view).
  m.def("rasterize_tiled_plan", [](const py::kwargs& values) {
    const Reader read{values};
    const tiled::Plan plan = tiled::make_plan(read_sizes(read), read.get<int64_t>("num_views"),
                                              read.get<double>("pairs_per_gaussian"), read.get<int64_t>("memory_budget"));
    return std::make_tuple(plan.views_per_chunk, plan.pairs_per_view);
  });
  // Of each part, in the order of tiled::Part.
  m.def("rasterize_tiled_bytes", [](const py::kwargs& values) {
    const auto bytes = tiled::part_bytes(read_sizes(Reader{values}));
    return std::vector<size_t>(bytes.begin(), bytes.end());
  });
  // (splats, pairs) after having waited for them with `wait`, else zeros.
  m.def("rasterize_tiled_prepare", [](const py::kwargs& values) {
    const Reader read{values};
    const tiled::Args args = read_args(read);
    const tiled::Counters counters =
        Runner::prepare(args, read_sizes(read), read_views(read), read_parts(read), read.get<bool>("wait"),
                        read.pointer<void>("stream"));
    return std::make_tuple((int64_t)counters.splats, (int64_t)counters.pairs);
  });
  // Which of the two parts kPairs0 and kPairs1 holds the sorted pairs.
  m.def("rasterize_tiled_finish", [](const py::kwargs& values) {
    const Reader read{values};
    tiled::Args args = read_args(read);
    const bool has_images = read.get<bool>("has_images");
    if (has_images) read_outputs(read, args);
    return Runner::finish(args, read_sizes(read), read_views(read), has_images, read_parts(read), read.get<size_t>("list_bytes"),
                          read.pointer<void>("stream"));
  });
  m.def("rasterize_tiled_backward", [](const py::kwargs& values) {
    const Reader read{values};
    tiled::BackwardArgs grads{};
    read_gradients(read, grads);
    Runner::backward(read_args(read), grads, read_sizes(read), read_views(read), read_parts(read), read.pointer<void>("stream"));
  });
}

}  // namespace
}  // namespace worldr1
