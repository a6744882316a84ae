// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// The arithmetic of LAMB: You et al. 2020, "Large Batch Optimization for Deep Learning: Training
// BERT in 76 minutes", arXiv 1904.00962, Algorithm 2; with the switches by which implementations
// differ. Both backends include this file and neither writes a formula of its own.
//
//   g' = g / (grad_scale * c) + l2 * w'           c = max(1, G / max_grad_norm)
//   m  = beta1 m + beta3 g'                       v = beta2 v + (1 - beta2) g'^2
//   u  = (m / b1) / (sqrt(v / b2) + eps) + decay * w'
//   w  = w' - lr * r * u                          r = phi(|w'|) / |u|,  w' = shrink * w
#pragma once

#include <cmath>
#include <cstdint>

#include "core/power.h"
#include "core/workspace.h"

namespace lb {

enum class LambDecay : int32_t { in_update, l2, outside };
enum class LambAdapt : int32_t { decay_only, always, never };
enum class LambCorrection : int32_t { off, moments, outside };

// Hyper-parameters of one group, as the host gives them.
struct LambGroup {
  double lr;
  const float* lr_tensor;  // [1] on the device; takes the place of lr when not null
  double beta1, beta2;
  double eps;
  double weight_decay;
  double max_grad_norm;         // infinity: no clipping
  double phi_min, phi_max;      // phi(w) = min(max(w, phi_min), phi_max); 0 and infinity: identity
  double ratio_min, ratio_max;  // bounds of the trust ratio; 0 and infinity: none
  LambDecay decay;
  LambAdapt adapt;
  LambCorrection correction;
  int32_t grad_averaging;  // beta3 = 1 - beta1, else 1
  int32_t maximize;
  int32_t unused;  // no padding: groups are compared as bytes
};

// What the update of one tensor needs, derived once a step.
struct LambScalars {
  double grad_factor;  // sign / (grad_scale * c)
  double l2;
  double beta1, beta3, beta2, one_minus_beta2;
  double inv_b1, inv_sqrt_b2;  // 1 / (1 - beta1^t), 1 / sqrt(1 - beta2^t), or 1
  double eps;
  double decay;
  double shrink;  // w' = shrink * w: decay outside of the update
  double lr;
  double phi_min, phi_max, ratio_min, ratio_max;
  int32_t adapt;
  int32_t unused;
};

// c of the gradients' global norm; a NaN norm stays NaN.
LB_HD double clip_divisor(double grad_norm, double max_grad_norm) {
  return max_grad_norm == INFINITY || grad_norm <= max_grad_norm ? 1 : grad_norm / max_grad_norm;
}

// `t` is the step being made, from 1 on; grad_norm is unscaled and used only if clipping is on.
LB_HD LambScalars lamb_scalars(const LambGroup& group, int64_t t, double grad_norm,
                               double grad_scale) {
  LambScalars s{};
  const double lr = group.lr_tensor != nullptr ? double(*group.lr_tensor) : group.lr;
  const double b1 = 1 - power(group.beta1, t), b2 = 1 - power(group.beta2, t);
  const double sign = group.maximize ? -1 : 1;
  s.grad_factor = sign / (grad_scale * clip_divisor(grad_norm, group.max_grad_norm));
  s.beta1 = group.beta1;
  s.beta3 = group.grad_averaging ? 1 - group.beta1 : 1;
  s.beta2 = group.beta2;
  s.one_minus_beta2 = 1 - group.beta2;
  s.inv_b1 = group.correction == LambCorrection::moments ? 1 / b1 : 1;
  s.inv_sqrt_b2 = group.correction == LambCorrection::moments ? 1 / std::sqrt(b2) : 1;
  s.eps = group.eps;
  s.l2 = group.decay == LambDecay::l2 ? group.weight_decay : 0;
  s.decay = group.decay == LambDecay::in_update ? group.weight_decay : 0;
  s.shrink = group.decay == LambDecay::outside ? 1 - lr * group.weight_decay : 1;
  s.lr = group.correction == LambCorrection::outside ? lr * (std::sqrt(b2) / b1) : lr;
  s.phi_min = group.phi_min;
  s.phi_max = group.phi_max;
  s.ratio_min = group.ratio_min;
  s.ratio_max = group.ratio_max;
  s.adapt = group.adapt == LambAdapt::always ||
            (group.adapt == LambAdapt::decay_only && group.weight_decay != 0);
  return s;
}

LB_HD double clamp_or_nan(double x, double low, double high) {
  return x < low ? low : x > high ? high : x;
}

// r, from the sums of squares of w' and u over the whole tensor.
LB_HD double lamb_trust_ratio(const LambScalars& s, double w_sq_sum, double u_sq_sum) {
  const double w_norm = std::sqrt(w_sq_sum), u_norm = std::sqrt(u_sq_sum);
  if (!s.adapt || w_norm == 0 || u_norm == 0) return 1;
  return clamp_or_nan(clamp_or_nan(w_norm, s.phi_min, s.phi_max) / u_norm, s.ratio_min,
                      s.ratio_max);
}

// The update of one element in R: float, or double for double weights.
template <class R>
struct LambRule {
  R grad_factor, l2, beta1, beta3, beta2, one_minus_beta2, inv_b1, inv_sqrt_b2, eps, decay, shrink;

  LB_HD explicit LambRule(const LambScalars& s)
      : grad_factor(R(s.grad_factor)),
        l2(R(s.l2)),
        beta1(R(s.beta1)),
        beta3(R(s.beta3)),
        beta2(R(s.beta2)),
        one_minus_beta2(R(s.one_minus_beta2)),
        inv_b1(R(s.inv_b1)),
        inv_sqrt_b2(R(s.inv_sqrt_b2)),
        eps(R(s.eps)),
        decay(R(s.decay)),
        shrink(R(s.shrink)) {}

  // w', the weights that norms and update see.
  LB_HD R weights(R w) const { return w * shrink; }

  // Lines 6 and 7 of Algorithm 2.
  LB_HD void moments(R w, R g, R& m, R& v) const {
    g = g * grad_factor + l2 * w;
    m = beta1 * m + beta3 * g;
    v = beta2 * v + one_minus_beta2 * (g * g);
  }

  // Lines 8 to 10: the bias-corrected ratio plus decay.
  LB_HD R update(R w, R m, R v) const {
    return (m * inv_b1) / (std::sqrt(v) * inv_sqrt_b2 + eps) + decay * w;
  }
};

}  // namespace lb
