// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// How the CPU path derives the scalars of all tensors before it updates any.
#pragma once

#include "core/workspace.h"

namespace lb::cpu {

// scalars[row] = prepare(its group, its step), which may advance the step. Those of a tensor are
// those of the one before if both are of one group and have made as many steps: the powers in them
// take as long as a tiny tensor.
template <class Group, class Scalars, class Prepare>
void prepare_rows(const Workspace<Group, Scalars>& ws, Prepare prepare) {
  float step_of_last = 0;
  for (int32_t r = 0; r < ws.num_rows; ++r) {
    const Row& row = ws.rows[r];
    const float step = *row.step;
    if (r > 0 && row.group == ws.rows[r - 1].group && step == step_of_last) {
      ws.scalars[r] = ws.scalars[r - 1];
      *row.step = *ws.rows[r - 1].step;
    } else {
      ws.scalars[r] = prepare(ws.groups[row.group], row.step);
    }
    step_of_last = step;
  }
}

}  // namespace lb::cpu
