// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Sum of squares of one tile, compiled for each instruction set.
#include "core/lanes.h"
#include "core/visit.h"

namespace lb::LB_ISA {

double sq_sum_tile(DType dtype, const void* data, int64_t start, int64_t n) {
  LaneSum sum;
  visit(dtype, [&](auto tag) LB_INLINE {
    using T = typename decltype(tag)::type;
    const T* __restrict x = static_cast<const T*>(data) + start;
    const auto add = [&](int64_t i, int lane) LB_INLINE {
      const double value = double(to_real(x[i]));
      sum.lanes[lane] += value * value;
    };
    for_lanes(n, add, [&](int64_t first) LB_INLINE { ask_ahead(x + first); });
  });
  return sum.total();
}

}  // namespace lb::LB_ISA
