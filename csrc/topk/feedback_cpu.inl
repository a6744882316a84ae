// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Error feedback on one tile, compiled for each instruction set.
#include "core/lanes.h"
#include "core/visit.h"
#include "topk/topk.h"

namespace lb::LB_ISA {

namespace {

template <Feedback kMethod, bool kAverage, class G>
LB_OUTLINE int64_t accumulate_tile(const FeedbackHyper& hyper, bool dense, const G* gradients,
                                   real_t<G>* keys, real_t<G>* __restrict errors,
                                   const real_t<G>* __restrict shifts,
                                   real_t<G>* __restrict momenta, int64_t n) {
  using R = real_t<G>;
  constexpr bool kError = has_error(kMethod), kShift = has_shift(kMethod);
  constexpr bool kMomentum = kAverage || kMethod == Feedback::dgc;
  const FeedbackScalars<R> c(hyper);
  const bool nesterov = hyper.nesterov;
  int32_t counts[kLanes] = {};
  for_lanes(n, [&](int64_t i, int lane) LB_INLINE {
    FeedbackState<R> x{};
    if constexpr (kError) x.e = errors[i];
    if constexpr (kShift) x.h = shifts[i];
    if constexpr (kMomentum) x.v = momenta[i];
    bool guarded;
    const R key =
        accumulate(kMethod, kAverage, nesterov, dense, c, to_real(gradients[i]), x, guarded);
    if constexpr (kError) errors[i] = x.e;
    if constexpr (kMomentum) momenta[i] = x.v;
    keys[i] = key;
    counts[lane] += guarded;
  });
  int64_t guarded = 0;
  for (int32_t count : counts) guarded += count;
  return guarded;
}

template <class G, bool kAverage>
LB_HD int64_t accumulate_tile(const FeedbackHyper& hyper, bool dense, const Row& row, const void* g,
                              int64_t start, int64_t n) {
  const auto at = [&](int role) LB_INLINE { return role_at<real_t<G>>(row, role, start); };
  const auto call = [&](auto method) LB_INLINE {
    return accumulate_tile<decltype(method)::value, kAverage>(
        hyper, dense, static_cast<const G*>(g) + start, at(kKey), at(kError), at(kShift),
        at(kMomentum), n);
  };
  switch (hyper.method) {
    case Feedback::feedback:
      return call(std::integral_constant<Feedback, Feedback::feedback>());
    case Feedback::ef21:
      return call(std::integral_constant<Feedback, Feedback::ef21>());
    case Feedback::econtrol:
      return call(std::integral_constant<Feedback, Feedback::econtrol>());
    case Feedback::dgc:
      return call(std::integral_constant<Feedback, Feedback::dgc>());
    case Feedback::none:
      break;
  }
  return call(std::integral_constant<Feedback, Feedback::none>());
}

}  // namespace

// Keys of elements [start, start + n) of a tensor; returns how many were guarded.
int64_t feedback_accumulate(const FeedbackHyper& hyper, bool dense, const Row& row, const void* g,
                            int64_t start, int64_t n) {
  int64_t guarded = 0;
  visit(row.grad_dtype, [&](auto type) LB_INLINE {
    using G = typename decltype(type)::type;
    guarded = hyper.average ? accumulate_tile<G, true>(hyper, dense, row, g, start, n)
                            : accumulate_tile<G, false>(hyper, dense, row, g, start, n);
  });
  return guarded;
}

// All elements [start, start + n) were sent: `sent` is the decoded values of them.
void feedback_fix_up(DType real, const FeedbackHyper& hyper, const Row& row, const void* sent,
                     int64_t start, int64_t n) {
  visit(real, [&](auto type) LB_INLINE {
    using R = real_t<typename decltype(type)::type>;
    const Feedback method = hyper.method;
    const bool error = has_error(method), shift = has_shift(method);
    const R* __restrict values = static_cast<const R*>(sent);
    R* __restrict errors = role_at<R>(row, lb::kError, start);
    R* __restrict shifts = role_at<R>(row, lb::kShift, start);
    const auto walk = [&](auto with_error, auto with_shift) LB_INLINE {
      for_lanes(n, [&](int64_t i, int) LB_INLINE {
        FeedbackState<R> x{};
        if (with_error.value) x.e = errors[i];
        if (with_shift.value) x.h = shifts[i];
        fix_up(method, values[i], x);
        if (with_error.value) errors[i] = x.e;
        if (with_shift.value) shifts[i] = x.h;
      });
    };
    if (error && shift) {
      walk(std::true_type(), std::true_type());
    } else if (error) {
      walk(std::true_type(), std::false_type());
    } else if (shift) {
      walk(std::false_type(), std::true_type());
    }
  });
}

}  // namespace lb::LB_ISA
