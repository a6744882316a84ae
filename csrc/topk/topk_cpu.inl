// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Selection from one tile or block, compiled for each instruction set.
#include "core/lanes.h"
#include "core/visit.h"
#include "topk/marks.h"
#include "topk/topk.h"

namespace lb::LB_ISA {

namespace {

template <class T>
LB_HD int64_t count_from(const T* __restrict x, int64_t n, key_t<T> low) {
  int64_t total = 0;
  for (int64_t first = 0; first < n; first += kTile) {  // an int holds the count of a tile
    const int64_t count = n - first < kTile ? n - first : kTile;
    int part = 0;
#pragma omp simd reduction(+ : part)
    for (int64_t i = 0; i < count; ++i) part += key_of(x[first + i]) >= low;
    total += part;
  }
  return total;
}

// The largest key that at least `need` of the keys are not below; `low` is one of that kind. Bit by
// bit from the top, until it is known which they are.
template <class Key>
LB_HD Key largest_with(const Key* __restrict keys, int n, int64_t need, Key low) {
  Key most = 0;
#pragma omp simd reduction(max : most)
  for (int i = 0; i < n; ++i) most = keys[i] > most ? keys[i] : most;
  int bit = 8 * int(sizeof(Key)) - 1;
  while (bit >= 0 && ((low ^ most) >> bit & 1) == 0) --bit;  // the digits they share are settled
  Key threshold = bit < 0 ? low : Key(most >> bit >> 1 << bit << 1);
  int found = -1;
  for (; bit >= 0 && found != need; --bit) {
    const Key next = threshold | Key(1) << bit;
    int count = 0;
#pragma omp simd reduction(+ : count)
    for (int i = 0; i < n; ++i) count += keys[i] >= next;
    if (count < need) continue;
    threshold = next;
    found = count;
  }
  if (found != need) return threshold;
  Key least = most;
#pragma omp simd reduction(min : least)
  for (int i = 0; i < n; ++i) least = keys[i] >= threshold && keys[i] < least ? keys[i] : least;
  return least;
}

}  // namespace

// counts[kBins * 4]: of the keys whose digits before are those of the threshold. Four copies, so
// that neighbours in the same bin do not wait for each other.
void topk_count_bins(DType dtype, const TopkItems& items, int digits, uint64_t threshold,
                     uint32_t* __restrict counts) {
  visit(dtype, [&](auto type) LB_INLINE {
    using T = typename decltype(type)::type;
    const T* __restrict x = static_cast<const T*>(items.values);
    const Digit digit = digit_at<T>(digits);
    if (digits == 0) {
      int64_t i = 0;
      for (; i + 4 <= items.count; i += 4) {
        for (int k = 0; k < 4; ++k) counts[k * kBins + int(key_of(x[i + k]) >> digit.shift)] += 1;
      }
      for (; i < items.count; ++i) counts[int(key_of(x[i]) >> digit.shift)] += 1;
      return;
    }
    for (int64_t i = 0; i < items.count; ++i) {
      const int bin = bin_of(key_of(x[i]), digit, threshold);
      if (bin >= 0) counts[int(i & 3) * kBins + bin] += 1;
    }
  });
}

int64_t topk_count_from(DType dtype, const TopkItems& items, uint64_t low) {
  int64_t count = 0;
  visit(dtype, [&](auto type) LB_INLINE {
    using T = typename decltype(type)::type;
    count = count_from(static_cast<const T*>(items.values), items.count, key_t<T>(low));
  });
  return count;
}

// Writes what is above the threshold, and the first `ties` at it, in order: `room` at most.
void topk_write(DType dtype, const TopkItems& items, uint64_t threshold, int64_t ties, int64_t room,
                void* values, int64_t* positions) {
  visit(dtype, [&](auto type) LB_INLINE {
    using T = typename decltype(type)::type;
    const T* __restrict x = static_cast<const T*>(items.values);
    const auto low = key_t<T>(threshold);
    T* out = static_cast<T*>(values);
    int64_t written = 0;
    for_keys_from(x, items.count, low, [&](int64_t i) LB_INLINE {
      if (written == room || (key_of(x[i]) == low && ties-- <= 0)) return;
      out[written] = x[i];
      positions[written] = items.positions != nullptr ? items.positions[i] : items.first + i;
      ++written;
    });
  });
}

// Selects from one block by itself: lists what is at or above `guess`, or everything if that is too
// little, and looks for the threshold in the list. The next block's threshold will be near.
void topk_block(DType dtype, const void* block_values, const RecordBlock& block, uint64_t& guess,
                BlockScratch& scratch, void* values, int64_t* __restrict positions) {
  if (block.kept == 0) return;
  visit(dtype, [&](auto type) LB_INLINE {
    using T = typename decltype(type)::type;
    using Key = key_t<T>;
    const T* __restrict x = static_cast<const T*>(block_values);
    uint32_t* __restrict offsets = scratch.offsets;
    uint32_t* __restrict picks = scratch.picks;
    Key* __restrict keys = reinterpret_cast<Key*>(scratch.keys);
    auto low = Key(guess);
    int listed = 0;
    if (low != 0) listed = list_keys_from(x, int(block.numel), low, offsets);
    if (listed < block.kept) {
      listed = int(block.numel);
      low = 0;
      for (int i = 0; i < listed; ++i) offsets[i] = uint32_t(i);
    }
    for (int i = 0; i < listed; ++i) keys[i] = key_of(x[offsets[i]]);
    const Key threshold = largest_with(keys, listed, block.kept, low);
    // Of the list: what is taken, in place of the list itself.
    int taken = list_keys_from(keys, listed, threshold, picks);
    if (taken > block.kept) {  // more than there is room for are at the threshold
      int above = 0;
      for (int i = 0; i < taken; ++i) above += keys[picks[i]] > threshold;
      int64_t ties = block.kept - above;
      int kept = 0;
      for (int i = 0; i < taken; ++i) {
        if (keys[picks[i]] == threshold && ties-- <= 0) continue;
        picks[kept++] = picks[i];
      }
      taken = kept;
    }
    T* __restrict out = static_cast<T*>(values);
    for (int i = 0; i < taken; ++i) {
      const uint32_t offset = offsets[picks[i]];
      out[i] = x[offset];
      positions[i] = block.start + offset;
    }
    const double next = 0.9 * magnitude_of<T>(threshold);
    guess = next - next == 0 ? key_of(from_real<T>(real_t<T>(next))) : 0;
  });
}

}  // namespace lb::LB_ISA
