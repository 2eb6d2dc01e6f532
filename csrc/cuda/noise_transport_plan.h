// The transport plan on the device: the same integers and the same float64 bits as csrc/cpu/noise_transport_plan.cpp.
//
// Counts and positions stay in device memory; the host sizes launches by H W alone and waits for nothing. Lists have a capacity:
// rows past it are not written, `offsets` counts them all the same, and the caller starts again with lists that are large enough.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace worldr1 {
namespace planning {

constexpr int kLists = 5;  // fresh, groups, members, merges, hits: the columns of `offsets`
constexpr int kKinds = 6;  // what is counted at each pixel: rows of the five lists, and slots that die as they are

// What the kernels of one field read: written by one thread between two of them.
struct State {
  int64_t rows[kLists];    // of the lists before this field
  int64_t counts[kKinds];  // of this field
  int64_t head, free;      // of the ring of free slots before this field: the first, and how many
  int64_t num_slots;       // so far, before this field
  int64_t bad_field;       // the first that is not finite, -1 without one
};
constexpr int kStateValues = sizeof(State) / sizeof(int64_t);

// The lists of a TransportPlan, see plan.py; and the rows there is room for.
struct Lists {
  int32_t *fresh_pixel, *fresh_slot, *group_slot;
  int64_t* group_start;
  int32_t* member_pixel;
  uint8_t* member_is_target;
  int32_t *member_slot, *merge_slot;
  int64_t* merge_start;
  int32_t* hit_slot;
  double* hit_weight;
  int64_t room[kLists];
};

// Arrays of the workspace, of H W unless said otherwise.
struct Scratch {
  State* state;
  int32_t *forward, *backward;            // of the field, -1: outside
  uint32_t *hits, *readers;               // of a target, of a source; zeros between fields
  uint32_t *next_member, *next_hit;       // of a source, of a target: where its next reader, its next hit goes
  int32_t *members;                       // [2 H W] targets that read, by source, in any order
  int32_t *arriving;                      // sources, by target, in any order
  int32_t *merging;                       // targets that merge
  int32_t* held[2];                       // slots
  int32_t* ring;                          // [4 H W] free slots in the order in which they are taken
  double *density, *raw, *partial;        // partial: the sums of the tree's levels
  uint32_t* starts;                       // [kKinds, warps] counts of a warp's pixels, then their exclusive sums
};

struct Args {
  int64_t height, width;
  Lists lists;
  int64_t* offsets;  // [F, 5]
  void* workspace;   // as workspace_bytes says; its first kStateValues int64 are the State
};

// One field and the frame that it leads to, from 1.
struct Field {
  const void* values;  // [2, H, W]
  bool is_double;
  int64_t frame;
  bool check_only;       // beyond the last frame that is kept only the values are looked at
  int32_t* kept_slots;   // [H W] null where the frame is not kept
  double* kept_density;
};

size_t workspace_bytes(int64_t height, int64_t width);
// Bytes [first, second) of the workspace that nothing may write.
std::vector<std::pair<size_t, size_t>> workspace_gaps(int64_t height, int64_t width);

// Each enqueues its work on `stream` and returns 0 or a cudaError_t. `slots` and `density`: of frame 0, [H W].
int begin(const Args& args, int32_t* slots, double* density, void* stream);
int add(const Args& args, const Field& field, void* stream);

}  // namespace planning
}  // namespace worldr1
