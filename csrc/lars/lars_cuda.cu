// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// LARS on CUDA.
//
//   launch           reads                      writes            B / element of fp32
//   upload           -                          groups, gradient addresses; only what has changed
//   lars_prepare     step, found_inf            scalars, step      -
//   lars_norms       w, g                       tile sums          8
//   sum_rows         tile sums                  tensor sums        -
//   lars_apply       w, g, buf, tensor sums     w, buf            20   (12 without momentum)
#include "core/launch.cuh"
#include "core/tile.cuh"
#include "core/visit.h"
#include "lars/lars.h"

namespace lb::cuda {

// ---------------------------------------------------------------- kernels

namespace {

constexpr int kPrepareThreads = 1024;  // one block, a tensor a thread

__global__ void __launch_bounds__(kPrepareThreads)
    lars_prepare_kernel(Workspace<LarsGroup, LarsScalars> ws, StepInputs inputs, bool second) {
  if (threadIdx.x == 0) lars_decide(inputs, *ws.control);
  __syncthreads();
  if (!second) return;
  for (int32_t r = int32_t(threadIdx.x); r < ws.num_rows; r += kPrepareThreads) {
    const Row& row = ws.rows[r];
    ws.scalars[r] = lars_prepare(ws.groups[row.group], inputs, *ws.control, row.step);
  }
}

template <class W, class G>
__global__ void __launch_bounds__(kTileThreads)
    lars_norms_kernel(Workspace<LarsGroup, LarsScalars> ws, StepInputs inputs, int32_t first_tile) {
  if (ws.control->skip) return;
  const int32_t t = first_tile + int32_t(blockIdx.x);
  const Tile tile = tile_at(ws.table(), t);
  const W* w = ws.rows[tile.row].role<W>(kLarsWeights);
  const G* g = static_cast<const G*>(ws.grads[tile.row]);

  double sums[2] = {0, 0};
  for_quads(tile, [&](int64_t i, int count) {
    real_t<W> weight[kQuad];
    real_t<G> grad[kQuad];
    load_quad(w + i, count, weight);
    load_quad(g + i, count, grad);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      sums[0] += double(weight[k]) * double(weight[k]);
      sums[1] += double(grad[k]) * double(grad[k]);
    }
  });

  block_sum<kTileThreads>(sums);
  if (threadIdx.x == 0) {
    ws.partials[2 * int64_t(t)] = sums[0];
    const double grad_scale = grad_scale_of(inputs);
    ws.partials[2 * int64_t(t) + 1] = sums[1] / (grad_scale * grad_scale);
  }
}

template <class W, class G>
__global__ void __launch_bounds__(kTileThreads)
    lars_apply_kernel(Workspace<LarsGroup, LarsScalars> ws, const double* sums,
                      int32_t first_tile) {
  using R = real_t<W>;
  if (ws.control->skip) return;
  const Tile tile = tile_at(ws.table(), first_tile + int32_t(blockIdx.x));
  const Row& row = ws.rows[tile.row];
  const LarsScalars& scalars = ws.scalars[tile.row];
  W* w = row.role<W>(kLarsWeights);
  const G* g = static_cast<const G*>(ws.grads[tile.row]);
  R* buf = row.role<R>(kLarsMomentum);

  __shared__ double ratio;  // by one thread: fp64 is slow on small GPUs
  if (threadIdx.x == 0) {
    const double* sum = sums + 2 * int64_t(row.index);
    ratio = lars_trust_ratio(scalars, sum[0], sum[1]);
  }
  __syncthreads();
  const LarsRule<R> rule(scalars, ratio);

  for_quads(tile, [&](int64_t i, int count) {
    R weight[kQuad], buffer[kQuad];
    real_t<G> grad[kQuad];
    load_quad(w + i, count, weight);
    load_quad(g + i, count, grad);
    if (buf != nullptr) {
      load_quad(buf + i, count, buffer);
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        weight[k] = rule.with_momentum(weight[k], R(grad[k]), buffer[k]);
      }
      store_quad(buf + i, count, buffer);
    } else {
#pragma unroll
      for (int k = 0; k < kQuad; ++k) weight[k] = rule.without_momentum(weight[k], R(grad[k]));
    }
    store_quad(w + i, count, weight);
    store_copy(row, kLarsCopy, i, count, weight);
  });
}

}  // namespace

// -------------------------------------------------------------- launchers

// One block a tile in both passes: a tile's result does not depend on which block takes it.
void lars_step(const LarsCall& call, void* stream) {
  const auto& ws = call.workspace;
  const auto for_segments = [&](auto launch_segment) {
    for (const Segment& segment : call.plan.segments()) {
      const Row& row = call.plan.rows()[size_t(segment.first_row)];
      visit_weights_and_grad(row.dtypes[kLarsWeights], row.grad_dtype,
                             [&](auto w, auto g) { launch_segment(segment, w, g); });
    }
  };
  launch("lars_prepare_kernel", lars_prepare_kernel, {1, kPrepareThreads}, stream, ws, call.inputs,
         call.phases.second);
  if (call.phases.first) {
    for_segments([&](const Segment& segment, auto w, auto g) {
      using W = typename decltype(w)::type;
      using G = typename decltype(g)::type;
      launch("lars_norms_kernel", lars_norms_kernel<W, G>, {segment.num_tiles, kTileThreads},
             stream, ws, call.inputs, segment.first_tile);
    });
    sum_rows<2>(ws.table(), ws.partials, call.sums, ws.control, stream);
  }
  if (call.phases.second) {
    for_segments([&](const Segment& segment, auto w, auto g) {
      using W = typename decltype(w)::type;
      using G = typename decltype(g)::type;
      launch("lars_apply_kernel", lars_apply_kernel<W, G>, {segment.num_tiles, kTileThreads},
             stream, ws, call.sums, segment.first_tile);
    });
  }
}

}  // namespace lb::cuda
