// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// LARS on the CPU.
#include "core/isa.h"
#include "core/prepare.h"
#include "core/waves.h"
#include "lars/lars.h"

namespace lb {

LB_DECLARE_FOR_ISAS(void lars_norms_tile(const Row& row, const void* grad, double grad_scale,
                                         Tile tile, double* sums);
                    void lars_apply_tile(const Row& row, const void* grad,
                                         const LarsScalars& scalars, double trust_ratio, Tile tile))

namespace cpu {

void lars_step(const LarsCall& call) {
  const auto& ws = call.workspace;
  const Table table = ws.table();
  lars_decide(call.inputs, *ws.control);
  if (call.phases.second) {
    prepare_rows(ws, [&](const LarsGroup& group, float* step) {
      return lars_prepare(group, call.inputs, *ws.control, step);
    });
  }
  if (ws.control->skip) return;
  const double grad_scale = grad_scale_of(call.inputs);
  const auto norms_tile = LB_FOR_ISA(lars_norms_tile);
  const auto apply_tile = LB_FOR_ISA(lars_apply_tile);
  run_waves(
      call.plan, table, call.phases, ws.partials, call.sums, *ws.control,
      [&](const Tile& tile, double* sums) {
        norms_tile(table.rows[tile.row], table.grads[tile.row], grad_scale, tile, sums);
      },
      [&](int32_t row, const double* sums) {
        return lars_trust_ratio(ws.scalars[row], sums[0], sums[1]);
      },
      [&](const Tile& tile, double ratio) {
        apply_tile(table.rows[tile.row], table.grads[tile.row], ws.scalars[tile.row], ratio, tile);
      });
}

}  // namespace cpu
}  // namespace lb
