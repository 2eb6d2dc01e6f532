// Launcher of noise transport on the device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/divide.h"
#include "../common/noise_transport.h"

namespace worldr1 {

// All addresses are of the device.
struct TransportCudaArgs {
  const float* noise;         // [B, C, H W]
  float* out;                 // [B, C, F', H/r W/r]
  Quad<float>* state;         // [B, ceil(C / 4), num_slots], scratch
  Quad<float>* normals;       // [2, B, ceil(C / 4), most_members], scratch
  int64_t most_members;       // of a frame
  const int64_t* sample_ids;  // [B]
  TransportLists lists;
  const int32_t* slots;       // [kept, H W]
  const int64_t* offsets;     // [F, 5]
  int64_t num_slots, plan_stride;
  int64_t batch, channels, height, width, num_frames;
  int64_t capture;
  int reduce;
  uint64_t seed;
};

// Whether the work of each step has a number below 2^31, as the kernel counts it. At most: noise of 2^31 blocks of 256 values
// of four channels.
bool transport_fits(int64_t batch, int64_t channels, int64_t height, int64_t width);

// Enqueues the whole transport on `stream`, one launch: nothing is waited for, nothing allocated, so it may be captured in a
// graph. Returns 0 or a cudaError_t.
int launch_noise_transport(const TransportCudaArgs& args, void* stream);

}  // namespace worldr1
