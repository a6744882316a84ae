// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Dot products of the halves over one tile, compiled for each instruction set.
#include "agvm/agvm.h"
#include "core/lanes.h"

namespace lb::LB_ISA {

// sums = (sum of a a, of b b, of a b).
void half_dots_tile(const Row& row, const void* grad, const HalfDots& dots, Tile tile,
                    double* sums) {
  LaneSum aa, bb, ab;
  visit_halves(row.grad_dtype, row.dtypes[kHalfSquare], [&](auto g_type, auto v_type) LB_INLINE {
    using T = typename decltype(g_type)::type;
    using V = typename decltype(v_type)::type;
    using R = real_t<T>;
    const T* __restrict x = static_cast<const T*>(grad) + tile.start;
    const T* __restrict y = row.role<T>(kHalfSum) + tile.start;
    [[maybe_unused]] const V* __restrict v = row.role<V>(kHalfSquare);
    if constexpr (!std::is_void_v<V>) v += tile.start;
    const HalvesRule<R> rule(dots);
    const auto add = [&](int64_t i, int lane) LB_INLINE {
      R a = rule.a(to_real(x[i]), to_real(y[i]));
      R b = rule.b(to_real(x[i]), to_real(y[i]));
      if constexpr (!std::is_void_v<V>) {
        const R square = R(to_real(v[i]));
        a = rule.precondition(a, square);
        b = rule.precondition(b, square);
      }
      aa.lanes[lane] += double(a) * double(a);
      bb.lanes[lane] += double(b) * double(b);
      ab.lanes[lane] += double(a) * double(b);
    };
    for_lanes(tile.numel, add, [&](int64_t first) LB_INLINE {
      ask_ahead(x + first);
      ask_ahead(y + first);
      if constexpr (!std::is_void_v<V>) ask_ahead(v + first);
    });
  });
  sums[0] = aa.total();
  sums[1] = bb.total();
  sums[2] = ab.total();
}

}  // namespace lb::LB_ISA
