// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// LAMB on one tile, compiled for each instruction set.
#include "core/model_copy.h"
#include "core/visit.h"
#include "lamb/lamb.h"

namespace lb::LB_ISA {

// Moments of a tile; sums = (sum of squares of weights, of update).
void lamb_moments_tile(const Row& row, const void* grad, const LambScalars& scalars, Tile tile,
                       double* sums) {
  LaneSum w_sum, u_sum;
  visit_weights_and_grad(row.dtypes[kLambWeights], row.grad_dtype,
                         [&](auto w_type, auto g_type) LB_INLINE {
                           using W = typename decltype(w_type)::type;
                           using G = typename decltype(g_type)::type;
                           using R = real_t<W>;
                           const W* __restrict w = row.role<W>(kLambWeights) + tile.start;
                           const G* __restrict g = static_cast<const G*>(grad) + tile.start;
                           R* __restrict m = row.role<R>(kLambExpAvg) + tile.start;
                           R* __restrict v = row.role<R>(kLambExpAvgSq) + tile.start;
                           const LambRule<R> rule(scalars);
                           for_lanes(tile.numel, [&](int64_t i, int lane) LB_INLINE {
                             const R weight = rule.weights(to_real(w[i]));
                             R m_new = m[i], v_new = v[i];
                             rule.moments(weight, R(to_real(g[i])), m_new, v_new);
                             const R update = rule.update(weight, m_new, v_new);
                             m[i] = m_new;
                             v[i] = v_new;
                             w_sum.lanes[lane] += double(weight) * double(weight);
                             u_sum.lanes[lane] += double(update) * double(update);
                           });
                         });
  sums[0] = w_sum.total();
  sums[1] = u_sum.total();
}

// Weights of a tile, step_size = lr * r; the copy is what the model computes with.
void lamb_apply_tile(const Row& row, const LambScalars& scalars, double step_size, Tile tile) {
  visit(row.dtypes[kLambWeights], [&](auto w_type) LB_INLINE {
    using W = typename decltype(w_type)::type;
    using R = real_t<W>;
    W* __restrict w = row.role<W>(kLambWeights) + tile.start;
    const R* __restrict m = row.role<R>(kLambExpAvg) + tile.start;
    const R* __restrict v = row.role<R>(kLambExpAvgSq) + tile.start;
    const LambRule<R> rule(scalars);
    const R size = R(step_size);
    for_lanes(tile.numel, [&](int64_t i, int) LB_INLINE {
      const R weight = rule.weights(to_real(w[i]));
      w[i] = from_real<W>(weight - size * rule.update(weight, m[i], v[i]));
    });
  });
  copy_weights(row, kLambWeights, kLambCopy, tile);
}

}  // namespace lb::LB_ISA
