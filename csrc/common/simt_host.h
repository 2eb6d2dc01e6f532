// Runs CUDA kernels on the CPU, for tests: every thread of a block is a fibre; warp and block collectives are where fibres
// wait for each other. Slow, single-threaded, and strict: a collective that some thread of the warp or block does not reach,
// or that lanes reach at different kinds of it, is an error. The order in which threads and blocks run, and the moment at
// which asynchronous copies land, follow a seed, so that a missing barrier shows as a result that changes with the seed.
// Include it in one translation unit only.
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

enum class Wait { kNone, kBallot, kShuffle, kSyncWarp, kBlock, kExit, kWord };

struct Copy {
  void* target;
  const void* source;
  size_t bytes = 16;
};

struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Index thread;
  Wait wait;
  uint32_t value;                          // handed in at a collective
  uint32_t results[32];                    // values of the warp, or in [0] of the block
  std::vector<std::vector<Copy>> groups;   // of asynchronous copies; the last one is open
};

constexpr size_t kStackBytes = 64 * 1024;

struct Machine {
  uint64_t seed = 0;
  Index grid{}, block_index{};
  std::vector<Fibre> fibres;
  Fibre* current = nullptr;
  ucontext_t scheduler;
  std::function<void()> body;
  uint64_t state = 1;
  std::vector<unsigned char> shared;  // dynamic, filled anew for each block

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
inline bool release_block() {
  Machine& m = machine();
  uint32_t all = 1, waiting = 0;
  for (const Fibre& f : m.fibres) {
    if (f.wait == Wait::kExit) continue;
    if (f.wait != Wait::kBlock) return false;
    all &= f.value;
    ++waiting;
  }
  for (Fibre& f : m.fibres) {
    if (f.wait != Wait::kBlock) continue;
    f.results[0] = all;
    f.wait = Wait::kNone;
  }
  return waiting > 0;
}

inline void run_block() {
  Machine& m = machine();
  std::fill(m.shared.begin(), m.shared.end(), (unsigned char)0xcd);
  for (Fibre& f : m.fibres) {
    f.wait = Wait::kNone;
    f.groups.assign(1, {});
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.get();
    f.context.uc_stack.ss_size = kStackBytes;
    f.context.uc_link = nullptr;
    makecontext(&f.context, entry, 0);
  }
  // One warp at a time, as far as it gets: what it must not do before the others is then done before them.
  const unsigned warps = (unsigned)m.fibres.size() / 32;
  do {
    for (unsigned w : order_of(warps)) {
      Fibre* warp = &m.fibres[32 * w];
      do {
        for (unsigned i : order_of(32)) {
          m.current = warp + i;
          if (m.current->wait == Wait::kNone) swapcontext(&m.scheduler, &m.current->context);
        }
      } while (release_warp(warp));
    }
  } while (release_block());
  for (const Fibre& f : m.fibres) {
    if (f.wait == Wait::kWord) throw std::runtime_error("simt: a block waits for one that has not run");
    if (f.wait != Wait::kExit) throw std::runtime_error("simt: a collective is not reached by all of its threads");
  }
}

}  // namespace simt

#define threadIdx (::worldr1::simt::machine().current->thread)
#define blockIdx (::worldr1::simt::machine().block_index)
#define gridDim (::worldr1::simt::machine().grid)

template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), int64_t grid_x, int64_t grid_y, int threads, void*, Arguments... arguments) {
  simt::Machine& m = simt::machine();
  if (threads % 32 != 0) throw std::runtime_error("simt: threads must be a multiple of 32");
  m.grid = {(unsigned)grid_x, (unsigned)grid_y};
  m.fibres.resize((size_t)threads);
  for (size_t i = 0; i < m.fibres.size(); ++i) {
    m.fibres[i].thread = {(unsigned)i, 0};
    if (!m.fibres[i].stack) m.fibres[i].stack.reset(new char[simt::kStackBytes]);
  }
  m.state = m.seed + 1;
  m.body = [&] { kernel(arguments...); };
  for (unsigned block : simt::order_of(m.grid.x * m.grid.y)) {
    m.block_index = {block % m.grid.x, block / m.grid.x};
    simt::run_block();
  }
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
  static_assert(sizeof(T) == 4, "");
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  simt::pause(simt::Wait::kShuffle, bits);
  std::memcpy(&value, &simt::machine().current->results[threadIdx.x % 32 ^ distance], 4);
  return value;
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

template <class... Parameters, class... Arguments>
int launch_shared(void (*kernel)(Parameters...), int64_t grid_x, int64_t grid_y, int threads, size_t bytes, void* stream,
                  Arguments... arguments) {
  simt::machine().shared.assign(bytes, 0);
  const int status = launch(kernel, grid_x, grid_y, threads, stream, arguments...);
  simt::machine().shared.clear();
  return status;
}

template <class T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(simt::machine().shared.data());
}

inline void copy_async4(void* shared, const void* global) {
  if (simt::machine().seed % 2) return simt::copy({shared, global, 4});
  simt::machine().current->groups.back().push_back({shared, global, 4});
}

template <class T>
inline T __shfl_up_sync(uint32_t, T value, uint32_t distance) {
  static_assert(sizeof(T) == 4, "");
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  simt::pause(simt::Wait::kShuffle, bits);
  const uint32_t lane = threadIdx.x % 32;
  std::memcpy(&value, &simt::machine().current->results[lane < distance ? lane : lane - distance], 4);
  return value;
}

inline uint32_t __umulhi(uint32_t a, uint32_t b) { return (uint32_t)((uint64_t)a * b >> 32); }

inline int __clz(uint32_t x) { return x ? __builtin_clz(x) : 32; }

inline uint32_t atomicAdd(uint32_t* address, uint32_t value) {
  const uint32_t before = *address;
  *address += value;
  return before;
}

// Blocks run one after the other: a word that one has to wait for never comes, and run_block() says so.
inline unsigned long long load_word(const unsigned long long* address) {
  if (*address == 0) simt::pause(simt::Wait::kWord, 0);
  return *address;
}

inline void store_word(unsigned long long* address, unsigned long long value) { *address = value; }

}  // namespace
}  // namespace worldr1
