// One source for kernels that run on the device and, in tests, under the interpreter of simt_host.h: kernels are launched by
// launch() instead of <<<>>>, and asynchronous copies to shared memory have functions of their own.
#pragma once

#if defined(__CUDACC__)

#include <cuda_runtime.h>

// In front of a loop: how many rounds nvcc puts side by side.
#define WR_PRAGMA(text) _Pragma(#text)
#define WR_UNROLL(rounds) WR_PRAGMA(unroll rounds)

namespace worldr1 {

template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), int64_t grid_x, int64_t grid_y, int threads, void* stream, Arguments... arguments) {
  if (grid_x == 0 || grid_y == 0) return 0;
  kernel<<<dim3((unsigned)grid_x, (unsigned)grid_y), (unsigned)threads, 0, static_cast<cudaStream_t>(stream)>>>(arguments...);
  return (int)cudaGetLastError();
}

// `p` for one access to a whole V; its address is a multiple of V's size.
template <class V>
__device__ __forceinline__ const V* as_vector(const void* p) {
  return static_cast<const V*>(p);
}

// Starts copying 16 bytes from global to shared memory, past the registers and L1.
__device__ __forceinline__ void copy_async16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((unsigned)__cvta_generic_to_shared(shared)), "l"(global)
               : "memory");
}

__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `kPending` of this thread's latest groups are still under way.
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace worldr1

#else
#define WR_UNROLL(rounds)
#include "simt_host.h"
#endif
