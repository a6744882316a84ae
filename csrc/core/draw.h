// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Indices drawn at random, distinct, as a pure function of (seed, id, step, slot): every rank draws
// the same ones, and none are sent.
#pragma once

#include <cstdint>

#include "core/philox.h"
#include "core/record.h"

namespace lb {

struct Draw {
  Record record;
  RandomStream stream;
  int half;          // bits of half an index
  uint32_t keys[8];  // of the rounds

  LB_HD Draw(const Record& r, int64_t step)
      : record(r), stream(random_stream(r.seed, r.id, step)), half(1) {
    while ((int64_t(1) << 2 * half) < r.numel) ++half;
    uint32_t words[4];
    for (int quad = 0; quad < 2; ++quad) {
      random_words(stream, quad, words);
      for (int k = 0; k < 4; ++k) keys[4 * quad + k] = words[k];
    }
  }

  LB_HD int64_t operator()(int64_t slot) const {
    return record.select == Select::random ? permuted(slot) : stratified(slot);
  }

 private:
  // "lowbias32" of C. Wellons: two multiplications that mix 32 bits well.
  static LB_HD uint32_t mix(uint32_t x) {
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
  }

  // A Feistel network permutes [0, 4^half); walking its cycle from a number below numel to the next
  // such number permutes [0, numel).
  LB_HD int64_t permuted(int64_t slot) const {
    const uint64_t mask = (uint64_t(1) << half) - 1;
    uint64_t x = uint64_t(slot);
    do {
      uint64_t left = x >> half, right = x & mask;
      for (int round = 0; round < 6; ++round) {
        const uint64_t next = left ^ (mix(uint32_t(right) + keys[round]) & mask);
        left = right;
        right = next;
      }
      x = left << half | right;
    } while (x >= uint64_t(record.numel));
    return int64_t(x);
  }

  // One index in each of `slots` parts of nearly the same length.
  LB_HD int64_t stratified(int64_t slot) const {
    const int64_t start = part(slot), length = part(slot + 1) - start;
    uint32_t words[4];
    random_words(stream, slot / 4, words);
    return start + int64_t(uint64_t(words[slot % 4]) * uint64_t(length) >> 32);
  }
  // floor(slot * numel / slots), whose product may have 80 bits.
  LB_HD int64_t part(int64_t slot) const {
    const int64_t whole = record.numel / record.slots, rest = record.numel % record.slots;
    return slot * whole + slot * rest / record.slots;
  }
};

}  // namespace lb
