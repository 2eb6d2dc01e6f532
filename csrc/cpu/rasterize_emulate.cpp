// The CUDA rasterizer on the CPU, for tests: its own sources, compiled by the C++ compiler and run by the interpreter of
// common/simt_host.h. Only CUB's sorts and sums are replaced, by the standard library's.
#include "../common/simt.h"

// clang-format off: the kernels need the interpreter's names first
#include "../cuda/rasterize.cpp"
#include "../cuda/rasterize_backward.cu"
#include "../cuda/rasterize_blend.cu"
#include "../cuda/rasterize_pairs.cu"
#include "../cuda/rasterize_project.cu"
// clang-format on
#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "../cuda/rasterize_python.h"
#include "bindings.h"

namespace worldr1 {
namespace tiled {
namespace {

// What memory holds that nothing has written: as a number or a key either large or small, by the seed.
inline unsigned char poison() { return simt::machine().seed % 2 ? 0x3d : 0xcd; }

// Stable sort by the low `bits`. As on the device, the result lies in either buffer and the other holds nothing of use.
template <class Key>
int sort(Key* const keys[2], uint32_t* const values[2], int64_t count, int bits, int* result) {
  const uint64_t mask = (uint64_t{1} << bits) - 1;
  const size_t n = (size_t)count;
  std::vector<uint32_t> order(n);
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return (keys[0][a] & mask) < (keys[0][b] & mask); });
  std::vector<Key> sorted_keys(n);
  std::vector<uint32_t> sorted_values(n);
  for (size_t i = 0; i < n; ++i) {
    sorted_keys[i] = keys[0][order[i]];
    sorted_values[i] = values[0][order[i]];
  }
  *result = (int)(simt::machine().seed / 2 % 2);
  for (int b = 0; b < 2; ++b) {
    std::memset(keys[b], poison(), n * sizeof(Key));
    std::memset(values[b], poison(), n * sizeof(uint32_t));
  }
  std::copy(sorted_keys.begin(), sorted_keys.end(), keys[*result]);
  std::copy(sorted_values.begin(), sorted_values.end(), values[*result]);
  return 0;
}

}  // namespace

size_t primitive_bytes(int64_t, int64_t, int64_t, bool) { return 0; }

// As on compute capability 8.6 and 8.9, the least of those that are built for: degree 3 has no room for both kinds of rows.
size_t shared_bytes() { return 99 << 10; }

int read_counters(const Counters* counters, Counters* target, void*) {
  *target = *counters;
  return 0;
}

int fill_bytes(void* target, int byte, size_t count, void*) {
  std::memset(target, byte, count);
  return 0;
}

int exclusive_sum(void*, size_t, const uint32_t* in, uint32_t* out, int64_t count, void*) {
  uint32_t sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t value = in[i];
    out[i] = sum;
    sum = SaturatingAdd()(sum, value);
  }
  return 0;
}

int sort_u32(void*, size_t, uint32_t* const keys[2], uint32_t* const values[2], int64_t count, int bits, int* result, void*) {
  return sort(keys, values, count, bits, result);
}

int sort_u16(void*, size_t, uint16_t* const keys[2], uint32_t* const values[2], int64_t count, int bits, int* result, void*) {
  return sort(keys, values, count, bits, result);
}

}  // namespace tiled

namespace {

// The stream is the seed of the order in which threads run. Memory starts poisoned, and writes between arrays are found.
struct Emulator {
  static tiled::Counters prepare(const tiled::Args& args, const tiled::Sizes& sizes, const tiled::Views& views,
                                 const tiled::Parts& parts, bool wait, void* stream) {
    start({tiled::kKeptSplats, tiled::kSplats}, sizes, parts, stream);
    tiled::Counters* counters;
    tiled::prepare(args, sizes, views, parts, &counters, nullptr);
    check_gaps(sizes, parts);
    return wait ? *counters : tiled::Counters{};
  }
  static int finish(const tiled::Args& args, const tiled::Sizes& sizes, const tiled::Views& views, bool has_images,
                    const tiled::Parts& parts, size_t list_bytes, void* stream) {
    start({tiled::kPairs0, tiled::kPairs1, tiled::kKeptLists, tiled::kLists}, sizes, parts, stream);
    int sorted = 0;
    tiled::finish(args, sizes, views, has_images, parts, list_bytes, &sorted, nullptr);
    check_gaps(sizes, parts);
    return sorted;
  }
  static void backward(const tiled::Args& args, const tiled::BackwardArgs& grads, const tiled::Sizes& sizes,
                       const tiled::Views& views, const tiled::Parts& parts, void* stream) {
    start({tiled::kGradients}, sizes, parts, stream);
    tiled::backward(args, grads, sizes, views, parts, nullptr);
    check_gaps(sizes, parts);
  }

 private:
  static void start(std::initializer_list<tiled::Part> fresh, const tiled::Sizes& sizes, const tiled::Parts& parts,
                    void* stream) {
    simt::machine().seed = reinterpret_cast<uintptr_t>(stream);
    const auto bytes = tiled::part_bytes(sizes);
    for (tiled::Part part : fresh) std::memset(parts[part], tiled::poison(), bytes[part]);
  }
  static void check_gaps(const tiled::Sizes& sizes, const tiled::Parts& parts) {
    for (int part = 0; part < tiled::kParts; ++part) {
      const unsigned char* bytes = static_cast<const unsigned char*>(parts[part]);
      if (bytes == nullptr) continue;
      for (const auto& gap : tiled::part_gaps(sizes, (tiled::Part)part)) {
        for (size_t i = gap.first; i < gap.second; ++i) {
          if (bytes[i] != tiled::poison()) throw std::runtime_error("rasterize: a kernel wrote past an array of its memory");
        }
      }
    }
  }
};

__global__ void sum_before_kernel(unsigned long long* words, uint32_t block, uint32_t own, uint32_t* sums) {
  sums[threadIdx.x] = sum_before(words, block, own);
}

// What one warp finds when blocks before it have published as `words` say, and what it publishes: (sums of its lanes, words).
std::pair<std::vector<uint32_t>, std::vector<unsigned long long>> look_back(std::vector<unsigned long long> words,
                                                                            uint32_t own) {
  std::vector<uint32_t> sums(32);
  const uint32_t block = (uint32_t)words.size();
  words.push_back(0);
  launch(sum_before_kernel, 1, 1, 32, nullptr, words.data(), block, own, sums.data());
  return {sums, words};
}

}  // namespace

void bind_rasterize_emulated(pybind11::module_& m) {
  bind_tiled<Emulator>(m);
  m.def("rasterize_look_back", &look_back);
}

}  // namespace worldr1
