// What lets one header serve a C++ compiler and nvcc.
#pragma once

#if defined(__CUDACC__)
#define WR_HD __host__ __device__ __forceinline__
#else
#define WR_HD inline __attribute__((always_inline))
#endif

namespace worldr1 {
namespace {

WR_HD float sqrt_of(float a) {
#if defined(__CUDACC__)
  return sqrtf(a);
#else
  return __builtin_sqrtf(a);
#endif
}

}  // namespace
}  // namespace worldr1
