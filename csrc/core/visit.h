// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// From a dtype known at run time to a type known at compile time: `visit(dtype, f)` calls
// f(Type<T>{}). What is not in the list has been refused by the binding, which names the tensor.
#pragma once

#include "core/dtype.h"
#include "core/macros.h"

namespace lb {

template <class T>
struct Type {
  using type = T;
};

template <class F>
LB_HD void visit(DType dtype, F f) {
  switch (dtype) {
    case DType::float32:
      return f(Type<float>{});
    case DType::float16:
      return f(Type<Half>{});
    case DType::bfloat16:
      return f(Type<BFloat16>{});
    case DType::float64:
      return f(Type<double>{});
    default:
      return;
  }
}

// Weights and gradient together, f(Type<W>{}, Type<G>{}): fp32 weights take any gradient of 32 or
// 16 bits, 16-bit weights their own type or fp32, fp64 weights fp64.
template <class F>
LB_HD void visit_weights_and_grad(DType weights, DType grad, F f) {
  if (weights == DType::float64) return f(Type<double>{}, Type<double>{});
  if (weights == DType::float32) {
    if (grad == DType::float32) return f(Type<float>{}, Type<float>{});
    if (grad == DType::float16) return f(Type<float>{}, Type<Half>{});
    return f(Type<float>{}, Type<BFloat16>{});
  }
  if (weights == DType::float16) {
    if (grad == DType::float16) return f(Type<Half>{}, Type<Half>{});
    return f(Type<Half>{}, Type<float>{});
  }
  if (grad == DType::bfloat16) return f(Type<BFloat16>{}, Type<BFloat16>{});
  return f(Type<BFloat16>{}, Type<float>{});
}

constexpr bool is_weights_and_grad(DType weights, DType grad) {
  switch (weights) {
    case DType::float64:
      return grad == DType::float64;
    case DType::float32:
      return grad == DType::float32 || grad == DType::float16 || grad == DType::bfloat16;
    case DType::float16:
    case DType::bfloat16:
      return grad == weights || grad == DType::float32;
    default:
      return false;
  }
}

}  // namespace lb
