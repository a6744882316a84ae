// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Adan on the CPU.
#include <algorithm>

#include "adan/adan.h"
#include "core/isa.h"
#include "core/parallel.h"
#include "core/sq_sum.h"

namespace lb {

LB_DECLARE_FOR_ISAS(int64_t adan_step_tile(const Row& row, const void* grad,
                                           const AdanScalars& scalars, Tile tile))

namespace cpu {

namespace {

double sum_of_gradients(const AdanCall& call) {
  if (!call.clip) return 0;
  if (call.inputs.grad_sq_sum != nullptr) return *call.inputs.grad_sq_sum;
  const auto& ws = call.workspace;
  sq_sum(call.plan, ws.table(), ws.partials, ws.sums);
  double sum = 0;
  for (int32_t r = 0; r < ws.num_rows; ++r) sum += ws.sums[r];
  return sum;
}

// Scalars of every tensor, and its step made. Those of a tensor are those of the one before if both
// are of one group and have made as many steps: the powers in them take as long as a tiny tensor.
void prepare(const AdanCall& call) {
  const auto& ws = call.workspace;
  float step_of_last = 0;
  for (int32_t r = 0; r < ws.num_rows; ++r) {
    const Row& row = ws.rows[r];
    const float step = *row.step;
    if (r > 0 && row.group == ws.rows[r - 1].group && step == step_of_last) {
      ws.scalars[r] = ws.scalars[r - 1];
      *row.step = *ws.rows[r - 1].step;
    } else {
      ws.scalars[r] = adan_prepare(ws.groups[row.group], call.inputs, *ws.control, row.step);
    }
    step_of_last = step;
  }
}

// Asks for where a tile's arrays begin: the processor foresees the lines of an array, but not which
// array comes next, and tiny tensors are over before it has seen that they go on.
LB_HD void fetch_ahead(const Table& table, int64_t tile) {
  constexpr int64_t kLine = 64, kLines = 4;
  const Tile coming = tile_at(table, int32_t(tile));
  const Row& row = table.rows[coming.row];
  const auto ask = [&](const void* array, DType dtype) LB_INLINE {
    const auto* from = static_cast<const char*>(array) + coming.start * size_of(dtype);
    const int64_t nbytes = std::min(coming.numel * size_of(dtype), kLines * kLine);
    for (int64_t at = 0; at < nbytes; at += kLine) __builtin_prefetch(from + at);
  };
  for (int role = 0; role < kAdanCopy; ++role) ask(row.data[role], row.dtypes[role]);
  ask(table.grads[coming.row], row.grad_dtype);
}

}  // namespace

void adan_step(const AdanCall& call) {
  const auto& ws = call.workspace;
  const Table table = ws.table();
  adan_decide(call.inputs, call.clip, sum_of_gradients(call), *ws.control);
  if (ws.control->skip) return;
  prepare(call);
  const auto step_tile = LB_FOR_ISA(adan_step_tile);
  int64_t nonfinite = 0;
#pragma omp parallel num_threads(threads_for(call.plan.numel())) reduction(+ : nonfinite)
  {
    const Span mine = share(table, {0, table.num_tiles}, thread_index(), team_size());
    for (int64_t t = mine.begin; t < mine.end; ++t) {
      fetch_ahead(table, std::min(t + 2, mine.end - 1));
      const Tile tile = tile_at(table, int32_t(t));
      nonfinite +=
          step_tile(table.rows[tile.row], table.grads[tile.row], ws.scalars[tile.row], tile);
    }
  }
  ws.control->nonfinite = int32_t(std::min<int64_t>(nonfinite, kAdanMaxNonfinite));
}

}  // namespace cpu
}  // namespace lb
