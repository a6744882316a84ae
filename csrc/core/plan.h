// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// The plan of a multi-tensor call: which tensors, cut into which tiles, in which order.
//
// A tensor is cut into tiles of kTile elements counted from its own first element, so that its
// sums do not depend on its neighbours, on the grid or on the number of threads. Every kernel and
// every CPU loop works on one tile. Rows are sorted by variant and dtypes: each run of equal
// ones is a segment, which is one launch of one template instantiation. A family whose
// updates need sums over groups of elements has its tensors cut along those (core/cut.h).
#pragma once

#include <cstdint>
#include <vector>

#include "core/cut.h"
#include "core/dtype.h"

namespace lb {

constexpr int kMaxRoles = 8;  // arrays a tensor may bring besides its gradient

// One tensor as the caller gives it. What a role is (weights, first moment, ...) each family says.
struct Entry {
  void* data[kMaxRoles];    // [numel] each, or null when the role is absent
  DType dtypes[kMaxRoles];  // DType::none when the role is absent
  DType grad_dtype;
  void* grad;       // [numel], read only
  float* step;      // [1], or null
  int64_t numel;    // may be 0: the tensor gets no tile
  int32_t group;    // index into the family's groups of hyper-parameters
  int32_t variant;  // which of the family's kernels takes the tensor
  uint64_t id;      // what keys its random bits
  int64_t columns;  // how groups of its elements lie, see Cut; 0: it has none
  int64_t width;
  int64_t stride;  // elements from one row of a matrix to the next, where its family asks for it
};

// One tensor as kernels see it.
struct Row {
  void* data[kMaxRoles];
  float* step;
  int64_t numel;
  int64_t first_element;  // elements of all rows before this one: balances tiles over threads
  int32_t first_tile;
  int32_t num_tiles;
  int32_t index;  // position in the caller's list
  int32_t group;
  int32_t variant;
  uint64_t id;
  Cut cut;
  int64_t first_group;  // groups of all rows before this one
  int64_t first_part;   // and parts of groups
  int64_t stride;
  DType dtypes[kMaxRoles];
  DType grad_dtype;

  template <class T>
  LB_HD T* role(int r) const {
    return static_cast<T*>(data[r]);
  }
};

// The table in memory of the device it is used on. Gradients stand apart from the rows: they are
// what changes between steps.
struct Table {
  const Row* rows;          // [num_rows]
  void* const* grads;       // [num_rows]
  const int32_t* tile_row;  // [num_tiles] the row a tile belongs to
  int32_t num_rows;
  int32_t num_tiles;
};

// One tile of a tensor without groups: where it starts, and how long it is.
struct Tile {
  int32_t row;
  int64_t start;
  int64_t numel;
};

LB_HD Tile tile_at(const Table& table, int32_t tile) {
  const int32_t row = table.tile_row[tile];
  const int64_t start = int64_t(tile - table.rows[row].first_tile) * kTile;
  const int64_t rest = table.rows[row].numel - start;
  return {row, start, rest < kTile ? rest : kTile};
}

struct Segment {  // rows of equal dtypes and variant
  int32_t first_row, num_rows;
  int32_t first_tile, num_tiles;
};

struct Span {
  int64_t begin, end;
};

class Plan {
 public:
  enum class Change { none, gradients, everything };

  // What `entries` differ in from those this plan was made for.
  Change compare(const std::vector<Entry>& entries) const;

  // Makes this the plan of `entries`, given what they differ in.
  void update(std::vector<Entry> entries, Change change);

  const std::vector<Row>& rows() const { return rows_; }
  const std::vector<void*>& grads() const { return grads_; }
  const std::vector<int32_t>& tile_row() const { return tile_row_; }
  const std::vector<Segment>& segments() const { return segments_; }
  int64_t numel() const { return numel_; }
  int64_t groups() const { return groups_; }  // of all rows; one a row that has none
  int64_t parts() const { return parts_; }    // of all groups; a tile each where there are none

  // Runs of whole tensors whose arrays fit a share of the last-level cache together, as tiles
  // [begin, end): the CPU finishes a wave before it begins the next. A tensor larger than that is
  // a wave of its own.
  const std::vector<Span>& waves() const { return waves_; }

 private:
  void build();

  std::vector<Entry> entries_;
  std::vector<Row> rows_;
  std::vector<void*> grads_;
  std::vector<int32_t> tile_row_;
  std::vector<Segment> segments_;
  std::vector<Span> waves_;
  int64_t numel_ = 0, groups_ = 0, parts_ = 0;
};

}  // namespace lb
