// Python functions of the tiled rasterizer, the same for the device and for the interpreter that runs its kernels in tests.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <tuple>

#include "rasterize.h"

namespace worldr1 {
namespace {

// (bytes of workspace, views a chunk, capacity of pairs a view).
std::tuple<int64_t, int64_t, int64_t> rasterize_plan(int64_t num_gaussians, int64_t num_views, int64_t width, int64_t height,
                                                     double pairs_per_gaussian, int64_t memory_budget) {
  const tiled::Plan plan =
      tiled::make_plan(num_gaussians, num_views, width, height, pairs_per_gaussian, memory_budget);
  return {(int64_t)tiled::workspace_bytes(plan), plan.views_per_chunk, plan.pairs_per_view};
}

// `run(args, plan, workspace, bytes, stream)` raises where it fails.
template <class Run>
void bind_tiled(pybind11::module_& m, Run run) {
  namespace py = pybind11;
  m.def("rasterize_tiled_plan", &rasterize_plan, py::kw_only(), py::arg("num_gaussians"), py::arg("num_views"),
        py::arg("width"), py::arg("height"), py::arg("pairs_per_gaussian"), py::arg("memory_budget"));
  const auto call = [run](uintptr_t means, uintptr_t quats, uintptr_t scales, uintptr_t covars, uintptr_t opacities,
                          uintptr_t colors, uintptr_t viewmats, uintptr_t Ks, uintptr_t backgrounds, uintptr_t render_colors,
                          uintptr_t render_alphas, uintptr_t num_invalid, uintptr_t overflow, int64_t num_scenes,
                          int64_t num_views, int64_t num_gaussians, int64_t color_size, int64_t channels, int64_t width,
                          int64_t height, int sh_degree, int depth_mode, bool colors_per_view, bool antialiased,
                          float near_plane, float far_plane, float radius_clip, float eps2d, float max_alpha,
                          float compensation_floor, int64_t views_per_chunk, int64_t pairs_per_view, uintptr_t workspace,
                          int64_t workspace_bytes, uintptr_t stream) {
    tiled::Args args{};
    args.means = reinterpret_cast<const float*>(means);
    args.quats = reinterpret_cast<const float*>(quats);
    args.scales = reinterpret_cast<const float*>(scales);
    args.covars = reinterpret_cast<const float*>(covars);
    args.opacities = reinterpret_cast<const float*>(opacities);
    args.colors = reinterpret_cast<const float*>(colors);
    args.viewmats = reinterpret_cast<const float*>(viewmats);
    args.Ks = reinterpret_cast<const float*>(Ks);
    args.backgrounds = reinterpret_cast<const float*>(backgrounds);
    args.render_colors = reinterpret_cast<float*>(render_colors);
    args.render_alphas = reinterpret_cast<float*>(render_alphas);
    args.num_invalid = reinterpret_cast<int64_t*>(num_invalid);
    args.overflow = reinterpret_cast<int64_t*>(overflow);
    args.num_scenes = num_scenes;
    args.num_views = num_views;
    args.num_gaussians = num_gaussians;
    args.color_size = color_size;
    args.channels = channels;
    args.limits = {(int32_t)width, (int32_t)height, near_plane, far_plane, radius_clip, eps2d, compensation_floor, antialiased};
    args.sh_degree = sh_degree;
    args.depth_mode = depth_mode;
    args.colors_per_view = colors_per_view;
    args.max_alpha = max_alpha;
    const tiled::Plan plan = {num_gaussians, pairs_per_view, views_per_chunk, (width + kTileSize - 1) / kTileSize,
                              (height + kTileSize - 1) / kTileSize};
    run(args, plan, reinterpret_cast<void*>(workspace), (size_t)workspace_bytes, reinterpret_cast<void*>(stream));
  };
  m.def("rasterize_tiled", call, py::kw_only(), py::arg("means"), py::arg("quats"), py::arg("scales"), py::arg("covars"),
        py::arg("opacities"), py::arg("colors"), py::arg("viewmats"), py::arg("Ks"), py::arg("backgrounds"), py::arg("render_colors"),
        py::arg("render_alphas"), py::arg("num_invalid"), py::arg("overflow"), py::arg("num_scenes"), py::arg("num_views"),
        py::arg("num_gaussians"), py::arg("color_size"), py::arg("channels"), py::arg("width"), py::arg("height"),
        py::arg("sh_degree"), py::arg("depth_mode"), py::arg("colors_per_view"), py::arg("antialiased"),
        py::arg("near_plane"), py::arg("far_plane"), py::arg("radius_clip"), py::arg("eps2d"), py::arg("max_alpha"),
        py::arg("compensation_floor"), py::arg("views_per_chunk"), py::arg("pairs_per_view"), py::arg("workspace"),
        py::arg("workspace_bytes"), py::arg("stream"));
}

}  // namespace
}  // namespace worldr1
