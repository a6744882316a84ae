// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// How the CPU path shares tiles among threads. The number of threads is OpenMP's, which torch
// sets with torch.set_num_threads; no result depends on it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/fetch.h"
#include "core/plan.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace lb {

#if defined(_OPENMP)
inline int max_threads() { return omp_get_max_threads(); }
inline int thread_index() { return omp_get_thread_num(); }
inline int team_size() { return omp_get_num_threads(); }
#else
inline int max_threads() { return 1; }
inline int thread_index() { return 0; }
inline int team_size() { return 1; }
#endif

// Threads worth starting for `elements`: waking one costs some microseconds, a tile takes ten.
inline int threads_for(int64_t elements) {
  return int(std::max<int64_t>(1, std::min<int64_t>(max_threads(), elements / (2 * kTile))));
}

// The part of tiles [all.begin, all.end) that thread `index` of `count` takes: whole tiles,
// contiguous, shared out by elements. The same call gives the same part, so that a second pass
// over a wave finds its tiles in the cache of the same core.
inline Span share(const Table& table, Span all, int index, int count) {
  if (count == 1 || all.begin == all.end) return index == 0 ? all : Span{all.end, all.end};
  // Tiles of a tensor count as equally long: all but the last ones are.
  const auto length = [&](int64_t tile) {
    const Row& row = table.rows[table.tile_row[tile]];
    return row.numel / row.num_tiles;
  };
  const auto element = [&](int64_t tile) {
    const Row& row = table.rows[table.tile_row[tile]];
    return row.first_element + length(tile) * (tile - row.first_tile);
  };
  const int64_t begin = element(all.begin);
  const int64_t total = element(all.end - 1) + length(all.end - 1) - begin;
  const auto cut = [&](int k) {  // first tile that starts at or after k / count of the elements
    const int64_t at = begin + total / count * k;
    int64_t low = all.begin, high = all.end;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (element(middle) < at) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  };
  return {index == 0 ? all.begin : cut(index), index == count - 1 ? all.end : cut(index + 1)};
}

// Asks for where the arrays of the tile after the next one begin, or of the last before `end`. The
// processor foresees the lines of an array, but not which array comes next, and tiny tensors are
// over before it has seen that they go on.
LB_HD void fetch_ahead(const Table& table, int64_t tile, int64_t end) {
  const Tile coming = tile_at(table, int32_t(std::min(tile + 2, end - 1)));
  const Row& row = table.rows[coming.row];
  const auto ask = [&](const void* array, DType dtype) LB_INLINE {
    const int64_t size = size_of(dtype);
    fetch(static_cast<const char*>(array) + coming.start * size, coming.numel * size);
  };
  for (int role = 0; role < kMaxRoles; ++role) ask(row.data[role], row.dtypes[role]);
  ask(table.grads[coming.row], row.grad_dtype);
}

// Calls body(tile) for the part of tiles `all` that this thread takes, in order.
template <class Body>
void for_tiles(const Table& table, Span all, Body body) {
  const Span mine = share(table, all, thread_index(), team_size());
  for (int64_t t = mine.begin; t < mine.end; ++t) {
    fetch_ahead(table, t, mine.end);
    body(int32_t(t));
  }
}

}  // namespace lb
