// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// The wire format of headers and values, to and from bytes; that of indices is in wire_index.h.
// Both backends include these two and neither writes a formula of its own. `bytes` is where a
// record begins, at a multiple of 16.
//
//   integers   step = scale / reach
//              code = floor((v / step + centre) + u), within `reach` of the centre
//              v is decoded as (code - centre) step
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/dtype.h"
#include "core/philox.h"
#include "core/record.h"

namespace lb {

// The part of a record that begins at a byte of it.
template <class T>
LB_HD T* section(uint8_t* bytes, int64_t at) {
  return reinterpret_cast<T*>(bytes + at);
}
template <class T>
LB_HD const T* section(const uint8_t* bytes, int64_t at) {
  return reinterpret_cast<const T*>(bytes + at);
}

// ---- The header --------------------------------------------------------------------------------

constexpr uint32_t kWireMagic = 0x4347424c;  // "LBGC"
constexpr uint32_t kWireVersion = 1;
constexpr int kHeaderWords = int(kWireHeader / 4);
constexpr int kStepWord = 10, kNonfiniteWord = 14;

LB_HD uint32_t half_of(uint64_t x, int half) { return uint32_t(x >> 32 * half); }

LB_HD uint32_t header_word(const Record& r, int64_t step, int64_t nonfinite, int word) {
  const bool blocks = r.select == Select::block;
  switch (word) {
    case 0:
      return kWireMagic;
    case 1:
      return kWireVersion | (r.dense() ? 1u << 16 : 0u) | (nonfinite > 0 ? 2u << 16 : 0u);
    case 2:
      return uint32_t(r.select) | uint32_t(r.value) << 8 | uint32_t(r.index) << 16;
    case 3:
      return blocks ? uint32_t(r.block) : 0;
    case 4:
    case 5:
      return half_of(uint64_t(r.numel), word - 4);
    case 6:
    case 7:
      return half_of(uint64_t(r.slots), word - 6);
    case 8:
    case 9:
      return half_of(r.id, word - 8);
    case kStepWord:
    case kStepWord + 1:
      return half_of(uint64_t(step), word - kStepWord);
    case 12:
      return blocks ? uint32_t(r.kept) : 0;
    case 13:
      return uint32_t(r.bytes);
    case kNonfiniteWord:
      return nonfinite < int64_t(UINT32_MAX) ? uint32_t(nonfinite) : UINT32_MAX;
    default:
      return 0;  // no checksum yet
  }
}

LB_HD int64_t header_step(const uint8_t* bytes) {
  const uint32_t* words = section<uint32_t>(bytes, 0);
  return int64_t(uint64_t(words[kStepWord + 1]) << 32 | words[kStepWord]);
}
LB_HD int64_t header_nonfinite(const uint8_t* bytes) {
  return int64_t(section<uint32_t>(bytes, 0)[kNonfiniteWord]);
}

// Where the zeros begin that pad the scales (0), the values (1) or the indices (2) of a record.
LB_HD int64_t padding_at(const Record& r, int part) {
  return part == 0   ? r.scales_at + scale_bytes(r)
         : part == 1 ? r.values_at + value_bytes(r)
                     : r.indices_at + index_bytes(r);
}

// ---- Values ------------------------------------------------------------------------------------

template <WireValue kValue>
struct ValueTag {
  static constexpr WireValue value = kValue;
};

// From values known at run time to a type known at compile time: f(ValueTag<value>{}).
template <class F>
LB_HD void visit_value(WireValue value, F f) {
  switch (value) {
    case WireValue::float32:
      return f(ValueTag<WireValue::float32>{});
    case WireValue::float16:
      return f(ValueTag<WireValue::float16>{});
    case WireValue::bfloat16:
      return f(ValueTag<WireValue::bfloat16>{});
    case WireValue::float64:
      return f(ValueTag<WireValue::float64>{});
    case WireValue::int8:
      return f(ValueTag<WireValue::int8>{});
    case WireValue::int4:
      return f(ValueTag<WireValue::int4>{});
    case WireValue::int2:
      return f(ValueTag<WireValue::int2>{});
    case WireValue::sign:
      return f(ValueTag<WireValue::sign>{});
  }
}

constexpr bool is_float(WireValue value) { return value != WireValue::sign && !is_integer(value); }

// What floating-point values are stored as.
template <WireValue kValue>
using stored_t = std::conditional_t<
    kValue == WireValue::float64, double,
    std::conditional_t<kValue == WireValue::float16, Half,
                       std::conditional_t<kValue == WireValue::bfloat16, BFloat16, float>>>;

// The nearest T; its largest number for what is beyond it, infinities too.
template <class T, class R>
LB_HD T to_wire(R x) {
  if constexpr (sizeof(T) == 2) {
    constexpr int kInfinity = std::is_same_v<T, Half> ? 0x7c00 : 0x7f80;
    const int bits = from_real<T>(real_t<T>(x)).bits;
    return T{uint16_t(bits - ((bits & 0x7fff) == kInfinity))};  // a choice would not vectorise
  } else {
    constexpr T most = std::is_same_v<T, float> ? T(0x1.fffffep127) : T(0x1.fffffffffffffp1023);
    const T nearest = T(x);
    return nearest > most ? most : nearest < -most ? -most : nearest;
  }
}

struct WireLevels {
  float reach, centre;
};
LB_HD WireLevels levels_of(WireValue value) {
  if (value == WireValue::int8) return {127, 0};
  if (value == WireValue::int4) return {7, 0};
  return {1.5f, 1.5f};
}

// What a value brings to the scale, the largest of them as bits: 0 if it is not finite.
LB_HD uint32_t size_bits(float v) {
  const uint32_t bits = detail::bits_of(v) & 0x7fffffffu;
  return bits < 0x7f800000u ? bits : 0u;
}

LB_HD int encode_level(float v, float step, float u, const WireLevels& levels) {
  const bool usable = v - v == 0 && step > 0;
  const float low = levels.centre - levels.reach, high = levels.centre + levels.reach;
  float x = usable ? (v / step + levels.centre) + u : 0.0f;
  x = x < low ? low : x;
  x = x > high ? high : x;
  const int code = int(x);  // towards 0
  return float(code) > x ? code - 1 : code;
}

LB_HD float decode_level(int code, float step, const WireLevels& levels) {
  return (float(code) - levels.centre) * step;
}

// Bit j of a word of signs. A table, since SSE2 has no shift by another number in each lane.
struct SignBits {
  uint32_t of[32];
  constexpr SignBits() : of() {
    for (int j = 0; j < 32; ++j) of[j] = 1u << j;
  }
};

// In [0, 1), from a random word; and what draws the words of a rank.
LB_HD float uniform(uint32_t word) { return float(int(word >> 8)) * 0x1p-24f; }
LB_HD RandomStream rounding_stream(const Record& r, int64_t step, int64_t rank) {
  return random_stream(r.seed ^ uint64_t(rank + 1) * 0x9E3779B97F4A7C15u, r.id, step);
}

// The value in the low bits of `field`. `step` is that of an integer, and the scale of a sign.
template <class R, WireValue kValue>
LB_HD R decode_field(uint64_t field, float step) {
  switch (kValue) {
    case WireValue::float64:
      return R(detail::double_of(int64_t(field)));
    case WireValue::float16:
      return R(to_real(Half{uint16_t(field)}));
    case WireValue::bfloat16:
      return R(to_real(BFloat16{uint16_t(field)}));
    case WireValue::int8:
      return R(decode_level(int8_t(field), step, levels_of(kValue)));
    case WireValue::int4:
      return R(decode_level(int8_t(field << 4) >> 4, step, levels_of(kValue)));
    case WireValue::int2:
      return R(decode_level(int(field & 3), step, levels_of(kValue)));
    case WireValue::sign:
      return R((field & 1) != 0 ? -step : step);
    default:
      return R(detail::float_of(uint32_t(field)));
  }
}

}  // namespace lb
