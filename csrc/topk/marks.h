// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Which of 64 neighbours have a key from a threshold on, as 64 bits. Included by the x_cpu.inl
// files only. Compilers make bytes of comparisons, and those into bits one by one: on fp32 with
// AVX-512 the intrinsics below take a fifth of the time.
#pragma once

#include <cstdint>

#include "core/lanes.h"
#include "topk/topk_rule.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace lb {

static_assert(kLanes == 64, "a bit for each of them");

template <class T>
LB_HD uint64_t marks_of(const T* __restrict x, key_t<T> low) {
#if defined(__AVX512BW__)
  if constexpr (sizeof(T) == 4) {
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff), from = _mm512_set1_epi32(int(low));
    uint64_t marks = 0;
    for (int part = 0; part < 4; ++part) {
      const __m512i key = _mm512_and_si512(_mm512_loadu_si512(x + 16 * part), magnitude);
      marks |= uint64_t(_mm512_cmpge_epu32_mask(key, from)) << 16 * part;
    }
    return marks;
  } else if constexpr (sizeof(T) == 2) {
    const __m512i magnitude = _mm512_set1_epi16(0x7fff), from = _mm512_set1_epi16(short(low));
    uint64_t marks = 0;
    for (int part = 0; part < 2; ++part) {
      const __m512i key = _mm512_and_si512(_mm512_loadu_si512(x + 32 * part), magnitude);
      marks |= uint64_t(_mm512_cmpge_epu16_mask(key, from)) << 32 * part;
    }
    return marks;
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    // Keys are not negative, so that the comparison of signed numbers serves.
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff),
                  below = _mm256_set1_epi32(int(low) - 1);
    uint64_t marks = 0;
    for (int part = 0; part < 8; ++part) {
      const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 8 * part));
      const __m256i mark = _mm256_cmpgt_epi32(_mm256_and_si256(bits, magnitude), below);
      marks |= uint64_t(uint32_t(_mm256_movemask_ps(_mm256_castsi256_ps(mark)))) << 8 * part;
    }
    return marks;
  }
#endif
  alignas(kLanes) uint8_t bytes[kLanes];
#pragma omp simd
  for (int l = 0; l < kLanes; ++l) bytes[l] = key_of(x[l]) >= low;
  uint64_t marks = 0;
  for (int word = 0; word < 8; ++word) {  // the product brings eight bytes of 0 or 1 together
    uint64_t eight;
    __builtin_memcpy(&eight, bytes + 8 * word, sizeof eight);
    marks |= (eight * 0x0102040810204080u >> 56) << 8 * word;
  }
  return marks;
}

// Calls found(i) for the elements with keys from `low` on, in order. Of keys, too.
template <class T, class Found>
LB_HD void for_keys_from(const T* __restrict x, int64_t n, key_t<T> low, Found found) {
  int64_t first = 0;
  for (; first + kLanes <= n; first += kLanes) {
    for (uint64_t marks = marks_of(x + first, low); marks != 0; marks &= marks - 1) {
      found(first + __builtin_ctzll(marks));
    }
  }
  for (; first < n; ++first) {
    if (key_of(x[first]) >= low) found(first);
  }
}

// Lists the offsets of the elements with keys from `low` on, in order; returns how many. Four
// places are written for every 64 elements whether there are as many or not: few have more, and a
// branch for each would be guessed wrong. The list needs kLanes places more than it takes.
template <class T>
LB_HD int list_keys_from(const T* __restrict x, int n, key_t<T> low, uint32_t* __restrict offsets) {
  constexpr int kAhead = 8192 / int(sizeof(T));  // the next blocks come while this one is done
  int listed = 0, first = 0;
  for (; first + kLanes <= n; first += kLanes) {
    for (int line = 0; line < kLanes; line += 64 / int(sizeof(T))) {
      __builtin_prefetch(x + first + line + kAhead);
    }
    uint64_t marks = marks_of(x + first, low);
    const int count = __builtin_popcountll(marks);
    for (int at = 0; at < count; at += 4) {
      for (int k = 0; k < 4; ++k, marks &= marks - 1) {
        offsets[listed + at + k] =
            uint32_t(first + int(__builtin_ctzll(marks | uint64_t(1) << 63)));
      }
    }
    listed += count;
  }
  for (; first < n; ++first) {
    if (key_of(x[first]) >= low) offsets[listed++] = uint32_t(first);
  }
  return listed;
}

}  // namespace lb
