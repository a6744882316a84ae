// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// exp, expm1, log, pow and tanh in fp64, from additions, products, divisions and integer arithmetic
// alone: the same bits on every backend, which the libraries of host and device do not promise,
// and loops of them are vectorised. Accurate to some 1e-15 of the result (pow: times its
// logarithm), which is exact once rounded to fp32. Results below 2^-1021 are 0.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/macros.h"

namespace lb::elementary {

namespace detail {

using lb::detail::bits_of;
using lb::detail::double_of;

constexpr double kInfinity = __builtin_huge_val();
constexpr double kLargest = 709, kSmallest = -707;  // of the arguments of exp

// x = n ln 2 + r with |r| <= ln 2 / 2; gives 2^n and e^r - 1.
struct Split {
  double power, rest;
};
LB_HD Split split(double x) {
  constexpr double kToInteger = 0x1.8p52;  // a double of this size has no places behind the point
  constexpr double kLn2High = 0x1.62e42fefa3800p-1, kLn2Low = 0x1.ef35793c76730p-45;
  x = x > kLargest ? kLargest : x < kSmallest ? kSmallest : x;
  const double shifted = x * 0x1.71547652b82fep0 + kToInteger;
  const double n = shifted - kToInteger;
  const double r = (x - n * kLn2High) - n * kLn2Low;
  double q = 1;  // 1 + r/2 (1 + r/3 (..)): r^14/15! is 1e-18
  for (int k = 14; k >= 2; --k) q = 1 + q * (r / k);
  const auto exponent = uint64_t(bits_of(shifted)) << 52;
  return {double_of(int64_t(exponent + (uint64_t(1023) << 52))), r * q};
}

}  // namespace detail

LB_HD_CALL double expm1(double x) {
  const detail::Split s = detail::split(x);
  const double y = s.power * s.rest + (s.power - 1);
  return x > detail::kLargest ? detail::kInfinity : x < detail::kSmallest ? -1 : y;
}

LB_HD_CALL double exp(double x) {
  const detail::Split s = detail::split(x);
  const double y = s.power * s.rest + s.power;
  return x > detail::kLargest ? detail::kInfinity : x < detail::kSmallest ? 0 : y;
}

// Of x >= 0; -infinity at 0.
LB_HD_CALL double log(double x) {
  const bool subnormal = x < 0x1p-1022;
  const int64_t bits = detail::bits_of(subnormal ? x * 0x1p54 : x);
  // The mantissa in [sqrt(1/2), sqrt(2)), and what is left of the exponent.
  constexpr int64_t kRootHalf = 0x3fe6a09e667f3bcd;
  const int64_t shifted = bits - kRootHalf;
  const int64_t exponent = shifted & ~((int64_t(1) << 52) - 1);
  const double m = detail::double_of(bits - exponent);
  constexpr int64_t kToDouble = 0x4330000000000000;  // 2^52, whose last places are integers
  const int64_t biased = ((shifted >> 52) + 2048) & 0xfff;
  const double n = detail::double_of(kToDouble | biased) - (0x1p52 + 2048) - (subnormal ? 54 : 0);
  const double s = (m - 1) / (m + 1), square = s * s;
  double sum = 0;  // atanh s = s + s^3/3 + ..: the term of s^25 is 1e-18 of s
  for (int k = 23; k >= 3; k -= 2) sum = (sum + 1.0 / k) * square;
  const double y = n * 0x1.62e42fefa3800p-1 + (n * 0x1.ef35793c76730p-45 + 2 * (s + s * sum));
  return x == 0 ? -detail::kInfinity : x - x == 0 ? y : x;
}

// x^y of x >= 0 and y > 0.
LB_HD double pow(double x, double y) { return x == 0 ? 0 : exp(y * log(x)); }

LB_HD double tanh(double x) {
  const double e = expm1(-2 * (x < 0 ? -x : x));
  const double y = -e / (2 + e);
  return x < 0 ? -y : y;
}

}  // namespace lb::elementary
