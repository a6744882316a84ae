// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Dot products of the halves on the CPU.
#include "agvm/agvm.h"
#include "core/isa.h"
#include "core/parallel.h"

namespace lb {

LB_DECLARE_FOR_ISAS(void half_dots_tile(const Row& row, const void* grad, const HalfDots& dots,
                                        Tile tile, double* sums))

namespace cpu {

void half_dots(const Plan& plan, const Table& table, const HalfDots& dots, double* partials,
               double* sums) {
  const auto half_dots_tile = LB_FOR_ISA(half_dots_tile);
#pragma omp parallel num_threads(threads_for(plan.numel()))
  for_tiles(table, {0, table.num_tiles}, [&](int32_t t) {
    const Tile tile = tile_at(table, t);
    half_dots_tile(table.rows[tile.row], table.grads[tile.row], dots, tile,
                   partials + kHalfSums * int64_t(t));
  });
  for (int32_t r = 0; r < table.num_rows; ++r) {
    const Row& row = table.rows[r];
    double* of_row = sums + kHalfSums * int64_t(row.index);
    for (int k = 0; k < kHalfSums; ++k) {
      of_row[k] = 0;
      for (int64_t t = row.first_tile; t < int64_t(row.first_tile) + row.num_tiles; ++t) {
        of_row[k] += partials[kHalfSums * t + k];
      }
    }
  }
}

}  // namespace cpu
}  // namespace lb
