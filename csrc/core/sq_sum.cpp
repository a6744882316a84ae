// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#include "core/sq_sum.h"

#include "core/isa.h"
#include "core/parallel.h"

namespace lb {

LB_DECLARE_FOR_ISAS(double sq_sum_tile(DType dtype, const void* data, int64_t start, int64_t n))

namespace cpu {

void sq_sum(const Plan& plan, const Table& table, double* partials, double* sums) {
  const auto sq_sum_tile = LB_FOR_ISA(sq_sum_tile);
#pragma omp parallel num_threads(threads_for(plan.numel()))
  {
    // Backwards, so that what is in the cache at the end is what a following pass reads first.
    const Span mine = share(table, {0, table.num_tiles}, thread_index(), team_size());
    for (int64_t t = mine.end - 1; t >= mine.begin; --t) {
      const Tile tile = tile_at(table, int32_t(t));
      partials[t] = sq_sum_tile(table.rows[tile.row].grad_dtype, table.grads[tile.row], tile.start,
                                tile.numel);
    }
  }
  for (int32_t r = 0; r < table.num_rows; ++r) {
    const Row& row = table.rows[r];
    double sum = 0;
    for (int32_t t = 0; t < row.num_tiles; ++t) sum += partials[row.first_tile + t];
    sums[row.index] = sum;
  }
}

}  // namespace cpu
}  // namespace lb
