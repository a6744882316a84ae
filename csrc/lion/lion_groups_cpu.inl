// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Lion-K on one tile of groups, compiled for each instruction set: c of a band of them, then their
// stats, then their weights.
#include "core/fetch.h"
#include "lion/lion_chunk.h"

namespace lb::LB_ISA {

namespace {

// What is reduced and used at once: rows of `columns` neighbours of a tile, whole groups of it or
// parts. c lies in a buffer of its own, a row after the other.
struct Band {
  int64_t start, stride;  // of its first element in the tensor; between its rows
  int64_t rows, columns, width;
  int64_t groups;
};

// The weights of a band are needed right after its sums, which wait for no memory: they come
// meanwhile.
LB_HD void prefetch(const Row& row, int64_t at, int n) {
  const int64_t size = size_of(row.dtypes[kLionWeights]);
  const char* weights = row.role<char>(kLionWeights) + at * size;
  for (int64_t byte = 0; byte < n * size; byte += kLine) __builtin_prefetch(weights + byte, 1);
}

// c of a band, or what stands in its place; and the new momentum, if `store`. Returns how many are
// not finite.
template <class R, class G>
LB_OUTLINE int64_t directions(const Row& row, const G* grad, const LionScalars& scalars,
                              const Band& band, bool store, R* c) {
  const LionRule<R> rule(scalars);
  const bool random = store && lion_draws(row, scalars);
  constexpr DType kOwn = dtype_of<R>::value;
  R bad[kLanes] = {};
  R m[kChunk];
  uint32_t words[kWords];
  for (int64_t r = 0; r < band.rows; ++r) {
    for (int64_t first = 0; first < band.columns; first += kChunk) {
      const int64_t rest = band.columns - first, at = band.start + r * band.stride + first;
      const int n = int(rest < kChunk ? rest : kChunk);
      const G* __restrict g = grad + at;
      R* __restrict to = c + r * band.columns + first;
      if (store) prefetch(row, at, n);
      if (store && row.dtypes[kLionExpAvg] == kOwn) {
        R* __restrict own = row.role<R>(kLionExpAvg) + at;
        for_lanes(n, [&](int64_t i, int lane) LB_INLINE {
          const R gradient = rule.gradient(R(to_real(g[i])));
          to[i] = rule.direction(gradient, own[i]);
          own[i] = rule.momentum(gradient, own[i]);
          bad[lane] += is_nonfinite(to[i]) ? R(1) : R(0);
        });
      } else {
        load_momentum(row, at, n, m);
        for_lanes(n, [&](int64_t i, int lane) LB_INLINE {
          const R gradient = rule.gradient(R(to_real(g[i])));
          to[i] = rule.direction(gradient, m[i]);
          m[i] = rule.momentum(gradient, m[i]);
          bad[lane] += is_nonfinite(to[i]) ? R(1) : R(0);
        });
        const uint32_t* bits = random ? load_words(scalars.random, at, n, words) : nullptr;
        if (store) store_momentum(row, at, n, m, bits);
      }
      if (scalars.kappa != LionKappa::cautious) continue;
      to_subgradient(scalars.base, scalars.parameter, n, to);
      for_lanes(n, [&](int64_t i, int) LB_INLINE {
        to[i] = lion_cautious(to[i], rule.gradient(R(to_real(g[i]))));
      });
    }
  }
  int64_t nonfinite = 0;
  for (R count : bad) nonfinite += int64_t(count);
  return nonfinite;
}

// Groups of a band that are reduced and used together, by lanes of neighbouring columns: one, or as
// many short ones as there are lanes for.
struct Strip {
  int64_t group, groups;  // the first of them in the band
  int64_t columns;
};

template <class F>
LB_HD void for_strips(const Band& band, F f) {
  const int64_t most = band.width < kLanes ? kLanes / band.width : 1;
  for (int64_t g = 0; g < band.groups; g += most) {
    const int64_t rest = band.groups - g, groups = rest < most ? rest : most;
    f(Strip{g, groups, groups * band.width});
  }
}

// Calls body(row, i, lane) for the columns i of a strip in each row of its band.
template <class F>
LB_HD void for_elements(const Band& band, const Strip& strip, F body) {
  for (int64_t r = 0; r < band.rows; ++r) {
    for_lanes(strip.columns, [&](int64_t i, int lane) LB_INLINE { body(r, i, lane); });
  }
}

// From numbers of the lanes to those of the groups of a strip, in place; and back.
template <class F>
LB_HD void fold_lanes(const Band& band, const Strip& strip, double* lanes, F merge) {
  if (strip.groups == 1) {
    for (int width = kLanes / 2; width > 0; width /= 2) {
      for (int l = 0; l < width; ++l) lanes[l] = merge(lanes[l], lanes[l + width]);
    }
    return;
  }
  for (int64_t k = 0; k < strip.groups; ++k) {
    double merged = lanes[k * band.width];
    for (int64_t i = 1; i < band.width; ++i) merged = merge(merged, lanes[k * band.width + i]);
    lanes[k] = merged;
  }
}

template <class T, class F>
LB_HD void spread_lanes(const Band& band, const Strip& strip, T* lanes, F of_group) {
  if (strip.groups == 1) {
    const T value = of_group(0);
    for (int l = 0; l < kLanes; ++l) lanes[l] = value;
    return;
  }
  for (int64_t k = strip.groups - 1; k >= 0; --k) {
    const T value = of_group(k);
    for (int64_t i = 0; i < band.width; ++i) lanes[k * band.width + i] = value;
  }
}

// stats[g * parts] = that of group g of the band.
template <class R>
LB_OUTLINE void reduce_band(const LionScalars& scalars, const Band& band, const R* c, int64_t parts,
                            LionStat* stats) {
  const LionReduction reduction = lion_reduction(scalars.kappa, scalars.relative);
  const auto plus = [](double x, double y) LB_INLINE { return x + y; };
  if (reduction == LionReduction::sum) {
    return visit_term<R>(scalars.kappa, [&](auto term) LB_INLINE {
      for_strips(band, [&](const Strip& strip) LB_INLINE {
        const R* __restrict of_strip = c + strip.group * band.width;
        double sums[kLanes] = {};
        for_elements(band, strip, [&](int64_t r, int64_t i, int lane) LB_INLINE {
          sums[lane] += term(of_strip[r * band.columns + i]);
        });
        fold_lanes(band, strip, sums, plus);
        for (int64_t k = 0; k < strip.groups; ++k) stats[(strip.group + k) * parts] = {sums[k], 0};
      });
    });
  }
  if (reduction == LionReduction::peak_and_sum) {
    const auto larger = [](double x, double y) LB_INLINE { return y > x ? y : x; };
    return visit_peak<R>(scalars.kappa, scalars.parameter, [&](auto height, auto term) LB_INLINE {
      for_strips(band, [&](const Strip& strip) LB_INLINE {
        const R* __restrict of_strip = c + strip.group * band.width;
        double peaks[kLanes], sums[kLanes] = {};
        for (double& peak : peaks) peak = -elementary::detail::kInfinity;
        for_elements(band, strip, [&](int64_t r, int64_t i, int lane) LB_INLINE {
          peaks[lane] = larger(peaks[lane], height(of_strip[r * band.columns + i]));
        });
        fold_lanes(band, strip, peaks, larger);
        for (int64_t k = 0; k < strip.groups; ++k) stats[(strip.group + k) * parts].a = peaks[k];
        spread_lanes(band, strip, peaks, [&](int64_t k) LB_INLINE { return peaks[k]; });
        for_elements(band, strip, [&](int64_t r, int64_t i, int lane) LB_INLINE {
          sums[lane] += term(of_strip[r * band.columns + i], peaks[lane]);
        });
        fold_lanes(band, strip, sums, plus);
        for (int64_t k = 0; k < strip.groups; ++k) stats[(strip.group + k) * parts].b = sums[k];
      });
    });
  }
  LionStat best = lion_nothing(reduction);  // the largest, which is of one group
  for (int64_t i = 0; i < band.rows * band.columns; ++i) {
    const int64_t r = i / band.columns;
    const double index = double(band.start + r * band.stride + i - r * band.columns);
    best = lion_merge(scalars.kappa, scalars.parameter, reduction, best,
                      {detail::magnitude(double(c[i])), index});
  }
  stats[0] = best;
}

// The finished stats of the groups of a strip, at its lanes.
template <class T>
struct LaneStats {
  T a[kLanes], b[kLanes];

  LB_HD LaneStats(const Band& band, const Strip& strip, const LionStat* stats) {
    const LionStat* of_strip = stats + strip.group;
    spread_lanes(band, strip, a, [&](int64_t k) LB_INLINE { return T(of_strip[k].a); });
    spread_lanes(band, strip, b, [&](int64_t k) LB_INLINE { return T(of_strip[k].b); });
  }
};

// c becomes u.
template <class R>
LB_OUTLINE void to_subgradient(const LionScalars& scalars, const Band& band, const LionStat* stats,
                               R* c) {
  visit_group_kappa<R>(scalars.kappa, scalars.parameter, [&](auto subgradient) LB_INLINE {
    for_strips(band, [&](const Strip& strip) LB_INLINE {
      const LaneStats<double> stat(band, strip, stats);
      R* __restrict u = c + strip.group * band.width;
      const int64_t at = band.start + strip.group * band.width;
      for_elements(band, strip, [&](int64_t r, int64_t i, int lane) LB_INLINE {
        R& x = u[r * band.columns + i];
        x = subgradient(x, {stat.a[lane], stat.b[lane]}, at + r * band.stride + i);
      });
    });
  });
}

// Weights of a band by its c.
template <class W, class R>
LB_HD void apply_band(const Row& row, const LionScalars& scalars, const Band& band,
                      const LionStat* stats, R* c) {
  const LionRule<R> rule(scalars);
  W* weights = row.role<W>(kLionWeights);
  const bool random = lion_draws(row, scalars);
  if (!random && lion_normalises(scalars.kappa)) {  // one loop, as they cost so little
    for_strips(band, [&](const Strip& strip) LB_INLINE {
      const LaneStats<R> stat(band, strip, stats);
      const R* __restrict of_strip = c + strip.group * band.width;
      W* __restrict p = weights + band.start + strip.group * band.width;
      for_elements(band, strip, [&](int64_t r, int64_t i, int lane) LB_INLINE {
        const R u = lion_normalised(of_strip[r * band.columns + i], stat.a[lane], stat.b[lane]);
        W& weight = p[r * band.stride + i];
        weight = from_real<W>(rule.weights(to_real(weight), u));
      });
    });
    return;
  }
  to_subgradient(scalars, band, stats, c);
  uint32_t words[kWords];
  for (int64_t r = 0; r < band.rows; ++r) {
    for (int64_t first = 0; first < band.columns; first += kChunk) {
      const int64_t rest = band.columns - first, at = band.start + r * band.stride + first;
      const int n = int(rest < kChunk ? rest : kChunk);
      store_weights(weights + at, n, rule, c + r * band.columns + first,
                    random ? load_words(scalars.random, at, n, words) : nullptr);
    }
  }
}

// Long rows over their own norms, as l2 and group_lasso have them: the c of a row is summed while
// the weights of the row before it move, so that memory never waits for a sum.
template <class W, class G>
LB_HD int64_t norm_rows(const Row& row, const G* grad, const LionScalars& scalars,
                        const LionGroup& group, const Block& block) {
  using R = real_t<W>;
  const LionRule<R> rule(scalars);
  const double scale =
      lion_scale(group.kappa, group.parameter, group.rms, row.numel, row.cut.groups);
  R c[kTile + kLanes];
  R a = 0, b = 0;  // of the row before
  int64_t nonfinite = 0;
  for (int64_t k = 0; k <= block.groups; ++k) {
    LaneSum squares;
    const int64_t start = block.start + k * block.width;
    const G* __restrict g = grad + start;
    R* __restrict m = row.role<R>(kLionExpAvg) + start;
    W* __restrict p = row.role<W>(kLionWeights) + start - block.width;
    R* __restrict to = c + k % 2 * (block.width + kLanes);
    const R* __restrict from = c + (k + 1) % 2 * (block.width + kLanes);
    const auto sum_up = [&](int64_t i, int lane) LB_INLINE {
      const R gradient = rule.gradient(R(to_real(g[i])));
      const R direction = rule.direction(gradient, m[i]);
      m[i] = rule.momentum(gradient, m[i]);
      squares.lanes[lane] += lion_square(direction);
      to[i] = direction;
    };
    const auto move = [&](int64_t i, int) LB_INLINE {
      p[i] = from_real<W>(rule.weights(to_real(p[i]), lion_normalised(from[i], a, b)));
    };
    for (int64_t first = 0; first < block.width; first += kChunk) {
      const int64_t rest = block.width - first, n = rest < kChunk ? rest : kChunk;
      if (k < block.groups) {
        for_lanes(n, [&](int64_t i, int lane) LB_INLINE { sum_up(first + i, lane); });
      }
      if (k > 0) for_lanes(n, [&](int64_t i, int lane) LB_INLINE { move(first + i, lane); });
    }
    if (k == block.groups) break;
    const double sum = squares.total();
    if (is_nonfinite(sum)) {
      for (int64_t i = 0; i < block.width; ++i) nonfinite += is_nonfinite(to[i]);
    }
    const LionStat stat = lion_finish(group.kappa, group.parameter, scale, block.width, {sum, 0});
    a = R(stat.a);
    b = R(stat.b);
  }
  return nonfinite;
}

template <class W, class G>
LB_HD int64_t group_tile(const Row& row, const G* grad, const LionScalars& scalars,
                         const LionGroup& group, const Block& block, double* sums) {
  using R = real_t<W>;
  if (row.variant == kLionGrouped && block.rows == 1 && block.width >= kLanes &&
      (scalars.kappa == LionKappa::l2 || scalars.kappa == LionKappa::group_lasso) &&
      row.dtypes[kLionExpAvg] == dtype_of<R>::value && !lion_draws(row, scalars)) {
    return norm_rows<W>(row, grad, scalars, group, block);
  }
  constexpr int64_t kBand = 2048;  // elements whose c is in the first-level cache
  R c[kTile];
  // Groups of one row are whole in a piece of it; those of more need all rows, or each other.
  const bool together = block.rows > 1 || scalars.kappa == LionKappa::l2_inf;
  const int64_t fit = together ? block.groups : kBand / block.width;
  const int64_t step = fit < 1 ? 1 : fit;
  int64_t nonfinite = 0;
  for (int64_t first = 0; first < block.groups; first += step) {
    const int64_t rest = block.groups - first, groups = rest < step ? rest : step;
    const Band band{block.start + first * block.width,
                    row.cut.columns,
                    block.rows,
                    groups * block.width,
                    block.width,
                    groups};
    nonfinite += directions(row, grad, scalars, band, true, c);
    auto* stats = reinterpret_cast<LionStat*>(sums) + row.first_group + block.group + first;
    if (row.variant == kLionGrouped) {
      reduce_band(scalars, band, c, 1, stats);
      if (scalars.kappa == LionKappa::l2_inf) lion_choose_group(row, sums);  // all are here
      lion_finish_groups(row, group, sums, block.group + first, 1, block.group + first + groups);
    }
    apply_band<W>(row, scalars, band, stats, c);
  }
  return nonfinite;
}

}  // namespace

// Stats of the parts of groups in a tile.
void lion_reduce_tile(const Row& row, const void* grad, const LionScalars& scalars, int64_t tile,
                      double* partials) {
  const Block block = block_at(row.cut, tile);
  const Band band{block.start,   row.cut.columns, block.rows,
                  block.columns, block.width,     block.groups};
  auto* stats = reinterpret_cast<LionStat*>(partials) + row.first_part +
                block.group * row.cut.parts + block.part;
  visit_weights_and_grad(row.dtypes[kLionWeights], row.grad_dtype,
                         [&](auto w_type, auto g_type) LB_INLINE {
                           using R = real_t<typename decltype(w_type)::type>;
                           using G = typename decltype(g_type)::type;
                           R c[kTile];
                           directions(row, static_cast<const G*>(grad), scalars, band, false, c);
                           reduce_band(scalars, band, c, row.cut.parts, stats);
                         });
}

// The step of a tile of groups. Finished stats of its groups are in `sums`, or are put there.
int64_t lion_group_tile(const Row& row, const void* grad, const LionScalars& scalars,
                        const LionGroup& group, int64_t tile, double* sums) {
  const Block block = block_at(row.cut, tile);
  int64_t nonfinite = 0;
  visit_weights_and_grad(
      row.dtypes[kLionWeights], row.grad_dtype, [&](auto w_type, auto g_type) LB_INLINE {
        using W = typename decltype(w_type)::type;
        using G = typename decltype(g_type)::type;
        nonfinite = group_tile<W>(row, static_cast<const G*>(grad), scalars, group, block, sums);
      });
  for (int64_t r = 0; r < block.rows; ++r) {
    copy_weights(row, kLionWeights, kLionCopy,
                 {0, block.start + r * row.cut.columns, block.columns});
  }
  return nonfinite;
}

}  // namespace lb::LB_ISA
