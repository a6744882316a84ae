// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// How a block walks a tile, and how it sums. Each thread takes four neighbouring elements at a
// time: one 16-byte access for fp32 where the address allows it, four narrow ones to the same
// sectors where it does not (a gradient inside a flat bucket, a view at an odd offset).
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/workspace.h"

namespace lb::cuda {

constexpr int kTileThreads = 256;  // 2048 threads an SM is 8 blocks; a tile is 16 rounds of a block
constexpr int kQuad = 4;

template <class T>
struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) Quad {
  T x[kQuad];
};

// Four elements from `at` on, or the `count` there are; the rest is zero.
template <class T>
__device__ __forceinline__ void load_quad(const T* at, int count, real_t<T> (&x)[kQuad]) {
  if (count == kQuad && reinterpret_cast<uintptr_t>(at) % alignof(Quad<T>) == 0) {
    const Quad<T> quad = *reinterpret_cast<const Quad<T>*>(at);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) x[k] = to_real(quad.x[k]);
  } else {
#pragma unroll
    for (int k = 0; k < kQuad; ++k) x[k] = k < count ? to_real(at[k]) : real_t<T>(0);
  }
}

template <class T>
__device__ __forceinline__ void store_quad(T* at, int count, const real_t<T> (&x)[kQuad]) {
  if (count == kQuad && reinterpret_cast<uintptr_t>(at) % alignof(Quad<T>) == 0) {
    Quad<T> quad;
#pragma unroll
    for (int k = 0; k < kQuad; ++k) quad.x[k] = from_real<T>(x[k]);
    *reinterpret_cast<Quad<T>*>(at) = quad;
  } else {
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      if (k < count) at[k] = from_real<T>(x[k]);
    }
  }
}

// The model's 16-bit copy of fp32 weights, where the row has one in that role.
template <class R>
__device__ __forceinline__ void store_copy(const Row& row, int role, int64_t i, int count,
                                           const R (&weight)[kQuad]) {
  if constexpr (std::is_same_v<R, float>) {
    if (row.dtypes[role] == DType::float16) store_quad(row.role<Half>(role) + i, count, weight);
    if (row.dtypes[role] == DType::bfloat16) {
      store_quad(row.role<BFloat16>(role) + i, count, weight);
    }
  }
}

// Calls body(offset in tensor, count) for every quad of the tile that is this thread's.
template <class Body>
__device__ __forceinline__ void for_quads(const Tile& tile, Body body) {
  for (int64_t i = int64_t(threadIdx.x) * kQuad; i < tile.numel; i += kTileThreads * kQuad) {
    const int64_t rest = tile.numel - i;
    body(tile.start + i, rest < kQuad ? int(rest) : kQuad);
  }
}

// Sums each of N numbers over the block, in a fixed tree; the totals are thread 0's. No atomics:
// the order of additions must not depend on the schedule.
template <int Threads, int N>
__device__ __forceinline__ void block_sum(double (&x)[N]) {
  static_assert(Threads % 32 == 0 && Threads <= 1024, "whole warps, and one warp sums the warps");
  __shared__ double warps[Threads / 32][N];
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    for (int width = 16; width > 0; width /= 2) {
      x[n] += __shfl_down_sync(0xffffffffu, x[n], unsigned(width));
    }
    if (lane == 0) warps[warp][n] = x[n];
  }
  __syncthreads();
  if (warp == 0) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      x[n] = lane < Threads / 32 ? warps[lane][n] : 0;
      for (int width = 16; width > 0; width /= 2) {
        x[n] += __shfl_down_sync(0xffffffffu, x[n], unsigned(width));
      }
    }
  }
  __syncthreads();  // the next sum may write `warps` again
}

// sums[row.index] = the row's partials in a fixed order, N numbers each, and how many rows have a
// sum that is not finite. Does nothing when control says skip; control may be null.
//   partials [num_tiles, N]   sums [num_rows, N]
template <int N>
void sum_rows(const Table& table, const double* partials, double* sums, Control* control,
              void* stream);

}  // namespace lb::cuda
