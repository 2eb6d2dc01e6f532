// Python functions of the tiled rasterizer, the same for the device and for the interpreter that runs its kernels in tests.
// Arguments are named as in Python's Inputs and Settings; tensors come as addresses, 0 where there is none.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>

#include "rasterize.h"

namespace worldr1 {
namespace {

// Reads arguments by name; one that is missing is an error.
class Named {
 public:
  explicit Named(const pybind11::kwargs& values) : values_(values) {}
  template <class T>
  T get(const char* name) const {
    if (!values_.contains(name)) throw std::runtime_error(std::string("rasterize: missing argument ") + name);
    return values_[name].cast<T>();
  }
  template <class T>
  T* pointer(const char* name) const {
    return reinterpret_cast<T*>(get<uintptr_t>(name));
  }

 private:
  const pybind11::kwargs& values_;
};

tiled::Args read_args(const Named& named) {
  tiled::Args args{};
  args.means = named.pointer<const float>("means");
  args.quats = named.pointer<const float>("quats");
  args.scales = named.pointer<const float>("scales");
  args.covars = named.pointer<const float>("covars");
  args.opacities = named.pointer<const float>("opacities");
  args.colors = named.pointer<const float>("colors");
  args.viewmats = named.pointer<const float>("viewmats");
  args.Ks = named.pointer<const float>("Ks");
  args.backgrounds = named.pointer<const float>("backgrounds");
  args.num_invalid = named.pointer<int64_t>("num_invalid");
  args.overflow = named.pointer<int64_t>("overflow");
  args.num_scenes = named.get<int64_t>("num_scenes");
  args.num_views = named.get<int64_t>("num_views");
  args.num_gaussians = named.get<int64_t>("num_gaussians");
  args.color_size = named.get<int64_t>("color_size");
  args.channels = named.get<int64_t>("channels");
  args.limits = {named.get<int32_t>("width"),     named.get<int32_t>("height"),          named.get<float>("near_plane"),
                 named.get<float>("far_plane"),   named.get<float>("radius_clip"),       named.get<float>("eps2d"),
                 named.get<float>("compensation_floor"), named.get<bool>("antialiased")};
  args.sh_degree = named.get<int>("sh_degree");
  args.depth_mode = named.get<int>("depth_mode");
  args.colors_per_view = named.get<bool>("colors_per_view");
  args.max_alpha = named.get<float>("max_alpha");
  return args;
}

tiled::BackwardArgs read_gradients(const Named& named) {
  tiled::BackwardArgs grads{};
  grads.transmittance = named.pointer<const float>("transmittance");
  grads.last = named.pointer<const int32_t>("last");
  grads.render_colors = named.pointer<const float>("render_colors");
  grads.grad_colors = named.pointer<const float>("grad_colors");
  grads.grad_alphas = named.pointer<const float>("grad_alphas");
  grads.means = named.pointer<float>("v_means");
  grads.quats = named.pointer<float>("v_quats");
  grads.scales = named.pointer<float>("v_scales");
  grads.covars = named.pointer<float>("v_covars");
  grads.opacities = named.pointer<float>("v_opacities");
  grads.colors = named.pointer<float>("v_colors");
  grads.viewmats = named.pointer<float>("v_viewmats");
  grads.Ks = named.pointer<float>("v_Ks");
  grads.means2d = named.pointer<float>("v_means2d");
  return grads;
}

tiled::Plan read_plan(const Named& named, int64_t backward_channels) {
  tiled::Plan plan{};
  plan.splats_per_view = named.get<int64_t>("num_gaussians");
  plan.pairs_per_view = named.get<int64_t>("pairs_per_view");
  plan.views_per_chunk = named.get<int64_t>("views_per_chunk");
  plan.tiles_x = (named.get<int64_t>("width") + kTileSize - 1) / kTileSize;
  plan.tiles_y = (named.get<int64_t>("height") + kTileSize - 1) / kTileSize;
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
    const Named named(values);
    tiled::Args args = read_args(named);
    args.render_colors = named.pointer<float>("render_colors");
    args.render_alphas = named.pointer<float>("render_alphas");
    args.transmittance = named.pointer<float>("transmittance");
    args.last = named.pointer<int32_t>("last");
    Runner::forward(args, read_plan(named, 0), named.pointer<void>("workspace"), named.get<size_t>("workspace_bytes"),
                    named.pointer<void>("stream"));
  });
  m.def("rasterize_tiled_backward", [](const py::kwargs& values) {
    const Named named(values);
    const tiled::Args args = read_args(named);
    Runner::backward(args, read_gradients(named), read_plan(named, args.channels), named.pointer<void>("workspace"),
                     named.get<size_t>("workspace_bytes"), named.pointer<void>("stream"));
  });
}

}  // namespace
}  // namespace worldr1
