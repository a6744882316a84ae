// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Rank-1 updates of the inverses of Kronecker factors, for all factors of a model in one call: what
// MKOR does, and the operation behind largebatch.ops.kron_rank1_update.
//
// A factor is a symmetric [d, d] of fp32, 16 bits or fp64, its rows `stride` elements apart. It
// moves 3 d^2 elements: M v reads it, the update reads and writes it; 2 d^2 where it stays in the
// cache in between (on the CPU, factors are taken in waves that do). M stays symmetric bit for bit;
// the same bits on every run, for any number of threads and, on the CPU, for any instruction set.
// Allocates nothing. Rows aligned at 16 bytes are faster, none need be.
//
// The norm of M is taken while it is written, and looked at by the next update: nothing waits for
// the device.
#pragma once

#include "core/plan.h"
#include "core/workspace.h"
#include "kron/kron_rule.h"

namespace lb {

// Entry::data by role. Entry::grad is v [d], of the real type of the factor.
enum KronRole { kKronFactor };

// Beside the factors, in the caller's order.
struct KronState {
  float* norms;       // [num_rows] in: of the factors as they are; out: as they have become
  int64_t* counters;  // [num_rows, kKronCounts] added to
  const float* skip;  // [num_rows] not 0: the factor is left as it is; may be null
};

// How a factor is cut: a tile is a panel of whole rows, eight or more of them. To the plan it is a
// tensor of d groups of this width, one after the other.
constexpr int64_t kKronWidth = kTile / 8;
inline void set_kron_order(Entry& entry, int64_t order, int64_t stride) {
  entry.width = order < kKronWidth ? order : kKronWidth;
  entry.columns = entry.numel = order * entry.width;
  entry.stride = stride;
}
LB_HD int64_t kron_order(const Row& row) { return row.numel == 0 ? 0 : row.cut.groups; }

struct KronPanel {
  int64_t first, rows;
};
LB_HD KronPanel kron_panel(const Row& row, int32_t tile) {
  const Block block = block_at(row.cut, tile - row.first_tile);
  return {block.group, block.groups};
}

// The scratch of a factor, in the plan's partials.
template <class R>
struct KronScratch {
  R* u;             // [d] times sqrt(|beta|) once beta is known
  double* product;  // [d] M v; then, on the CPU, the norms of the rows as they are written
};
template <class R>
LB_HD KronScratch<R> kron_scratch(const Row& row, double* partials) {
  double* mine = partials + 2 * row.first_part;
  return {reinterpret_cast<R*>(mine), mine + kron_order(row)};
}

struct KronNone {};
using KronWorkspace = Workspace<KronNone, KronScalars>;

namespace cpu {
void kron_rank1_update(const Plan& plan, const KronWorkspace& ws, const KronHyper& hyper,
                       const KronState& state);
}  // namespace cpu
namespace cuda {
void kron_rank1_update(const Plan& plan, const KronWorkspace& ws, const KronHyper& hyper,
                       const KronState& state, void* stream);
}

}  // namespace lb
