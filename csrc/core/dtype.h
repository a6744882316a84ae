// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Element types: their names, sizes and conversions to the type arithmetic is done in.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/macros.h"

namespace lb {

enum class DType : uint8_t {
  none,  // a role that a row does not use
  float32,
  float16,
  bfloat16,
  float64,
  int8,   // codes of a quantised state
  int64,  // counts and indices
  other,  // a type that no kernel of the library takes: named in errors by its DLPack code
};

constexpr const char* name(DType dtype) {
  switch (dtype) {
    case DType::none:
      return "none";
    case DType::float32:
      return "float32";
    case DType::float16:
      return "float16";
    case DType::bfloat16:
      return "bfloat16";
    case DType::float64:
      return "float64";
    case DType::int8:
      return "int8";
    case DType::int64:
      return "int64";
    case DType::other:
      break;
  }
  return "another type";
}

constexpr int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::int8:
      return 1;
    case DType::float16:
    case DType::bfloat16:
      return 2;
    case DType::float32:
      return 4;
    case DType::float64:
    case DType::int64:
      return 8;
    default:
      return 0;
  }
}

// Storage of the 16-bit types. The conversions below are integer arithmetic, so that one source
// vectorises for every instruction set and gives the same bits on each of them.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The type that arithmetic on T is done in: float, or double for double.
template <class T>
using real_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

namespace detail {

LB_HD uint32_t bits_of(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
#endif
}

LB_HD float float_of(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
#endif
}

LB_HD int64_t bits_of(double x) {
#if defined(__CUDA_ARCH__)
  return __double_as_longlong(x);
#else
  int64_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
#endif
}

LB_HD double double_of(int64_t bits) {
#if defined(__CUDA_ARCH__)
  return __longlong_as_double(bits);
#else
  double x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
#endif
}

}  // namespace detail

LB_HD float to_real(float x) { return x; }
LB_HD double to_real(double x) { return x; }
LB_HD float to_real(BFloat16 x) { return detail::float_of(uint32_t(x.bits) << 16); }

LB_HD float to_real(Half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16;
  const uint32_t magnitude = x.bits & 0x7fffu;
  // Normal: rebias the exponent by 127 - 15. Inf and NaN: again, so that it becomes 255.
  uint32_t bits = (magnitude << 13) + (112u << 23);
  bits += magnitude >= 0x7c00u ? (112u << 23) : 0u;
  // Subnormal: put the mantissa under an exponent where one unit is 2^-24, and subtract that 2^-14.
  const float subnormal = detail::float_of((magnitude << 13) + (113u << 23)) - 0x1p-14f;
  bits = magnitude < 0x0400u ? detail::bits_of(subnormal) : bits;
  return detail::float_of(bits | sign);
}

// Round to nearest, ties to even, in every conversion below; NaN stays a quiet NaN.
template <class T>
LB_HD T from_real(real_t<T> x) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    const uint32_t bits = detail::bits_of(x);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return BFloat16{uint16_t(is_nan ? (bits >> 16) | 0x0040u : rounded)};
  } else if constexpr (std::is_same_v<T, Half>) {
    const uint32_t bits = detail::bits_of(x);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    // Normal results: rebias, round on the 13 bits that go.
    const uint32_t normal = (magnitude - (112u << 23) + 0x0fffu + ((magnitude >> 13) & 1u)) >> 13;
    // Subnormal results: adding 0.5 puts one unit of the half at one unit of the sum, so that the
    // addition itself rounds.
    const uint32_t subnormal = detail::bits_of(detail::float_of(magnitude) + 0.5f) - (126u << 23);
    uint32_t half = magnitude < (113u << 23) ? subnormal : normal;
    half = magnitude >= 0x477ff000u ? 0x7c00u : half;  // 65520 and above round to infinity
    half = magnitude > 0x7f800000u ? 0x7e00u : half;
    return Half{uint16_t(half | sign)};
  } else {
    return x;
  }
}

template <class T>
struct dtype_of;
template <>
struct dtype_of<float> {
  static constexpr DType value = DType::float32;
};
template <>
struct dtype_of<Half> {
  static constexpr DType value = DType::float16;
};
template <>
struct dtype_of<BFloat16> {
  static constexpr DType value = DType::bfloat16;
};
template <>
struct dtype_of<double> {
  static constexpr DType value = DType::float64;
};

}  // namespace lb
