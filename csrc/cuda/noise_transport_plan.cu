// Kernels of the transport plan; see noise_transport_plan.h. What only the field decides is counted at each pixel, summed over
// the pixels before it, and written in order: no result depends on the order in which threads run. Integer atomics hand out
// places; where an order matters (readers of a source, hits of a target) a row's place is the number of smaller pixels.
#include "noise_transport_plan.h"

#include "../common/divide.h"
#include "../common/noise_transport_plan.h"
#include "../common/simt.h"

namespace worldr1 {
namespace planning {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr uint32_t kAllLanes = 0xffffffffu;
constexpr uint32_t kRounds = 8, kPixelsOfWarp = 32 * kRounds;
constexpr uint32_t kRowsOfLane = 16;         // of the sums over warps
constexpr int64_t kLeaves = 32;              // of a tree that a thread sums
constexpr int64_t kRoots = 2048, kRootsOfThread = kRoots / kThreads;  // of the tree, summed again by each block
constexpr int kPixelsOfThread = 4;           // that a thread normalises
constexpr int kFresh = 0, kGroup = 1, kMember = 2, kMerge = 3, kHit = 4, kDead = 5;

struct Kernel {
  Scratch s;
  Lists lists;
  int64_t* offsets;
  uint32_t height, width, pixels, warps;
  Divider columns;  // width
  int32_t *held, *following;
};

// What a pixel is, as a target and as a source.
struct Pixel {
  int32_t forward, backward;
  uint32_t hits, readers, size;
  bool reads;  // nobody arrives, and it reads a source inside
  __device__ __forceinline__ bool is_fresh() const { return hits == 0 && backward < 0; }
  __device__ __forceinline__ bool merges() const { return hits > 1; }
  __device__ __forceinline__ bool is_group() const { return size > 1; }
  __device__ __forceinline__ bool dies() const { return size == 0; }
};

__device__ __forceinline__ Pixel pixel_at(const Kernel& k, uint32_t p) {
  Pixel pixel{-1, -1, 1, 0, 1, false};  // outside: nothing of all that
  if (p < k.pixels) {
    pixel.forward = k.s.forward[p];
    pixel.backward = k.s.backward[p];
    pixel.hits = k.s.hits[p];
    pixel.readers = k.s.readers[p];
    pixel.size = (pixel.forward >= 0) + pixel.readers;
    pixel.reads = pixel.hits == 0 && pixel.backward >= 0;
  }
  return pixel;
}

__device__ __forceinline__ uint32_t size_of(const Kernel& k, int32_t source) {
  return (k.s.forward[source] >= 0) + k.s.readers[source];
}

__device__ __forceinline__ int32_t& ring_at(const Kernel& k, int64_t position) {
  const uint32_t size = 4 * k.pixels, at = (uint32_t)position;
  return k.s.ring[at < size ? at : at - size];
}

// The i-th slot that this field takes.
__device__ __forceinline__ int32_t take(const Kernel& k, int64_t i) {
  const State& state = *k.s.state;
  return i < state.free ? ring_at(k, state.head + i) : (int32_t)(state.num_slots + (i - state.free));
}

// The i-th slot that this field frees: those that die as they are, those of groups, those that are merged.
__device__ __forceinline__ void give(const Kernel& k, int64_t i, int32_t slot) {
  const State& state = *k.s.state;
  const int64_t size = 4 * (int64_t)k.pixels, at = state.head + state.free;
  ring_at(k, (at < size ? at : at - size) + i) = slot;
}

__global__ void __launch_bounds__(kThreads) begin_kernel(const Kernel k, int32_t* slots, double* density) {
  const uint32_t p = blockIdx.x * kThreads + threadIdx.x;
  if (p < k.pixels) {
    k.held[p] = slots[p] = (int32_t)p;
    k.s.density[p] = density[p] = 1.0;
    k.s.hits[p] = k.s.readers[p] = 0;
  }
  if (p < kLists) k.offsets[p] = 0;
  if (p == 0) {
    State state{};
    state.num_slots = k.pixels;
    state.bad_field = -1;
    *k.s.state = state;
  }
}

// Where pixels go and what they read; hits of targets.
template <class T>
__global__ void __launch_bounds__(kThreads) round_kernel(const Kernel k, const T* values, int64_t frame, bool check_only) {
  const uint32_t p = blockIdx.x * kThreads + threadIdx.x;
  if (p >= k.pixels) return;
  const T u = values[p], v = values[(int64_t)k.pixels + p];
  if (!((u - u) + (v - v) == (T)0) && k.s.state->bad_field < 0) k.s.state->bad_field = frame - 1;  // all write the same
  if (check_only) return;
  const T limit = (T)(k.height + k.width);
  const int32_t sx = whole_step(u, limit), sy = whole_step(v, limit);
  const uint32_t row = divide(p, k.columns);
  const int32_t y = (int32_t)row, x = (int32_t)(p - row * k.width), width = (int32_t)k.width;
  const bool goes = (uint32_t)(x + sx) < k.width && (uint32_t)(y + sy) < k.height;
  const bool reads = (uint32_t)(x - sx) < k.width && (uint32_t)(y - sy) < k.height;
  const int32_t to = goes ? (y + sy) * width + x + sx : -1;
  k.s.forward[p] = to;
  k.s.backward[p] = reads ? (y - sy) * width + x - sx : -1;
  if (goes) atomicAdd(&k.s.hits[to], 1u);
}

// Readers of sources: targets that nobody reaches.
__global__ void __launch_bounds__(kThreads) readers_kernel(const Kernel k) {
  const uint32_t p = blockIdx.x * kThreads + threadIdx.x;
  if (p >= k.pixels) return;
  const int32_t from = k.s.backward[p];
  if (from >= 0 && k.s.hits[p] == 0) atomicAdd(&k.s.readers[from], 1u);
}

__device__ __forceinline__ uint32_t warp_sum(uint32_t value) {
  for (uint32_t distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
  return value;
}

// Sum over the lanes before this one, for values that are mostly zero.
__device__ __forceinline__ uint32_t sum_before(uint32_t value, uint32_t lane) {
  if (__ballot_sync(kAllLanes, value != 0) == 0) return 0;
  uint32_t sum = value;
  for (uint32_t distance = 1; distance < 32; distance *= 2) {
    const uint32_t before = __shfl_up_sync(kAllLanes, sum, distance);
    if (lane >= distance) sum += before;
  }
  return sum - value;
}

// Of each kind, how many the pixels of a warp hold.
__global__ void __launch_bounds__(kThreads) count_kernel(const Kernel k) {
  const uint32_t lane = threadIdx.x % 32, warp = blockIdx.x * kWarps + threadIdx.x / 32;
  if (warp >= k.warps) return;
  uint32_t count[kKinds] = {};
  for (uint32_t round = 0; round < kRounds; ++round) {
    const Pixel pixel = pixel_at(k, warp * kPixelsOfWarp + round * 32 + lane);
    count[kFresh] += pixel.is_fresh();
    count[kGroup] += pixel.is_group();
    count[kMember] += pixel.is_group() ? pixel.size : 0;
    count[kMerge] += pixel.merges();
    count[kHit] += pixel.merges() ? pixel.hits : 0;
    count[kDead] += pixel.dies();
  }
  for (int kind = 0; kind < kKinds; ++kind) {
    const uint32_t sum = warp_sum(count[kind]);
    if (lane == 0) k.s.starts[(size_t)kind * k.warps + warp] = sum;
  }
}

// The state of this field from that of the one before, and its row of `offsets`.
__device__ __forceinline__ void next_state(const Kernel& k, int64_t frame, const uint32_t counts[kKinds]) {
  State state = *k.s.state;
  const int64_t size = 4 * (int64_t)k.pixels;
  const int64_t taken = state.counts[kFresh] + state.counts[kMember] + state.counts[kMerge];
  const int64_t given = state.counts[kDead] + state.counts[kGroup] + state.counts[kHit];
  const int64_t used = taken < state.free ? taken : state.free;
  state.head = (state.head + used) % size;
  state.free += given - used;
  state.num_slots += taken - used;
  for (int list = 0; list < kLists; ++list) {
    state.rows[list] += state.counts[list];
    k.offsets[frame * kLists + list] = state.rows[list] + counts[list];
  }
  for (int kind = 0; kind < kKinds; ++kind) state.counts[kind] = counts[kind];
  *k.s.state = state;
}

// Exclusive sums over the warps: one block, a warp for each kind.
__global__ void __launch_bounds__(32 * kKinds) sum_kernel(const Kernel k, int64_t frame) {
  __shared__ uint32_t totals[kKinds];
  const uint32_t lane = threadIdx.x % 32, kind = threadIdx.x / 32;
  uint32_t* starts = k.s.starts + (size_t)kind * k.warps;
  uint32_t before = 0;
  for (uint32_t first = 0; first < k.warps; first += 32 * kRowsOfLane) {
    uint32_t rows[kRowsOfLane], sum = 0;
    for (uint32_t i = 0; i < kRowsOfLane; ++i) {
      const uint32_t row = first + lane * kRowsOfLane + i;
      rows[i] = row < k.warps ? starts[row] : 0;
      sum += rows[i];
    }
    uint32_t start = before + sum_before(sum, lane);
    before += warp_sum(sum);
    for (uint32_t i = 0; i < kRowsOfLane; ++i) {
      const uint32_t row = first + lane * kRowsOfLane + i;
      if (row < k.warps) starts[row] = start;
      start += rows[i];
    }
  }
  if (lane == 0) totals[kind] = before;
  __syncthreads();
  if (threadIdx.x == 0) next_state(k, frame, totals);
}

// Everything whose place the sums tell: fresh pixels, heads of groups and merges, forward members, slots that die, copies.
__global__ void __launch_bounds__(kThreads) place_kernel(const Kernel k) {
  const uint32_t lane = threadIdx.x % 32, warp = blockIdx.x * kWarps + threadIdx.x / 32;
  if (warp >= k.warps) return;
  const State& state = *k.s.state;
  const Lists& lists = k.lists;
  const uint32_t lower = (1u << lane) - 1;
  uint32_t next[kKinds];
  for (int kind = 0; kind < kKinds; ++kind) next[kind] = k.s.starts[(size_t)kind * k.warps + warp];
  for (uint32_t round = 0; round < kRounds; ++round) {
    const uint32_t p = warp * kPixelsOfWarp + round * 32 + lane;
    const Pixel pixel = pixel_at(k, p);
    const uint32_t fresh = __ballot_sync(kAllLanes, pixel.is_fresh()), group = __ballot_sync(kAllLanes, pixel.is_group()),
                   merge = __ballot_sync(kAllLanes, pixel.merges()), dead = __ballot_sync(kAllLanes, pixel.dies());
    const uint32_t members = pixel.is_group() ? pixel.size : 0, arrivals = pixel.merges() ? pixel.hits : 0;
    const uint32_t first_member = next[kMember] + sum_before(members, lane);
    const uint32_t first_hit = next[kHit] + sum_before(arrivals, lane);
    if (pixel.is_fresh()) {
      const int64_t i = next[kFresh] + __popc(fresh & lower), row = state.rows[kFresh] + i;
      const int32_t slot = take(k, i);
      k.following[p] = slot;
      k.s.raw[p] = 1.0;
      if (row < lists.room[kFresh]) {
        lists.fresh_pixel[row] = (int32_t)p;
        lists.fresh_slot[row] = slot;
      }
    }
    if (pixel.merges()) {
      const int64_t i = next[kMerge] + __popc(merge & lower), row = state.rows[kMerge] + i;
      const int32_t slot = take(k, state.counts[kFresh] + state.counts[kMember] + i);
      k.following[p] = slot;
      k.s.merging[i] = (int32_t)p;
      k.s.next_hit[p] = first_hit;
      if (row < lists.room[kMerge]) {
        lists.merge_slot[row] = slot;
        lists.merge_start[row] = state.rows[kHit] + first_hit;
      }
    }
    if (pixel.dies()) give(k, next[kDead] + __popc(dead & lower), k.held[p]);
    double weight = 0.0;
    int32_t slot = 0;
    if (pixel.forward >= 0 || pixel.is_group()) {
      weight = k.s.density[p];
      slot = k.held[p];
    }
    if (pixel.is_group()) {
      const int64_t i = next[kGroup] + __popc(group & lower), row = state.rows[kGroup] + i;
      give(k, state.counts[kDead] + i, slot);
      if (row < lists.room[kGroup]) {
        lists.group_slot[row] = slot;
        lists.group_start[row] = state.rows[kMember] + first_member;
      }
      k.s.next_member[p] = first_member + (pixel.forward >= 0);
      if (pixel.forward >= 0) {
        const int64_t member = state.rows[kMember] + first_member;
        slot = take(k, state.counts[kFresh] + first_member);
        weight /= (double)pixel.size;
        if (member < lists.room[kMember]) {
          lists.member_pixel[member] = (int32_t)p;
          lists.member_is_target[member] = 0;
          lists.member_slot[member] = slot;
        }
      }
    }
    if (pixel.forward >= 0 && k.s.hits[pixel.forward] == 1) {
      k.following[pixel.forward] = slot;
      k.s.raw[pixel.forward] = weight;
    }
    next[kFresh] += __popc(fresh);
    next[kGroup] += __popc(group);
    next[kMerge] += __popc(merge);
    next[kDead] += __popc(dead);
    next[kMember] += warp_sum(members);
    next[kHit] += warp_sum(arrivals);
  }
}

// Readers of one source side by side, hits of one target side by side, in any order; a reader alone copies.
__global__ void __launch_bounds__(kThreads) gather_kernel(const Kernel k) {
  const uint32_t p = blockIdx.x * kThreads + threadIdx.x;
  const Pixel pixel = pixel_at(k, p);
  if (pixel.reads) {
    const int32_t source = pixel.backward;
    if (size_of(k, source) > 1) {
      k.s.members[atomicAdd(&k.s.next_member[source], 1u)] = (int32_t)p;
    } else {
      k.following[p] = k.held[source];
      k.s.raw[p] = k.s.density[source];
    }
  }
  if (pixel.forward >= 0 && k.s.hits[pixel.forward] > 1) {
    k.s.arriving[atomicAdd(&k.s.next_hit[pixel.forward], 1u)] = (int32_t)p;
  }
}

// How many of rows [begin, end) hold a smaller pixel.
__device__ __forceinline__ uint32_t rank_of(const int32_t* rows, uint32_t begin, uint32_t end, uint32_t p) {
  uint32_t rank = 0;
  for (uint32_t i = begin; i < end; ++i) rank += rows[i] < (int32_t)p;
  return rank;
}

// The rows of expansions by rising target, those of hits by rising source.
__global__ void __launch_bounds__(kThreads) order_kernel(const Kernel k) {
  const uint32_t p = blockIdx.x * kThreads + threadIdx.x;
  const Pixel pixel = pixel_at(k, p);
  const State& state = *k.s.state;
  const Lists& lists = k.lists;
  if (pixel.reads) {
    const int32_t source = pixel.backward;
    const uint32_t size = size_of(k, source);
    if (size > 1) {
      const uint32_t end = k.s.next_member[source], begin = end - k.s.readers[source];
      const int64_t i = begin + rank_of(k.s.members, begin, end, p), row = state.rows[kMember] + i;
      const int32_t slot = take(k, state.counts[kFresh] + i);
      k.following[p] = slot;
      k.s.raw[p] = k.s.density[source] / (double)size;
      if (row < lists.room[kMember]) {
        lists.member_pixel[row] = (int32_t)p;
        lists.member_is_target[row] = 1;
        lists.member_slot[row] = slot;
      }
    }
  }
  if (pixel.forward >= 0 && k.s.hits[pixel.forward] > 1) {
    const uint32_t end = k.s.next_hit[pixel.forward], begin = end - k.s.hits[pixel.forward];
    const int64_t i = begin + rank_of(k.s.arriving, begin, end, p), row = state.rows[kHit] + i;
    double weight = k.s.density[p];
    int32_t slot = k.held[p];
    if (pixel.is_group()) {  // the forward member, the first of its group
      slot = take(k, state.counts[kFresh] + k.s.next_member[p] - pixel.readers - 1);
      weight /= (double)pixel.size;
    }
    give(k, state.counts[kDead] + state.counts[kGroup] + i, slot);
    if (row < lists.room[kHit]) {
      lists.hit_slot[row] = slot;
      lists.hit_weight[row] = weight;
    }
  }
}

// Sums and weights of merges, from the first hit to the last.
__global__ void __launch_bounds__(kThreads) merge_kernel(const Kernel k) {
  const State& state = *k.s.state;
  for (int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x; i < state.counts[kMerge]; i += (int64_t)gridDim.x * kThreads) {
    const int32_t target = k.s.merging[i];
    const int64_t end = state.rows[kHit] + k.s.next_hit[target], begin = end - k.s.hits[target];
    if (end > k.lists.room[kHit]) continue;
    double* weights = k.lists.hit_weight;
    double sum = 0.0, squares = 0.0;
    for (int64_t row = begin; row < end; ++row) {
      sum = plus(sum, weights[row]);
      squares = plus(squares, times(weights[row], weights[row]));
    }
    const double norm = sqrt(squares);
    for (int64_t row = begin; row < end; ++row) weights[row] /= norm;
    k.s.raw[target] = sum;
  }
}

// Adds up `leaves` values that lie `stride` apart, the upper half onto the lower until one is left; those past `count` are zero.
// The tree of plan.py from its top, `leaves` down to one.
template <int kMost>
__device__ __forceinline__ double tree(const double* values, int64_t first, int64_t stride, int64_t leaves, int64_t count) {
  double sum[kMost];
  WR_UNROLL(kMost)
  for (int i = 0; i < kMost; ++i) {
    const int64_t at = first + i * stride;
    sum[i] = i < leaves && at < count ? values[at] : 0.0;
  }
  WR_UNROLL(8)
  for (int half = kMost / 2; half > 0; half /= 2) {
    WR_UNROLL(kMost)
    for (int i = 0; i < kMost / 2; ++i) {
      if (i < half) sum[i] = plus(sum[i], sum[i + half]);
    }
  }
  return sum[0];
}

__global__ void __launch_bounds__(kThreads)
    tree_kernel(const double* values, double* sums, int64_t stride, int64_t leaves, int64_t count) {
  const int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x;
  if (i < stride) sums[i] = tree<kLeaves>(values, i, stride, leaves, count);
}

// Normalises the density by the sum of `roots`, and leaves all as the next field wants it.
__global__ void __launch_bounds__(kThreads)
    normalize_kernel(const Kernel k, const double* roots, int64_t num_roots, int32_t* kept_slots, double* kept_density) {
  __shared__ double sums[kThreads];
  sums[threadIdx.x] = tree<kRootsOfThread>(roots, threadIdx.x, kThreads, kRootsOfThread, num_roots);
  for (uint32_t half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] = plus(sums[threadIdx.x], sums[threadIdx.x + half]);
  }
  __syncthreads();
  const double scale = (double)k.pixels / sums[0];
  for (int j = 0; j < kPixelsOfThread; ++j) {
    const uint32_t p = (blockIdx.x * kPixelsOfThread + j) * kThreads + threadIdx.x;
    if (p >= k.pixels) return;
    const double density = normalized_density(k.s.raw[p], scale);
    k.s.density[p] = density;
    k.s.hits[p] = k.s.readers[p] = 0;
    if (kept_slots != nullptr) {
      kept_slots[p] = k.following[p];
      kept_density[p] = density;
    }
  }
}

constexpr size_t kAlignment = 256;

// Hands out parts of the workspace, with a gap after each. With a null base it only measures.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  void take(T*& part, int64_t count) {
    const size_t begin = used_, end = begin + (size_t)count * sizeof(T);
    used_ = (end / kAlignment + 2) * kAlignment;
    gaps_.emplace_back(end, used_);
    part = base_ ? reinterpret_cast<T*>(base_ + begin) : nullptr;
  }
  size_t used() const { return used_; }
  const std::vector<std::pair<size_t, size_t>>& gaps() const { return gaps_; }

 private:
  char* base_;
  size_t used_ = 0;
  std::vector<std::pair<size_t, size_t>> gaps_;
};

int64_t warps_of(int64_t pixels) { return (pixels + kPixelsOfWarp - 1) / kPixelsOfWarp; }

Arena take_workspace(int64_t pixels, void* workspace, Scratch& s) {
  Arena arena(workspace);
  arena.take(s.state, 1);
  arena.take(s.forward, pixels);
  arena.take(s.backward, pixels);
  arena.take(s.hits, pixels);
  arena.take(s.readers, pixels);
  arena.take(s.next_member, pixels);
  arena.take(s.next_hit, pixels);
  arena.take(s.members, 2 * pixels);
  arena.take(s.arriving, pixels);
  arena.take(s.merging, pixels);
  arena.take(s.held[0], pixels);
  arena.take(s.held[1], pixels);
  arena.take(s.ring, 4 * pixels);
  arena.take(s.density, pixels);
  arena.take(s.raw, pixels);
  arena.take(s.partial, 2 * pixels / (kLeaves - 1) + kRoots);
  arena.take(s.starts, kKinds * warps_of(pixels));
  return arena;
}

Kernel kernel_of(const Args& args, int64_t frame) {
  const int64_t pixels = args.height * args.width;
  Kernel k{};
  take_workspace(pixels, args.workspace, k.s);
  k.lists = args.lists;
  k.offsets = args.offsets;
  k.height = (uint32_t)args.height;
  k.width = (uint32_t)args.width;
  k.columns = divider(args.width);
  k.pixels = (uint32_t)pixels;
  k.warps = (uint32_t)warps_of(pixels);
  k.held = k.s.held[(frame + 1) % 2];  // of the frame before
  k.following = k.s.held[frame % 2];
  return k;
}

int64_t blocks_of(int64_t count, int64_t size) { return (count + size - 1) / size; }

#define WR_TRY(expression)                      \
  do {                                          \
    const int status = (expression);            \
    if (status != 0) return status;             \
  } while (0)

// Sum over the density that is raw, down to kRoots values; then the normalisation.
int normalize(const Kernel& k, const Field& field, void* stream) {
  const double* values = k.s.raw;
  double* sums = k.s.partial;
  int64_t count = k.pixels, size = 1;
  while (size < count) size *= 2;
  while (size > kRoots) {
    const int64_t leaves = size / kRoots < kLeaves ? size / kRoots : kLeaves, stride = size / leaves;
    WR_TRY(launch(tree_kernel, blocks_of(stride, kThreads), 1, kThreads, stream, values, sums, stride, leaves, count));
    values = sums;
    sums += stride;
    count = size = stride;
  }
  return launch(normalize_kernel, blocks_of(k.pixels, kThreads * kPixelsOfThread), 1, kThreads, stream, k, values, count,
                field.kept_slots, field.kept_density);
}

}  // namespace

size_t workspace_bytes(int64_t height, int64_t width) {
  Scratch scratch{};
  return take_workspace(height * width, nullptr, scratch).used();
}

std::vector<std::pair<size_t, size_t>> workspace_gaps(int64_t height, int64_t width) {
  Scratch scratch{};
  return take_workspace(height * width, nullptr, scratch).gaps();
}

int begin(const Args& args, int32_t* slots, double* density, void* stream) {
  const Kernel k = kernel_of(args, 1);
  return launch(begin_kernel, blocks_of(k.pixels, kThreads), 1, kThreads, stream, k, slots, density);
}

int add(const Args& args, const Field& field, void* stream) {
  const Kernel k = kernel_of(args, field.frame);
  const int64_t blocks = blocks_of(k.pixels, kThreads), warp_blocks = blocks_of(k.warps, kWarps);
  if (field.is_double) {
    const double* values = static_cast<const double*>(field.values);
    WR_TRY(launch(round_kernel<double>, blocks, 1, kThreads, stream, k, values, field.frame, field.check_only));
  } else {
    const float* values = static_cast<const float*>(field.values);
    WR_TRY(launch(round_kernel<float>, blocks, 1, kThreads, stream, k, values, field.frame, field.check_only));
  }
  if (field.check_only) return 0;
  WR_TRY(launch(readers_kernel, blocks, 1, kThreads, stream, k));
  WR_TRY(launch(count_kernel, warp_blocks, 1, kThreads, stream, k));
  WR_TRY(launch(sum_kernel, 1, 1, 32 * kKinds, stream, k, field.frame));
  WR_TRY(launch(place_kernel, warp_blocks, 1, kThreads, stream, k));
  WR_TRY(launch(gather_kernel, blocks, 1, kThreads, stream, k));
  WR_TRY(launch(order_kernel, blocks, 1, kThreads, stream, k));
  WR_TRY(launch(merge_kernel, blocks_of(k.pixels, 8 * kThreads), 1, kThreads, stream, k));
  return normalize(k, field, stream);
}

#undef WR_TRY

}  // namespace planning
}  // namespace worldr1
