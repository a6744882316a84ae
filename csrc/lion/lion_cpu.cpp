// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Lion on the CPU.
#include <algorithm>

#include "core/isa.h"
#include "core/parallel.h"
#include "lion/lion.h"

namespace lb {

LB_DECLARE_FOR_ISAS(int64_t lion_step_tile(const Row& row, const void* grad,
                                           const LionScalars& scalars, Tile tile))

namespace cpu {

void lion_step(const LionCall& call) {
  const auto& ws = call.workspace;
  const Table table = ws.table();
  *ws.control = {};
  ws.control->skip = lion_skips(call.inputs);
  if (ws.control->skip) return;
  const double grad_scale = grad_scale_of(call.inputs);
  const auto step_tile = LB_FOR_ISA(lion_step_tile);
  int64_t nonfinite = 0;
#pragma omp parallel num_threads(threads_for(call.plan.numel())) reduction(+ : nonfinite)
  {
    const Span mine = share(table, {0, table.num_tiles}, thread_index(), team_size());
    LionScalars scalars{};
    int32_t of_row = -1;
    for (int64_t t = mine.begin; t < mine.end; ++t) {
      const Tile tile = tile_at(table, int32_t(t));
      const Row& row = table.rows[tile.row];
      if (tile.row != of_row) {
        scalars = lion_scalars(ws.groups[row.group], row.id, int64_t(*row.step), grad_scale);
        of_row = tile.row;
      }
      nonfinite += step_tile(row, table.grads[tile.row], scalars, tile);
    }
  }
  for (int32_t r = 0; r < ws.num_rows; ++r) *ws.rows[r].step += 1;
  ws.control->nonfinite = int32_t(std::min<int64_t>(nonfinite, kLionMaxNonfinite));
}

}  // namespace cpu
}  // namespace lb
