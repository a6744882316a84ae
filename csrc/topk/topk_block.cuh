// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// What a block of threads does with up to a tile of elements: finds a bin in a histogram, and
// writes some of the elements in their order. Positions come from scans, never from atomics: the
// order must not depend on the schedule.
#pragma once

#include "core/tile.cuh"
#include "topk/topk.h"

namespace lb::cuda {

constexpr int kWarps = kTileThreads / 32;
constexpr int kRounds = int(kTile) / (kTileThreads * kQuad);  // in which the threads walk a tile
constexpr unsigned kAllLanes = 0xffffffffu;

__device__ __forceinline__ int lane_index() { return int(threadIdx.x) % 32; }
__device__ __forceinline__ int warp_index() { return int(threadIdx.x) / 32; }

// Four elements from `at` on as they are, or the `count` there are; the rest is zero.
template <class T>
__device__ __forceinline__ void load_raw(const T* at, int count, T (&x)[kQuad]) {
  if (count == kQuad && reinterpret_cast<uintptr_t>(at) % alignof(Quad<T>) == 0) {
    const Quad<T> quad = *reinterpret_cast<const Quad<T>*>(at);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) x[k] = quad.x[k];
  } else {
#pragma unroll
    for (int k = 0; k < kQuad; ++k) x[k] = k < count ? at[k] : T{};
  }
}

// Calls body(round, i, count) for every quad that is this thread's, of n <= kTile elements; count
// is 0 beyond their end, so that whole warps come along.
template <class Body>
__device__ __forceinline__ void for_rounds(int64_t n, Body body) {
  for (int r = 0; int64_t(r) * kTileThreads * kQuad < n; ++r) {
    const int64_t i = (int64_t(r) * kTileThreads + threadIdx.x) * kQuad, rest = n - i;
    body(r, i, rest < 0 ? 0 : rest < kQuad ? int(rest) : kQuad);
  }
}

template <class N>
__device__ __forceinline__ N warp_scan(N x) {  // inclusive
  for (int width = 1; width < 32; width *= 2) {
    const N below = __shfl_up_sync(kAllLanes, x, unsigned(width));
    if (lane_index() >= width) x += below;
  }
  return x;
}

// x becomes the sum of the threads before, `total` that of all. There is a barrier between two
// scans, which is the caller's.
template <int Threads, int N>
__device__ __forceinline__ void block_scan(long long (&x)[N], long long (&total)[N]) {
  __shared__ long long warps[Threads / 32][N];
  long long mine[N];
#pragma unroll
  for (int n = 0; n < N; ++n) {
    mine[n] = x[n];
    x[n] = warp_scan(x[n]);
    if (lane_index() == 31) warps[warp_index()][n] = x[n];
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < N; ++n) {
    x[n] -= mine[n];
    total[n] = 0;
    for (int w = 0; w < Threads / 32; ++w) {
      if (w < warp_index()) x[n] += warps[w][n];
      total[n] += warps[w][n];
    }
  }
}

// ---- Histograms
// ----------------------------------------------------------------------------------

// Counts the bins of the items, in shared memory. A warp whose elements are all in one bin counts
// them at once: zeros, of which the gradients of embeddings have many, would wait for each other.
template <class T>
__device__ __forceinline__ void count_bins(const T* x, int64_t n, int digits, uint64_t threshold,
                                           unsigned* histogram) {
  const Digit digit = digit_at<T>(digits);
  for_rounds(n, [&](int, int64_t i, int count) {
    T value[kQuad];
    load_raw(x + i, count, value);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      const int bin = k < count ? bin_of(key_of(value[k]), digit, digits == 0 ? 0 : threshold) : -1;
      int same;
      __match_all_sync(kAllLanes, bin, &same);
      if (bin < 0) continue;
      if (!same) {
        atomicAdd(histogram + bin, 1u);
      } else if (lane_index() == 0) {
        atomicAdd(histogram + bin, 32u);
      }
    }
  });
}

struct Bin {
  int64_t bin, count, larger;
};

// The bin of the element that is `need`-th from the top. Every thread takes neighbouring bins.
template <class Count>
__device__ __forceinline__ Bin find_bin(int64_t need, Count count) {
  constexpr int kEach = kBins / kTileThreads;
  __shared__ Bin found;
  const int top = kBins - 1 - int(threadIdx.x) * kEach;
  long long mine[1] = {0}, total[1];
  for (int k = 0; k < kEach; ++k) mine[0] += (long long)count(top - k);
  long long before[1] = {mine[0]};
  block_scan<kTileThreads>(before, total);
  if (before[0] < need && need <= before[0] + mine[0]) {
    int64_t larger = before[0];
    int bin = top;
    while (larger + int64_t(count(bin)) < need) larger += int64_t(count(bin--));
    found = {bin, int64_t(count(bin)), larger};
  }
  __syncthreads();
  return found;
}

// ---- Ordered writing
// -----------------------------------------------------------------------------

// The elements that take(i) says, of n <= kTile: bit 4 r + k of a thread is the k-th of its round
// r.
template <class T, class Take>
__device__ __forceinline__ uint64_t mark(const T* x, int64_t n, Take take) {
  uint64_t marks = 0;
  for_rounds(n, [&](int r, int64_t i, int count) {
    T value[kQuad];
    load_raw(x + i, count, value);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      if (k < count && take(i + k, key_of(value[k]))) marks |= uint64_t(1) << (4 * r + k);
    }
  });
  return marks;
}

// Calls emit(i, place) for the marked elements; places count on in their order from claim(how
// many), which one thread calls. Nothing is emitted where that is negative. Returns how many there
// are.
template <class Claim, class Emit>
__device__ __forceinline__ int compact(uint64_t marks, int64_t n, Claim claim, Emit emit) {
  __shared__ int first[kRounds * kWarps];
  __shared__ int total;
  __shared__ int64_t base;
  const int parts = int((n + kTileThreads * kQuad - 1) / (kTileThreads * kQuad)) * kWarps;
  const auto lanes_before = [&](int r, unsigned lanes) {  // marks of these lanes in round r
    int count = 0;
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      count += __popc(__ballot_sync(kAllLanes, int(marks >> (4 * r + k) & 1)) & lanes);
    }
    return count;
  };
  for (int r = 0; r * kWarps < parts; ++r) {
    const int count = lanes_before(r, kAllLanes);
    if (lane_index() == 0) first[r * kWarps + warp_index()] = count;
  }
  __syncthreads();
  if (warp_index() == 0) {
    constexpr int kEach = kRounds * kWarps / 32;
    int mine[kEach], sum = 0;
    for (int k = 0; k < kEach; ++k) {
      const int part = lane_index() * kEach + k;
      mine[k] = part < parts ? first[part] : 0;
      sum += mine[k];
    }
    const int through = warp_scan(sum);
    int before = through - sum;
    for (int k = 0; k < kEach; ++k) {
      first[lane_index() * kEach + k] = before;
      before += mine[k];
    }
    if (lane_index() == 31) {
      total = through;
      base = claim(through);
    }
  }
  __syncthreads();
  if (base >= 0) {
    for (int r = 0; r * kWarps < parts; ++r) {
      int64_t place =
          base + first[r * kWarps + warp_index()] + lanes_before(r, (1u << lane_index()) - 1);
      for (int k = 0; k < kQuad; ++k) {
        if ((marks >> (4 * r + k) & 1) == 0) continue;
        emit((int64_t(r) * kTileThreads + threadIdx.x) * kQuad + k, place++);
      }
    }
  }
  return total;
}

// Writes the elements above the threshold and the first `ties` of the `equal` at it, in order, to
// places [0, room).
template <class T>
__device__ __forceinline__ void write_items(const TopkItems& items, uint64_t threshold,
                                            int64_t equal, int64_t ties, int64_t room, T* values,
                                            int64_t* positions) {
  __shared__ int64_t cut;  // elements at the threshold are taken before it
  const T* x = static_cast<const T*>(items.values);
  const auto key = key_t<T>(threshold);
  const auto no_claim = [](int64_t done) { return [=](int) { return done; }; };
  if (threadIdx.x == 0) cut = ties >= equal ? items.count : 0;
  if (0 < ties && ties < equal) {
    int64_t seen = 0;
    for (int64_t start = 0; start < items.count && seen < ties; start += kTile) {
      const int64_t n = items.count - start < kTile ? items.count - start : kTile;
      const uint64_t marks = mark(x + start, n, [&](int64_t, key_t<T> k) { return k == key; });
      seen += compact(marks, n, no_claim(seen), [&](int64_t i, int64_t place) {
        if (place == ties - 1) cut = start + i + 1;
      });
    }
  }
  __syncthreads();
  int64_t written = 0;
  for (int64_t start = 0; start < items.count; start += kTile) {
    const int64_t n = items.count - start < kTile ? items.count - start : kTile;
    const uint64_t marks = mark(x + start, n, [&](int64_t i, key_t<T> k) {
      return k > key || (k == key && start + i < cut);
    });
    written += compact(marks, n, no_claim(written), [&](int64_t i, int64_t place) {
      if (place >= room) return;
      const int64_t at = start + i;
      values[place] = x[at];
      positions[place] = items.positions != nullptr ? items.positions[at] : items.first + at;
    });
  }
}

}  // namespace lb::cuda
