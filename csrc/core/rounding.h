// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Low-precision state: stochastic rounding to bf16, and int8 codes in blocks with one scale each.
// The formats, to the bit, are those of largebatch/reference/rounding.py.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace lb {

// `bits`, 16 random ones, are added below the last place that is kept; what is then below it is
// dropped. Infinities stay; NaN stays a quiet NaN.
LB_HD BFloat16 round_to_bfloat16(float x, uint32_t bits) {
  const uint32_t pattern = detail::bits_of(x);
  const bool is_nan = (pattern & 0x7fffffffu) > 0x7f800000u;
  return BFloat16{uint16_t(is_nan ? (pattern >> 16) | 0x0040u : (pattern + bits) >> 16)};
}

constexpr int kInt8Block = 128;          // elements a scale
constexpr float kInt8Floor = 0x1p-100f;  // blocks of zeros have a scale too
constexpr int8_t kInt8Broken = -128;     // decodes to NaN

LB_HD float decode_int8(int8_t code, float scale) {
  const float magnitude = code < 0 ? -float(code) : float(code);
  const float m = scale * (magnitude / (254 - magnitude));
  const float nan = detail::float_of(0x7fc00000u);
  return code == kInt8Broken ? nan : code < 0 ? -m : m;
}

// What an element brings to its block's scale, the largest of them: 0 if it is not finite.
LB_HD float int8_magnitude(float m) {
  const float magnitude = m < 0 ? -m : m;
  return magnitude - magnitude == 0 ? magnitude : 0;
}

// `u` in [0, 1) rounds: 1/2 to nearest, bits / 2^16 stochastically.
LB_HD int8_t encode_int8(float m, float scale, float u) {
  const float magnitude = int8_magnitude(m);
  const float t = 127 * (magnitude / (0.5f * scale + 0.5f * magnitude));
  const int code = int(t + u);  // not negative: to integer is to floor
  const int bounded = code < 127 ? code : 127;
  return int8_t(!(m - m == 0) ? int(kInt8Broken) : m < 0 ? -bounded : bounded);
}

}  // namespace lb
