// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Momentum, weights and random words of a piece of a tensor, in whatever types it has, and the
// kappas of single elements. Included by the _cpu.inl files of Lion only.
#pragma once

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
LB_OUTLINE void load_momentum(const Row& row, int64_t at, int n, R* m) {
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
LB_OUTLINE void store_momentum(const Row& row, int64_t at, int n, const R* m,
                               const uint32_t* words) {
  switch (row.dtypes[kLionExpAvg]) {
    case DType::int8: {
      int8_t* codes = row.role<int8_t>(kLionExpAvg) + at;
      float* scales = row.role<float>(kLionScale) + at / kInt8Block;
      for (int first = 0; first < n; first += kInt8Block) {
        const int rest = n - first < kInt8Block ? n - first : kInt8Block;
        const R* block = m + first;
        float most[kLanes];
        for (float& lane : most) lane = kInt8Floor;
        for_lanes(rest, [&](int64_t i, int lane) LB_INLINE {
          const float magnitude = int8_magnitude(float(block[i]));
          most[lane] = magnitude > most[lane] ? magnitude : most[lane];
        });
        for (int width = kLanes / 2; width > 0; width /= 2) {
          for (int l = 0; l < width; ++l) {
            most[l] = most[l + width] > most[l] ? most[l + width] : most[l];
          }
        }
        const float scale = scales[first / kInt8Block] = most[0];
        if (words == nullptr) {
          for_lanes(rest, [&](int64_t i, int) LB_INLINE {
            codes[first + i] = encode_int8(float(block[i]), scale, 0.5f);
          });
        } else {
          for_lanes(rest, [&](int64_t i, int) LB_INLINE {
            const float u = float(int(momentum_bits(words[first + i]))) * 0x1p-16f;
            codes[first + i] = encode_int8(float(block[i]), scale, u);
          });
        }
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

// Returns the words of the elements from `at` on; `words` has room for kWords.
constexpr int kWords = kChunk + 8;
LB_OUTLINE const uint32_t* load_words(const RandomStream& random, int64_t at, int n,
                                      uint32_t* words) {
  const int before = int(at % 4);  // of a group, tiles need not begin with a quad
  const int quads = (before + n + 3) / 4;
  uint32_t first[kWords / 4], second[kWords / 4], third[kWords / 4], fourth[kWords / 4];
#pragma omp simd
  for (int quad = 0; quad < quads; ++quad) {
    uint32_t four[4];
    random_words(random, at / 4 + quad, four);
    first[quad] = four[0];
    second[quad] = four[1];
    third[quad] = four[2];
    fourth[quad] = four[3];
  }
  for (int quad = 0; quad < quads; ++quad) {
    words[4 * quad] = first[quad];
    words[4 * quad + 1] = second[quad];
    words[4 * quad + 2] = third[quad];
    words[4 * quad + 3] = fourth[quad];
  }
  return words + before;
}

// p = p shrink - lr u; `words` is null when rounding is to nearest.
template <class W, class R>
LB_HD void store_weights(W* __restrict p, int n, const LionRule<R>& rule, const R* u,
                         const uint32_t* words) {
  if constexpr (std::is_same_v<W, BFloat16>) {
    if (words != nullptr) {
      for_lanes(n, [&](int64_t i, int) LB_INLINE {
        p[i] = round_to_bfloat16(rule.weights(to_real(p[i]), u[i]), weight_bits(words[i]));
      });
      return;
    }
  }
  for_lanes(
      n, [&](int64_t i, int) LB_INLINE { p[i] = from_real<W>(rule.weights(to_real(p[i]), u[i])); });
}

// c becomes u, by a kappa of each element.
template <class R>
LB_OUTLINE void to_subgradient(LionKappa kappa, double parameter, int n, R* c) {
  visit_kappa<R>(kappa, parameter, [&](auto subgradient) LB_INLINE {
    const R e = R(parameter);
    for_lanes(n, [&](int64_t i, int) LB_INLINE { c[i] = subgradient(c[i], e); });
  });
}

}  // namespace

}  // namespace lb::LB_ISA
