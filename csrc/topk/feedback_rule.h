// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Error feedback, one element: what is selected from, and what becomes of the state once the
// decoded value D of the element is known (0 where it is not sent).
//
//   feedback   key = e' = decay e + g           e <- e' - D           Seide et al. 2014;
//   Karimireddy
//                                                                     et al. 2019, arXiv:1901.09847
//   ef21       key = g - h                      h <- h + D            arXiv:2106.05203
//   econtrol   key = eta e + (g - h)            e <- e + (g - h) - D, h <- h + D
//                                                                     arXiv:2311.05645
//   dgc        m <- mu m + g, key = v + m       v <- v + m - D, m <- 0 where sent
//                                                                     arXiv:1712.01887
//
// With an average, v <- (1 - beta) v + beta g stands for g (EF21-SGDM, arXiv:2305.15155). Every
// operation is rounded, none contracted. Where the gradient or a new state is not finite the
// difference it makes is taken as 0: no state ever becomes infinite or NaN.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace lb {

enum class Feedback : int32_t { none, feedback, ef21, econtrol, dgc };

struct FeedbackHyper {
  Feedback method;
  bool average;  // an exponential average of the gradient, of weight beta
  bool nesterov, masking;
  double eta, beta, decay, mu;
  const float* inv_scale;  // gradients are multiplied by it; may be null
};

// What state a method has.
constexpr bool has_error(Feedback m) { return m != Feedback::none && m != Feedback::ef21; }
constexpr bool has_shift(Feedback m) { return m == Feedback::ef21 || m == Feedback::econtrol; }
constexpr bool has_momentum(const FeedbackHyper& h) {
  return h.average || h.method == Feedback::dgc;
}

template <class R>
struct FeedbackScalars {
  R eta, beta, keep, decay, mu, inv_scale;

  LB_HD explicit FeedbackScalars(const FeedbackHyper& h)
      : eta(R(h.eta)),
        beta(R(h.beta)),
        keep(R(1 - h.beta)),
        decay(R(h.decay)),
        mu(R(h.mu)),
        inv_scale(h.inv_scale == nullptr ? R(1) : R(*h.inv_scale)) {}
};

// The state of an element; dgc: its accumulated v is e, its momentum m is v.
template <class R>
struct FeedbackState {
  R e, h, v;
};

// The key; the state becomes that of D = 0. `dense`: all of dgc's tensor is sent, its momentum as
// it is. `guarded`: the gradient was left out.
template <class R>
LB_HD R accumulate(Feedback method, bool average, bool nesterov, bool dense,
                   const FeedbackScalars<R>& c, R gradient, FeedbackState<R>& x, bool& guarded) {
  const R scaled = gradient * c.inv_scale;
  const R mean = c.keep * x.v + c.beta * scaled;
  const R g = average ? mean : scaled;
  R key = g, e = x.e, v = average ? mean : x.v;
  R key_without = 0, e_without = x.e, v_without = x.v;
  if (method == Feedback::feedback) {
    e_without = key_without = c.decay * x.e;
    key = e = e_without + g;
  } else if (method == Feedback::ef21) {
    key = g - x.h;
  } else if (method == Feedback::econtrol) {
    const R r = g - x.h;
    key_without = c.eta * x.e;
    key = key_without + r;
    e = x.e + r;
  } else if (method == Feedback::dgc) {
    v = nesterov ? c.mu * (x.v + g) : c.mu * x.v + g;
    v_without = c.mu * x.v;
    if (dense) {
      key = nesterov ? v + g : v;
      key_without = v_without;
    } else {
      key = e = nesterov ? (x.e + v) + g : x.e + v;
      key_without = e_without = x.e + v_without;
    }
  }
  const R sum = (gradient - gradient) + (e - e) + (v - v) + (key - key);  // NaN unless all finite
  guarded = !(sum == 0);
  x.e = guarded ? e_without : e;
  x.v = guarded ? v_without : v;
  return guarded ? key_without : key;
}

template <class R>
LB_HD void fix_up(Feedback method, R sent, FeedbackState<R>& x) {
  if (has_error(method)) x.e = x.e - sent;
  if (has_shift(method)) x.h = x.h + sent;
}

}  // namespace lb
