// Launchers of the CUDA module: raw device pointers, sizes and a stream in; 0 or a cudaError_t out.
#pragma once

#include <cstdint>

namespace worldr1 {

// Projects Gaussians into one view: means2d [N, 2], conics [N, 3], depths [N]; a culled one gets depth 0.
int launch_project(const float* means, const float* quats, const float* scales, const float* viewmat, const float* k,
                   int64_t num_gaussians, int width, int height, float eps2d, float near_plane, float far_plane,
                   float* means2d, float* conics, float* depths, void* stream);

}  // namespace worldr1
