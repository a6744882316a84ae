// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Dot products of the halves on CUDA.
//
//   launch           reads                      writes            B / element of fp32
//   half_dots        x, y, v                    tile sums         12   (8 without v)
//   sum_rows         tile sums                  tensor sums       -
#include "agvm/agvm.h"
#include "core/launch.cuh"
#include "core/tile.cuh"

namespace lb::cuda {

// ---------------------------------------------------------------- kernels

namespace {

template <class T, class V>
__global__ void __launch_bounds__(kTileThreads)
    half_dots_kernel(Table table, HalfDots dots, int32_t first_tile, double* partials) {
  using R = real_t<T>;
  const int32_t t = first_tile + int32_t(blockIdx.x);
  const Tile tile = tile_at(table, t);
  const Row& row = table.rows[tile.row];
  const T* x = static_cast<const T*>(table.grads[tile.row]);
  const T* y = row.role<T>(kHalfSum);
  [[maybe_unused]] const V* v = row.role<V>(kHalfSquare);
  const HalvesRule<R> rule(dots);

  double sums[kHalfSums] = {0, 0, 0};
  for_quads(tile, [&](int64_t i, int count) {
    R first[kQuad], second[kQuad];
    load_quad(x + i, count, first);
    load_quad(y + i, count, second);
    R a[kQuad], b[kQuad];
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      a[k] = rule.a(first[k], second[k]);
      b[k] = rule.b(first[k], second[k]);
    }
    if constexpr (!std::is_void_v<V>) {
      real_t<V> square[kQuad];
      load_quad(v + i, count, square);
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        if (k >= count) continue;  // eps may be 0, and what is not there must not be 0 / 0
        a[k] = rule.precondition(a[k], R(square[k]));
        b[k] = rule.precondition(b[k], R(square[k]));
      }
    }
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      sums[0] += double(a[k]) * double(a[k]);
      sums[1] += double(b[k]) * double(b[k]);
      sums[2] += double(a[k]) * double(b[k]);
    }
  });

  block_sum<kTileThreads>(sums);
  if (threadIdx.x != 0) return;
  for (int n = 0; n < kHalfSums; ++n) partials[kHalfSums * int64_t(t) + n] = sums[n];
}

}  // namespace

// -------------------------------------------------------------- launchers

// One block a tile: a tile's result does not depend on which block takes it.
void half_dots(const Plan& plan, const Table& table, const HalfDots& dots, double* partials,
               double* sums, void* stream) {
  for (const Segment& segment : plan.segments()) {
    const Row& row = plan.rows()[size_t(segment.first_row)];
    visit_halves(row.grad_dtype, row.dtypes[kHalfSquare], [&](auto g, auto v) {
      using T = typename decltype(g)::type;
      using V = typename decltype(v)::type;
      launch("half_dots_kernel", half_dots_kernel<T, V>, {segment.num_tiles, kTileThreads}, stream,
             table, dots, segment.first_tile, partials);
    });
  }
  sum_rows<kHalfSums>(table, partials, sums, nullptr, stream);
}

}  // namespace lb::cuda
