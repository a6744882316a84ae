// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Adan on CUDA: one pass over the weights.
//
//   launch           reads                    writes            B / element of fp32
//   upload           -                        groups, gradient addresses; only what has changed
//   sq_sum           g                        tile sums          4   (only when clipping)
//   adan_prepare     tile sums, step          scalars, step      -
//   adan_apply       p, g, m, v, n, -q        p, m, v, n, -q    44
#include "adan/adan.h"
#include "core/launch.cuh"
#include "core/sq_sum.h"
#include "core/tile.cuh"
#include "core/visit.h"

namespace lb::cuda {

// ---------------------------------------------------------------- kernels

namespace {

constexpr int kPrepareThreads = 1024;  // one block: it sums all tiles, then takes a tensor a thread

__global__ void __launch_bounds__(kPrepareThreads)
    adan_prepare_kernel(Workspace<AdanGroup, AdanScalars> ws, StepInputs inputs, bool clip,
                        bool sum_tiles) {
  double sum[1] = {0};
  if (sum_tiles) {
    for (int32_t t = int32_t(threadIdx.x); t < ws.num_tiles; t += kPrepareThreads) {
      sum[0] += ws.partials[t];
    }
    block_sum<kPrepareThreads>(sum);
  } else if (clip && inputs.grad_sq_sum != nullptr) {
    sum[0] = *inputs.grad_sq_sum;
  }
  if (threadIdx.x == 0) adan_decide(inputs, clip, sum[0], *ws.control);
  __syncthreads();
  for (int32_t r = int32_t(threadIdx.x); r < ws.num_rows; r += kPrepareThreads) {
    const Row& row = ws.rows[r];
    ws.scalars[r] = adan_prepare(ws.groups[row.group], inputs, *ws.control, row.step);
  }
}

template <class W, class G>
__global__ void __launch_bounds__(kTileThreads)
    adan_apply_kernel(Workspace<AdanGroup, AdanScalars> ws, int32_t first_tile) {
  using R = real_t<W>;
  if (ws.control->skip) return;
  const Tile tile = tile_at(ws.table(), first_tile + int32_t(blockIdx.x));
  const Row& row = ws.rows[tile.row];
  W* p = row.role<W>(kAdanWeights);
  const G* g = static_cast<const G*>(ws.grads[tile.row]);
  R* m = row.role<R>(kAdanExpAvg);
  R* v = row.role<R>(kAdanExpAvgDiff);
  R* n = row.role<R>(kAdanExpAvgSq);
  R* neg_q = row.role<R>(kAdanNegPreGrad);
  const AdanRule<R> rule(ws.scalars[tile.row]);

  int32_t nonfinite = 0;
  for_quads(tile, [&](int64_t i, int count) {
    R weight[kQuad], m_new[kQuad], v_new[kQuad], n_new[kQuad], neg_q_new[kQuad];
    real_t<G> grad[kQuad];
    load_quad(p + i, count, weight);
    load_quad(g + i, count, grad);
    load_quad(m + i, count, m_new);
    load_quad(v + i, count, v_new);
    load_quad(n + i, count, n_new);
    load_quad(neg_q + i, count, neg_q_new);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      const R update = rule.update(R(grad[k]), m_new[k], v_new[k], n_new[k], neg_q_new[k]);
      weight[k] = rule.weights(weight[k], update);
      // Past the end u is 0 / (0 + eps), and NaN when eps is 0.
      if (k < count && is_nonfinite(update)) ++nonfinite;
    }
    store_quad(m + i, count, m_new);
    store_quad(v + i, count, v_new);
    store_quad(n + i, count, n_new);
    store_quad(neg_q + i, count, neg_q_new);
    store_quad(p + i, count, weight);
    store_copy(row, kAdanCopy, i, count, weight);
  });

  // A number of elements does not depend on the order of additions.
  if (nonfinite > 0 && atomicAdd(&ws.control->nonfinite, 0) < kAdanMaxNonfinite) {
    atomicAdd(&ws.control->nonfinite, nonfinite);
  }
}

}  // namespace

// -------------------------------------------------------------- launchers

// One block a tile: thousands of tiles for a model that fills the device, and a tile's result does
// not depend on which block takes it.
void adan_step(const AdanCall& call, void* stream) {
  const auto& ws = call.workspace;
  const bool take_norm = call.clip && call.inputs.grad_sq_sum == nullptr;
  if (take_norm) sq_sum_tiles(call.plan, ws.table(), ws.partials, stream);
  launch("adan_prepare_kernel", adan_prepare_kernel, {1, kPrepareThreads}, stream, ws, call.inputs,
         call.clip, take_norm);
  for (const Segment& segment : call.plan.segments()) {
    const Row& row = call.plan.rows()[size_t(segment.first_row)];
    visit_weights_and_grad(row.dtypes[kAdanWeights], row.grad_dtype, [&](auto w, auto g) {
      using W = typename decltype(w)::type;
      using G = typename decltype(g)::type;
      launch("adan_apply_kernel", adan_apply_kernel<W, G>, {segment.num_tiles, kTileThreads},
             stream, ws, segment.first_tile);
    });
  }
}

}  // namespace lb::cuda
