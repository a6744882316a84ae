// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Error feedback on CUDA: the keys of a tile before selection, and what is taken out of the state
// after the exchange.
#pragma once

#include "core/launch.cuh"
#include "core/visit.h"
#include "topk/topk_block.cuh"

namespace lb::cuda {

// Keys of a tile; returns how many of this thread's were guarded.
template <class G>
__device__ __forceinline__ int accumulate_tile(const TopkCall& call, const Tile& tile) {
  using R = real_t<G>;
  const Row& row = call.table.rows[tile.row];
  const FeedbackHyper& hyper = call.feedback;
  const FeedbackScalars<R> scalars(hyper);
  const bool dense = call.records[row.group].dense();
  const bool has_e = has_error(hyper.method), has_h = has_shift(hyper.method);
  const bool has_v = has_momentum(hyper);
  const G* g = static_cast<const G*>(call.table.grads[tile.row]);
  int guarded = 0;
  for_quads(tile, [&](int64_t i, int count) {
    R gradient[kQuad], e[kQuad] = {}, h[kQuad] = {}, v[kQuad] = {}, key[kQuad];
    load_quad(g + i, count, gradient);
    if (has_e) load_quad(row.role<const R>(kError) + i, count, e);
    if (has_h) load_quad(row.role<const R>(kShift) + i, count, h);
    if (has_v) load_quad(row.role<const R>(kMomentum) + i, count, v);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      FeedbackState<R> x{e[k], h[k], v[k]};
      bool guard;
      key[k] = accumulate(hyper.method, hyper.average, hyper.nesterov, dense, scalars, gradient[k],
                          x, guard);
      e[k] = x.e;
      v[k] = x.v;
      guarded += guard && k < count;
    }
    if (has_e) store_quad(row.role<R>(kError) + i, count, e);
    if (has_v) store_quad(row.role<R>(kMomentum) + i, count, v);
    store_quad(row.role<R>(kKey) + i, count, key);
  });
  return guarded;
}

template <class T>
__device__ __forceinline__ int prepare_keys(const TopkCall& call, const Tile& tile) {
  int guarded = 0;
  if constexpr (std::is_same_v<T, double>) {
    guarded = accumulate_tile<double>(call, tile);
  } else if constexpr (std::is_same_v<T, float>) {
    const DType gradient = call.table.rows[tile.row].grad_dtype;
    if (gradient == DType::float32) guarded = accumulate_tile<float>(call, tile);
    if (gradient == DType::float16) guarded = accumulate_tile<Half>(call, tile);
    if (gradient == DType::bfloat16) guarded = accumulate_tile<BFloat16>(call, tile);
  }
  return guarded;
}

namespace {

// Dense records: what was sent is in kKey.
template <class R>
__global__ void __launch_bounds__(kTileThreads) fix_up_dense_kernel(FixUpCall call) {
  const Tile tile = tile_at(call.table, int32_t(blockIdx.x));
  const Row& row = call.table.rows[tile.row];
  const Feedback method = call.feedback.method;
  if (*call.stop != 0 || !call.records[row.group].dense() || method == Feedback::dgc) return;
  for_quads(tile, [&](int64_t i, int count) {
    R sent[kQuad], e[kQuad] = {}, h[kQuad] = {};
    load_quad(row.role<const R>(kKey) + i, count, sent);
    if (has_error(method)) load_quad(row.role<const R>(kError) + i, count, e);
    if (has_shift(method)) load_quad(row.role<const R>(kShift) + i, count, h);
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      FeedbackState<R> x{e[k], h[k], R(0)};
      fix_up(method, sent[k], x);
      e[k] = x.e;
      h[k] = x.h;
    }
    if (has_error(method)) store_quad(row.role<R>(kError) + i, count, e);
    if (has_shift(method)) store_quad(row.role<R>(kShift) + i, count, h);
  });
}

// The others: a block takes a chunk of slots. No two slots of a record are the same element.
template <class R>
__global__ void __launch_bounds__(kTileThreads) fix_up_sparse_kernel(FixUpCall call) {
  const RecordChunk chunk = chunk_at(call.records, call.num_records, int64_t(blockIdx.x));
  const Record& record = call.records[chunk.record];
  if (*call.stop != 0 || record.dense()) return;
  for (int64_t i = threadIdx.x; i < chunk.count; i += kTileThreads) {
    const int64_t slot = record.first_slot + chunk.first + i;
    fix_up_slot<R>(call, record, call.indices[slot], static_cast<const R*>(call.values)[slot]);
  }
}

}  // namespace

// -------------------------------------------------------------- launchers

void topk_fix_up(const FixUpCall& call, void* stream) {
  const int64_t tiles = call.table.num_tiles, chunks = call.num_chunks;
  visit(call.real, [&](auto type) {
    using R = real_t<typename decltype(type)::type>;
    launch("fix_up_dense_kernel", fix_up_dense_kernel<R>, {tiles, kTileThreads}, stream, call);
    launch("fix_up_sparse_kernel", fix_up_sparse_kernel<R>, {chunks, kTileThreads}, stream, call);
  });
}

}  // namespace lb::cuda
