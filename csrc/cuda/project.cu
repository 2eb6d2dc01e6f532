// Projection of Gaussians on the device, on the same header as the CPU path: keeps that header compiling for the GPU, and is
// the first stage of the CUDA rasterizer to come.
#include "project.h"

#include <cuda_runtime.h>

#include "../common/gaussian.h"

namespace worldr1 {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    project_kernel(const float* __restrict__ means, const float* __restrict__ quats, const float* __restrict__ scales,
                   const float* __restrict__ viewmat, const float* __restrict__ k, int64_t num_gaussians, float width,
                   float height, float eps2d, float near_plane, float far_plane, float* __restrict__ means2d,
                   float* __restrict__ conics, float* __restrict__ depths) {
  const int64_t g = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (g >= num_gaussians) return;
  const Camera camera = make_camera(viewmat, k, width, height);
  const float* q = quats + 4 * g;
  const float* s = scales + 3 * g;
  const Covariance3<float> covariance = covariance_world(q[0], q[1], q[2], q[3], s[0], s[1], s[2]);
  const Splat<float> p =
      project(means[3 * g], means[3 * g + 1], means[3 * g + 2], covariance, camera, eps2d);
  const bool keep = p.depth > near_plane && p.depth < far_plane && p.det > 0.0f;
  means2d[2 * g] = p.mean_x;
  means2d[2 * g + 1] = p.mean_y;
  conics[3 * g] = p.cov_yy / p.det;
  conics[3 * g + 1] = -p.cov_xy / p.det;
  conics[3 * g + 2] = p.cov_xx / p.det;
  depths[g] = keep ? p.depth : 0.0f;
}

}  // namespace

int launch_project(const float* means, const float* quats, const float* scales, const float* viewmat, const float* k,
                   int64_t num_gaussians, int width, int height, float eps2d, float near_plane, float far_plane,
                   float* means2d, float* conics, float* depths, void* stream) {
  if (num_gaussians == 0) return 0;
  const int64_t blocks = (num_gaussians + kThreads - 1) / kThreads;
  project_kernel<<<(unsigned)blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      means, quats, scales, viewmat, k, num_gaussians, (float)width, (float)height, eps2d, near_plane, far_plane, means2d,
      conics, depths);
  return (int)cudaGetLastError();
}

}  // namespace worldr1
