// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// The arithmetic of LARS: You, Gitman, Ginsburg 2017, "Large Batch Training of Convolutional
// Networks", arXiv 1708.03888, Algorithm 1; with the switches by which implementations differ.
// Both backends include this file and neither writes a formula of its own.
//
//   r   = trust |w| / (|g| + decay |w| + eps)          1 if |w| or |g| is zero
//   d   = r (g + decay w)
//   buf = keep buf + gain d                            keep = momentum
//   w   = w - (buf_gain buf + d_gain d)
//
// lr in the momentum (the paper): gain = lr, buf_gain = 1; else (torch.optim.SGD): gain =
// 1 - dampening, buf_gain = lr, and buf = d on the first step. The two agree only while lr is
// constant.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/workspace.h"

namespace lb {

// Hyper-parameters of one group, as the host gives them.
struct LarsGroup {
  double lr;
  const float* lr_tensor;  // [1] on the device; takes the place of lr when not null
  double momentum, dampening;
  double weight_decay;
  double trust_coefficient;
  double eps;
  int32_t nesterov;
  int32_t clip;  // LARC: the effective rate r * lr is at most lr
  int32_t lr_in_momentum;
  int32_t adapt;
  int32_t maximize;
  int32_t unused;  // no padding: groups are compared as bytes
};

// What the update of one tensor needs, derived once a step.
struct LarsScalars {
  double grad_factor;  // sign / grad_scale
  double decay;
  double trust_coefficient, eps, lr;
  double keep, gain, buf_gain, d_gain;
  int32_t adapt, clip;
};

LB_HD LarsScalars lars_scalars(const LarsGroup& group, bool first_step, double grad_scale) {
  LarsScalars s{};
  s.lr = group.lr_tensor != nullptr ? double(*group.lr_tensor) : group.lr;
  s.grad_factor = (group.maximize ? -1 : 1) / grad_scale;
  s.decay = group.weight_decay;
  s.trust_coefficient = group.trust_coefficient;
  s.eps = group.eps;
  s.adapt = group.adapt;
  s.clip = group.clip;
  const double through = group.lr_in_momentum ? 1 : s.lr;  // lr that meets buf on its way out
  s.keep = first_step && !group.lr_in_momentum ? 0 : group.momentum;
  s.gain = group.lr_in_momentum ? s.lr : first_step ? 1 : 1 - group.dampening;
  s.buf_gain = group.nesterov ? through * group.momentum : through;
  s.d_gain = group.nesterov ? s.lr : 0;
  if (group.momentum == 0) {  // there is no buffer
    s.buf_gain = 0;
    s.d_gain = s.lr;
  }
  return s;
}

// r, from the sums of squares of w and of the unscaled g over the whole tensor.
LB_HD double lars_trust_ratio(const LarsScalars& s, double w_sq_sum, double g_sq_sum) {
  if (!s.adapt) return 1;
  const double w_norm = std::sqrt(w_sq_sum), g_norm = std::sqrt(g_sq_sum);
  const double r = w_norm == 0 || g_norm == 0
                       ? 1
                       : s.trust_coefficient * w_norm / (g_norm + s.decay * w_norm + s.eps);
  if (!s.clip) return r;
  return r >= s.lr ? 1 : r / s.lr;  // min(r / lr, 1); NaN stays NaN
}

// The update of one element in R: float, or double for double weights.
template <class R>
struct LarsRule {
  R grad_factor, decay, ratio, keep, gain, buf_gain, d_gain;

  LB_HD LarsRule(const LarsScalars& s, double trust_ratio)
      : grad_factor(R(s.grad_factor)),
        decay(R(s.decay)),
        ratio(R(trust_ratio)),
        keep(R(s.keep)),
        gain(R(s.gain)),
        buf_gain(R(s.buf_gain)),
        d_gain(R(s.d_gain)) {}

  LB_HD R direction(R w, R g) const { return ratio * (g * grad_factor + decay * w); }

  LB_HD R with_momentum(R w, R g, R& buf) const {
    const R d = direction(w, g);
    buf = keep * buf + gain * d;
    return w - (buf_gain * buf + d_gain * d);
  }

  LB_HD R without_momentum(R w, R g) const { return w - d_gain * direction(w, g); }
};

}  // namespace lb
