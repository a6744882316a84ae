// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Lion on one tile, compiled for each instruction set.
#include "core/model_copy.h"
#include "core/visit.h"
#include "lion/lion.h"

namespace lb::LB_ISA {

namespace {

// Elements that go through the stages of the general loop together, in the first-level cache: then
// the types of weights, gradient and momentum and the kinds of kappa do not multiply.
constexpr int kChunk = 512;
static_assert(kChunk % kInt8Block == 0 && kTile % kChunk == 0, "blocks of codes are whole");

template <class R>
LB_HD void load_momentum(const Row& row, int64_t at, int n, R* m) {
  const auto convert = [&](const auto* from) LB_INLINE {
    for_lanes(n, [&](int64_t i, int) LB_INLINE { m[i] = R(to_real(from[at + i])); });
  };
  switch (row.dtypes[kLionExpAvg]) {
    case DType::int8: {
      const int8_t* codes = row.role<int8_t>(kLionExpAvg) + at;
      const float* scales = row.role<float>(kLionScale) + at / kInt8Block;
      for (int first = 0; first < n; first += kInt8Block) {
        const float scale = scales[first / kInt8Block];
        const int rest = n - first < kInt8Block ? n - first : kInt8Block;
        for_lanes(rest, [&](int64_t i, int)
                            LB_INLINE { m[first + i] = R(decode_int8(codes[first + i], scale)); });
      }
      return;
    }
    case DType::bfloat16:
      return convert(row.role<BFloat16>(kLionExpAvg));
    default:
      return convert(row.role<R>(kLionExpAvg));
  }
}

// `words` is null when rounding is to nearest.
template <class R>
LB_HD void store_momentum(const Row& row, int64_t at, int n, const R* m, const uint32_t* words) {
  switch (row.dtypes[kLionExpAvg]) {
    case DType::int8: {
      int8_t* codes = row.role<int8_t>(kLionExpAvg) + at;
      float* scales = row.role<float>(kLionScale) + at / kInt8Block;
      for (int first = 0; first < n; first += kInt8Block) {
        const int rest = n - first < kInt8Block ? n - first : kInt8Block;
        float scale = kInt8Floor;
        for (int i = first; i < first + rest; ++i) {
          const float magnitude = int8_magnitude(float(m[i]));
          scale = magnitude > scale ? magnitude : scale;
        }
        scales[first / kInt8Block] = scale;
        for_lanes(rest, [&](int64_t i, int) LB_INLINE {
          const float u =
              words == nullptr ? 0.5f : float(int(momentum_bits(words[first + i]))) * 0x1p-16f;
          codes[first + i] = encode_int8(float(m[first + i]), scale, u);
        });
      }
      return;
    }
    case DType::bfloat16: {
      BFloat16* to = row.role<BFloat16>(kLionExpAvg) + at;
      for_lanes(n, [&](int64_t i, int) LB_INLINE {
        to[i] = words == nullptr ? from_real<BFloat16>(float(m[i]))
                                 : round_to_bfloat16(float(m[i]), momentum_bits(words[i]));
      });
      return;
    }
    default: {
      R* to = row.role<R>(kLionExpAvg) + at;
      for_lanes(n, [&](int64_t i, int) LB_INLINE { to[i] = m[i]; });
    }
  }
}

LB_HD void load_words(const RandomStream& random, int64_t at, int n, uint32_t* words) {
#pragma omp simd
  for (int quad = 0; quad < (n + 3) / 4; ++quad) {
    uint32_t four[4];
    random_words(random, at / 4 + quad, four);
    for (int k = 0; k < 4; ++k) words[4 * quad + k] = four[k];
  }
}

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
  const bool random = scalars.stochastic && (row.dtypes[kLionWeights] == DType::bfloat16 ||
                                             row.dtypes[kLionExpAvg] == DType::bfloat16 ||
                                             row.dtypes[kLionExpAvg] == DType::int8);
  R bad[kLanes] = {};
  R m[kChunk], u[kChunk];
  uint32_t words[kChunk];
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
    visit_kappa<R>(scalars.kappa, scalars.parameter, [&](auto subgradient) LB_INLINE {
      for_lanes(n, [&](int64_t i, int) LB_INLINE { u[i] = subgradient(u[i]); });
    });
    if (random) load_words(scalars.random, at, n, words);
    W* __restrict p = row.role<W>(kLionWeights) + at;
    for_lanes(n, [&](int64_t i, int) LB_INLINE {
      const R weight = rule.weights(to_real(p[i]), u[i]);
      if constexpr (std::is_same_v<W, BFloat16>) {
        p[i] = random ? round_to_bfloat16(weight, weight_bits(words[i])) : from_real<W>(weight);
      } else {
        p[i] = from_real<W>(weight);
      }
    });
    store_momentum(row, at, n, m, random ? words : nullptr);
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
