// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// The arithmetic of Adan: Xie, Zhou, Li, Lin, Yan 2022, "Adan: Adaptive Nesterov Momentum Algorithm
// for Faster Optimizing Deep Models", arXiv 2208.06677, Algorithm 1, with the bias corrections and
// the clip of its authors' code. Both backends include this file and neither writes a formula of
// its own. The betas are decay factors, as in that code: 1 minus those of the paper.
//
//   g = s g / grad_scale                            s = min(1, max_grad_norm / (G + eps))
//   d = g - q                                       0 in the first step; q is the g before
//   m = beta1 m + (1 - beta1) g
//   v = beta2 v + (1 - beta2) d
//   n = beta3 n + (1 - beta3) (g + beta2 d)^2
//   u = (lr / b1 m + lr beta2 / b2 v) / (sqrt(n / b3) + eps)       b_i = 1 - beta_i^t
//   p = (p - u) / (1 + lr decay)                    no_prox: p = (1 - lr decay) p - u
#pragma once

#include <cmath>
#include <cstdint>

#include "core/power.h"
#include "core/workspace.h"

namespace lb {

// Hyper-parameters of one group, as the host gives them.
struct AdanGroup {
  double lr;
  const float* lr_tensor;  // [1] on the device; takes the place of lr when not null
  double beta1, beta2, beta3;
  double eps;
  double weight_decay;
  double max_grad_norm;  // infinity: no clipping
  int32_t no_prox;
  int32_t maximize;  // no padding: groups are compared as bytes
};

// What the update of one tensor needs, derived once a step.
struct AdanScalars {
  double grad_factor;  // sign * s / grad_scale
  double beta1, one_minus_beta1;
  double beta2, one_minus_beta2;
  double beta3, one_minus_beta3;
  double m_gain, v_gain;  // lr / b1, lr beta2 / b2
  double inv_sqrt_b3;
  double eps;
  double shrink_before, shrink_after;  // of the weights by the update; one of them is 0
  int32_t first_step;
  int32_t unused;
};

// s, of the gradients' global norm; a NaN norm stays NaN.
LB_HD double adan_clip(double grad_norm, double max_grad_norm, double eps) {
  if (max_grad_norm == INFINITY) return 1;
  const double s = max_grad_norm / (grad_norm + eps);
  return s > 1 ? 1 : s;
}

// `t` is the step being made, from 1 on; grad_norm is unscaled and used only if clipping is on.
LB_HD AdanScalars adan_scalars(const AdanGroup& group, int64_t t, bool first_step, double grad_norm,
                               double grad_scale) {
  AdanScalars s{};
  const double lr = group.lr_tensor != nullptr ? double(*group.lr_tensor) : group.lr;
  const double sign = group.maximize ? -1 : 1;
  s.grad_factor = sign * adan_clip(grad_norm, group.max_grad_norm, group.eps) / grad_scale;
  s.beta1 = group.beta1;
  s.one_minus_beta1 = 1 - group.beta1;
  s.beta2 = group.beta2;
  s.one_minus_beta2 = 1 - group.beta2;
  s.beta3 = group.beta3;
  s.one_minus_beta3 = 1 - group.beta3;
  s.m_gain = lr / (1 - power(group.beta1, t));
  s.v_gain = lr * group.beta2 / (1 - power(group.beta2, t));
  s.inv_sqrt_b3 = 1 / std::sqrt(1 - power(group.beta3, t));
  s.eps = group.eps;
  const double decay = lr * group.weight_decay;
  s.shrink_before = group.no_prox ? decay : 0;
  s.shrink_after = group.no_prox ? 0 : decay / (1 + decay);
  s.first_step = first_step;
  return s;
}

// The update of one element in R: float, or double for double weights.
template <class R>
struct AdanRule {
  R grad_factor, beta1, one_minus_beta1, beta2, one_minus_beta2, beta3, one_minus_beta3;
  R m_gain, v_gain, inv_sqrt_b3, eps, shrink_before, shrink_after;
  bool first_step;

  LB_HD explicit AdanRule(const AdanScalars& s)
      : grad_factor(R(s.grad_factor)),
        beta1(R(s.beta1)),
        one_minus_beta1(R(s.one_minus_beta1)),
        beta2(R(s.beta2)),
        one_minus_beta2(R(s.one_minus_beta2)),
        beta3(R(s.beta3)),
        one_minus_beta3(R(s.one_minus_beta3)),
        m_gain(R(s.m_gain)),
        v_gain(R(s.v_gain)),
        inv_sqrt_b3(R(s.inv_sqrt_b3)),
        eps(R(s.eps)),
        shrink_before(R(s.shrink_before)),
        shrink_after(R(s.shrink_after)),
        first_step(s.first_step != 0) {}

  // Moments forward; returns u. neg_q is -q, which is how the authors' checkpoints have it.
  LB_HD R update(R g, R& m, R& v, R& n, R& neg_q) const {
    g = g * grad_factor;
    const R d = first_step ? R(0) : g + neg_q;
    const R nesterov = g + beta2 * d;
    m = beta1 * m + one_minus_beta1 * g;
    v = beta2 * v + one_minus_beta2 * d;
    n = beta3 * n + one_minus_beta3 * (nesterov * nesterov);
    neg_q = -g;
    return (m_gain * m + v_gain * v) / (std::sqrt(n) * inv_sqrt_b3 + eps);
  }

  // Decay as a difference: a factor 1 - lr decay would be rounded to the precision of 1, the same
  // way in every step.
  LB_HD R weights(R p, R u) const {
    p = (p - shrink_before * p) - u;
    return p - shrink_after * p;
  }
};

}  // namespace lb
