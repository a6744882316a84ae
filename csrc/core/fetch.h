// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace lb {

constexpr int64_t kLine = 64;  // bytes of a line of the cache

// Asks the processor for the first lines of `bytes` from an address on, to be there when they are
// needed. Where that is no memory, nothing happens. Inline, because GCC takes a function that only
// asks for memory for one that does nothing. For the CPU only.
LB_HD void fetch(const void* from, int64_t bytes) {
  const int64_t most = bytes < 4 * kLine ? bytes : 4 * kLine;
  for (int64_t at = 0; at < most; at += kLine) {
    __builtin_prefetch(static_cast<const char*>(from) + at);
  }
}

}  // namespace lb
