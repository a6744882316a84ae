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

template <class Key>
LB_HD int count_keys(const Key* __restrict keys, int n, Key low) {
  int count = 0;
#pragma omp simd reduction(+ : count)
  for (int i = 0; i < n; ++i) count += keys[i] >= low;
  return count;
}

// A key that `need` of the keys are not below; where equal ones do not allow that, the largest that
// more are not below. All are not below `low`. The secant through the last two counts finds it from
// a good `probe` in few of them; halving bounds their number.
template <class Key>
LB_HD Key threshold_for(const Key* __restrict keys, int n, int need, Key low, Key probe) {
  Key beyond = 0;  // of two keys: as many as needed are not below `low`, too few not below this
#pragma omp simd reduction(max : beyond)
  for (int i = 0; i < n; ++i) beyond = keys[i] > beyond ? keys[i] : beyond;
  beyond += 1;
  Key last = low;
  int at_last = n;
  for (int probes = 0; at_last != need && beyond - low > 1; ++probes) {
    if (probes >= 8 || probe <= low || probe >= beyond) probe = low + (beyond - low) / 2;
    const int count = count_keys(keys, n, probe);
    (count < need ? beyond : low) = probe;
    const double slope = count == at_last ? 0 : (double(probe) - double(last)) / (at_last - count);
    const double next = double(probe) + slope * (count - need);
    last = probe;
    at_last = count;
    probe = next > double(low) && next < double(beyond) ? Key(next) : 0;
  }
  return low;
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

// Selects from one block by itself: lists what is somewhat below `guess` or above it, or everything
// if that is too little, and looks for the threshold in the list. The next block's will be near.
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
    const double somewhat_below = 0.92 * magnitude_of<T>(guess);
    const bool finite = somewhat_below - somewhat_below == 0;
    Key low = finite ? key_of(from_real<T>(real_t<T>(somewhat_below))) : 0;
    int listed = 0;
    if (low != 0) listed = list_keys_from(x, int(block.numel), low, offsets);
    if (listed < block.kept) {
      listed = int(block.numel);
      low = 0;
      for (int i = 0; i < listed; ++i) offsets[i] = uint32_t(i);
    }
    for (int i = 0; i < listed; ++i) keys[i] = key_of(x[offsets[i]]);
    const Key threshold = threshold_for(keys, listed, int(block.kept), low, Key(guess));
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
    guess = threshold;
  });
}

}  // namespace lb::LB_ISA
