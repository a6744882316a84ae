// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Adan on the CPU.
#include <algorithm>

#include "adan/adan.h"
#include "core/isa.h"
#include "core/parallel.h"
#include "core/prepare.h"
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

}  // namespace

void adan_step(const AdanCall& call) {
  const auto& ws = call.workspace;
  const Table table = ws.table();
  adan_decide(call.inputs, call.clip, sum_of_gradients(call), *ws.control);
  if (ws.control->skip) return;
  prepare_rows(ws, [&](const AdanGroup& group, float* step) {
    return adan_prepare(group, call.inputs, *ws.control, step);
  });
  const auto step_tile = LB_FOR_ISA(adan_step_tile);
  int64_t nonfinite = 0;
#pragma omp parallel num_threads(threads_for(call.plan.numel())) reduction(+ : nonfinite)
  for_tiles(table, {0, table.num_tiles}, [&](int32_t t) {
    const Tile tile = tile_at(table, t);
    nonfinite += step_tile(table.rows[tile.row], table.grads[tile.row], ws.scalars[tile.row], tile);
  });
  ws.control->nonfinite = int32_t(std::min<int64_t>(nonfinite, kAdanMaxNonfinite));
}

}  // namespace cpu
}  // namespace lb
