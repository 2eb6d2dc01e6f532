// Division of indices by a number that a whole launch shares: one multiplication and one shift.
#pragma once

#include <cassert>
#include <cstdint>

#include "host_device.h"

namespace worldr1 {

// For numerators below 2^31. With l = ceil(log2 d), multiplier = (2^(31 + l) + e) / d for an e in (0, d]: the quotient is too
// large by n e / (d 2^(31 + l)) < 1 / d, and so right.
struct Divider {
  uint32_t divisor, multiplier, shift;
};

inline Divider divider(int64_t divisor) {
  assert(divisor > 0 && divisor < (int64_t{1} << 31));
  uint32_t bits = 0;
  while ((int64_t{1} << bits) < divisor) ++bits;
  return {(uint32_t)divisor, (uint32_t)(((uint64_t)1 << (31 + bits)) / (uint64_t)divisor + 1), 31 + bits};
}

namespace {

WR_HD uint32_t divide(uint32_t n, const Divider& by) { return (uint32_t)(((uint64_t)n * by.multiplier) >> by.shift); }

}  // namespace
}  // namespace worldr1
