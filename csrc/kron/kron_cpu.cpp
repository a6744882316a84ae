// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Rank-1 updates of factors on the CPU, in waves of factors that stay in the cache between the two
// passes.
//
// Reading one triangle alone was measured and is not faster: for the product (2.5 d^2 elements in
// place of 3) factors that fit no cache take as long within 2%; for the update as well (2 d^2),
// whose other triangle is then written in transposed blocks past the cache, 1.2 times as long and
// more.
#include "core/isa.h"
#include "core/parallel.h"
#include "kron/kron.h"

namespace lb {

LB_DECLARE_FOR_ISAS(void kron_product_panel(const Row& row, const void* v, KronPanel panel,
                                            double* partials);
                    KronScalars kron_finish(const Row& row, const void* v, const KronHyper& hyper,
                                            double norm, bool skip, double* partials);
                    void kron_update_panel(const Row& row, const KronScalars& scalars,
                                           KronNorm norm, KronPanel panel, double* partials))

namespace cpu {

namespace {

// Where it lies does not depend on the type.
double* product_of(const Row& row, double* partials) {
  return kron_scratch<float>(row, partials).product;
}

}  // namespace

void kron_rank1_update(const Plan& plan, const KronWorkspace& ws, const KronHyper& hyper,
                       const KronState& state) {
  const auto product_panel = LB_FOR_ISA(kron_product_panel);
  const auto finish = LB_FOR_ISA(kron_finish);
  const auto update_panel = LB_FOR_ISA(kron_update_panel);
  const Table table = ws.table();

#pragma omp parallel num_threads(threads_for(plan.numel()))
  for (const Span& wave : plan.waves()) {
    if (wave.begin == wave.end) continue;
    const int32_t first = table.tile_row[wave.begin], last = table.tile_row[wave.end - 1];
    const Span mine = share(table, wave, thread_index(), team_size());
    for (int64_t t = mine.begin; t < mine.end; ++t) {
      const int32_t r = table.tile_row[t];
      product_panel(table.rows[r], table.grads[r], kron_panel(table.rows[r], int32_t(t)),
                    ws.partials);
    }
#pragma omp barrier
#pragma omp for schedule(static)
    for (int32_t r = first; r <= last; ++r) {
      const int32_t index = table.rows[r].index;
      const bool skip = state.skip != nullptr && state.skip[index] != 0;
      ws.scalars[r] = finish(table.rows[r], table.grads[r], hyper, double(state.norms[index]), skip,
                             ws.partials);
    }
    for (int64_t t = mine.begin; t < mine.end; ++t) {
      const int32_t r = table.tile_row[t];
      if (ws.scalars[r].action == KronAction::leave) continue;
      update_panel(table.rows[r], ws.scalars[r], hyper.norm, kron_panel(table.rows[r], int32_t(t)),
                   ws.partials);
    }
  }

  for (int32_t r = 0; r < table.num_rows; ++r) {
    const Row& row = table.rows[r];
    if (kron_order(row) == 0) {
      state.norms[row.index] = 0;
      continue;
    }
    const KronScalars& scalars = ws.scalars[r];
    if (scalars.count >= 0) state.counters[kKronCounts * row.index + scalars.count] += 1;
    if (scalars.action == KronAction::leave) continue;
    const double* rows = product_of(row, ws.partials);
    uint32_t most = 0;
    for (int64_t i = 0; i < kron_order(row); ++i) {
      most = std::max(most, kron_norm_bits(float(rows[i])));
    }
    state.norms[row.index] = detail::float_of(most);
  }
}

}  // namespace cpu
}  // namespace lb
