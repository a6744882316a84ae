// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Products with a factor and updates of it, a few rows at a time, compiled for each instruction
// set.
#include <limits>

#include "core/lanes.h"
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
LB_HD auto magnitude_bits(real_t<T> x) {
  if constexpr (sizeof(T) == 2) {
    return int32_t(from_real<T>(x).bits & 0x7fff);
  } else {
    std::conditional_t<sizeof(T) == 4, int32_t, int64_t> bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    return bits & std::numeric_limits<decltype(bits)>::max();
  }
}
template <class T, class Bits>
LB_HD double of_bits(Bits bits) {
  T x;
  __builtin_memcpy(&x, &bits, sizeof x);  // the low half of a 16-bit one
  return double(to_real(x));
}

// The norm of a row, as KronNorm says, of entries as they are stored. The largest is found as bits,
// which never lose a NaN.
template <class T, KronNorm kNorm>
struct RowNorm {
  using R = real_t<T>;
  using Bits = decltype(magnitude_bits<T>(R()));
  LaneSum sum;
  R part[kLanes] = {};
  Bits largest[kLanes] = {};

  LB_HD void take(R x, int lane) {
    if constexpr (kNorm == KronNorm::inf) {
      const R stored = to_real(from_real<T>(x));
      part[lane] += stored < 0 ? -stored : stored;
    } else {
      const Bits bits = magnitude_bits<T>(x);
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
LB_HD double dot(const T* __restrict m, const real_t<T>* __restrict v, int64_t n) {
  using R = real_t<T>;
  LaneSum sum;
  for_chunks(n, [&](int64_t first, int64_t count) LB_INLINE {
    R part[kLanes] = {};
    for_lanes(count, [&](int64_t i, int lane)
                         LB_INLINE { part[lane] += to_real(m[first + i]) * v[first + i]; });
    add(sum, part);
  });
  return sum.total();
}

template <class T, KronNorm kNorm>
LB_HD double update_row(T* __restrict m, const KronRule<real_t<T>>& rule,
                        const real_t<T>* __restrict u, int64_t row, int64_t n) {
  using R = real_t<T>;
  const R left = rule.left(u[row]);
  RowNorm<T, kNorm> norm;
  for_chunks(n, [&](int64_t first, int64_t count) LB_INLINE {
    const auto put = [&](int64_t i, R x, int lane) LB_INLINE {
      m[first + i] = from_real<T>(x);
      norm.take(x, lane);
    };
    if (row < first || row >= first + count) {
      for_lanes(count, [&](int64_t i, int lane) LB_INLINE {
        put(i, rule.entry(to_real(m[first + i]), left, u[first + i]), lane);
      });
    } else {
      const int diagonal = int(row - first);
      for_lanes(count, [&](int64_t i, int lane) LB_INLINE {
        const R x = rule.entry(to_real(m[first + i]), left, u[first + i]);
        put(i, x + (int(i) == diagonal ? rule.unit : R(0)), lane);
      });
    }
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
