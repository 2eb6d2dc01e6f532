// Philox4x32-10 (Salmon et al., SC 2011, Random123) and the uniforms made of its words, for the CPU and the GPU.
//
// The definition, with the Box-Muller step and the streams, is worldr1_kernels/philox.py: every backend draws the same words.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace worldr1 {
namespace {

constexpr uint32_t kStreamSde = 1;
constexpr uint32_t kStreamTransportSource = 2;
constexpr uint32_t kStreamTransportTarget = 3;

struct Philox4 {
  uint32_t x[4];
};

WR_HD Philox4 philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint64_t seed) {
  uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = (uint64_t)c0 * 0xD2511F53u, p1 = (uint64_t)c2 * 0xCD9E8D57u;
    c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
    c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
    c1 = (uint32_t)p1;
    c3 = (uint32_t)p0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// The keys of the ten rounds, worked out on the host: on a device they are then constants, and cost no instruction.
struct PhiloxKeys {
  uint32_t of_round[10][2];
};

inline PhiloxKeys philox_keys(uint64_t seed) {
  PhiloxKeys keys;
  for (uint32_t round = 0; round < 10; ++round) {
    keys.of_round[round][0] = (uint32_t)seed + round * 0x9E3779B9u;
    keys.of_round[round][1] = (uint32_t)(seed >> 32) + round * 0xBB67AE85u;
  }
  return keys;
}

// philox4x32 with the keys of `philox_keys(seed)`.
WR_HD Philox4 philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, const PhiloxKeys& keys) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = (uint64_t)c0 * 0xD2511F53u, p1 = (uint64_t)c2 * 0xCD9E8D57u;
    c0 = (uint32_t)(p1 >> 32) ^ c1 ^ keys.of_round[round][0];
    c2 = (uint32_t)(p0 >> 32) ^ c3 ^ keys.of_round[round][1];
    c1 = (uint32_t)p1;
    c3 = (uint32_t)p0;
  }
  return {{c0, c1, c2, c3}};
}

// (x >> 9) 2^-23 + 2^-24: exact in float32, in (0, 1).
WR_HD float philox_uniform(uint32_t word) { return ((float)(word >> 9) + 0.5f) * 1.1920928955078125e-7f; }

// The angle 2 pi (u - 1/2) of Box-Muller, as worldr1_kernels/philox.py rounds it.
WR_HD float philox_angle(uint32_t word) {
  return ((float)((int32_t)(word >> 9) - (1 << 22)) + 0.5f) * 7.490140565847857e-7f;  // 2 pi 2^-23
}

}  // namespace
}  // namespace worldr1
