// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>

namespace lb::simt {
void grid_sync(Site site);
}

namespace cooperative_groups {

struct grid_group {
  void sync(LB_SIMT_SITE) const { lb::simt::grid_sync(site); }
};
inline grid_group this_grid() { return {}; }

}  // namespace cooperative_groups
