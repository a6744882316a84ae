// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Rank-1 updates of factors on CUDA. Three launches for all factors of one dtype.
//
//   launch           reads            writes                     elements moved, in d^2
//   kron_product     M, v             M v                        1
//   kron_finish      M v, v, norms    u, scalars, counters       -
//   kron_update      M, u             M, norms                   2, or 1 where M is in the L2 still
//
// A warp takes a row: no sum is shared between blocks. The last launch takes the panels in reverse,
// so that it begins with what the first one has left in the L2.
#include "core/launch.cuh"
#include "core/tile.cuh"
#include "core/visit.h"
#include "kron/kron.h"

namespace lb::cuda {

// ---------------------------------------------------------------- kernels

namespace {

constexpr int kWarps = kTileThreads / 32;

// Calls body(row) for the rows of a panel that are this warp's.
template <class Body>
__device__ __forceinline__ void for_rows(const KronPanel& panel, Body body) {
  for (int64_t r = int64_t(threadIdx.x) / 32; r < panel.rows; r += kWarps) body(panel.first + r);
}

// Calls body(column, count) for the quads of a row that are this thread's.
template <class Body>
__device__ __forceinline__ void for_row_quads(int64_t order, Body body) {
  for (int64_t j = int64_t(threadIdx.x % 32) * kQuad; j < order; j += 32 * kQuad) {
    const int64_t rest = order - j;
    body(j, rest < kQuad ? int(rest) : kQuad);
  }
}

__device__ __forceinline__ double warp_sum(double x) {
  for (int width = 16; width > 0; width /= 2) {
    x += __shfl_xor_sync(0xffffffffu, x, width);
  }
  return x;
}

__device__ __forceinline__ uint32_t warp_largest(uint32_t x) {
  for (int width = 16; width > 0; width /= 2) {
    const uint32_t other = __shfl_xor_sync(0xffffffffu, x, width);
    x = x < other ? other : x;
  }
  return x;
}

template <class T>
__global__ void __launch_bounds__(kTileThreads)
    kron_product_kernel(KronWorkspace ws, int32_t first_tile) {
  using R = real_t<T>;
  const int32_t t = first_tile + int32_t(blockIdx.x);
  const int32_t r = ws.tile_row[t];
  const Row& row = ws.rows[r];
  const int64_t order = kron_order(row);
  const R* v = static_cast<const R*>(ws.grads[r]);
  double* product = kron_scratch<R>(row, ws.partials).product;
  for_rows(kron_panel(row, t), [&](int64_t i) {
    const T* m = row.role<T>(kKronFactor) + i * row.stride;
    double sum = 0;
    for_row_quads(order, [&](int64_t j, int count) {
      R entry[kQuad], vector[kQuad];
      load_quad(m + j, count, entry);
      load_quad(v + j, count, vector);
      R part = 0;
#pragma unroll
      for (int k = 0; k < kQuad; ++k) part += entry[k] * vector[k];
      sum += double(part);
    });
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) product[i] = sum;
  });
}

template <class R>
__global__ void __launch_bounds__(kTileThreads)
    kron_finish_kernel(KronWorkspace ws, KronHyper hyper, KronState state, int32_t first_row) {
  __shared__ KronScalars decided;
  const int32_t r = first_row + int32_t(blockIdx.x);
  const Row& row = ws.rows[r];
  const int64_t order = kron_order(row);
  const R* v = static_cast<const R*>(ws.grads[r]);
  const KronScratch<R> scratch = kron_scratch<R>(row, ws.partials);
  const double norm = double(state.norms[row.index]);
  const double z = kron_blend(hyper, norm);
  double sums[2] = {0, 0};
  for (int64_t i = threadIdx.x; i < order; i += kTileThreads) {
    const R u = kron_direction(z, scratch.product[i], v[i]);
    scratch.u[i] = u;
    sums[0] += double(v[i]) * double(u);
    sums[1] += double(v[i] < 0 ? -v[i] : v[i]);
  }
  block_sum<kTileThreads>(sums);
  if (threadIdx.x == 0) {
    const bool skip = order == 0 || (state.skip != nullptr && state.skip[row.index] != 0);
    decided = kron_scalars(hyper, norm, sums[0], sums[1], skip);
    ws.scalars[r] = decided;
    if (decided.count >= 0) {
      state.counters[int64_t(row.index) * kKronCounts + decided.count] += 1;
    }
    // What is written to next is the largest of the rows' norms.
    if (order == 0 || decided.action != KronAction::leave) state.norms[row.index] = 0;
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < order; i += kTileThreads) {
    scratch.u[i] = R(decided.root * double(scratch.u[i]));
  }
}

template <class T, KronNorm kNorm>
__global__ void __launch_bounds__(kTileThreads)
    kron_update_kernel(KronWorkspace ws, KronState state, int32_t last_tile) {
  using R = real_t<T>;
  const int32_t t = last_tile - int32_t(blockIdx.x);
  const int32_t r = ws.tile_row[t];
  const Row& row = ws.rows[r];
  const KronScalars scalars = ws.scalars[r];
  if (scalars.action == KronAction::leave) return;
  const bool reset = scalars.action == KronAction::reset;
  const int64_t order = kron_order(row);
  const R* u = kron_scratch<R>(row, ws.partials).u;
  const KronRule<R> rule(scalars);
  uint32_t largest = 0;  // of this warp's rows
  for_rows(kron_panel(row, t), [&](int64_t i) {
    T* m = row.role<T>(kKronFactor) + i * row.stride;
    const R left = rule.left(u[i]);
    double sum = 0;
    uint32_t most = 0;
    for_row_quads(order, [&](int64_t j, int count) {
      R entry[kQuad], right[kQuad];
      load_quad(m + j, count, entry);
      load_quad(u + j, count, right);
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        entry[k] = rule.entry(entry[k], left, right[k]) + (j + k == i ? rule.unit : R(0));
        if (reset) entry[k] = j + k == i ? R(1) : R(0);
        if (k >= count) continue;
        const R size = to_real(from_real<T>(entry[k]));
        if (kNorm == KronNorm::inf) {
          sum += double(size < 0 ? -size : size);
        } else {
          const uint32_t bits = kron_norm_bits(float(size));
          most = bits > most ? bits : most;
        }
      }
      store_quad(m + j, count, entry);
    });
    const uint32_t norm =
        kNorm == KronNorm::inf ? kron_norm_bits(float(warp_sum(sum))) : warp_largest(most);
    largest = norm > largest ? norm : largest;
  });
  if (threadIdx.x % 32 == 0) {
    atomicMax(reinterpret_cast<uint32_t*>(state.norms) + row.index, largest);
  }
}

}  // namespace

// -------------------------------------------------------------- launchers

// A block a panel of rows: its result does not depend on which block takes it.
void kron_rank1_update(const Plan& plan, const KronWorkspace& ws, const KronHyper& hyper,
                       const KronState& state, void* stream) {
  for (const Segment& segment : plan.segments()) {
    const int32_t last_tile = segment.first_tile + segment.num_tiles - 1;
    visit(plan.rows()[size_t(segment.first_row)].dtypes[kKronFactor], [&](auto type) {
      using T = typename decltype(type)::type;
      launch("kron_product_kernel", kron_product_kernel<T>, {segment.num_tiles, kTileThreads},
             stream, ws, segment.first_tile);
      launch("kron_finish_kernel", kron_finish_kernel<real_t<T>>, {segment.num_rows, kTileThreads},
             stream, ws, hyper, state, segment.first_row);
      launch("kron_update_kernel",
             hyper.norm == KronNorm::inf ? kron_update_kernel<T, KronNorm::inf>
                                         : kron_update_kernel<T, KronNorm::max>,
             {segment.num_tiles, kTileThreads}, stream, ws, state, last_tile);
    });
  }
}

}  // namespace lb::cuda
