// Launcher of noise transport on the device.
#pragma once

#include <cstdint>

#include "../common/noise_transport.h"

namespace worldr1 {

// Addresses are of the device but for `offsets`, which the host reads to size the launches.
struct TransportCudaArgs {
  const float* noise;         // [B, C, H W]
  float* out;                 // [B, C, F', H/r W/r]
  Quad<float>* state;         // [B, ceil(C / 4), num_slots], scratch
  const int64_t* sample_ids;  // [B]
  TransportLists lists;
  const int32_t* slots;       // [kept, H W]
  const int64_t* offsets;     // [F, 5] on the host
  int64_t num_slots, plan_stride;
  int64_t batch, channels, height, width, num_frames;
  int64_t capture;
  int reduce;
  uint64_t seed;
};

// Enqueues the whole transport on `stream`: nothing is waited for, nothing allocated, so it may be captured in a graph.
int launch_noise_transport(const TransportCudaArgs& args, void* stream);

}  // namespace worldr1
