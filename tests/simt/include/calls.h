// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// What kernels tell the executor: which call it is, and from where.
#pragma once

#include <cstdint>

namespace lb::simt {

// A place in a kernel's source. As a default argument, here() is where the function is called.
struct Site {
  const char* file = nullptr;
  int line = 0;

  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

enum class Barrier : uint8_t { plain, count, all, any };

enum class WarpOp : uint8_t {
  sync,
  shfl,
  shfl_up,
  shfl_down,
  shfl_xor,
  ballot,
  any,
  all,
  match_any,
  match_all,
  add,
  min,
  max,
  bit_and,
  bit_or,
  bit_xor,
};

}  // namespace lb::simt
