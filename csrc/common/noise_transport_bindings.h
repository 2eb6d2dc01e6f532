// What the bindings of the transport read alike for _C_cpu and _C_cuda.
#pragma once

#include <pybind11/stl.h>

#include <array>
#include <cstdint>

#include "noise_transport.h"
#include "pointer.h"

namespace worldr1 {

// Addresses of a plan's lists, in the order of TransportLists.
using ListAddresses = std::array<uintptr_t, 11>;

inline TransportLists lists_of(const ListAddresses& a) {
  return {pointer<const int32_t>(a[0]), pointer<const int32_t>(a[1]), pointer<const int32_t>(a[2]),
          pointer<const int64_t>(a[3]), pointer<const int32_t>(a[4]), pointer<const uint8_t>(a[5]),
          pointer<const int32_t>(a[6]), pointer<const int32_t>(a[7]), pointer<const int64_t>(a[8]),
          pointer<const int32_t>(a[9]), pointer<const double>(a[10])};
}

}  // namespace worldr1
