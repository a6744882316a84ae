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

#include <cstdint>

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

// Calls body(i, lane) for every i in [0, n). The calls of one stride may run at the same time.
template <class Body>
LB_HD void for_lanes(int64_t n, Body body) {
  int64_t first = 0;
  for (; first + kLanes <= n; first += kLanes) {
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) body(first + l, l);
  }
  const int rest = int(n - first);
#pragma omp simd
  for (int l = 0; l < rest; ++l) body(first + l, l);
}

}  // namespace lb
