// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// The two phases of a step on the CPU: waves of tensors that fit the cache, each finished before
// the next, so that the second pass finds in the cache what the first one left there.
#pragma once

#include "core/parallel.h"
#include "core/workspace.h"

namespace lb::cpu {

// sums[0..1] = the row's partials in tile order.
inline void sum_tiles(const Row& row, const double* partials, double* sums) {
  sums[0] = sums[1] = 0;
  for (int64_t t = row.first_tile; t < int64_t(row.first_tile) + row.num_tiles; ++t) {
    sums[0] += partials[2 * t];
    sums[1] += partials[2 * t + 1];
  }
}

//   first(tile, partial)    reads a tile and writes its two sums
//   ratio(row, sums)        what the second phase needs of a whole tensor: one number
//   second(tile, ratio)     updates a tile
//   sums [num_tensors, 2]   written by the first phase, else read by the second
//   control.nonfinite       becomes the number of tensors whose sums are not finite
template <class First, class Ratio, class Second>
void run_waves(const Plan& plan, const Table& table, Phases phases, double* partials, double* sums,
               Control& control, First first, Ratio ratio, Second second) {
#pragma omp parallel num_threads(threads_for(plan.numel()))
  for (const Span& wave : plan.waves()) {
    if (phases.first) {
      for_tiles(table, wave,
                [&](int32_t t) { first(tile_at(table, t), partials + 2 * int64_t(t)); });
#pragma omp barrier
    }
    if (!phases.second) continue;
    int32_t row = -1;
    double row_ratio = 0;
    for_tiles(table, wave, [&](int32_t t) {
      const Tile tile = tile_at(table, t);
      if (tile.row != row) {  // every thread sums for itself: the same numbers, the same order
        row = tile.row;
        double of_row[2] = {sums[2 * table.rows[row].index], sums[2 * table.rows[row].index + 1]};
        if (phases.first) sum_tiles(table.rows[row], partials, of_row);
        row_ratio = ratio(row, of_row);
      }
      second(tile, row_ratio);
    });
  }
  control.nonfinite = 0;
  for (int32_t r = 0; r < table.num_rows; ++r) {
    double* of_row = sums + 2 * table.rows[r].index;
    if (phases.first) sum_tiles(table.rows[r], partials, of_row);
    control.nonfinite += is_nonfinite(of_row[0] + of_row[1]);
  }
}

}  // namespace lb::cpu
