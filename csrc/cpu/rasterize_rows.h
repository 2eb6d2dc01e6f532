// Which rows of a tile a splat reaches, and what of its exponent a row shares. For the SIMD files alone: everything is in an
// unnamed namespace, see simd.h.
#pragma once

#include "rasterize.h"

#include "../common/simd.h"
// after simd.h: the templates use its overloads
#include "../common/gaussian.h"

namespace worldr1 {
namespace {

struct RowTerms {
  alignas(32) float linear[kTile], constant[kTile];
  uint32_t reached;  // bit r: alpha may reach 1/255 in row r

  RowTerms() = default;
  // dx_first: from the mean to the first pixel of each row; y: from the mean to each row.
  WR_INLINE RowTerms(const Record& g, float dx_first, f8 y) {
    const f8 square = y * y, lin = g.b * y, con = g.c * square;
    f8_store(linear, lin);
    f8_store(constant, con);
    // A row's smallest exponent: at the vertex of its parabola, or at the end nearest to it.
    const f8 vertex = min_of(max_of((-0.5f * g.b / g.a) * y, dx_first), dx_first + (float)(kTile - 1));
    reached = lane_bits(exponent_log2(vertex, f8_set(g.a), lin, con) <= f8_set(g.limit));
  }
};

constexpr int kAhead = 16;  // splats looked at before the first of them has its turn

// A splat that reaches a row of the tile. Its `todo` is known some splats before the loop over its bits: where the processor
// guesses the length of that loop wrongly it learns so at once, with rows of the splats before still to be worked on.
struct Reaching {
  RowTerms rows;
  const Record* record;
  int32_t position;  // in the tile's list, from 1
  uint32_t todo;
};

}  // namespace
}  // namespace worldr1
