// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// The arithmetic of a rank-1 update of a Kronecker factor's inverse: Mozaffari, Li, Zhang, Mehri
// Dehnavi 2023, "MKOR: Momentum-Enabled Kronecker-Factor-Based Optimizer Using Rank-1 Updates",
// arXiv 2306.01685. Both backends include this file and neither writes a formula of its own.
//
//   M^ = z M + (1 - z) I,   u = M^ v,   s = v.u,   M <- alpha M^ + beta u u^T
//
//            z                            alpha     beta
//   leaky    leak, always                 1         -rho / (1 + rho s)
//   exact    blend if |M| > threshold     1/gamma   -(1-gamma) / (gamma (gamma + (1-gamma) s))
//   paper    likewise, else 1             gamma     (1-gamma) / (gamma^2 (1 + gamma (1-gamma) s))
//
// leaky is what the authors' code does; paper is Algorithm 1, lines 7 and 8; exact is the
// Sherman-Morrison inverse of gamma M^-1 + (1-gamma) v v^T.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/dtype.h"
#include "core/workspace.h"

namespace lb {

enum class KronVariant : int32_t { leaky, exact, paper };
enum class KronNorm : int32_t { max, inf };  // largest |entry|; largest sum of |entries| of a row
enum class KronAction : int32_t { leave, update, reset };

// Columns of KronState::counters.
enum KronCount { kKronDropped, kKronStabilized, kKronReset, kKronCounts };

struct KronHyper {
  KronVariant variant;
  KronNorm norm;
  double gamma, leak, rho;
  double threshold;  // of the norm, above which exact and paper blend; infinity: never
  double blend;
};

// What the update of one factor needs, once s is known.
struct KronScalars {
  double keep, unit;  // alpha z, alpha (1 - z)
  double root, sign;  // of beta: u u^T is formed of sqrt(|beta|) u, which neither overflows where
                      // the result does not, nor makes M(i, j) differ from M(j, i)
  KronAction action;
  int32_t count;  // the KronCount that grows by one, or -1
};

LB_HD double kron_blend(const KronHyper& h, double norm) {
  if (h.variant == KronVariant::leaky) return h.leak;
  return norm > h.threshold ? h.blend : 1;
}

// s = v.u, size = sum of |v_i|; norm as it is before the update.
LB_HD KronScalars kron_scalars(const KronHyper& h, double norm, double s, double size, bool skip) {
  const KronScalars leave{1, 0, 0, 1, KronAction::leave, -1};
  const KronScalars drop{1, 0, 0, 1, KronAction::leave, kKronDropped};
  const KronScalars reset{0, 1, 0, 1, KronAction::reset, kKronReset};
  const bool leaky = h.variant == KronVariant::leaky;
  if (skip) return leave;
  if (!leaky && is_nonfinite(norm)) return reset;  // it has overflowed
  if (is_nonfinite(s) || is_nonfinite(size)) return drop;
  if (!leaky && size == 0) return leave;  // a dead layer: nothing is known of it
  if (s < 0) return reset;                // rounding has cost it its definiteness
  const double z = kron_blend(h, norm), g = h.gamma;
  double alpha = 1, over = 0, under = 1;  // beta = over / under
  switch (h.variant) {
    case KronVariant::leaky:
      over = -h.rho;
      under = 1 + h.rho * s;
      break;
    case KronVariant::exact:
      alpha = 1 / g;
      over = -(1 - g);
      under = g * (g + (1 - g) * s);
      break;
    case KronVariant::paper:
      alpha = g;
      over = 1 - g;
      under = g * g * (1 + g * (1 - g) * s);
      break;
  }
  if (is_nonfinite(under)) return drop;
  const double sign = over < 0 ? -1 : 1;
  return {
      alpha * z, alpha * (1 - z),    std::sqrt(sign * over / under),
      sign,      KronAction::update, !leaky && norm > h.threshold ? int32_t(kKronStabilized) : -1};
}

// u of one entry, from its product (M v)_i.
template <class R>
LB_HD R kron_direction(double z, double product, R v) {
  return R(z * product + (1 - z) * double(v));
}

// The update of an entry. `u` is sqrt(|beta|) times the one above; `left` that of its row, signed.
template <class R>
struct KronRule {
  R keep, unit, sign;

  LB_HD explicit KronRule(const KronScalars& k)
      : keep(R(k.keep)), unit(R(k.unit)), sign(R(k.sign)) {}

  LB_HD R left(R u) const { return sign * u; }
  LB_HD R entry(R m, R left, R u) const { return keep * m + left * u; }
  LB_HD R diagonal(R m, R left, R u) const { return entry(m, left, u) + unit; }
};

// Norms are compared as the bits of numbers that are not negative: the largest of them does not
// depend on the order in which they come, and NaN, above infinity, is never lost.
LB_HD uint32_t kron_norm_bits(float norm) { return detail::bits_of(norm) & 0x7fffffffu; }

}  // namespace lb
