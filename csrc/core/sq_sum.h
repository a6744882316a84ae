// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Sum of squares of many tensors: the global gradient norm of every optimizer, and the operation
// behind largebatch.ops.multi_tensor_norm.
//
// Reads each gradient of the table once (4 B an element of fp32), writes one fp64 number a tile.
// Order: lanes within a tile, tiles within a tensor, tensors in the caller's order; fixed, so the
// same bits on every run. Allocates nothing.
#pragma once

#include "core/plan.h"

namespace lb {

// sums[row.index] = sum of the row's tiles, each in its order.
//   partials [num_tiles]   sums [num_rows]
namespace cpu {
void sq_sum(const Plan& plan, const Table& table, double* partials, double* sums);
}
namespace cuda {
// The first half alone: partials of every tile.
void sq_sum_tiles(const Plan& plan, const Table& table, double* partials, void* stream);
void sq_sum(const Plan& plan, const Table& table, double* partials, double* sums, void* stream);
}  // namespace cuda

}  // namespace lb
