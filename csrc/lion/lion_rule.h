// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// The arithmetic of Lion: Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms",
// arXiv 2302.06675, Algorithm 2; and of Lion-K with another K: Chen, Liu, Liang, Liu 2024,
// arXiv 2310.05898. Both backends include this file and neither writes a formula
// of its own. Every product and sum is rounded by itself, in the order in which it stands here:
// where c is near 0 the last bit decides a sign, and all backends decide alike.
//
//   g = g (sign / grad_scale)
//   c = beta1 m + (1 - beta1) g
//   u = a subgradient of K at c             the sign, for Lion
//   p = p (1 - lr decay) - lr u
//   m = beta2 m + (1 - beta2) g
#pragma once

#include <cmath>
#include <cstdint>

#include "core/elementary.h"
#include "core/philox.h"
#include "core/workspace.h"

namespace lb {

// What the subgradient of an element is; the functions are in largebatch/optim/kappa.
enum class LionKappa : int32_t {
  l1,
  truncated_l1,
  huber,
  soft_sign,
  log_cosh,
  power,
  quadratic,
  // These look at more than one element, see lion_groups.h.
  entropy,
  signed_entropy,
  l2,
  lp,
  l_inf,
  group_lasso,
  l2_inf,
  squared_l1,
  cautious,  // of another kappa, the base: its steps that agree with the gradient
};

// Hyper-parameters of one group, as the host gives them.
struct LionGroup {
  double lr;
  const float* lr_tensor;  // [1] on the device; takes the place of lr when not null
  double beta1, beta2;
  double weight_decay;
  double parameter;  // of the kappa: e, T or p
  uint64_t seed;
  LionKappa kappa, base;
  int32_t stochastic;  // bf16 weights, bf16 and int8 momentum are rounded stochastically
  int32_t maximize;
  int32_t relative;  // the parameter is in units of the root mean square of c
  int32_t rms;       // K is scaled so that u has a root mean square of about 1
  // No padding: groups are compared as bytes.
};

// What the update of one tensor needs, derived once a step.
struct LionScalars {
  double grad_factor;  // sign / grad_scale
  double beta1, one_minus_beta1;
  double beta2, one_minus_beta2;
  double shrink, lr;
  double parameter;
  RandomStream random;
  LionKappa kappa, base;
  int32_t stochastic, relative;
};

// `steps` taken before this one.
LB_HD LionScalars lion_scalars(const LionGroup& group, uint64_t id, int64_t steps,
                               double grad_scale) {
  LionScalars s{};
  s.lr = group.lr_tensor != nullptr ? double(*group.lr_tensor) : group.lr;
  s.grad_factor = (group.maximize ? -1 : 1) / grad_scale;
  s.beta1 = group.beta1;
  s.one_minus_beta1 = 1 - group.beta1;
  s.beta2 = group.beta2;
  s.one_minus_beta2 = 1 - group.beta2;
  s.shrink = 1 - s.lr * group.weight_decay;
  s.parameter = group.parameter;
  s.random = random_stream(group.seed, id, steps);
  s.kappa = group.kappa;
  s.base = group.base;
  s.stochastic = group.stochastic;
  s.relative = group.relative;
  return s;
}

// Three values: 0 for 0 and for NaN, so that what has no gradient does not drift.
template <class R>
LB_HD R lion_sign(R c) {
  return c > 0 ? R(1) : c < 0 ? R(-1) : R(0);
}

// Cautious updates: Liang et al. 2024, "Cautious Optimizers", arXiv 2411.16085. What is left of u
// where it agrees with the gradient; all of it is then scaled up by the share of those.
template <class R>
LB_HD R lion_cautious(R u, R g) {
  return u * g > 0 ? u : R(0);
}

// The update of one element in R: float, or double for double weights.
template <class R>
struct LionRule {
  R grad_factor, beta1, one_minus_beta1, beta2, one_minus_beta2, shrink, lr;

  LB_HD explicit LionRule(const LionScalars& s)
      : grad_factor(R(s.grad_factor)),
        beta1(R(s.beta1)),
        one_minus_beta1(R(s.one_minus_beta1)),
        beta2(R(s.beta2)),
        one_minus_beta2(R(s.one_minus_beta2)),
        shrink(R(s.shrink)),
        lr(R(s.lr)) {}

  LB_HD R gradient(R g) const { return g * grad_factor; }
  LB_HD R direction(R g, R m) const { return beta1 * m + one_minus_beta1 * g; }
  LB_HD R momentum(R g, R m) const { return beta2 * m + one_minus_beta2 * g; }
  LB_HD R weights(R p, R u) const { return p * shrink - lr * u; }
};

// Calls f(subgradient): u(c, e) of one element, in R; e is the parameter, or takes its place. One
// branch for many elements.
template <class R, class F>
LB_HD void visit_kappa(LionKappa kappa, double parameter, F f) {
  namespace math = elementary;
  switch (kappa) {
    case LionKappa::truncated_l1:
      return f([](R c, R e) LB_INLINE { return (c < 0 ? -c : c) > e ? lion_sign(c) : R(0); });
    case LionKappa::huber:
      return f([](R c, R e) LB_INLINE { return (c < 0 ? -c : c) >= e ? lion_sign(c) : c / e; });
    case LionKappa::soft_sign:
      return f([](R c, R e) LB_INLINE {
        const R a = c < 0 ? -c : c;
        const R high = a > e ? a : e, ratio = (a > e ? e : a) / high;
        return c == 0 ? R(0) : (c / high) / std::sqrt(1 + ratio * ratio);
      });
    case LionKappa::log_cosh:
      return f([](R c, R e) LB_INLINE { return c == 0 ? R(0) : R(math::tanh(double(c / e))); });
    case LionKappa::power:
      return f([=](R c, R) LB_INLINE {
        return lion_sign(c) * R(math::pow(double(c < 0 ? -c : c), parameter - 1));
      });
    case LionKappa::quadratic:
      return f([](R c, R) LB_INLINE { return c; });
    default:
      return f([](R c, R) LB_INLINE { return lion_sign(c); });
  }
}

}  // namespace lb
