// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Dot products of the two halves of a batch's gradient, for many tensors: what AGVM measures, and
// the operation behind largebatch.ops.half_dots.
//
// The halves are linear combinations of two arrays that are at hand and exist in registers only.
// Reads each array once: 8 B an element of fp32, 12 with second moments. Writes three fp64 numbers
// a tile. Order: lanes within a tile, tiles within a tensor; fixed, so the same bits on every run,
// for any number of threads and, on the CPU, for any instruction set. Allocates nothing. No
// alignment is required beyond that of the element type.
#pragma once

#include "agvm/agvm_rule.h"
#include "core/plan.h"

namespace lb {

// Entry::data by role. Entry::grad is x.
enum HalfDotsRole {
  kHalfSum,     // [numel] y, of the dtype of x
  kHalfSquare,  // [numel] v, the second moment; fp32 or the dtype of x, 16 bits also with fp32;
                // or absent
};

constexpr int kHalfSums = 3;  // sum of a a, of b b, of a b

// sums[row.index] = the three sums of a tensor.
//   partials [num_tiles, 3]   sums [num_rows, 3]
namespace cpu {
void half_dots(const Plan& plan, const Table& table, const HalfDots& dots, double* partials,
               double* sums);
}
namespace cuda {
void half_dots(const Plan& plan, const Table& table, const HalfDots& dots, double* partials,
               double* sums, void* stream);
}

}  // namespace lb
