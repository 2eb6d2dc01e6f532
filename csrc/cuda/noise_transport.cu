// Noise transport on the device, all frames in one launch. A value is made once, into its slot; copies move no data; a captured
// frame gathers the slots of its pixels and reduces them. Frames follow each other at barriers of the whole grid; the arithmetic
// of a value is in csrc/common/noise_transport.h.
//
// Work is dealt out in chunks of kThreads items of one task (a sample's block of four channels): within a chunk the task is the
// same for all threads, and inside a task items and slots are numbered with 32 bits.
#include "noise_transport.h"

#include "../common/simt.h"

namespace worldr1 {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kBlocksPerProcessor = 3;  // 80 registers a thread: with more blocks some would be spilled
constexpr uint32_t kLoads = 4;        // pixels of a thread in a chunk of the first frame
constexpr int kColumnsOfWarp = 48;    // room of a warp for its columns' sums: the most is for r = 2, 16 blocks of 3

// What a launch derives from its arguments.
struct Transport {
  TransportCudaArgs args;
  Divider tasks, quads, segments;  // tasks: of a step; quads: of a sample; segments: of a row of the output
  uint32_t num_segments;           // what a warp reduces at once, of an output frame
  uint32_t blocks_of_segment;      // r x r blocks side by side in one
  uint32_t out_columns, out_pixels;
  int64_t num_captured;
  int64_t slots_step;              // from a captured frame's slots to the next one's
};

// One sample and block of four channels.
struct Task {
  uint32_t sample, quad;
  int planes;  // channels that exist, 1 to 4
  Quad<float>* state;
};

__device__ __forceinline__ Task task_of(const Transport& t, uint32_t index) {
  const uint32_t sample = divide(index, t.quads), quad = index - sample * t.quads.divisor;
  const int64_t left = t.args.channels - 4 * (int64_t)quad;
  return {sample, quad, left < 4 ? (int)left : 4, t.args.state + index * t.args.num_slots};
}

__device__ __forceinline__ uint32_t chunks_of(uint32_t items, uint32_t size) { return (items + size - 1) / size; }

// Of one of the task's planes, counted in planes of noise or of a video.
__device__ __forceinline__ int64_t first_plane(const Transport& t, const Task& task) {
  return task.sample * t.args.channels + 4 * (int64_t)task.quad;
}

// Noise into slots 0 .. H W - 1.
__device__ __forceinline__ void load_noise(const Transport& t) {
  const uint32_t pixels = (uint32_t)(t.args.height * t.args.width);
  const uint32_t total = t.tasks.divisor * chunks_of(pixels, kLoads * kThreads);
  for (uint32_t c = blockIdx.x; c < total; c += gridDim.x) {
    const uint32_t chunk = divide(c, t.tasks);
    const Task task = task_of(t, c - chunk * t.tasks.divisor);
    const float* plane = t.args.noise + first_plane(t, task) * pixels;
    for (uint32_t j = 0; j < kLoads; ++j) {
      const uint32_t i = (chunk * kLoads + j) * kThreads + threadIdx.x;
      if (i >= pixels) break;
      Quad<float> value = {{0.0f, 0.0f, 0.0f, 0.0f}};
      for (int k = 0; k < 4; ++k) {
        if (k < task.planes) value.v[k] = plane[(int64_t)k * pixels + i];
      }
      task.state[i] = value;
    }
  }
}

// How many rows of the lists are new at a frame.
struct Counts {
  uint32_t fresh, groups, members, merges;
};

// Of a frame in 1 .. `last`; else nothing.
__device__ __forceinline__ Counts counts_at(const int64_t* offsets, int64_t frame, int64_t last) {
  if (frame < 1 || frame > last) return {0, 0, 0, 0};
  const int64_t* from = offsets + (frame - 1) * 5;
  const int64_t* to = from + 5;
  return {(uint32_t)(to[0] - from[0]), (uint32_t)(to[1] - from[1]), (uint32_t)(to[2] - from[2]), (uint32_t)(to[3] - from[3])};
}

// Where the normals of a frame's members are, one frame after the other in two places.
__device__ __forceinline__ Quad<float>* normals_of(const Transport& t, uint32_t task, int64_t frame) {
  return t.args.normals + (frame % 2 * t.tasks.divisor + task) * t.args.most_members;
}

// A segment of an output frame: r x r blocks side by side, a lane for each of their columns (32 at a time where r is larger).
// Columns are summed downwards, then from left to right, and divided by r: the order of the CPU.
template <int kReduce>
__device__ __forceinline__ void reduce_segment(const Transport& t, const Task& task, const int32_t* slots, int64_t captured,
                                               uint32_t segment, Quad<float>* columns) {
  const uint32_t r = kReduce ? (uint32_t)kReduce : (uint32_t)t.args.reduce, width = (uint32_t)t.args.width;
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t row = divide(segment, t.segments), first = (segment - row * t.segments.divisor) * t.blocks_of_segment;
  const uint32_t left = t.out_columns - first, blocks = left < t.blocks_of_segment ? left : t.blocks_of_segment;
  const int32_t* corner = slots + row * r * width + first * r;
  const int64_t plane = t.num_captured * t.out_pixels;
  float* out = t.args.out + first_plane(t, task) * plane + captured * t.out_pixels + row * t.out_columns + first;
  if (kReduce == 1) {
    if (lane >= blocks) return;
    const Quad<float> value = task.state[corner[lane]];
    for (int k = 0; k < 4; ++k) {
      if (k < task.planes) out[k * plane + lane] = value.v[k];
    }
    return;
  }
  float held = 0.0f;  // of the columns before
  for (uint32_t begin = 0; begin < r; begin += 32) {
    const uint32_t here = r - begin < 32 ? r - begin : 32;  // columns of a block
    if (lane < blocks * here) {
      const int32_t* slot = corner + begin + lane;
      Quad<float> total = task.state[*slot];
      WR_UNROLL(kReduce == 8 ? 7 : 4)  // as many loads under way as registers allow
      for (uint32_t i = 1; i < r; ++i) total = total + task.state[slot[i * width]];
      columns[lane + lane / here] = total;  // a gap after each block: the reads below then meet in no bank
    }
    __syncwarp();
    WR_UNROLL(1)
    for (uint32_t i = lane; i < 4 * blocks; i += 32) {
      const Quad<float>* block = columns + i / 4 * (here + 1);
      const uint32_t k = i % 4;
      float sum = begin == 0 ? block[0].v[k] : held + block[0].v[k];
      for (uint32_t j = 1; j < here; ++j) sum = sum + block[j].v[k];
      held = sum;  // of use with one block alone
      if (begin + here == r && (int)k < task.planes) out[k * plane + i / 4] = sum / (float)r;
    }
    __syncwarp();
  }
}

// Everything between two barriers: new values of a frame, normals of the next frame's members (which depend on nothing), and a
// captured frame to be reduced (`slots` null: none). What is taken for new values is held by no pixel of the frame before, so
// that this may still be reduced meanwhile.
template <int kReduce>
__device__ __forceinline__ void step(const Transport& t, int64_t frame, const Counts& counts, uint32_t next_members,
                                     const int32_t* slots, int64_t captured, Quad<float>* columns) {
  const TransportLists& lists = t.args.lists;
  const int64_t* first = t.args.offsets + (frame - 1) * 5;  // rows of the frame; those of the next are 5 on
  const uint32_t groups = chunks_of(counts.groups, kThreads), members = chunks_of(next_members, kThreads),
                 fresh = chunks_of(counts.fresh, kThreads), merges = chunks_of(counts.merges, kThreads),
                 segments = slots ? chunks_of(t.num_segments, kWarps) : 0;
  const uint32_t total = t.tasks.divisor * (groups + members + fresh + merges + segments);
  for (uint32_t c = blockIdx.x; c < total; c += gridDim.x) {
    uint32_t chunk = divide(c, t.tasks);
    const uint32_t index = c - chunk * t.tasks.divisor;
    const Task task = task_of(t, index);
    if (chunk < groups) {
      const uint32_t i = chunk * kThreads + threadIdx.x;
      if (i < counts.groups) {
        const Quad<float>* normals = normals_of(t, index, frame) - first[2];
        share_normals<Quad<float>, float>(lists, first[1] + i, task.state, [&](int64_t m) { return normals[m]; });
      }
      continue;
    }
    chunk -= groups;
    if (chunk < members + fresh) {
      const bool is_fresh = chunk >= members;
      const uint32_t i = (is_fresh ? chunk - members : chunk) * kThreads + threadIdx.x;
      if (i >= (is_fresh ? counts.fresh : next_members)) continue;
      const int64_t row = (is_fresh ? first[0] : first[5 + 2]) + i;
      const DrawKey key = {t.args.seed, (uint32_t)(is_fresh ? frame : frame + 1), (uint32_t)t.args.sample_ids[task.sample],
                           task.quad};
      const uint32_t pixel = (uint32_t)(is_fresh ? lists.fresh_pixel : lists.member_pixel)[row];
      const bool is_target = is_fresh || lists.member_is_target[row] != 0;
      Quad<float>* to = is_fresh ? task.state + lists.fresh_slot[row] : normals_of(t, index, frame + 1) + i;
      *to = draw_quad<float>(pixel, is_target, key);
      continue;
    }
    chunk -= members + fresh;
    if (chunk < merges) {
      const uint32_t i = chunk * kThreads + threadIdx.x;
      if (i < counts.merges) sum_merge<Quad<float>, float>(lists, first[3] + i, task.state);
    } else {
      const uint32_t segment = (chunk - merges) * kWarps + threadIdx.x / 32;
      if (segment < t.num_segments) reduce_segment<kReduce>(t, task, slots, captured, segment, columns);
    }
  }
}

template <int kReduce>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor) transport_kernel(const Transport t) {
  Quad<float>* columns = block_shared<Quad<float>>() + threadIdx.x / 32 * kColumnsOfWarp;
  const int64_t last = (t.num_captured - 1) * t.args.capture;
  load_noise(t);
  const int32_t* slots = nullptr;  // of a captured frame that waits for the next step
  int64_t frame = 0, captured = -1, due = 0;
  bool late = false;  // the merges of `frame` are left
  while (true) {
    Counts counts = counts_at(t.args.offsets, frame, last);
    uint32_t next_members = counts_at(t.args.offsets, frame + 1, last).members;
    // A merge reads members of the frame's own groups; without groups there is nothing to wait for.
    const bool apart = counts.groups > 0 && counts.merges > 0;
    if (late) counts.fresh = counts.groups = next_members = 0;
    if (apart && !late) counts.merges = 0;
    step<kReduce>(t, frame, counts, next_members, slots, captured, columns);
    if (frame > last) return;
    slots = nullptr;
    if (frame == 0 || (counts.fresh | counts.groups | counts.merges | next_members) != 0) grid_sync();
    late = apart && !late;
    if (late) continue;
    if (frame == due) {
      slots = t.args.slots + ++captured * t.slots_step;
      due += t.args.capture;
    }
    ++frame;
  }
}

}  // namespace

bool transport_fits(int64_t batch, int64_t channels, int64_t height, int64_t width) {
  // Of a step: groups, fresh pixels and merges, each at most H W, twice as many members, and the segments of a frame, of one row
  // at least.
  const double chunks = 6.0 * ((double)height * (double)width / kThreads + (double)height + 1.0);
  return chunks * (double)batch * (double)((channels + 3) / 4) < 2147483648.0;
}

int launch_noise_transport(const TransportCudaArgs& args, void* stream) {
  Transport t{};
  t.args = args;
  const int64_t quads = (args.channels + 3) / 4, tasks = args.batch * quads, pixels = args.height * args.width;
  if (tasks == 0) return 0;
  const int64_t columns = args.width / args.reduce, of_segment = args.reduce < 32 ? 32 / args.reduce : 1;
  const int64_t segments = (columns + of_segment - 1) / of_segment;
  t.tasks = divider(tasks);
  t.quads = divider(quads);
  t.segments = divider(segments);
  t.num_segments = (uint32_t)(segments * (args.height / args.reduce));
  t.blocks_of_segment = (uint32_t)of_segment;
  t.out_columns = (uint32_t)columns;
  t.out_pixels = (uint32_t)(columns * (args.height / args.reduce));
  t.slots_step = args.capture / args.plan_stride * pixels;
  t.num_captured = (args.num_frames - 1) / args.capture + 1;
  const int64_t most = tasks * ((pixels + kThreads - 1) / kThreads);
  const size_t shared_bytes = args.reduce == 1 ? 0 : sizeof(Quad<float>) * kColumnsOfWarp * kWarps;
  auto* kernel = args.reduce == 1    ? &transport_kernel<1>
                 : args.reduce == 8  ? &transport_kernel<8>
                 : args.reduce == 16 ? &transport_kernel<16>
                                     : &transport_kernel<0>;
  return launch_together(kernel, most, kThreads, shared_bytes, stream, t);
}

}  // namespace worldr1
