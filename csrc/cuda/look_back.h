// Running sums over the blocks of a kernel in one pass. A block publishes its own sum, looks back until it meets a block that
// knows the sum of all before it, and publishes that. Flag and number share one word, which is read and written in one piece:
// no fence is needed. A block waits only for blocks before it, and blocks are numbered as they start (a ticket, not blockIdx):
// those it waits for are running, and none of them waits for it.
// D. Merrill, M. Garland, Single-pass Parallel Prefix Scan with Decoupled Look-back, NVIDIA, 2016.
#pragma once

#include <cstdint>

#include "../common/simt.h"

namespace worldr1 {
namespace {

// In the upper half of a word; 0, as the memory is filled beforehand: nothing yet.
constexpr unsigned long long kOwnSum = 1ull << 32, kSumToHere = 2ull << 32;

// The sum over all blocks before `block`, for all lanes of the one warp that calls. `words` [blocks] begin as zeros; `own` is
// the block's sum, the same in all lanes.
__device__ __forceinline__ uint32_t sum_before(unsigned long long* words, uint32_t block, uint32_t own) {
  const uint32_t lane = threadIdx.x % 32;
  if (lane == 0) store_word(words + block, (block == 0 ? kSumToHere : kOwnSum) | own);
  uint32_t sum = 0;
  // 32 blocks at a time; lane i looks at the i-th before `end`. In front of block 0 all sums are known.
  for (uint32_t end = block; end > 0; end -= 32) {
    unsigned long long word = kSumToHere;
    if (lane < end) {
      do word = load_word(words + end - 1 - lane);
      while (word < kOwnSum);
    }
    const uint32_t known = __ballot_sync(0xffffffffu, word >= kSumToHere);
    // Up to the nearest block that knows, which has what lies before it.
    uint32_t value = known == 0 || lane < (uint32_t)__ffs(known) ? (uint32_t)word : 0u;
    for (uint32_t distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
    sum += value;
    if (known) break;
  }
  if (lane == 0 && block > 0) store_word(words + block, kSumToHere | (sum + own));
  return sum;
}

}  // namespace
}  // namespace worldr1
