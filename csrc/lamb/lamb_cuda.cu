// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// LAMB on CUDA: two passes over the weights, the norms merged into the first.
//
//   launch           reads                    writes            B / element of fp32
//   upload           -                        groups, gradient addresses; only what has changed,
//                                             one launch for some 4000 of them
//   sq_sum           g                        tile sums          4   (only when clipping)
//   lamb_prepare     tile sums, step          scalars, step      -
//   lamb_moments     w, g, m, v               m, v, tile sums   24
//   sum_rows         tile sums                tensor sums        -
//   lamb_apply       w, m, v, tensor sums     w                 16
//
// Storing u instead of computing it again in the last pass would cost the same bytes and a buffer.
#include "core/launch.cuh"
#include "core/sq_sum.h"
#include "core/tile.cuh"
#include "core/visit.h"
#include "lamb/lamb.h"

namespace lb::cuda {

// ---------------------------------------------------------------- kernels

namespace {

constexpr int kPrepareThreads = 1024;  // one block: it sums all tiles, then takes a tensor a thread

__global__ void __launch_bounds__(kPrepareThreads)
    lamb_prepare_kernel(Workspace<LambGroup, LambScalars> ws, StepInputs inputs, bool clip,
                        bool sum_tiles, bool first_phase) {
  double sum[1] = {0};
  if (sum_tiles) {
    for (int32_t t = int32_t(threadIdx.x); t < ws.num_tiles; t += kPrepareThreads) {
      sum[0] += ws.partials[t];
    }
    block_sum<kPrepareThreads>(sum);
  } else if (clip && inputs.grad_sq_sum != nullptr) {
    sum[0] = *inputs.grad_sq_sum;
  }
  if (threadIdx.x == 0) lamb_decide(inputs, clip, sum[0], *ws.control);
  __syncthreads();
  for (int32_t r = int32_t(threadIdx.x); r < ws.num_rows; r += kPrepareThreads) {
    const Row& row = ws.rows[r];
    ws.scalars[r] = lamb_prepare(ws.groups[row.group], inputs, *ws.control, first_phase, row.step);
  }
}

template <class W, class G>
__global__ void __launch_bounds__(kTileThreads)
    lamb_moments_kernel(Workspace<LambGroup, LambScalars> ws, int32_t first_tile) {
  using R = real_t<W>;
  if (ws.control->skip) return;
  const int32_t t = first_tile + int32_t(blockIdx.x);
  const Tile tile = tile_at(ws.table(), t);
  const Row& row = ws.rows[tile.row];
  const W* w = row.role<W>(kLambWeights);
  const G* g = static_cast<const G*>(ws.grads[tile.row]);
  R* m = row.role<R>(kLambExpAvg);
  R* v = row.role<R>(kLambExpAvgSq);
  const LambRule<R> rule(ws.scalars[tile.row]);

  double sums[2] = {0, 0};
  for_quads(tile, [&](int64_t i, int count) {
    R weight[kQuad], m_new[kQuad], v_new[kQuad];
    real_t<G> grad[kQuad];
    load_quad(w + i, count, weight);
    load_quad(g + i, count, grad);
    load_quad(m + i, count, m_new);
    load_quad(v + i, count, v_new);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      weight[k] = rule.weights(weight[k]);
      rule.moments(weight[k], R(grad[k]), m_new[k], v_new[k]);
      if (k < count) {  // past the end u is 0 / (0 + eps), and NaN when eps is 0
        const double update = double(rule.update(weight[k], m_new[k], v_new[k]));
        sums[0] += double(weight[k]) * double(weight[k]);
        sums[1] += update * update;
      }
    }
    store_quad(m + i, count, m_new);
    store_quad(v + i, count, v_new);
  });

  block_sum<kTileThreads>(sums);
  if (threadIdx.x == 0) {
    ws.partials[2 * int64_t(t)] = sums[0];
    ws.partials[2 * int64_t(t) + 1] = sums[1];
  }
}

template <class W>
__global__ void __launch_bounds__(kTileThreads)
    lamb_apply_kernel(Workspace<LambGroup, LambScalars> ws, const double* sums,
                      int32_t first_tile) {
  using R = real_t<W>;
  if (ws.control->skip) return;
  const Tile tile = tile_at(ws.table(), first_tile + int32_t(blockIdx.x));
  const Row& row = ws.rows[tile.row];
  const LambScalars& scalars = ws.scalars[tile.row];
  W* w = row.role<W>(kLambWeights);
  const R* m = row.role<R>(kLambExpAvg);
  const R* v = row.role<R>(kLambExpAvgSq);
  const LambRule<R> rule(scalars);

  __shared__ double step_size;  // lr * r, by one thread: fp64 is slow on small GPUs
  if (threadIdx.x == 0) {
    const double* sum = sums + 2 * int64_t(row.index);
    step_size = scalars.lr * lamb_trust_ratio(scalars, sum[0], sum[1]);
  }
  __syncthreads();
  const R size = R(step_size);

  for_quads(tile, [&](int64_t i, int count) {
    R weight[kQuad], m_now[kQuad], v_now[kQuad];
    load_quad(w + i, count, weight);
    load_quad(m + i, count, m_now);
    load_quad(v + i, count, v_now);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      weight[k] = rule.weights(weight[k]);
      weight[k] = weight[k] - size * rule.update(weight[k], m_now[k], v_now[k]);
    }
    store_quad(w + i, count, weight);
    store_copy(row, kLambCopy, i, count, weight);
  });
}

}  // namespace

// -------------------------------------------------------------- launchers

// One block a tile in both passes: thousands of tiles for a model that fills the device, and a
// tile's result does not depend on which block takes it.
void lamb_step(const LambCall& call, void* stream) {
  const auto& ws = call.workspace;
  const bool take_norm = call.phases.first && call.clip && call.inputs.grad_sq_sum == nullptr;
  if (take_norm) sq_sum_tiles(call.plan, ws.table(), ws.partials, stream);
  launch("lamb_prepare_kernel", lamb_prepare_kernel, {1, kPrepareThreads}, stream, ws, call.inputs,
         call.clip, take_norm, call.phases.first);

  if (call.phases.first) {
    for (const Segment& segment : call.plan.segments()) {
      const Row& row = call.plan.rows()[size_t(segment.first_row)];
      visit_weights_and_grad(row.dtypes[kLambWeights], row.grad_dtype, [&](auto w, auto g) {
        using W = typename decltype(w)::type;
        using G = typename decltype(g)::type;
        launch("lamb_moments_kernel", lamb_moments_kernel<W, G>, {segment.num_tiles, kTileThreads},
               stream, ws, segment.first_tile);
      });
    }
    sum_rows<2>(ws.table(), ws.partials, call.sums, ws.control, stream);
  }
  if (call.phases.second) {
    for (const Segment& segment : call.plan.segments()) {
      const Row& row = call.plan.rows()[size_t(segment.first_row)];
      visit(row.dtypes[kLambWeights], [&](auto w) {
        using W = typename decltype(w)::type;
        launch("lamb_apply_kernel", lamb_apply_kernel<W>, {segment.num_tiles, kTileThreads}, stream,
               ws, call.sums, segment.first_tile);
      });
    }
  }
}

}  // namespace lb::cuda
