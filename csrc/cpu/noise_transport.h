// Interfaces of the CPU transport: plan (noise_transport_plan.cpp), transport (noise_transport.cpp), and their SIMD kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "../common/noise_transport.h"
#include "isa.h"

namespace worldr1 {

constexpr int kPlanLists = 5;  // fresh, groups, members, merges, hits: the columns of `offsets`

struct PlanArgs {
  int64_t fields, height, width;
  int64_t stride;    // of the frames that are kept
  int32_t* slots;    // [kept, H W], out
  double* density;   // [kept, H W], out
  int64_t* offsets;  // [fields + 1, kPlanLists], out
};

// The lists of a TransportPlan, see plan.py.
struct PlanLists {
  std::vector<int32_t> fresh_pixel, fresh_slot, group_slot, member_pixel, member_slot, merge_slot, hit_slot;
  std::vector<int64_t> group_start, merge_start;
  std::vector<uint8_t> member_is_target;
  std::vector<double> hit_weight;
  int64_t num_slots = 0;
};

// Takes the fields of a flow one by one, so that no more than one of them need exist; what `args` points at must live as long.
class PlanBuilder {
 public:
  virtual ~PlanBuilder() = default;
  // The next field, [2, H, W], float or double. False: it holds NaN or infinity, and the plan is spoilt.
  virtual bool add(const void* field, bool is_double) = 0;
  // After the last field, once.
  virtual PlanLists finish() = 0;
};

std::unique_ptr<PlanBuilder> plan_builder(const PlanArgs& args, const char* level);

struct TransportArgs {
  const void* noise;          // [B, C, H W]
  void* out;                  // [B, C, F', H/r W/r]
  const int64_t* sample_ids;  // [B]
  TransportLists lists;
  const int32_t* slots;       // [kept, H W]
  const int64_t* offsets;     // [F, kPlanLists]
  int64_t num_slots, plan_stride;
  int64_t batch, channels, height, width, num_frames;
  int64_t capture;
  int reduce;
  uint64_t seed;
  int num_threads;
};

// Float32, SIMD.
void transport(const TransportArgs& args, const char* level);

// The loops that CUDA runs in parallel, one after another: T = float checks the CUDA code, T = double serves float64.
template <class T>
void transport_scalar(const TransportArgs& args);

typedef float f4 __attribute__((vector_size(16)));

struct PlanKernels {
  // forward[s] = pixel that s moves to, backward[t] = pixel that t reads; -1 outside. Returns whether the field is finite.
  bool (*round_float)(const float* field, int64_t height, int64_t width, int32_t* forward, int32_t* backward);
  bool (*round_double)(const double* field, int64_t height, int64_t width, int32_t* forward, int32_t* backward);
  // (w / mean(w) + 1e-5)^0.9999 in place; `scratch` holds as many.
  void (*normalize)(double* density, int64_t count, double* scratch);
};

WR_ISA_DECLARE(PlanKernels, transport_plan_kernels);

struct TransportKernels {
  // Four planes of noise into slots 0 .. pixels - 1 (a null plane is zeros).
  void (*load)(const float* const planes[4], int64_t pixels, f4* state);
  // Normals keyed by pixels into slots.
  void (*make_fresh)(const TransportLists& lists, int64_t begin, int64_t end, const DrawKey& key, f4* state);
  void (*make_groups)(const TransportLists& lists, int64_t begin, int64_t end, const DrawKey& key, f4* state);
  void (*make_merges)(const TransportLists& lists, int64_t begin, int64_t end, f4* state);
  // Row `row` of the reduced image into four planes (null: left out); `sums` holds `width` elements.
  void (*reduce_row)(const int32_t* slots, const f4* state, int64_t width, int64_t row, int reduce, f4* sums,
                     float* const planes[4]);
};

WR_ISA_DECLARE(TransportKernels, transport_kernels);

}  // namespace worldr1
