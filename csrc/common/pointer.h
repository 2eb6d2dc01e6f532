// How addresses arrive from Python, in both modules: as integers, 0 for null.
#pragma once

#include <cstdint>

namespace worldr1 {

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace worldr1
