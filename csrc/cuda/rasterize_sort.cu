// Primitives of the tiled rasterizer on the device: CUB's stable radix sorts and sums, memset.
#include <cuda_runtime.h>

#include <algorithm>
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>

#include "rasterize.h"

namespace worldr1 {
namespace tiled {
namespace {

cudaStream_t as_stream(void* stream) { return static_cast<cudaStream_t>(stream); }

template <class Key>
int sort(void* temp, size_t temp_bytes, Key* const keys[2], uint32_t* const values[2], int64_t count, int bits, int* result,
         void* stream) {
  *result = 0;
  if (count == 0) return 0;
  cub::DoubleBuffer<Key> k(keys[0], keys[1]);
  cub::DoubleBuffer<uint32_t> v(values[0], values[1]);
  const cudaError_t status =
      cub::DeviceRadixSort::SortPairs(temp, temp_bytes, k, v, (int)count, 0, bits, as_stream(stream));
  *result = k.selector;
  return (int)status;
}

template <class Key>
size_t sort_bytes(int64_t count) {
  size_t bytes = 0;
  cub::DoubleBuffer<Key> k(nullptr, nullptr);
  cub::DoubleBuffer<uint32_t> v(nullptr, nullptr);
  // A failure (no device) leaves 0, and the sort itself then reports it.
  (void)cub::DeviceRadixSort::SortPairs(nullptr, bytes, k, v, (int)count);
  return bytes;
}

}  // namespace

size_t primitive_bytes(int64_t splats, int64_t pairs, int64_t sums, bool small_keys) {
  size_t sum = 0;
  (void)cub::DeviceScan::ExclusiveScan(nullptr, sum, (const uint32_t*)nullptr, (uint32_t*)nullptr, SaturatingAdd(), 0u,
                                       (int)sums);
  return std::max({sum, sort_bytes<uint32_t>(small_keys ? splats : std::max(splats, pairs)),
                   small_keys ? sort_bytes<uint16_t>(pairs) : size_t{0}});
}

size_t shared_bytes() {
  int device = 0, bytes = 48 << 10;
  // A failure leaves what every device has, and the launch then reports it.
  if (cudaGetDevice(&device) == cudaSuccess) {
    (void)cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  return (size_t)bytes;
}

int read_counters(const Counters* counters, Counters* target, void* stream) {
  const cudaError_t status = cudaMemcpyAsync(target, counters, sizeof(Counters), cudaMemcpyDeviceToHost, as_stream(stream));
  return (int)(status != cudaSuccess ? status : cudaStreamSynchronize(as_stream(stream)));
}

int fill_bytes(void* target, int byte, size_t count, void* stream) {
  return count == 0 ? 0 : (int)cudaMemsetAsync(target, byte, count, as_stream(stream));
}

int exclusive_sum(void* temp, size_t temp_bytes, const uint32_t* in, uint32_t* out, int64_t count, void* stream) {
  return (int)cub::DeviceScan::ExclusiveScan(temp, temp_bytes, in, out, SaturatingAdd(), 0u, (int)count, as_stream(stream));
}

int sort_u32(void* temp, size_t temp_bytes, uint32_t* const keys[2], uint32_t* const values[2], int64_t count, int bits,
             int* result, void* stream) {
  return sort(temp, temp_bytes, keys, values, count, bits, result, stream);
}

int sort_u16(void* temp, size_t temp_bytes, uint16_t* const keys[2], uint32_t* const values[2], int64_t count, int bits,
             int* result, void* stream) {
  return sort(temp, temp_bytes, keys, values, count, bits, result, stream);
}

}  // namespace tiled
}  // namespace worldr1
