// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// The 16-bit copy of fp32 weights that the model computes with. Included by the x_cpu.inl files.
#pragma once

#include "core/lanes.h"
#include "core/plan.h"

namespace lb {

// copy = weights rounded to nearest even, over one tile; nothing when the row has no copy.
LB_HD void copy_weights(const Row& row, int weights_role, int copy_role, const Tile& tile) {
  const auto copy_as = [&](auto* copy) LB_INLINE {
    using C = std::remove_reference_t<decltype(*copy)>;
    const float* __restrict w = row.role<float>(weights_role) + tile.start;
    C* __restrict to = copy + tile.start;
    for_lanes(tile.numel, [&](int64_t i, int) LB_INLINE { to[i] = from_real<C>(w[i]); });
  };
  if (row.dtypes[copy_role] == DType::float16) copy_as(row.role<Half>(copy_role));
  if (row.dtypes[copy_role] == DType::bfloat16) copy_as(row.role<BFloat16>(copy_role));
}

}  // namespace lb
