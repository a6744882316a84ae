// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// LARS on one tile, compiled for each instruction set.
#include "core/model_copy.h"
#include "core/visit.h"
#include "lars/lars.h"

namespace lb::LB_ISA {

// sums = (sum of squares of weights, of the unscaled gradient).
void lars_norms_tile(const Row& row, const void* grad, double grad_scale, Tile tile, double* sums) {
  LaneSum w_sum, g_sum;
  visit_weights_and_grad(
      row.dtypes[kLarsWeights], row.grad_dtype, [&](auto w_type, auto g_type) LB_INLINE {
        using W = typename decltype(w_type)::type;
        using G = typename decltype(g_type)::type;
        const W* __restrict w = row.role<W>(kLarsWeights) + tile.start;
        const G* __restrict g = static_cast<const G*>(grad) + tile.start;
        for_lanes(tile.numel, [&](int64_t i, int lane) LB_INLINE {
          const double weight = double(to_real(w[i])), gradient = double(to_real(g[i]));
          w_sum.lanes[lane] += weight * weight;
          g_sum.lanes[lane] += gradient * gradient;
        });
      });
  sums[0] = w_sum.total();
  sums[1] = g_sum.total() / (grad_scale * grad_scale);
}

// Weights and momentum of a tile; the copy is what the model computes with.
void lars_apply_tile(const Row& row, const void* grad, const LarsScalars& scalars,
                     double trust_ratio, Tile tile) {
  visit_weights_and_grad(
      row.dtypes[kLarsWeights], row.grad_dtype, [&](auto w_type, auto g_type) LB_INLINE {
        using W = typename decltype(w_type)::type;
        using G = typename decltype(g_type)::type;
        using R = real_t<W>;
        W* __restrict w = row.role<W>(kLarsWeights) + tile.start;
        const G* __restrict g = static_cast<const G*>(grad) + tile.start;
        const LarsRule<R> rule(scalars, trust_ratio);
        if (row.data[kLarsMomentum] != nullptr) {
          R* __restrict buf = row.role<R>(kLarsMomentum) + tile.start;
          for_lanes(tile.numel, [&](int64_t i, int) LB_INLINE {
            R buffer = buf[i];
            w[i] = from_real<W>(rule.with_momentum(to_real(w[i]), R(to_real(g[i])), buffer));
            buf[i] = buffer;
          });
        } else {
          for_lanes(tile.numel, [&](int64_t i, int) LB_INLINE {
            w[i] = from_real<W>(rule.without_momentum(to_real(w[i]), R(to_real(g[i]))));
          });
        }
      });
  copy_weights(row, kLarsWeights, kLarsCopy, tile);
}

}  // namespace lb::LB_ISA
