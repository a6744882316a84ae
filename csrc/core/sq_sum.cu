// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Sum of squares of many tensors, and the sum over tiles that every reduction ends with.
// Reads 4 B an element of fp32 once; two launches, the first one a segment.
#include "core/launch.cuh"
#include "core/sq_sum.h"
#include "core/tile.cuh"
#include "core/visit.h"

namespace lb::cuda {

// ---------------------------------------------------------------- kernels

namespace {

constexpr int kRowThreads = 128;  // a row of 4M elements has 256 tiles: two a thread

template <class T>
__global__ void __launch_bounds__(kTileThreads)
    sq_sum_kernel(Table table, int32_t first_tile, double* partials) {
  const int32_t t = first_tile + int32_t(blockIdx.x);
  const Tile tile = tile_at(table, t);
  const T* data = static_cast<const T*>(table.grads[tile.row]);
  double sum[1] = {0};
  for_quads(tile, [&](int64_t i, int count) {
    real_t<T> x[kQuad];
    load_quad(data + i, count, x);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) sum[0] += double(x[k]) * double(x[k]);
  });
  block_sum<kTileThreads>(sum);
  if (threadIdx.x == 0) partials[t] = sum[0];
}

template <int N>
__global__ void __launch_bounds__(kRowThreads)
    sum_rows_kernel(Table table, const double* partials, double* sums, Control* control) {
  if (control != nullptr && control->skip) return;
  const Row& row = table.rows[blockIdx.x];
  double sum[N] = {};
  for (int32_t t = int32_t(threadIdx.x); t < row.num_tiles; t += kRowThreads) {
    for (int n = 0; n < N; ++n) sum[n] += partials[int64_t(row.first_tile + t) * N + n];
  }
  block_sum<kRowThreads>(sum);
  if (threadIdx.x != 0) return;
  double all = 0;
  for (int n = 0; n < N; ++n) {
    sums[int64_t(row.index) * N + n] = sum[n];
    all += sum[n];
  }
  if (control != nullptr && is_nonfinite(all)) atomicAdd(&control->nonfinite, 1);
}

}  // namespace

// -------------------------------------------------------------- launchers

template <int N>
void sum_rows(const Table& table, const double* partials, double* sums, Control* control,
              void* stream) {
  launch("sum_rows_kernel", sum_rows_kernel<N>, {table.num_rows, kRowThreads}, stream, table,
         partials, sums, control);
}
template void sum_rows<1>(const Table&, const double*, double*, Control*, void*);
template void sum_rows<2>(const Table&, const double*, double*, Control*, void*);
template void sum_rows<3>(const Table&, const double*, double*, Control*, void*);

void sq_sum_tiles(const Plan& plan, const Table& table, double* partials, void* stream) {
  for (const Segment& segment : plan.segments()) {
    visit(plan.rows()[size_t(segment.first_row)].grad_dtype, [&](auto tag) {
      using T = typename decltype(tag)::type;
      launch("sq_sum_kernel", sq_sum_kernel<T>, {segment.num_tiles, kTileThreads}, stream, table,
             segment.first_tile, partials);
    });
  }
}

void sq_sum(const Plan& plan, const Table& table, double* partials, double* sums, void* stream) {
  sq_sum_tiles(plan, table, partials, stream);
  sum_rows<1>(table, partials, sums, nullptr, stream);
}

}  // namespace lb::cuda
