// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Lion on the CPU.
#include <algorithm>

#include "core/isa.h"
#include "core/parallel.h"
#include "lion/lion.h"

namespace lb {

LB_DECLARE_FOR_ISAS(
    int64_t lion_step_tile(const Row& row, const void* grad, const LionScalars& scalars, Tile tile);
    void lion_reduce_tile(const Row& row, const void* grad, const LionScalars& scalars,
                          int64_t tile, double* partials);
    int64_t lion_group_tile(const Row& row, const void* grad, const LionScalars& scalars,
                            const LionGroup& group, int64_t tile, double* sums))

namespace cpu {

namespace {

// Calls body(tile, row, its scalars) for the tiles of this thread.
template <class Body>
void for_scaled_tiles(const LionCall& call, const Span& wave, Body body) {
  const auto& ws = call.workspace;
  const Table table = ws.table();
  LionScalars scalars{};
  int32_t of_row = -1;
  for_tiles(table, wave, [&](int32_t t) {
    const int32_t r = table.tile_row[t];
    const Row& row = table.rows[r];
    if (r != of_row) {
      scalars = lion_scalars(ws.groups[row.group], row.id, int64_t(*row.step),
                             grad_scale_of(call.inputs));
      of_row = r;
    }
    body(t, r, scalars);
  });
}

// Stats of all groups of a wave that come in parts, in three steps between barriers.
void reduce_wave(const LionCall& call, const Span& wave) {
  const auto& ws = call.workspace;
  const Table table = ws.table();
  const auto reduce_tile = LB_FOR_ISA(lion_reduce_tile);
  for_scaled_tiles(call, wave, [&](int32_t t, int32_t r, const LionScalars& scalars) {
    const Row& row = table.rows[r];
    if (row.variant != kLionParted) return;
    reduce_tile(row, table.grads[r], scalars, t - row.first_tile, ws.partials);
  });
#pragma omp barrier
#pragma omp for schedule(dynamic)
  for (int32_t r = table.tile_row[wave.begin]; r <= table.tile_row[wave.end - 1]; ++r) {
    const Row& row = table.rows[r];
    const LionGroup& group = ws.groups[row.group];
    if (row.variant != kLionParted) continue;
    lion_merge_groups(row, group, ws.partials, ws.sums, 0, 1);
    if (group.kappa == LionKappa::l2_inf) lion_choose_group(row, ws.sums);
    lion_finish_groups(row, group, ws.sums, 0, 1, row.cut.groups);
  }
}

}  // namespace

void lion_step(const LionCall& call) {
  const auto& ws = call.workspace;
  const Table table = ws.table();
  *ws.control = {};
  ws.control->skip = lion_skips(call.inputs);
  if (ws.control->skip) return;
  const auto step_tile = LB_FOR_ISA(lion_step_tile);
  const auto group_tile = LB_FOR_ISA(lion_group_tile);
  bool in_parts = false;
  for (const Segment& segment : call.plan.segments()) {
    in_parts |= table.rows[segment.first_row].variant == kLionParted && segment.num_tiles > 0;
  }
  const std::vector<Span> whole{{0, table.num_tiles}};
  const std::vector<Span>& waves = in_parts ? call.plan.waves() : whole;
  int64_t nonfinite = 0;
#pragma omp parallel num_threads(threads_for(call.plan.numel())) reduction(+ : nonfinite)
  for (const Span& wave : waves) {
    if (wave.begin == wave.end) continue;
    if (in_parts) reduce_wave(call, wave);
    for_scaled_tiles(call, wave, [&](int32_t t, int32_t r, const LionScalars& scalars) {
      const Row& row = table.rows[r];
      nonfinite += row.variant < kLionGrouped
                       ? step_tile(row, table.grads[r], scalars, tile_at(table, t))
                       : group_tile(row, table.grads[r], scalars, ws.groups[row.group],
                                    t - row.first_tile, ws.sums);
    });
  }
  for (int32_t r = 0; r < ws.num_rows; ++r) *ws.rows[r].step += 1;
  ws.control->nonfinite = int32_t(std::min<int64_t>(nonfinite, kLionMaxNonfinite));
}

}  // namespace cpu
}  // namespace lb
