// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// How a tensor is cut into tiles when groups of its elements belong together: the rows, columns or
// heads of a matrix, or all of it.
//
// In memory the tensor is a matrix of `columns` neighbours a row, and a group is `width`
// neighbouring columns of it: a row of the weight where that matrix has one row, else a column of
// it. A tile is `tile_rows` rows of `tile_columns` columns. It holds whole groups where they fit,
// so that they are reduced and used while they are in the cache; else each group comes in parts,
// whose sums are merged between two passes. A tensor without groups is one group: kTile elements a
// tile.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace lb {

constexpr int64_t kTile = 16384;  // elements; 64 KiB of fp32: a tile's arrays fit an L2 cache

struct Cut {
  int64_t rows, columns, width;
  int64_t tile_rows, tile_columns;
  int64_t tiles_across;  // tiles side by side
  int64_t groups;
  int64_t parts;  // of a group: tiles that hold some of it

  LB_HD int64_t tiles_down() const { return (rows + tile_rows - 1) / tile_rows; }
  LB_HD int64_t num_tiles() const { return rows * columns == 0 ? 0 : tiles_down() * tiles_across; }
};

inline Cut make_cut(int64_t numel, int64_t columns, int64_t width) {
  if (numel == 0) return {0, 0, 0, 1, kTile, 0, 1, 1};
  constexpr int64_t kNarrow = 16, kWide = 64;  // columns; a line of the cache has 16 of fp32
  Cut cut{numel / columns, columns, width, 1, 0, 0, columns / width, 1};
  if (width > kTile) {
    const int64_t across = (width + kTile - 1) / kTile;
    cut.tile_columns = kTile;
    cut.tiles_across = cut.groups * across;
    cut.parts = cut.rows * across;
    return cut;
  }
  int64_t groups = cut.rows * width <= kTile ? kTile / (cut.rows * width) : 0;  // whole ones a tile
  if (groups > 0 && (cut.rows == 1 || groups * width >= kNarrow || groups >= cut.groups)) {
    cut.tile_rows = cut.rows;
  } else {
    groups = width < kWide ? kWide / width : 1;
    cut.tile_rows = kTile / (groups * width);
  }
  groups = groups < cut.groups ? groups : cut.groups;
  cut.tile_columns = groups * width;
  cut.tiles_across = (cut.groups + groups - 1) / groups;
  cut.parts = cut.tiles_down();
  return cut;
}

// One tile of it.
struct Block {
  int64_t start;          // offset of its first element in the tensor
  int64_t rows, columns;  // rows are Cut::columns apart
  int64_t width;          // columns of it that are of one group
  int64_t group, groups;  // the first group, and how many
  int64_t part;           // which part of its groups this is
};

LB_HD Block block_at(const Cut& cut, int64_t tile) {
  const int64_t down = tile / cut.tiles_across, across = tile % cut.tiles_across;
  const int64_t row = down * cut.tile_rows, rest = cut.rows - row;
  const int64_t rows = rest < cut.tile_rows ? rest : cut.tile_rows;
  if (cut.width > kTile) {
    const int64_t per_group = cut.tiles_across / cut.groups;
    const int64_t group = across / per_group, piece = across % per_group;
    const int64_t left = cut.width - piece * kTile, columns = left < kTile ? left : kTile;
    const int64_t column = group * cut.width + piece * kTile;
    return {row * cut.columns + column, rows, columns, columns, group, 1, down * per_group + piece};
  }
  const int64_t column = across * cut.tile_columns, left = cut.columns - column;
  const int64_t columns = left < cut.tile_columns ? left : cut.tile_columns;
  return {row * cut.columns + column, rows, columns, cut.width, column / cut.width,
          columns / cut.width,        down};
}

}  // namespace lb
