// SIMD kernels of the transport: normals eight at a time, values four channels at a time. Compiled once per instruction set; see
// rasterize_simd.cpp on why nothing but the entry point is external.
#include "../common/simd.h"

namespace worldr1 {
namespace {

WR_INLINE i8 bits_of(f8 a) { return (i8)a; }
WR_INLINE f8 from_bits(i8 i) { return (f8)i; }
WR_INLINE f8 to_float(i8 i) { return __builtin_convertvector(i, f8); }

}  // namespace
}  // namespace worldr1

// after these overloads: its templates use them
#include "noise_transport.h"

namespace worldr1 {
namespace {

// Philox needs products of 32 x 32 bits: one lane of 64 bits for each counter, its upper half of no meaning.
#if defined(__AVX512F__)
constexpr int kWide = 8;
#elif defined(__AVX2__)
constexpr int kWide = 4;
#else
constexpr int kWide = 2;
#endif
constexpr int kParts = 8 / kWide;
typedef uint64_t u64v __attribute__((vector_size(kWide * 8)));
typedef uint32_t u32v __attribute__((vector_size(kWide * 4)));
typedef uint8_t u8v __attribute__((vector_size(kWide)));

struct Words {
  u64v part[kParts];
};

WR_INLINE u64v multiply_low(u64v a, uint32_t b) {
  const u64v factor = u64v{} + b;
#if defined(__AVX512F__)
  // Not _mm512_mul_epu32, which is the same instruction: gcc 12 warns of its own undefined operand.
  return (u64v)_mm512_maskz_mul_epu32(0xff, (__m512i)a, (__m512i)factor);
#elif defined(__AVX2__)
  return (u64v)_mm256_mul_epu32((__m256i)a, (__m256i)factor);
#elif defined(__SSE2__)
  return (u64v)_mm_mul_epu32((__m128i)a, (__m128i)factor);
#else
  return (a & 0xffffffffu) * factor;
#endif
}

WR_INLINE i8 low_words(const Words& words) {
  i8 out;
  for (int p = 0; p < kParts; ++p) {
    const u32v narrow = __builtin_convertvector(words.part[p], u32v);
    std::memcpy(reinterpret_cast<char*>(&out) + p * (int)sizeof(narrow), &narrow, sizeof(narrow));
  }
  return out;
}

// Normals of eight counters: z[k] holds normal k of each.
WR_INLINE void draw_eight(const int32_t* pixels, const uint8_t* is_target, const DrawKey& key, f8 z[4]) {
  Words c0, c1, c2, c3;
  for (int p = 0; p < kParts; ++p) {
    u32v pixel;
    std::memcpy(&pixel, pixels + p * kWide, sizeof(pixel));
    u8v target = u8v{} + 1;
    if (is_target) std::memcpy(&target, is_target + p * kWide, sizeof(target));
    c0.part[p] = __builtin_convertvector(pixel, u64v);
    c3.part[p] = stream_word(false, key.quad) +
                 __builtin_convertvector(target, u64v) * (stream_word(true, 0) - stream_word(false, 0));
    c1.part[p] = u64v{} + key.frame;
    c2.part[p] = u64v{} + key.sample;
  }
  uint32_t k0 = (uint32_t)key.seed, k1 = (uint32_t)(key.seed >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int p = 0; p < kParts; ++p) {
      const u64v p0 = multiply_low(c0.part[p], 0xD2511F53u), p1 = multiply_low(c2.part[p], 0xCD9E8D57u);
      c0.part[p] = (p1 >> 32) ^ c1.part[p] ^ k0;
      c2.part[p] = (p0 >> 32) ^ c3.part[p] ^ k1;
      c1.part[p] = p1;
      c3.part[p] = p0;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  box_muller<f8, i8>(low_words(c0), low_words(c1), &z[0], &z[1]);
  box_muller<f8, i8>(low_words(c2), low_words(c3), &z[2], &z[3]);
}

WR_INLINE f4 lower(f8 v) { return __builtin_shufflevector(v, v, 0, 1, 2, 3); }
WR_INLINE f4 upper(f8 v) { return __builtin_shufflevector(v, v, 4, 5, 6, 7); }

// Normals keyed by rows [begin, end) of a list, each into its slot.
WR_INLINE void draw(const int32_t* pixels, const uint8_t* is_target, const int32_t* slots, int64_t count, const DrawKey& key,
                    f4* state) {
  for (int64_t base = 0; base < count; base += 8) {
    const int lanes = (int)(count - base < 8 ? count - base : 8);
    int32_t last_pixels[8] = {};
    uint8_t last_targets[8] = {};
    const int32_t* p = pixels + base;
    const uint8_t* t = is_target ? is_target + base : nullptr;
    if (lanes < 8) {
      for (int i = 0; i < lanes; ++i) {
        last_pixels[i] = p[i];
        last_targets[i] = t ? t[i] : 1;
      }
      p = last_pixels;
      t = last_targets;
    }
    f8 z[4];
    draw_eight(p, t, key, z);
    // Transposed: lanes i and i + 4 of the four normals side by side.
    const f8 a = __builtin_shufflevector(z[0], z[1], 0, 8, 1, 9, 4, 12, 5, 13);
    const f8 b = __builtin_shufflevector(z[0], z[1], 2, 10, 3, 11, 6, 14, 7, 15);
    const f8 c = __builtin_shufflevector(z[2], z[3], 0, 8, 1, 9, 4, 12, 5, 13);
    const f8 d = __builtin_shufflevector(z[2], z[3], 2, 10, 3, 11, 6, 14, 7, 15);
    const f8 pairs[4] = {__builtin_shufflevector(a, c, 0, 1, 8, 9, 4, 5, 12, 13),
                         __builtin_shufflevector(a, c, 2, 3, 10, 11, 6, 7, 14, 15),
                         __builtin_shufflevector(b, d, 0, 1, 8, 9, 4, 5, 12, 13),
                         __builtin_shufflevector(b, d, 2, 3, 10, 11, 6, 7, 14, 15)};
    const int32_t* s = slots + base;
    if (lanes == 8) {
      for (int i = 0; i < 4; ++i) {
        state[s[i]] = lower(pairs[i]);
        state[s[i + 4]] = upper(pairs[i]);
      }
    } else {
      for (int i = 0; i < lanes; ++i) state[s[i]] = i < 4 ? lower(pairs[i]) : upper(pairs[i - 4]);
    }
  }
}

void make_fresh_rows(const TransportLists& lists, int64_t begin, int64_t end, const DrawKey& key, f4* state) {
  draw(lists.fresh_pixel + begin, nullptr, lists.fresh_slot + begin, end - begin, key, state);
}

void make_groups(const TransportLists& lists, int64_t begin, int64_t end, const DrawKey& key, f4* state) {
  constexpr int64_t kMembers = 512;  // their values stay in the first-level cache between the two passes
  while (begin < end) {
    const int64_t first = lists.group_start[begin];
    int64_t stop = begin + 1;
    while (stop < end && lists.group_start[stop + 1] - first <= kMembers) ++stop;
    draw(lists.member_pixel + first, lists.member_is_target + first, lists.member_slot + first,
         lists.group_start[stop] - first, key, state);
    for (int64_t group = begin; group < stop; ++group) share_group<f4, float>(lists, group, state);
    begin = stop;
  }
}

void make_merges(const TransportLists& lists, int64_t begin, int64_t end, f4* state) {
  for (int64_t merge = begin; merge < end; ++merge) sum_merge<f4, float>(lists, merge, state);
}

WR_INLINE void transpose(f4 v[4]) {
  const f4 a = __builtin_shufflevector(v[0], v[1], 0, 4, 1, 5), b = __builtin_shufflevector(v[0], v[1], 2, 6, 3, 7);
  const f4 c = __builtin_shufflevector(v[2], v[3], 0, 4, 1, 5), d = __builtin_shufflevector(v[2], v[3], 2, 6, 3, 7);
  v[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5);
  v[1] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
  v[2] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
  v[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
}

void load(const float* const planes[4], int64_t pixels, f4* state) {
  int64_t i = 0;
  for (; i + 4 <= pixels; i += 4) {
    f4 v[4] = {};
    for (int k = 0; k < 4; ++k) {
      if (planes[k]) std::memcpy(&v[k], planes[k] + i, sizeof(f4));
    }
    transpose(v);
    for (int k = 0; k < 4; ++k) state[i + k] = v[k];
  }
  for (; i < pixels; ++i) {
    for (int k = 0; k < 4; ++k) state[i][k] = planes[k] ? planes[k][i] : 0.0f;
  }
}

void store(const f4* values, int64_t count, float* const planes[4]) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    f4 v[4] = {values[i], values[i + 1], values[i + 2], values[i + 3]};
    transpose(v);
    for (int k = 0; k < 4; ++k) {
      if (planes[k]) std::memcpy(planes[k] + i, &v[k], sizeof(f4));
    }
  }
  for (; i < count; ++i) {
    for (int k = 0; k < 4; ++k) {
      if (planes[k]) planes[k][i] = values[i][k];
    }
  }
}

void reduce_row(const int32_t* slots, const f4* state, int64_t width, int64_t row, int reduce, f4* sums,
                float* const planes[4]) {
  const int32_t* line = slots + row * reduce * width;
  for (int64_t x = 0; x < width; ++x) sums[x] = state[line[x]];
  for (int i = 1; i < reduce; ++i) {
    line += width;
    for (int64_t x = 0; x < width; ++x) sums[x] += state[line[x]];
  }
  const int64_t count = width / reduce;
  if (reduce > 1) {
    for (int64_t j = 0; j < count; ++j) {
      const f4* block = sums + j * reduce;
      f4 total = block[0];
      for (int i = 1; i < reduce; ++i) total += block[i];
      sums[j] = total / (float)reduce;
    }
  }
  store(sums, count, planes);
}

const TransportKernels kKernels = {load, make_fresh_rows, make_groups, make_merges, reduce_row};

}  // namespace

const TransportKernels* WR_ISA_NAME(transport_kernels)() { return &kKernels; }

}  // namespace worldr1
