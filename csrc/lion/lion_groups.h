// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// The kappas of Lion-K whose subgradient looks at more than one element: norms, entropies and
// relative thresholds, of a whole tensor or of groups of its elements; and cautious updates, for
// which the u that agree with the gradient stand in the place of c. Both backends include this
// file and neither writes a formula of its own.
//
//   reduce   two numbers of the elements of a group, or of a part of one     LionStat
//   merge    those of two parts
//   finish   what the subgradient of an element needs of its group           LionStat again
//
// Sums are fp64: squares of fp32 numbers neither overflow nor vanish. What is exponentiated is
// taken relative to the largest, which is the first number then and the sum the second.
#pragma once

#include "lion/lion_rule.h"

namespace lb {

struct LionStat {
  double a, b;
};

enum class LionReduction : int32_t { none, sum, peak_and_sum, largest };

LB_HD LionReduction lion_reduction(LionKappa kappa, bool relative) {
  switch (kappa) {
    case LionKappa::entropy:
    case LionKappa::signed_entropy:
    case LionKappa::lp:
      return LionReduction::peak_and_sum;
    case LionKappa::l_inf:
      return LionReduction::largest;
    case LionKappa::l2:
    case LionKappa::group_lasso:
    case LionKappa::l2_inf:
    case LionKappa::squared_l1:
    case LionKappa::cautious:
      return LionReduction::sum;
    default:
      return relative ? LionReduction::sum : LionReduction::none;
  }
}

namespace detail {

LB_HD double magnitude(double x) { return x < 0 ? -x : x; }

// Whether x comes before y as the largest: NaN before all, as argmax has it.
LB_HD bool is_larger(double x, double y) { return x > y || (x != x && y == y); }

}  // namespace detail

template <class R>
LB_HD double lion_square(R c) {
  return double(c) * double(c);
}

// Calls f(term): what an element adds to the sum.
template <class R, class F>
LB_HD void visit_term(LionKappa kappa, F f) {
  if (kappa == LionKappa::squared_l1) {
    return f([](R c) LB_INLINE { return detail::magnitude(double(c)); });
  }
  if (kappa == LionKappa::cautious) {
    return f([](R u) LB_INLINE { return u != 0 ? 1.0 : 0.0; });
  }
  return f([](R c) LB_INLINE { return lion_square(c); });
}

// Calls f(height, term): the peak is the largest height(c), the sum that of term(c, peak).
template <class R, class F>
LB_HD void visit_peak(LionKappa kappa, double parameter, F f) {
  namespace math = elementary;
  if (kappa == LionKappa::entropy) {  // of -c: K is not even
    return f([](R c) LB_INLINE { return -double(c); },
             [=](R c, double peak)
                 LB_INLINE { return math::exp((-double(c) - peak) / parameter); });
  }
  const auto height = [](R c) LB_INLINE { return detail::magnitude(double(c)); };
  if (kappa == LionKappa::signed_entropy) {  // 2 cosh(c/T) = e^|c/T| (1 + e^-2|c/T|)
    return f(height, [=](R c, double peak) LB_INLINE {
      const double a = detail::magnitude(double(c));
      return math::exp((a - peak) / parameter) * (1 + math::exp(-2 * (a / parameter)));
    });
  }
  return f(height, [=](R c, double peak) LB_INLINE {
    const double ratio = detail::magnitude(double(c)) / (peak == 0 ? 1 : peak);
    return math::pow(ratio, parameter);
  });
}

LB_HD LionStat lion_merge(LionKappa kappa, double parameter, LionReduction reduction,
                          const LionStat& x, const LionStat& y) {
  namespace math = elementary;
  if (reduction == LionReduction::sum) return {x.a + y.a, 0};
  if (reduction == LionReduction::largest) {
    const bool second = detail::is_larger(y.a, x.a) || (!detail::is_larger(x.a, y.a) && y.b < x.b);
    return second ? y : x;
  }
  const double peak = x.a > y.a ? x.a : y.a;
  const auto rescaled = [&](const LionStat& s) {
    if (s.a == peak) return s.b;
    return kappa == LionKappa::lp ? s.b * math::pow(s.a / peak, parameter)
                                  : s.b * math::exp((s.a - peak) / parameter);
  };
  return {peak, rescaled(x) + rescaled(y)};
}

// Where merging begins.
LB_HD LionStat lion_nothing(LionReduction reduction) {
  const double infinity = elementary::detail::kInfinity;
  if (reduction == LionReduction::sum) return {0, 0};
  if (reduction == LionReduction::largest) return {-1, infinity};
  return {-infinity, 0};
}

// The factor s of K: with `rms` such that u is about 1 in size, see optim/kappa.
LB_HD double lion_scale(LionKappa kappa, double parameter, bool rms, int64_t numel,
                        int64_t groups) {
  if (!rms) return 1;
  const double n = double(numel), length = n / double(groups);
  switch (kappa) {
    case LionKappa::l2:
      return std::sqrt(n);
    case LionKappa::lp:
      return elementary::pow(n, 1 - 1 / parameter);
    case LionKappa::l_inf:
      return n;
    case LionKappa::group_lasso:
      return std::sqrt(length);
    case LionKappa::l2_inf:
      return double(groups) * std::sqrt(length);
    default:
      return 1;
  }
}

// x as two factors of fp32, the range of which it may be out of.
LB_HD LionStat lion_factors(double x) {
  const double first = x > 0x1p100 ? 0x1p100 : x < 0x1p-100 ? 0x1p-100 : x;
  return {first, x / first};
}

// `length` elements are in the group. What is not finite makes all of the group NaN.
LB_HD LionStat lion_finish(LionKappa kappa, double parameter, double scale, int64_t length,
                           const LionStat& stat) {
  const double bad = stat.a - stat.a;  // 0, or NaN
  switch (kappa) {
    case LionKappa::l2:
    case LionKappa::group_lasso:
    case LionKappa::l2_inf:
      return lion_factors(stat.a == 0 ? 0 : scale / std::sqrt(stat.a) + bad);
    case LionKappa::cautious: {
      const double share = stat.a / double(length);
      return {1 / (share < 1e-3 ? 1e-3 : share), 0};
    }
    case LionKappa::squared_l1:
      return stat;
    case LionKappa::lp:
      if (stat.a == 0 && stat.b == 0) return {0, scale};
      return {1 / (stat.a * elementary::pow(stat.b, 1 / parameter)), scale};
    case LionKappa::l_inf:
      return {stat.b, scale};
    case LionKappa::entropy:
    case LionKappa::signed_entropy:
      return {stat.a, 1 / stat.b};
    default:  // a relative threshold
      return {parameter * std::sqrt(stat.a / double(length)) + bad, 0};
  }
}

// Whether u is c over the norm of its group: c times the two factors that lion_finish gave.
LB_HD bool lion_normalises(LionKappa kappa) {
  return kappa == LionKappa::l2 || kappa == LionKappa::group_lasso || kappa == LionKappa::l2_inf;
}

// 0 also where c is not finite, in a group that is not the largest.
template <class R>
LB_HD R lion_normalised(R c, R a, R b) {
  return b == 0 ? R(0) : (c * a) * b;
}

// Calls f(subgradient): u(c, finished stat, index of the element in its tensor), in R.
template <class R, class F>
LB_HD void visit_group_kappa(LionKappa kappa, double parameter, F f) {
  namespace math = elementary;
  switch (kappa) {
    case LionKappa::l2:
    case LionKappa::group_lasso:
    case LionKappa::l2_inf:
      return f([](R c, const LionStat& s, int64_t)
                   LB_INLINE { return lion_normalised(c, R(s.a), R(s.b)); });
    case LionKappa::cautious:
      return f([](R u, const LionStat& s, int64_t) LB_INLINE { return u * R(s.a); });
    case LionKappa::squared_l1:
      return f([](R c, const LionStat& s, int64_t) LB_INLINE { return lion_sign(c) * R(s.a); });
    case LionKappa::lp:
      return f([=](R c, const LionStat& s, int64_t) LB_INLINE {
        const double ratio = detail::magnitude(double(c)) * s.a;
        return R(s.b * (double(lion_sign(c)) * math::pow(ratio, parameter - 1)));
      });
    case LionKappa::l_inf:
      return f([](R c, const LionStat& s, int64_t i)
                   LB_INLINE { return double(i) == s.a ? lion_sign(c) * R(s.b) : R(0); });
    case LionKappa::entropy:
      return f([=](R c, const LionStat& s, int64_t)
                   LB_INLINE { return R(-math::exp((-double(c) - s.a) / parameter) * s.b); });
    case LionKappa::signed_entropy:
      return f([=](R c, const LionStat& s, int64_t) LB_INLINE {
        const double a = detail::magnitude(double(c));
        const double share = math::exp((a - s.a) / parameter) * -math::expm1(-2 * (a / parameter));
        return R(double(lion_sign(c)) * (share * s.b));
      });
    default:
      return visit_kappa<R>(kappa, parameter, [&](auto subgradient) LB_INLINE {
        f([=](R c, const LionStat& s, int64_t) LB_INLINE { return subgradient(c, R(s.a)); });
      });
  }
}

}  // namespace lb
