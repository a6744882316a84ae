// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Random bits as a pure function of (seed, tensor, step, element): the same on every backend, and
// nothing to store. Philox4x32-10: Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as
// easy as 1, 2, 3" (SC11).
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace lb {

// The stream of one tensor in one step.
struct RandomStream {
  uint32_t key0, key1;
  uint32_t step, tensor;
};

LB_HD RandomStream random_stream(uint64_t seed, uint64_t tensor, int64_t step) {
  return {uint32_t(seed), uint32_t(seed >> 32) ^ uint32_t(tensor >> 32), uint32_t(step),
          uint32_t(tensor)};
}

// One call serves four elements: words[k] is that of element 4 quad + k.
LB_HD_CALL void random_words(const RandomStream& stream, int64_t quad, uint32_t (&words)[4]) {
  constexpr uint64_t kMultiplier0 = 0xD2511F53, kMultiplier1 = 0xCD9E8D57;
  uint32_t a = uint32_t(quad), b = uint32_t(uint64_t(quad) >> 32);
  uint32_t c = stream.step, d = stream.tensor;
  uint32_t key0 = stream.key0, key1 = stream.key1;
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = kMultiplier0 * a, second = kMultiplier1 * c;
    a = uint32_t(second >> 32) ^ b ^ key0;
    b = uint32_t(second);
    c = uint32_t(first >> 32) ^ d ^ key1;
    d = uint32_t(first);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  words[0] = a;
  words[1] = b;
  words[2] = c;
  words[3] = d;
}

// The halves of an element's word: 16 bits to round its weight by, 16 for its momentum.
LB_HD uint32_t weight_bits(uint32_t word) { return word & 0xffffu; }
LB_HD uint32_t momentum_bits(uint32_t word) { return word >> 16; }

}  // namespace lb
