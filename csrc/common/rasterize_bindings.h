// Reads the rasterizer's arguments by name, alike for the C++ path, the CUDA path and its interpreter. Names are those of
// Python's Inputs, Settings and BackwardInputs; tensors come as addresses, 0 where there is none.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "pointer.h"

namespace worldr1 {

// One that is missing is an error, one too many is not.
struct Reader {
  const pybind11::kwargs& given;

  template <class T>
  T get(const char* name) const {
    const pybind11::handle value = PyDict_GetItemString(given.ptr(), name);
    if (!value) throw std::runtime_error(std::string("rasterize: missing argument ") + name);
    return value.cast<T>();
  }
  template <class T>
  T* pointer(const char* name) const {
    return worldr1::pointer<T>(get<uintptr_t>(name));
  }
  template <class T>
  void operator()(const char* name, T& value) const {
    value = get<T>(name);
  }
  template <class T>
  void operator()(const char* name, T*& value) const {
    value = pointer<T>(name);
  }
};

// Into the fields that the two structs of a call have in common: RasterizeArgs, tiled::Args.
template <class Args>
void read_inputs(const Reader& read, Args& args) {
  read("means", args.means);
  read("quats", args.quats);
  read("scales", args.scales);
  read("covars", args.covars);
  read("opacities", args.opacities);
  read("colors", args.colors);
  read("viewmats", args.viewmats);
  read("Ks", args.Ks);
  read("backgrounds", args.backgrounds);
  read("num_scenes", args.num_scenes);
  read("num_views", args.num_views);
  read("num_gaussians", args.num_gaussians);
  read("color_size", args.color_size);
  read("channels", args.channels);
  read("sh_degree", args.sh_degree);
  read("depth_mode", args.depth_mode);
  read("colors_per_view", args.colors_per_view);
  read("max_alpha", args.max_alpha);
}

// RasterizeArgs itself, tiled::Args::limits.
template <class Limits>
void read_limits(const Reader& read, Limits& limits) {
  read("width", limits.width);
  read("height", limits.height);
  read("near_plane", limits.near_plane);
  read("far_plane", limits.far_plane);
  read("radius_clip", limits.radius_clip);
  read("eps2d", limits.eps2d);
  read("compensation_floor", limits.compensation_floor);
  read("antialiased", limits.antialiased);
}

// What the forward alone writes.
template <class Args>
void read_outputs(const Reader& read, Args& args) {
  read("render_colors", args.render_colors);
  read("render_alphas", args.render_alphas);
  read("transmittance", args.transmittance);
  read("last", args.last);
}

// BackwardArgs of either.
template <class Gradients>
void read_gradients(const Reader& read, Gradients& grads) {
  read("transmittance", grads.transmittance);
  read("last", grads.last);
  read("render_colors", grads.render_colors);
  read("grad_colors", grads.grad_colors);
  read("grad_alphas", grads.grad_alphas);
  read("v_means", grads.means);
  read("v_quats", grads.quats);
  read("v_scales", grads.scales);
  read("v_covars", grads.covars);
  read("v_opacities", grads.opacities);
  read("v_colors", grads.colors);
  read("v_viewmats", grads.viewmats);
  read("v_Ks", grads.Ks);
  read("v_means2d", grads.means2d);
}

}  // namespace worldr1
