// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace lb {

// beta^n by repeated squaring: the same bits on every backend, which pow does not promise.
LB_HD double power(double beta, int64_t n) {
  double result = 1;
  for (; n > 0; n >>= 1) {
    if (n & 1) result *= beta;
    beta *= beta;
  }
  return result;
}

}  // namespace lb
