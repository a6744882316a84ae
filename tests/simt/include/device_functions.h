// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// What CUDA C++ has inside kernels, for the host compiler: CUDA's names, the executor's deeds.
// Functions that can go wrong take the place they are called at, as a last argument nobody gives.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "calls.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __launch_bounds__(...)
#define __noinline__
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__ static thread_local  // see executor/memory.h

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace lb::simt {

void* dynamic_shared();
int barrier(Barrier kind, bool predicate, Site site);
uint64_t warp(WarpOp op, unsigned mask, uint64_t value, int argument, int width, Site site);
void fence();
void on_atomic(const void* at, size_t size, void* code);

// Only one thread runs at a time: an atomic is a plain read and write between two switches.
template <class T, class Function>
__attribute__((noinline, no_sanitize("thread"))) T atomic(T* at, Function function) {
  on_atomic(at, sizeof(T), __builtin_return_address(0));
  const T old = *at;
  *at = function(old);
  return old;
}

template <class T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8);
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof value);
  return bits;
}
template <class T>
T from_bits(uint64_t bits) {
  T value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

template <class T>
struct same {
  using type = T;
};
template <class T>
using same_t = typename same<T>::type;  // not deduced from: atomicAdd(&of_unsigned, 1)

}  // namespace lb::simt

// Set whenever a thread goes on (executor/block.cpp). Const here, as they are to a kernel.
extern const uint3 threadIdx, blockIdx;
extern const dim3 blockDim, gridDim;

#define LB_SIMT_SITE ::lb::simt::Site site = ::lb::simt::Site::here()

// ---------------------------------------------------------------- barriers and fences

inline void __syncthreads(LB_SIMT_SITE) {
  lb::simt::barrier(lb::simt::Barrier::plain, false, site);
}
inline int __syncthreads_count(int predicate, LB_SIMT_SITE) {
  return lb::simt::barrier(lb::simt::Barrier::count, predicate != 0, site);
}
inline int __syncthreads_and(int predicate, LB_SIMT_SITE) {
  return lb::simt::barrier(lb::simt::Barrier::all, predicate != 0, site);
}
inline int __syncthreads_or(int predicate, LB_SIMT_SITE) {
  return lb::simt::barrier(lb::simt::Barrier::any, predicate != 0, site);
}
inline void __threadfence() { lb::simt::fence(); }

// ---------------------------------------------------------------- warps

inline void __syncwarp(unsigned mask = ~0u, LB_SIMT_SITE) {
  lb::simt::warp(lb::simt::WarpOp::sync, mask, 0, 0, 32, site);
}
#define LB_SIMT_SHUFFLE(name, op, Argument)                                                 \
  template <class T>                                                                        \
  T name(unsigned mask, T value, Argument argument, int width = 32, LB_SIMT_SITE) {         \
    return lb::simt::from_bits<T>(lb::simt::warp(                                           \
        lb::simt::WarpOp::op, mask, lb::simt::to_bits(value), int(argument), width, site)); \
  }
LB_SIMT_SHUFFLE(__shfl_sync, shfl, int)
LB_SIMT_SHUFFLE(__shfl_up_sync, shfl_up, unsigned)
LB_SIMT_SHUFFLE(__shfl_down_sync, shfl_down, unsigned)
LB_SIMT_SHUFFLE(__shfl_xor_sync, shfl_xor, int)
#undef LB_SIMT_SHUFFLE

#define LB_SIMT_VOTE(name, op, Result)                                                      \
  inline Result name(unsigned mask, int predicate, LB_SIMT_SITE) {                          \
    return Result(lb::simt::warp(lb::simt::WarpOp::op, mask, predicate != 0, 0, 32, site)); \
  }
LB_SIMT_VOTE(__ballot_sync, ballot, unsigned)
LB_SIMT_VOTE(__any_sync, any, int)
LB_SIMT_VOTE(__all_sync, all, int)
#undef LB_SIMT_VOTE

template <class T>
unsigned __match_any_sync(unsigned mask, T value, LB_SIMT_SITE) {
  return unsigned(
      lb::simt::warp(lb::simt::WarpOp::match_any, mask, lb::simt::to_bits(value), 0, 32, site));
}
template <class T>
unsigned __match_all_sync(unsigned mask, T value, int* predicate, LB_SIMT_SITE) {
  const auto lanes = unsigned(
      lb::simt::warp(lb::simt::WarpOp::match_all, mask, lb::simt::to_bits(value), 0, 32, site));
  *predicate = lanes != 0;
  return lanes;
}

#define LB_SIMT_REDUCE(name, op)                                                     \
  inline unsigned name(unsigned mask, unsigned value, LB_SIMT_SITE) {                \
    return unsigned(lb::simt::warp(lb::simt::WarpOp::op, mask, value, 0, 32, site)); \
  }
#define LB_SIMT_REDUCE_SIGNED(name, op)                                                            \
  inline int name(unsigned mask, int value, LB_SIMT_SITE) {                                        \
    return int(lb::simt::warp(lb::simt::WarpOp::op, mask, uint64_t(int64_t(value)), 0, 32, site)); \
  }
LB_SIMT_REDUCE(__reduce_add_sync, add)
LB_SIMT_REDUCE(__reduce_min_sync, min)
LB_SIMT_REDUCE(__reduce_max_sync, max)
LB_SIMT_REDUCE_SIGNED(__reduce_add_sync, add)
LB_SIMT_REDUCE_SIGNED(__reduce_min_sync, min)
LB_SIMT_REDUCE_SIGNED(__reduce_max_sync, max)
LB_SIMT_REDUCE(__reduce_and_sync, bit_and)
LB_SIMT_REDUCE(__reduce_or_sync, bit_or)
LB_SIMT_REDUCE(__reduce_xor_sync, bit_xor)
#undef LB_SIMT_REDUCE
#undef LB_SIMT_REDUCE_SIGNED

// ---------------------------------------------------------------- atomics

#define LB_SIMT_ATOMIC(name, expression)                                                           \
  template <class T>                                                                               \
  __forceinline__ T name(T* at, lb::simt::same_t<T> value) {                                       \
    return lb::simt::atomic(                                                                       \
        at, [value](T old) __attribute__((no_sanitize("thread"))) -> T { return T(expression); }); \
  }
LB_SIMT_ATOMIC(atomicAdd, old + value)
LB_SIMT_ATOMIC(atomicMax, old < value ? value : old)
LB_SIMT_ATOMIC(atomicMin, value < old ? value : old)
LB_SIMT_ATOMIC(atomicAnd, old& value)
LB_SIMT_ATOMIC(atomicOr, old | value)
LB_SIMT_ATOMIC(atomicExch, (void(old), value))
#undef LB_SIMT_ATOMIC
template <class T>
__forceinline__ T atomicCAS(T* at, lb::simt::same_t<T> expected, lb::simt::same_t<T> value) {
  return lb::simt::atomic(at, [=](T old) __attribute__((no_sanitize("thread"))) -> T {
    return old == expected ? value : old;
  });
}

// ---------------------------------------------------------------- arithmetic

using std::max;
using std::min;
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1u) << (31 - i);
  return reversed;
}
