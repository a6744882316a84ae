// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// The arithmetic of AGVM's measurement: Xue et al. 2022, "Large-batch Optimization for Dense Visual
// Predictions", arXiv 2210.11078. Both backends include this file and neither writes a formula of
// its own.
//
//   a = ax x + ay y,   b = bx x + by y        the mean gradients of the two halves of a batch
//   h = h / (sqrt(beta2 v + (1 - beta2) h^2) + eps)       each of them, where there is a v: the
//                                                         direction Adam would take from it
//   sums of a a, b b, a b                                 from which 1 - cos(a, b)
#pragma once

#include <cmath>

#include "core/dtype.h"
#include "core/visit.h"

namespace lb {

// The numbers of a call, as the host gives them.
struct HalfDots {
  double ax, ay, bx, by;
  double beta2, eps;
  const float* grad_scale;  // [1] x and y are divided by it; may be null
};

// The halves of one element in R: float, or double for double gradients. Only the sums are fp64
// everywhere: an error of the last place in a half is noise of 1e-15 of its square, the variance
// that is measured is 1e-3 and more of it.
template <class R>
struct HalvesRule {
  R ax, ay, bx, by, beta2, rest, eps;

  LB_HD explicit HalvesRule(const HalfDots& d) {
    const double unscale = d.grad_scale != nullptr ? 1 / double(*d.grad_scale) : 1;
    ax = R(d.ax * unscale);
    ay = R(d.ay * unscale);
    bx = R(d.bx * unscale);
    by = R(d.by * unscale);
    beta2 = R(d.beta2);
    rest = R(1 - d.beta2);
    eps = R(d.eps);
  }

  LB_HD R a(R x, R y) const { return ax * x + ay * y; }
  LB_HD R b(R x, R y) const { return bx * x + by * y; }
  LB_HD R precondition(R h, R v) const { return h / (std::sqrt(beta2 * v + rest * (h * h)) + eps); }
};

// The types of the gradients and of v: void where there is none, else that of the gradients or
// fp32, or 16 bits with fp32 gradients.
template <class F>
LB_HD void visit_halves(DType grad, DType square, F f) {
  if (square == DType::none) {
    return visit(grad, [&](auto g) LB_INLINE { f(g, Type<void>{}); });
  }
  visit_weights_and_grad(square, grad, [&](auto v, auto g) LB_INLINE { f(g, v); });
}

}  // namespace lb
