// Runs CUDA kernels on the CPU, for tests: every thread of a block is a fibre; warp and block collectives are where fibres
// wait for each other. Slow, single-threaded, and strict: a collective that some thread of the warp or block does not reach,
// or that lanes reach at different kinds of it, is an error. The order in which threads and blocks run, and the moment at
// which asynchronous copies land, follow a seed, so that a missing barrier shows as a result that changes with the seed.
// Every translation unit that includes it has a machine of its own.
// Kernels that wait for the whole grid have all their blocks alive at once, and shared memory by block_shared() alone.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

namespace worldr1 {
namespace {
namespace simt {

struct Index {
  unsigned x, y;
};

enum class Wait { kNone, kBallot, kShuffle, kSyncWarp, kBlock, kExit, kGrid, kWord };

struct Copy {
  void* target;
  const void* source;
  size_t bytes = 16;
};

struct Store {
  double* target;
  double value;
};

struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Index thread;
  Wait wait;
  uint32_t value;                          // handed in at a collective
  uint32_t results[32];                    // values of the warp, or in [0] of the block
  std::vector<std::vector<Copy>> groups;   // of asynchronous copies; the last one is open
  std::vector<Store> stores;               // __stcg that no __threadfence has followed yet
};

constexpr size_t kStackBytes = 64 * 1024;

struct Machine {
  uint64_t seed = 0;
  Index grid{}, block_index{};
  std::vector<Fibre> fibres;               // of one block, or of all where they wait for each other
  std::vector<std::vector<double>> shared; // dynamic, of each block or of one after the other
  Fibre* current = nullptr;
  ucontext_t scheduler;
  std::function<void()> body;
  std::vector<Store> unfenced;  // of threads that have returned: they land when the kernel ends
  const char* fault = nullptr;  // what a thread did wrong: thrown when the kernel ends
  uint64_t state = 1;

  uint32_t random(uint32_t bound) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(state >> 33) % bound;
  }
};

inline Machine& machine() {
  static Machine m;
  return m;
}

inline void copy(const Copy& c) { std::memcpy(c.target, c.source, c.bytes); }

inline void land(std::vector<Store>& stores) {
  for (const Store& s : stores) *s.target = s.value;
  stores.clear();
}

inline void pause(Wait wait, uint32_t value) {
  Machine& m = machine();
  m.current->wait = wait;
  m.current->value = value;
  swapcontext(&m.current->context, &m.scheduler);
}

inline void entry() {
  machine().body();
  for (const auto& group : machine().current->groups) {
    for (const Copy& c : group) copy(c);
  }
  std::vector<Store>& stores = machine().current->stores;
  machine().unfenced.insert(machine().unfenced.end(), stores.begin(), stores.end());
  stores.clear();
  pause(Wait::kExit, 0);
}

// Order of n things: ascending for seed 0, descending for 1, else shuffled.
inline std::vector<unsigned> order_of(unsigned n) {
  Machine& m = machine();
  std::vector<unsigned> order(n);
  for (unsigned i = 0; i < n; ++i) order[i] = m.seed == 1 ? n - 1 - i : i;
  if (m.seed > 1) {
    for (unsigned i = n; i > 1; --i) std::swap(order[i - 1], order[m.random(i)]);
  }
  return order;
}

// Lets a warp go if its 32 lanes wait at one kind of collective.
inline bool release_warp(Fibre* warp) {
  const Wait kind = warp[0].wait;
  if (kind != Wait::kBallot && kind != Wait::kShuffle && kind != Wait::kSyncWarp) return false;
  for (int i = 0; i < 32; ++i) {
    if (warp[i].wait != kind) return false;
  }
  for (int i = 0; i < 32; ++i) {
    for (int k = 0; k < 32; ++k) warp[i].results[k] = warp[k].value;
  }
  for (int i = 0; i < 32; ++i) warp[i].wait = Wait::kNone;
  return true;
}

// Opens the block's barrier when all threads that have not returned wait at it.
inline bool release_block(Fibre* block, size_t threads) {
  uint32_t all = 1, waiting = 0;
  for (Fibre* f = block; f < block + threads; ++f) {
    if (f->wait == Wait::kExit) continue;
    if (f->wait != Wait::kBlock) return false;
    all &= f->value;
    ++waiting;
  }
  for (Fibre* f = block; f < block + threads; ++f) {
    if (f->wait != Wait::kBlock) continue;
    f->results[0] = all;
    f->wait = Wait::kNone;
  }
  return waiting > 0;
}

inline void start(Fibre& f) {
  f.wait = Wait::kNone;
  f.groups.assign(1, {});
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = f.stack.get();
  f.context.uc_stack.ss_size = kStackBytes;
  f.context.uc_link = nullptr;
  makecontext(&f.context, entry, 0);
}

// Runs a block as far as it gets. One warp at a time, as far as that gets: what it must not do before the others is then done
// before them.
inline void run_block(Fibre* block, size_t threads) {
  Machine& m = machine();
  do {
    for (unsigned w : order_of((unsigned)threads / 32)) {
      Fibre* warp = block + 32 * w;
      do {
        for (unsigned i : order_of(32)) {
          m.current = warp + i;
          if (m.current->wait == Wait::kNone) swapcontext(&m.scheduler, &m.current->context);
        }
      } while (release_warp(warp));
    }
  } while (release_block(block, threads));
}

// Opens the grid's barrier when all threads of all blocks wait at it; one that has returned would be missed for ever.
inline bool release_grid() {
  for (const Fibre& f : machine().fibres) {
    if (f.wait != Wait::kGrid) return false;
  }
  for (Fibre& f : machine().fibres) f.wait = Wait::kNone;
  return true;
}

// The same for blocks that wait for each other, one block at a time as far as it gets.
inline void run_together(unsigned blocks, size_t threads) {
  Machine& m = machine();
  do {
    for (unsigned block : order_of(blocks)) {
      m.block_index = {block, 0};
      run_block(m.fibres.data() + block * threads, threads);
    }
  } while (release_grid());
}

inline void prepare(size_t fibres, int threads) {
  Machine& m = machine();
  if (threads % 32 != 0) throw std::runtime_error("simt: threads must be a multiple of 32");
  m.fibres.resize(fibres);
  for (size_t i = 0; i < fibres; ++i) {
    m.fibres[i].thread = {(unsigned)(i % (size_t)threads), 0};
    if (!m.fibres[i].stack) m.fibres[i].stack.reset(new char[kStackBytes]);
  }
  m.state = m.seed + 1;
}

inline void check_all_returned() {
  for (const Fibre& f : machine().fibres) {
    if (f.wait == Wait::kWord) throw std::runtime_error("simt: a block waits for one that has not run");
    if (f.wait != Wait::kExit) throw std::runtime_error("simt: a collective is not reached by all of its threads");
  }
}

// The value that lane `source` hands in, four bytes at a time.
template <class T>
inline T shuffle(T value, uint32_t source) {
  static_assert(sizeof(T) % 4 == 0, "");
  uint32_t words[sizeof(T) / 4];
  std::memcpy(words, &value, sizeof(T));
  for (uint32_t& word : words) {
    pause(Wait::kShuffle, word);
    word = machine().current->results[source];
  }
  std::memcpy(&value, words, sizeof(T));
  return value;
}

}  // namespace simt

#define threadIdx (::worldr1::simt::machine().current->thread)
#define blockIdx (::worldr1::simt::machine().block_index)
#define gridDim (::worldr1::simt::machine().grid)

template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), int64_t grid_x, int64_t grid_y, int threads, void*, Arguments... arguments) {
  simt::Machine& m = simt::machine();
  if (grid_x > INT32_MAX || grid_y > 65535) throw std::runtime_error("simt: the grid is larger than a device takes");
  m.grid = {(unsigned)grid_x, (unsigned)grid_y};
  simt::prepare((size_t)threads, threads);
  m.body = [&] { kernel(arguments...); };
  for (unsigned block : simt::order_of(m.grid.x * m.grid.y)) {
    m.block_index = {block % m.grid.x, block / m.grid.x};
    for (auto& shared : m.shared) std::memset(shared.data(), 0xcd, shared.size() * sizeof(double));
    for (simt::Fibre& f : m.fibres) simt::start(f);
    simt::run_block(m.fibres.data(), m.fibres.size());
    simt::check_all_returned();
  }
  simt::land(m.unfenced);
  if (m.fault != nullptr) throw std::runtime_error(std::exchange(m.fault, nullptr));
  return 0;
}

inline void __syncthreads() { simt::pause(simt::Wait::kBlock, 1); }

inline int __syncthreads_and(int predicate) {
  simt::pause(simt::Wait::kBlock, predicate != 0);
  return (int)simt::machine().current->results[0];
}

inline void __syncwarp() { simt::pause(simt::Wait::kSyncWarp, 0); }

inline uint32_t __ballot_sync(uint32_t, int predicate) {
  simt::pause(simt::Wait::kBallot, predicate != 0);
  uint32_t bits = 0;
  for (int i = 0; i < 32; ++i) bits |= simt::machine().current->results[i] << i;
  return bits;
}

inline int __all_sync(uint32_t mask, int predicate) { return __ballot_sync(mask, predicate) == 0xffffffffu; }

template <class T>
inline T __shfl_xor_sync(uint32_t, T value, uint32_t distance) {
  return simt::shuffle(value, threadIdx.x % 32 ^ distance);
}

inline int __popc(uint32_t x) { return __builtin_popcount(x); }

inline int __ffs(uint32_t x) { return __builtin_ffs((int)x); }

inline unsigned long long atomicAdd(unsigned long long* address, unsigned long long value) {
  const unsigned long long before = *address;
  *address += value;
  return before;
}

// Even seeds land copies as late as allowed (a read that comes too early sees old data), odd ones at once (a copy that comes
// too early overwrites what is still read).
inline void copy_async16(void* shared, const void* global) {
  if (simt::machine().seed % 2) return simt::copy({shared, global});
  simt::machine().current->groups.back().push_back({shared, global});
}

inline void copy_async_commit() { simt::machine().current->groups.emplace_back(); }

template <int kPending>
inline void copy_async_wait() {
  auto& groups = simt::machine().current->groups;
  while (groups.size() > kPending + 1) {
    for (const simt::Copy& c : groups.front()) simt::copy(c);
    groups.erase(groups.begin());
  }
}

template <class T>
inline T __shfl_sync(uint32_t, T value, int lane) {
  return simt::shuffle(value, (uint32_t)lane);
}

// Blocks that wait for each other: three of them, or `most`. Their shared memory starts as NaN.
template <class... Parameters, class... Arguments>
int launch_together(void (*kernel)(Parameters...), int64_t most, int threads, size_t shared_bytes, void*,
                    Arguments... arguments) {
  if (most == 0) return 0;
  simt::Machine& m = simt::machine();
  const unsigned blocks = (unsigned)(most < 3 ? most : 3);
  m.grid = {blocks, 1};
  simt::prepare(blocks * (size_t)threads, threads);
  m.shared.assign(blocks, std::vector<double>(shared_bytes / sizeof(double) + 2));
  for (auto& shared : m.shared) std::memset(shared.data(), 0xff, shared.size() * sizeof(double));
  m.body = [&] { kernel(arguments...); };
  for (simt::Fibre& f : m.fibres) simt::start(f);
  simt::run_together(blocks, (size_t)threads);
  simt::check_all_returned();
  m.shared.clear();
  return 0;
}

// launch() with dynamic shared memory, which is full of bytes 0xcd when a block starts.
template <class... Parameters, class... Arguments>
int launch_shared(void (*kernel)(Parameters...), int64_t grid_x, int64_t grid_y, int threads, size_t bytes, void* stream,
                  Arguments... arguments) {
  simt::machine().shared.assign(1, std::vector<double>(bytes / sizeof(double) + 2));
  const int status = launch(kernel, grid_x, grid_y, threads, stream, arguments...);
  simt::machine().shared.clear();
  return status;
}

inline void grid_sync() { simt::pause(simt::Wait::kGrid, 0); }

// Aligned to 16 bytes, as on the device.
template <class T>
inline T* block_shared() {
  auto& shared = simt::machine().shared;
  const uintptr_t address = reinterpret_cast<uintptr_t>(shared[shared.size() == 1 ? 0 : blockIdx.x].data());
  return reinterpret_cast<T*>((address + 15) / 16 * 16);
}

inline void copy_async4(void* shared, const void* global) {
  if (simt::machine().seed % 2) return simt::copy({shared, global, 4});
  simt::machine().current->groups.back().push_back({shared, global, 4});
}

template <class T>
inline T __shfl_up_sync(uint32_t, T value, unsigned distance) {
  static_assert(sizeof(T) == 4, "");
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  simt::pause(simt::Wait::kShuffle, bits);
  const unsigned lane = threadIdx.x % 32;
  if (lane >= distance) std::memcpy(&value, &simt::machine().current->results[lane - distance], 4);
  return value;
}

inline uint32_t __umulhi(uint32_t a, uint32_t b) { return (uint32_t)((uint64_t)a * b >> 32); }

inline int __clz(uint32_t x) { return x ? __builtin_clz(x) : 32; }

inline uint32_t atomicAdd(uint32_t* address, uint32_t value) {
  const uint32_t before = *address;
  *address += value;
  return before;
}

// A store that other blocks may read. With even seeds it lands no sooner than the thread's next fence, without one when the
// kernel ends: a missing fence shows as a sum that is not there.
inline void __stcg(double* target, double value) {
  if (simt::machine().seed % 2) *target = value;
  else simt::machine().current->stores.push_back({target, value});
}

inline double __ldcg(const double* source) { return *source; }

inline void __threadfence() { simt::land(simt::machine().current->stores); }
inline void __threadfence_system() { __threadfence(); }

template <class V>
inline const V* as_vector(const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(V) != 0) simt::machine().fault = "simt: a vector access is not aligned";
  return static_cast<const V*>(p);
}

// Arithmetic in one rounding each, as the device does it.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float __int2float_rn(int a) { return (float)a; }

inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

// The lower word of (high, low) shifted right, shift modulo 32.
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
  return (uint32_t)(((uint64_t)high << 32 | low) >> (shift & 31));
}

struct alignas(16) float4 {
  float x, y, z, w;
};

struct alignas(8) uint2 {
  unsigned x, y;
};

// Blocks run one after the other: a word that one has to wait for never comes, and run_block() says so.
inline unsigned long long load_word(const unsigned long long* address) {
  if (*address == 0) simt::pause(simt::Wait::kWord, 0);
  return *address;
}

inline void store_word(unsigned long long* address, unsigned long long value) { *address = value; }

}  // namespace
}  // namespace worldr1
