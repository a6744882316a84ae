// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Adan on one tile, compiled for each instruction set.
#include "adan/adan.h"
#include "core/model_copy.h"
#include "core/visit.h"

namespace lb::LB_ISA {

// The step of a tile; returns how many of its updates are not finite.
int64_t adan_step_tile(const Row& row, const void* grad, const AdanScalars& scalars, Tile tile) {
  int64_t nonfinite = 0;
  visit_weights_and_grad(
      row.dtypes[kAdanWeights], row.grad_dtype, [&](auto w_type, auto g_type) LB_INLINE {
        using W = typename decltype(w_type)::type;
        using G = typename decltype(g_type)::type;
        using R = real_t<W>;
        W* __restrict p = row.role<W>(kAdanWeights) + tile.start;
        const G* __restrict g = static_cast<const G*>(grad) + tile.start;
        R* __restrict m = row.role<R>(kAdanExpAvg) + tile.start;
        R* __restrict v = row.role<R>(kAdanExpAvgDiff) + tile.start;
        R* __restrict n = row.role<R>(kAdanExpAvgSq) + tile.start;
        R* __restrict neg_q = row.role<R>(kAdanNegPreGrad) + tile.start;
        const AdanRule<R> rule(scalars);
        R bad[kLanes] = {};  // counts, in the type whose comparison they come from: no conversions
        for_lanes(tile.numel, [&](int64_t i, int lane) LB_INLINE {
          R m_new = m[i], v_new = v[i], n_new = n[i], neg_q_new = neg_q[i];
          const R update = rule.update(R(to_real(g[i])), m_new, v_new, n_new, neg_q_new);
          p[i] = from_real<W>(rule.weights(to_real(p[i]), update));
          m[i] = m_new;
          v[i] = v_new;
          n[i] = n_new;
          neg_q[i] = neg_q_new;
          bad[lane] += is_nonfinite(update) ? R(1) : R(0);
        });
        for (R count : bad) nonfinite += int64_t(count);
      });
  copy_weights(row, kAdanWeights, kAdanCopy, tile);
  return nonfinite;
}

}  // namespace lb::LB_ISA
