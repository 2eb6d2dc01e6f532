#include <string>

#include "bindings.h"
#include "rasterize.h"

namespace py = pybind11;

namespace worldr1 {
namespace {

// Keyword arguments by the names of the structs in rasterize.h; addresses come as integers, 0 for null.
struct Reader {
  const py::kwargs& given;

  template <class T>
  void operator()(const char* name, T& value) const {
    value = given[name].cast<T>();
  }
  template <class T>
  void operator()(const char* name, T*& value) const {
    value = pointer<T>(given[name].cast<uintptr_t>());
  }
};

RasterizeArgs read_args(const Reader& read) {
  RasterizeArgs args{};
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
  read("width", args.width);
  read("height", args.height);
  read("sh_degree", args.sh_degree);
  read("depth_mode", args.depth_mode);
  read("colors_per_view", args.colors_per_view);
  read("antialiased", args.antialiased);
  read("near_plane", args.near_plane);
  read("far_plane", args.far_plane);
  read("radius_clip", args.radius_clip);
  read("eps2d", args.eps2d);
  read("max_alpha", args.max_alpha);
  read("compensation_floor", args.compensation_floor);
  read("num_threads", args.num_threads);
  return args;
}

void forward(const py::kwargs& kwargs) {
  const Reader read{kwargs};
  RasterizeArgs args = read_args(read);
  read("render_colors", args.render_colors);
  read("render_alphas", args.render_alphas);
  read("num_invalid", args.num_invalid);
  read("transmittance", args.transmittance);
  read("last", args.last);
  const std::string level = kwargs["level"].cast<std::string>();
  py::gil_scoped_release release;
  rasterize(args, level.c_str());
}

void backward(const py::kwargs& kwargs) {
  const Reader read{kwargs};
  const RasterizeArgs args = read_args(read);
  BackwardArgs grads{};
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
  read("v_backgrounds", grads.backgrounds);
  read("v_means2d", grads.means2d);
  const std::string level = kwargs["level"].cast<std::string>();
  py::gil_scoped_release release;
  rasterize_backward(args, grads, level.c_str());
}

}  // namespace

void bind_rasterize(py::module_& m) {
  m.def("rasterize_forward", &forward);
  m.def("rasterize_backward", &backward);
}

}  // namespace worldr1
