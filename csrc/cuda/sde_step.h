// Launcher of the SDE step's kernels.
#pragma once

#include "../common/sde_step_args.h"

namespace worldr1 {

// Elements of a sample that one block takes: the first stage of the sums. It depends on nothing, so that neither the batch nor
// the device moves a bit.
constexpr int64_t kSdeDeviceChunk = 4096;

constexpr int64_t sde_chunks(int64_t num_elements) { return (num_elements + kSdeDeviceChunk - 1) / kSdeDeviceChunk; }

constexpr int64_t kSdeMostSamples = 65535;  // of one launch: the y of a grid

// One launch for every `most_samples` samples. Returns 0 or a cudaError_t. Throws std::invalid_argument where velocities differ
// in dtype or a sample has more chunks than a grid has blocks.
int launch_sde_step(SdeForm form, const SdeStepArgs& args, int64_t most_samples = kSdeMostSamples);

}  // namespace worldr1
