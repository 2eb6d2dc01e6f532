#include <string>

#include "bindings.h"
#include "rasterize.h"

namespace py = pybind11;

namespace worldr1 {
namespace {

void rasterize_forward(uintptr_t means, uintptr_t quats, uintptr_t scales, uintptr_t opacities, uintptr_t colors,
                       uintptr_t viewmats, uintptr_t Ks, uintptr_t backgrounds, uintptr_t render_colors,
                       uintptr_t render_alphas, uintptr_t num_invalid, int64_t num_scenes, int64_t num_views,
                       int64_t num_gaussians, int64_t color_size, int64_t channels, int64_t width, int64_t height,
                       int sh_degree, int depth_mode, bool colors_per_view, bool antialiased, float near_plane,
                       float far_plane, float radius_clip, float eps2d, float max_alpha, float compensation_floor,
                       int num_threads, const std::string& level) {
  worldr1::RasterizeArgs args{};
  args.means = pointer<const float>(means);
  args.quats = pointer<const float>(quats);
  args.scales = pointer<const float>(scales);
  args.opacities = pointer<const float>(opacities);
  args.colors = pointer<const float>(colors);
  args.viewmats = pointer<const float>(viewmats);
  args.Ks = pointer<const float>(Ks);
  args.backgrounds = pointer<const float>(backgrounds);
  args.render_colors = pointer<float>(render_colors);
  args.render_alphas = pointer<float>(render_alphas);
  args.num_invalid = pointer<int64_t>(num_invalid);
  args.num_scenes = num_scenes;
  args.num_views = num_views;
  args.num_gaussians = num_gaussians;
  args.color_size = color_size;
  args.channels = channels;
  args.width = width;
  args.height = height;
  args.sh_degree = sh_degree;
  args.depth_mode = depth_mode;
  args.colors_per_view = colors_per_view;
  args.antialiased = antialiased;
  args.near_plane = near_plane;
  args.far_plane = far_plane;
  args.radius_clip = radius_clip;
  args.eps2d = eps2d;
  args.max_alpha = max_alpha;
  args.compensation_floor = compensation_floor;
  args.num_threads = num_threads;
  py::gil_scoped_release release;
  worldr1::rasterize(args, level.c_str());
}

}  // namespace

void bind_rasterize(py::module_& m) {
  m.def("rasterize_forward", &rasterize_forward, py::kw_only(), py::arg("means"), py::arg("quats"), py::arg("scales"),
        py::arg("opacities"), py::arg("colors"), py::arg("viewmats"), py::arg("Ks"), py::arg("backgrounds"),
        py::arg("render_colors"), py::arg("render_alphas"), py::arg("num_invalid"), py::arg("num_scenes"),
        py::arg("num_views"), py::arg("num_gaussians"), py::arg("color_size"), py::arg("channels"), py::arg("width"),
        py::arg("height"), py::arg("sh_degree"), py::arg("depth_mode"), py::arg("colors_per_view"), py::arg("antialiased"),
        py::arg("near_plane"), py::arg("far_plane"), py::arg("radius_clip"), py::arg("eps2d"), py::arg("max_alpha"),
        py::arg("compensation_floor"), py::arg("num_threads"), py::arg("level"));
}

}  // namespace worldr1
