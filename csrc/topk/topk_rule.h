// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// What is larger: the order that top-k selects in, as integers.
//
// The key of an element is its bits without the sign; a larger key comes first, then a lower index.
// So -0 is 0, infinities are above finite numbers and NaN above infinities, 16-bit types are never
// converted, and no two elements are equal. A selection is known by its threshold, the smallest key
// in it, and by how many of the elements with that key it has: the first ones. The threshold is
// found digit by digit from the top, by histograms.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/dtype.h"
#include "core/record.h"

namespace lb {

template <class T>
using key_t = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

template <class T>
LB_HD key_t<T> key_of(T x) {
  if constexpr (std::is_unsigned_v<T>) {  // a key already
    return x;
  } else if constexpr (sizeof(T) == 2) {
    return x.bits & 0x7fffu;
  } else if constexpr (sizeof(T) == 4) {
    return detail::bits_of(x) & 0x7fffffffu;
  } else {
    return uint64_t(detail::bits_of(x)) & 0x7fffffffffffffffu;
  }
}

// The magnitude with this key.
template <class T>
LB_HD double magnitude_of(uint64_t key) {
  if constexpr (sizeof(T) == 2) {
    return double(to_real(T{uint16_t(key)}));
  } else if constexpr (sizeof(T) == 4) {
    return double(detail::float_of(uint32_t(key)));
  } else {
    return detail::double_of(int64_t(key));
  }
}

// Twelve bits a digit: the exponent of fp32 and four bits of its mantissa. Of 2e7 Gaussian numbers
// 0.4% share the first digit with the threshold of 1%; with eight bits, the exponent alone, 4.5%.
constexpr int kDigitBits = 12;
constexpr int kBins = 1 << kDigitBits;
template <class T>
constexpr int kKeyBits = 8 * int(sizeof(T)) - 1;
template <class T>
constexpr int kDigits = (kKeyBits<T> + kDigitBits - 1) / kDigitBits;

struct Digit {
  int above;  // bits of the key from the end of the digit before on
  int shift;  // and from the end of this one
};
template <class T>
LB_HD Digit digit_at(int d) {
  const int above = kKeyBits<T> - d * kDigitBits;
  return {above, above > kDigitBits ? above - kDigitBits : 0};
}
// The bin of a key; negative where its digits before are not those of the threshold.
template <class Key>
LB_HD int bin_of(Key key, Digit digit, uint64_t threshold) {
  const bool matches = key >> digit.above == Key(threshold) >> digit.above;
  return matches ? int(key >> digit.shift & Key(kBins - 1)) : -1;
}

// Whether every element from the threshold on is among the candidates.
enum class Listed : int32_t { no, to_be, yes };

// What is known of the selection from a record.
struct TopkControl {
  uint64_t threshold;          // its digits so far; then zeros
  int64_t need;                // selected among the elements that have them
  unsigned long long claimed;  // candidates, more than there is room for if they do not fit
  unsigned long long nonfinite;
  int64_t warm_candidates;  // of the first pass
  int32_t digits;           // that are known
  Listed listed;
};

// How many candidates there is room for. With twelve bits they are k and 1.3% of n at most, for
// data that is not made for the purpose.
LB_HD int64_t topk_capacity(int64_t numel, int64_t slots) {
  const int64_t extra = numel / 64 > slots / 8 ? numel / 64 : slots / 8;
  const int64_t capacity = slots + (extra > 16384 ? extra : 16384);
  return capacity < numel ? capacity : numel;
}

// Takes the next digit of the threshold: `bin`, with `count` elements in it and `larger` in those
// above. After the first one the candidates are listed, if there is room.
template <class T>
LB_HD void take_digit(TopkControl& control, const Record& record, int64_t bin, int64_t count,
                      int64_t larger) {
  const Digit digit = digit_at<T>(control.digits);
  control.threshold |= uint64_t(bin) << digit.shift;
  control.need -= larger;
  control.digits += 1;
  const int64_t candidates = record.slots - control.need + count;
  if (control.digits == 1 && control.listed == Listed::no && candidates <= record.capacity) {
    control.listed = Listed::to_be;
  }
}

// ---- Where the last threshold helps
// --------------------------------------------------------------
//
// Elements from `share` times the last threshold on are listed in the first pass; if they are at
// least k and there is room, the selection is among them, and no histogram of all is needed. The
// result does not depend on it.

struct TopkWarm {
  double low, share;
};

LB_HD bool is_warm(const TopkWarm& warm) { return warm.low > 0 && warm.low - warm.low == 0; }

// `share` moves so that the candidates become twice as many as are selected.
LB_HD TopkWarm next_warm(const TopkWarm& warm, double threshold, int64_t candidates, int64_t slots,
                         bool hit) {
  double share = warm.share > 0 && warm.share < 1 ? warm.share : 0.8;
  if (is_warm(warm)) {
    if (candidates < slots) {
      share *= 0.8;
    } else if (!hit) {
      share = 0.5 + 0.5 * share;
    } else {
      share += candidates > 2 * slots ? 0.02 : -0.02;
    }
  }
  share = share < 0.3 ? 0.3 : share > 0.98 ? 0.98 : share;
  return {threshold - threshold == 0 ? share * threshold : 0, share};
}

}  // namespace lb
