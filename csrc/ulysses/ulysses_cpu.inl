// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Rows, and sums of the copies of heads, some tokens at a time, compiled for each instruction set.
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "core/fetch.h"
#include "core/macros.h"
#include "core/visit.h"
#include "ulysses/ulysses.h"

namespace lb::LB_ISA {

namespace {

// memcpy of whole lines, to memory and not to the cache. The compiler has no such store of its own.
LB_HD void copy_past_the_cache([[maybe_unused]] char* to, [[maybe_unused]] const char* from,
                               [[maybe_unused]] int64_t bytes) {
#if defined(__AVX512F__)
  for (int64_t i = 0; i < bytes; i += 64) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + i), _mm512_loadu_si512(from + i));
  }
#elif defined(__AVX2__)
  for (int64_t i = 0; i < bytes; i += 32) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + i),
                        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i)));
  }
#elif defined(__SSE2__)
  for (int64_t i = 0; i < bytes; i += 16) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
  }
#else
  __builtin_memcpy(to, from, size_t(bytes));
#endif
}

// Calls copy(to, from) for every row of tokens [begin, end).
template <class Copy>
LB_HD void for_rows(const Rows& rows, int64_t begin, int64_t end, Copy copy) {
  const RowStrides &from_strides = rows.from_strides, &to_strides = rows.to_strides;
  for (int64_t token = begin; token < end; ++token) {
    for (int64_t b = 0; b < rows.batch; ++b) {
      const char* from = rows.from + token * from_strides.token + b * from_strides.batch;
      char* to = rows.to + token * to_strides.token + b * to_strides.batch;
      for (int64_t h = 0; h < rows.heads; ++h) {
        copy(to + h * to_strides.head, from + (rows.first + h) / rows.replicas * from_strides.head);
      }
    }
  }
}

bool writes_lines(const Rows& rows) {
  const int64_t strides = rows.to_strides.token | rows.to_strides.batch | rows.to_strides.head;
  return (int64_t(reinterpret_cast<uintptr_t>(rows.to)) | rows.bytes | strides) % kLine == 0;
}

constexpr int64_t kChunk = 64;  // elements that are summed in registers over all copies

template <class T>
LB_HD T load(const char* at) {
  T x;
  __builtin_memcpy(&x, at, sizeof x);  // of any alignment
  return x;
}

// Sums `count` elements, at `offset` bytes into the rows of head h.
template <class T>
LB_OUTLINE void sum_chunk(const HeadSums& sums, int64_t token, int64_t b, int64_t h, int64_t offset,
                          int64_t count) {
  real_t<T> total[kChunk];
  const int64_t begin = h * sums.replicas, end = begin + sums.replicas;
  for (int64_t p = 0; p < sums.num_copies; ++p) {
    const HeadCopies& copies = sums.copies[p];
    const int64_t last = copies.first + copies.heads < end ? copies.first + copies.heads : end;
    for (int64_t m = copies.first > begin ? copies.first : begin; m < last; ++m) {
      const char* from = copies.from + token * copies.strides.token + b * copies.strides.batch +
                         (m - copies.first) * copies.strides.head + offset;
      if (m == begin) {
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) {
          total[i] = to_real(load<T>(from + i * int64_t(sizeof(T))));
        }
      } else {
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) {
          total[i] += to_real(load<T>(from + i * int64_t(sizeof(T))));
        }
      }
    }
  }
  char* to = sums.to + token * sums.strides.token + b * sums.strides.batch + h * sums.strides.head +
             offset;
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const T x = from_real<T>(total[i]);
    __builtin_memcpy(to + i * int64_t(sizeof(T)), &x, sizeof x);
  }
}

}  // namespace

void ulysses_move_tokens(const Rows* rows, int64_t count, int64_t begin, int64_t end,
                         bool past_the_cache) {
  for (int64_t i = 0; i < count; ++i) {
    const Rows& r = rows[i];
    const int64_t last = end < r.tokens ? end : r.tokens;
    if (past_the_cache && writes_lines(r)) {
      for_rows(r, begin, last, [&](char* to, const char* from) LB_INLINE {
        copy_past_the_cache(to, from, r.bytes);
      });
    } else {
      for_rows(r, begin, last, [&](char* to, const char* from) LB_INLINE {
        __builtin_memcpy(to, from, size_t(r.bytes));
      });
    }
  }
#if defined(__SSE2__)
  if (past_the_cache) _mm_sfence();  // before anyone is told that they are written
#endif
}

void ulysses_sum_token(const HeadSums& sums, int64_t token) {
  visit(sums.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    for (int64_t b = 0; b < sums.batch; ++b) {
      for (int64_t h = 0; h < sums.heads; ++h) {
        for (int64_t d = 0; d < sums.dim; d += kChunk) {
          const int64_t count = sums.dim - d < kChunk ? sums.dim - d : kChunk;
          sum_chunk<T>(sums, token, b, h, d * int64_t(sizeof(T)), count);
        }
      }
    }
  });
}

}  // namespace lb::LB_ISA
