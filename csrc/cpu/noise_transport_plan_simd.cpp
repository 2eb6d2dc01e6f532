// Rounding of a flow field and normalisation of densities, for noise_transport_plan.cpp. Compiled once per instruction set; the
// loops are plain, for the compiler to vectorise.
//
// A multiplication must not be fused with an addition: plan.py promises the same bits, and torch rounds both.
#if defined(__clang__)
#pragma clang fp contract(off)
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

#include "../common/noise_transport_plan.h"
#include "noise_transport.h"

namespace worldr1 {
namespace {

template <class T>
bool round_field(const T* __restrict__ field, int64_t height, int64_t width, int32_t* __restrict__ forward,
                 int32_t* __restrict__ backward) {
  const int64_t pixels = height * width;
  const T limit = (T)(height + width);
  const int32_t w = (int32_t)width, h = (int32_t)height;
  int32_t bad = 0;
  for (int32_t y = 0; y < h; ++y) {
    const int64_t at = y * width;
    for (int32_t x = 0; x < w; ++x) {
      const T u = field[at + x], v = field[pixels + at + x];
      bad |= !((u - u) + (v - v) == (T)0);
      const int32_t sx = whole_step(u, limit), sy = whole_step(v, limit);
      const int32_t tx = x + sx, ty = y + sy, bx = x - sx, by = y - sy;
      const bool goes = ((uint32_t)tx < (uint32_t)w) & ((uint32_t)ty < (uint32_t)h);
      const bool reads = ((uint32_t)bx < (uint32_t)w) & ((uint32_t)by < (uint32_t)h);
      forward[at + x] = goes ? ty * w + tx : -1;
      backward[at + x] = reads ? by * w + bx : -1;
    }
  }
  return bad == 0;
}

double tree_sum(const double* values, int64_t count, double* scratch) {
  int64_t size = 1;
  while (size < count) size *= 2;
  if (size == 1) return values[0];
  int64_t half = size / 2;
  for (int64_t i = 0; i < count - half; ++i) scratch[i] = values[i] + values[i + half];
  for (int64_t i = count - half; i < half; ++i) scratch[i] = values[i];
  while (half > 1) {
    half /= 2;
    for (int64_t i = 0; i < half; ++i) scratch[i] = scratch[i] + scratch[i + half];
  }
  return scratch[0];
}

void normalize(double* density, int64_t count, double* scratch) {
  const double scale = (double)count / tree_sum(density, count, scratch);
  for (int64_t i = 0; i < count; ++i) density[i] = normalized_density(density[i], scale);
}

const PlanKernels kKernels = {round_field<float>, round_field<double>, normalize};

}  // namespace

const PlanKernels* WR_ISA_NAME(transport_plan_kernels)() { return &kKernels; }

}  // namespace worldr1
