// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Lion on one tile, compiled for each instruction set.
#include "lion/lion_chunk.h"

namespace lb::LB_ISA {

namespace {

template <class W, class G>
LB_HD int64_t plain_tile(const Row& row, const G* grad, const LionScalars& scalars, Tile tile) {
  using R = real_t<W>;
  W* __restrict p = row.role<W>(kLionWeights) + tile.start;
  const G* __restrict g = grad + tile.start;
  R* __restrict m = row.role<R>(kLionExpAvg) + tile.start;
  const LionRule<R> rule(scalars);
  R bad[kLanes] = {};  // counts, in the type whose comparison they come from: no conversions
  for_lanes(tile.numel, [&](int64_t i, int lane) LB_INLINE {
    const R gradient = rule.gradient(R(to_real(g[i])));
    const R c = rule.direction(gradient, m[i]);
    p[i] = from_real<W>(rule.weights(to_real(p[i]), lion_sign(c)));
    m[i] = rule.momentum(gradient, m[i]);
    bad[lane] += is_nonfinite(c) ? R(1) : R(0);
  });
  int64_t nonfinite = 0;
  for (R count : bad) nonfinite += int64_t(count);
  return nonfinite;
}

template <class W, class G>
LB_HD int64_t general_tile(const Row& row, const G* grad, const LionScalars& scalars, Tile tile) {
  using R = real_t<W>;
  const LionRule<R> rule(scalars);
  const bool random = lion_draws(row, scalars);
  R bad[kLanes] = {};
  R m[kChunk], u[kChunk];
  uint32_t words[kWords];
  for (int64_t first = 0; first < tile.numel; first += kChunk) {
    const int64_t at = tile.start + first;
    const int n = int(tile.numel - first < kChunk ? tile.numel - first : kChunk);
    const G* __restrict g = grad + at;
    load_momentum(row, at, n, m);
    for_lanes(n, [&](int64_t i, int lane) LB_INLINE {
      const R gradient = rule.gradient(R(to_real(g[i])));
      u[i] = rule.direction(gradient, m[i]);
      m[i] = rule.momentum(gradient, m[i]);
      bad[lane] += is_nonfinite(u[i]) ? R(1) : R(0);
    });
    to_subgradient(scalars.kappa, scalars.parameter, n, u);
    const uint32_t* bits = random ? load_words(scalars.random, at, n, words) : nullptr;
    store_weights(row.role<W>(kLionWeights) + at, n, rule, u, bits);
    store_momentum(row, at, n, m, bits);
  }
  int64_t nonfinite = 0;
  for (R count : bad) nonfinite += int64_t(count);
  return nonfinite;
}

}  // namespace

// The step of a tile; returns how many elements of c are not finite.
int64_t lion_step_tile(const Row& row, const void* grad, const LionScalars& scalars, Tile tile) {
  int64_t nonfinite = 0;
  visit_weights_and_grad(
      row.dtypes[kLionWeights], row.grad_dtype, [&](auto w_type, auto g_type) LB_INLINE {
        using W = typename decltype(w_type)::type;
        using G = typename decltype(g_type)::type;
        const G* g = static_cast<const G*>(grad);
        nonfinite = row.variant == kLionPlain ? plain_tile<W>(row, g, scalars, tile)
                                              : general_tile<W>(row, g, scalars, tile);
      });
  copy_weights(row, kLionWeights, kLionCopy, tile);
  return nonfinite;
}

}  // namespace lb::LB_ISA
