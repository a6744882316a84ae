// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// How a CPU loop walks a tile, and how it sums. Included by the x_cpu.inl files only.
//
// Element i of a tile belongs to lane i mod kLanes, whatever the width of the machine's vectors;
// each lane is summed in fp64 in the order of its elements and the lanes are added in a fixed
// tree. Hence the same bits for every instruction set. 64 fp64 lanes are what hides the latency
// of the additions (measured: 64 lanes run at the speed of a loop without sums, 16 do not).
//
// Squares of finite fp32 numbers neither overflow nor vanish in fp64.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/fetch.h"
#include "core/macros.h"

// With errno set by sqrtf no loop that has one is vectorised: 6 to 23 times slower.
#if defined(__GNUC__) && !defined(__clang__) && !defined(__NO_MATH_ERRNO__)
#error "The CPU loops need -fno-math-errno"
#endif

namespace lb {

constexpr int kLanes = 64;

struct LaneSum {
  double lanes[kLanes] = {};

  LB_HD double total() {
    for (int width = kLanes / 2; width > 0; width /= 2) {
      for (int l = 0; l < width; ++l) lanes[l] += lanes[l + width];
    }
    return lanes[0];
  }
};

// Asks for the elements of a stride that is a page ahead of this one: for loops that do nothing but
// read, which the processor's own prefetching does not feed fast enough (measured: 1.4 times as
// fast). What is asked for beyond an array is ignored.
template <class T>
LB_HD void ask_ahead(const T* stride) {
  constexpr size_t kPage = 4096;
  const auto ahead = reinterpret_cast<uintptr_t>(stride) + kPage;
  for (size_t at = 0; at < kLanes * sizeof(T); at += kLine) {
    __builtin_prefetch(reinterpret_cast<const void*>(ahead + at));
  }
}

struct Nothing {
  LB_HD void operator()(int64_t) const {}
};

// Calls body(i, lane) for every i in [0, n). The calls of one stride may run at the same time.
// Before each, prepare(first of its elements).
template <class Body, class Prepare = Nothing>
LB_HD void for_lanes(int64_t n, Body body, Prepare prepare = {}) {
  int64_t first = 0;
  for (; first + kLanes <= n; first += kLanes) {
    prepare(first);
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) body(first + l, l);
  }
  const int rest = int(n - first);
#pragma omp simd
  for (int l = 0; l < rest; ++l) body(first + l, l);
}

}  // namespace lb
