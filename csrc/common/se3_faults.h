// What a device's kernels find wrong with their inputs. They tell it to memory of the host that the device can write, so that
// the host asks without waiting; worldr1_kernels/se3/faults.py reads it and says it in words.
#pragma once

#include <cstdint>

namespace worldr1 {

enum FaultKind { kNotFinite = 0, kNotOrthogonal = 1, kReflection = 2, kLastRow = 3, kNotPositive = 4, kFaultKinds = 5 };
constexpr int kFaultInputs = 3;  // of a function: two trajectories or rotations, and the median depth

// Where to. `words` is null where nobody looks: backward, and on a CPU, which looks beforehand.
struct FaultSink {
  volatile uint64_t* flag;   // set to 1 after a word is
  volatile uint64_t* words;  // [kFaultInputs, kFaultKinds]: (the item's number + 1) << 32 | bits of a float, how much
  double tolerance;          // of R^T R = I and of the last row
};

}  // namespace worldr1
