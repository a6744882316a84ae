// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// LAMB on the CPU.
#include "core/isa.h"
#include "core/prepare.h"
#include "core/sq_sum.h"
#include "core/waves.h"
#include "lamb/lamb.h"

namespace lb {

LB_DECLARE_FOR_ISAS(void lamb_moments_tile(const Row& row, const void* grad,
                                           const LambScalars& scalars, Tile tile, double* sums);
                    void lamb_apply_tile(const Row& row, const LambScalars& scalars,
                                         double step_size, Tile tile))

namespace cpu {

namespace {

double sum_of_gradients(const LambCall& call) {
  if (!call.clip) return 0;
  if (call.inputs.grad_sq_sum != nullptr) return *call.inputs.grad_sq_sum;
  if (!call.phases.first) return 0;  // the second phase has no gradients and no use for the norm
  const auto& ws = call.workspace;
  sq_sum(call.plan, ws.table(), ws.partials, ws.sums);
  double sum = 0;
  for (int32_t r = 0; r < ws.num_rows; ++r) sum += ws.sums[r];
  return sum;
}

}  // namespace

void lamb_step(const LambCall& call) {
  const auto& ws = call.workspace;
  const Table table = ws.table();
  lamb_decide(call.inputs, call.clip, sum_of_gradients(call), *ws.control);
  prepare_rows(ws, [&](const LambGroup& group, float* step) {
    return lamb_prepare(group, call.inputs, *ws.control, call.phases.first, step);
  });
  if (ws.control->skip) return;
  const auto moments_tile = LB_FOR_ISA(lamb_moments_tile);
  const auto apply_tile = LB_FOR_ISA(lamb_apply_tile);
  run_waves(
      call.plan, table, call.phases, ws.partials, call.sums, *ws.control,
      [&](const Tile& tile, double* sums) {
        moments_tile(table.rows[tile.row], table.grads[tile.row], ws.scalars[tile.row], tile, sums);
      },
      [&](int32_t row, const double* sums) {
        return ws.scalars[row].lr * lamb_trust_ratio(ws.scalars[row], sums[0], sums[1]);
      },
      [&](const Tile& tile, double step_size) {
        apply_tile(table.rows[tile.row], ws.scalars[tile.row], step_size, tile);
      });
}

}  // namespace cpu
}  // namespace lb
