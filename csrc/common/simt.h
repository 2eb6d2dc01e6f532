// One source for kernels that run on the device and, in tests, under the interpreter of simt_host.h: kernels are launched by
// launch() instead of <<<>>>, and asynchronous copies to shared memory have functions of their own.
#pragma once

#if defined(__CUDACC__)

#include <cooperative_groups.h>
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

// launch() with `bytes` of shared memory beside what the kernel declares, which it finds by block_shared().
template <class... Parameters, class... Arguments>
int launch_shared(void (*kernel)(Parameters...), int64_t grid_x, int64_t grid_y, int threads, size_t bytes, void* stream,
                  Arguments... arguments) {
  if (grid_x == 0 || grid_y == 0) return 0;
  // More than 48 KB, all kinds together, is by request; a request is no work of a stream.
  const cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
  if (status != cudaSuccess) return (int)status;
  kernel<<<dim3((unsigned)grid_x, (unsigned)grid_y), (unsigned)threads, bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
  return (int)cudaGetLastError();
}

// Starts copying 16 bytes from global to shared memory, past the registers and L1.
__device__ __forceinline__ void copy_async16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((unsigned)__cvta_generic_to_shared(shared)), "l"(global)
               : "memory");
}

// The same of 4 bytes, by way of L1: for rows that begin anywhere.
__device__ __forceinline__ void copy_async4(void* shared, const void* global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"((unsigned)__cvta_generic_to_shared(shared)), "l"(global)
               : "memory");
}

__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `kPending` of this thread's latest groups are still under way.
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Launches blocks that are all on the device at once and may wait for each other by grid_sync(): as many as fit, `most` at
// most. `shared_bytes` is what block_shared() points at.
template <class... Parameters, class... Arguments>
int launch_together(void (*kernel)(Parameters...), int64_t most, int threads, size_t shared_bytes, void* stream,
                    Arguments... arguments) {
  if (most == 0) return 0;
  int device = 0, processors = 0, resident = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (status == cudaSuccess) {
    status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads, shared_bytes);
  }
  if (status != cudaSuccess) return (int)status;
  const int64_t fit = (int64_t)processors * resident;
  void* addresses[] = {&arguments...};
  return (int)cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), dim3((unsigned)(most < fit ? most : fit)),
                                          dim3((unsigned)threads), addresses, shared_bytes,
                                          static_cast<cudaStream_t>(stream));
}

// Waits for all threads of a kernel of launch_together(); what they wrote before is seen by all.
__device__ __forceinline__ void grid_sync() { cooperative_groups::this_grid().sync(); }

template <class T>
__device__ __forceinline__ T* block_shared() {
  extern __shared__ __align__(16) unsigned char block_shared_bytes[];
  return reinterpret_cast<T*>(block_shared_bytes);
}

// A word that blocks of one kernel hand to each other, in one piece, past L1. It orders nothing else.
__device__ __forceinline__ unsigned long long load_word(const unsigned long long* address) {
  unsigned long long value;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(value) : "l"(address) : "memory");
  return value;
}

__device__ __forceinline__ void store_word(unsigned long long* address, unsigned long long value) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(address), "l"(value) : "memory");
}

}  // namespace worldr1

#else
#define WR_UNROLL(rounds)
#include "simt_host.h"
#endif
