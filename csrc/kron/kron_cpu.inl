// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Products with a factor and updates of it, a few rows at a time, compiled for each instruction
// set.
#include <limits>

#include "core/lanes.h"
#include "core/stored.h"
#include "core/visit.h"
#include "kron/kron.h"

namespace lb::LB_ISA {

namespace {

// Columns that are summed in the real type of the factor, 16 a lane, before fp64 takes them.
constexpr int64_t kChunk = 16 * kLanes;

template <class F>
LB_HD void for_chunks(int64_t n, F f) {
  for (int64_t first = 0; first < n; first += kChunk) {
    f(first, n - first < kChunk ? n - first : kChunk);
  }
}

template <class R>
LB_HD void add(LaneSum& sum, const R* part) {
#pragma omp simd
  for (int l = 0; l < kLanes; ++l) sum.lanes[l] += double(part[l]);
}

// The bits of the absolute value of a number as it is stored, and back.
template <class T>
LB_HD auto magnitude_bits(T x) {
  std::conditional_t<sizeof(T) == 8, int64_t, std::conditional_t<sizeof(T) == 4, int32_t, int16_t>>
      bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return decltype(bits)(bits & std::numeric_limits<decltype(bits)>::max());
}
template <class T, class Bits>
LB_HD double of_bits(Bits bits) {
  T x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return double(to_real(x));
}

// The norm of a row, as KronNorm says, of entries as they are stored. The largest is found as bits,
// which never lose a NaN.
template <class T, KronNorm kNorm>
struct RowNorm {
  using R = real_t<T>;
  using Bits = decltype(magnitude_bits(T()));
  LaneSum sum;
  R part[kLanes] = {};
  Bits largest[kLanes] = {};

  LB_HD void take(T stored, int lane) {
    if constexpr (kNorm == KronNorm::inf) {
      const R x = to_real(stored);
      part[lane] += x < 0 ? -x : x;
    } else {
      const Bits bits = magnitude_bits(stored);
      largest[lane] = bits > largest[lane] ? bits : largest[lane];
    }
  }
  LB_HD void end_chunk() {
    if constexpr (kNorm == KronNorm::inf) {
      add(sum, part);
      for (R& x : part) x = 0;
    }
  }
  LB_HD double norm() {
    if constexpr (kNorm == KronNorm::inf) return sum.total();
    Bits most = 0;
    for (Bits bits : largest) most = bits > most ? bits : most;
    return of_bits<T>(most);
  }
};

template <class T>
LB_HD double dot(const T* m, const real_t<T>* __restrict v, int64_t n) {
  using R = real_t<T>;
  LaneSum sum;
  R buffer[kIsReal<T> ? 1 : kChunk];
  for_chunks(n, [&](int64_t first, int64_t count) LB_INLINE {
    const R* __restrict x = widen(m + first, buffer, count);
    R part[kLanes] = {};
    for_lanes(count, [&](int64_t i, int lane) LB_INLINE { part[lane] += x[i] * v[first + i]; });
    add(sum, part);
  });
  return sum.total();
}

template <class T, KronNorm kNorm>
LB_HD double update_row(T* m, const KronRule<real_t<T>>& rule, const real_t<T>* __restrict u,
                        int64_t row, int64_t n) {
  using R = real_t<T>;
  const R left = rule.left(u[row]);
  RowNorm<T, kNorm> norm;
  R buffer[kIsReal<T> ? 1 : kChunk];
  for_chunks(n, [&](int64_t first, int64_t count) LB_INLINE {
    R* __restrict x = widen(m + first, buffer, count);
    const int64_t diagonal = row - first;
    const R on_diagonal =
        diagonal >= 0 && diagonal < count ? rule.diagonal(x[diagonal], left, u[row]) : R(0);
    for_lanes(count,
              [&](int64_t i, int) LB_INLINE { x[i] = rule.entry(x[i], left, u[first + i]); });
    if (diagonal >= 0 && diagonal < count) x[diagonal] = on_diagonal;
    if constexpr (!kIsReal<T>) narrow(x, m + first, count);
    const T* stored = m + first;
    for_lanes(count, [&](int64_t i, int lane) LB_INLINE { norm.take(stored[i], lane); });
    norm.end_chunk();
  });
  return norm.norm();
}

}  // namespace

// product = M v, for the rows of a panel.
void kron_product_panel(const Row& row, const void* v, KronPanel panel, double* partials) {
  const int64_t order = kron_order(row);
  visit(row.dtypes[kKronFactor], [&](auto type) LB_INLINE {
    using T = typename decltype(type)::type;
    using R = real_t<T>;
    const T* m = row.role<T>(kKronFactor);
    double* product = kron_scratch<R>(row, partials).product;
    for (int64_t i = panel.first; i < panel.first + panel.rows; ++i) {
      product[i] = dot(m + i * row.stride, static_cast<const R*>(v), order);
    }
  });
}

// u from the product, and what the update of the factor needs.
KronScalars kron_finish(const Row& row, const void* v, const KronHyper& hyper, double norm,
                        bool skip, double* partials) {
  const int64_t order = kron_order(row);
  const double z = kron_blend(hyper, norm);
  KronScalars scalars{};
  visit(row.grad_dtype, [&](auto type) LB_INLINE {
    using R = typename decltype(type)::type;
    if constexpr (std::is_same_v<R, real_t<R>>) {
      const R* __restrict vector = static_cast<const R*>(v);
      const KronScratch<R> scratch = kron_scratch<R>(row, partials);
      const double* __restrict product = scratch.product;
      R* __restrict u = scratch.u;
      LaneSum s, size;
      for_lanes(order, [&](int64_t i, int lane) LB_INLINE {
        u[i] = kron_direction(z, product[i], vector[i]);
        s.lanes[lane] += double(vector[i]) * double(u[i]);
        size.lanes[lane] += double(vector[i] < 0 ? -vector[i] : vector[i]);
      });
      scalars = kron_scalars(hyper, norm, s.total(), size.total(), skip);
      const double root = scalars.root;
      for_lanes(order, [&](int64_t i, int) LB_INLINE { u[i] = R(root * double(u[i])); });
    }
  });
  return scalars;
}

// Updates the rows of a panel and leaves their norms where the product was.
void kron_update_panel(const Row& row, const KronScalars& scalars, KronNorm norm, KronPanel panel,
                       double* partials) {
  const int64_t order = kron_order(row);
  visit(row.dtypes[kKronFactor], [&](auto type) LB_INLINE {
    using T = typename decltype(type)::type;
    using R = real_t<T>;
    const KronScratch<R> scratch = kron_scratch<R>(row, partials);
    const KronRule<R> rule(scalars);
    for (int64_t i = panel.first; i < panel.first + panel.rows; ++i) {
      T* m = row.role<T>(kKronFactor) + i * row.stride;
      if (scalars.action == KronAction::reset) {
        for (int64_t j = 0; j < order; ++j) m[j] = from_real<T>(j == i ? R(1) : R(0));
        scratch.product[i] = 1;
      } else if (norm == KronNorm::inf) {
        scratch.product[i] = update_row<T, KronNorm::inf>(m, rule, scratch.u, i, order);
      } else {
        scratch.product[i] = update_row<T, KronNorm::max>(m, rule, scratch.u, i, order);
      }
    }
  });
}

}  // namespace lb::LB_ISA
