// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Kernels that are right, like those of good.cu: what the threads of a warp do together, votes at a
// barrier, atomics of each kind and type, and the functions on bits.
#include <limits>

#include "core/launch.cuh"
#include "kernels/device.cuh"
#include "kernels/kernels.h"

namespace lb::simt_kernels {

using cuda::launch;

// ---------------------------------------------------------------- kernels

namespace {

// The lanes of this thread's warp: the last one of a block may have fewer than 32.
__device__ unsigned warp_mask() {
  const unsigned rest = blockDim.x - threadIdx.x / 32 * 32;
  return rest >= 32 ? ~0u : (1u << rest) - 1;
}

__global__ void votes_kernel(const int* x, unsigned* out) {
  const int value = x[threadIdx.x];
  const unsigned mask = warp_mask();
  unsigned* row = out + threadIdx.x * 6;
  int same = 0;
  row[0] = __ballot_sync(mask, value % 2 != 0);
  row[1] = __any_sync(mask, value > 5) != 0;
  row[2] = __all_sync(mask, value > 1) != 0;
  row[3] = __match_any_sync(mask, value);
  row[4] = __match_all_sync(mask, value, &same);
  row[5] = same != 0;
}

__global__ void warp_reductions_kernel(const int* x, int* out) {
  const int value = x[threadIdx.x];
  const unsigned mask = warp_mask();
  int* row = out + threadIdx.x * 6;
  row[0] = __reduce_add_sync(mask, value);
  row[1] = __reduce_min_sync(mask, value);
  row[2] = __reduce_max_sync(mask, value);
  row[3] = int(__reduce_and_sync(mask, unsigned(value)));
  row[4] = int(__reduce_or_sync(mask, unsigned(value)));
  row[5] = int(__reduce_xor_sync(mask, unsigned(value)));
}

template <class T>
__global__ void shuffles_kernel(const T* x, int width, T* out) {
  const T value = x[threadIdx.x];
  const unsigned mask = warp_mask();
  T* row = out + threadIdx.x * 4;
  row[0] = __shfl_sync(mask, value, (int(threadIdx.x) + 3) % width, width);
  row[1] = __shfl_up_sync(mask, value, 1, width);
  row[2] = __shfl_down_sync(mask, value, 2, width);
  row[3] = __shfl_xor_sync(mask, value, 1, width);
}

// The halves part, and each is among itself until they meet again.
__global__ void half_warps_kernel(const int* x, int* out) {
  int value = x[threadIdx.x];
  if (threadIdx.x % 32 < 16) {
    for (int by = 8; by > 0; by /= 2) value += __shfl_xor_sync(0x0000ffffu, value, by);
  } else {
    for (int by = 8; by > 0; by /= 2) value = max(value, __shfl_xor_sync(0xffff0000u, value, by));
  }
  __syncwarp(warp_mask());
  out[threadIdx.x] = value;
}

__global__ void barrier_votes_kernel(const int* x, int* out) {
  const int odd = x[threadIdx.x] % 2;
  int* row = out + threadIdx.x * 3;
  row[0] = __syncthreads_count(odd);
  row[1] = __syncthreads_and(odd) != 0;
  row[2] = __syncthreads_or(odd) != 0;
}

__global__ void bits_kernel(const unsigned* x, unsigned* out) {
  const unsigned value = x[threadIdx.x];
  unsigned* row = out + threadIdx.x * 4;
  row[0] = unsigned(__popc(value));
  row[1] = unsigned(__clz(int(value)));
  row[2] = unsigned(__ffs(int(value)));
  row[3] = __brev(value);
}

template <class T>
__global__ void atomic_add_kernel(const T* x, int n, T* out) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) out[i] = atomicAdd(&out[n], x[i]);
}

template <class T>
__global__ void atomic_others_kernel(const T* x, int n, T* out) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  T* results = out + n;
  out[i] = atomicExch(&results[0], x[i]);
  atomicMax(&results[1], x[i]);
  atomicMin(&results[2], x[i]);
  atomicOr(&results[3], x[i]);
  atomicAnd(&results[4], x[i]);
  T found = 0, expected;  // 0 is a guess, which the first exchange corrects
  do {
    expected = found;
    found = atomicCAS(&results[5], expected, T(expected + x[i]));
  } while (found != expected);
}

}  // namespace

// -------------------------------------------------------------- launchers

namespace {

// Atomics meet across blocks too.
constexpr int kThreads = 64;

// One block with a thread for each number, which writes `columns` results.
template <class In, class Out, class... Arguments>
std::vector<Out> run(const char* name, void (*kernel)(Arguments...), const std::vector<In>& x,
                     size_t columns) {
  const Buffer<In> in(x);
  const Buffer<Out> out(x.size() * columns);
  launch(name, kernel, {int(x.size() > 0), int(x.size())}, nullptr, in.get(), out.get());
  return out.copy();
}

// Blocks of kThreads; a result for each number, then the totals, which begin as given.
template <class T>
std::vector<T> run_atomics(const char* name, void (*kernel)(const T*, int, T*),
                           const std::vector<T>& x, const std::vector<T>& totals) {
  std::vector<T> results(x.size(), T(0));
  results.insert(results.end(), totals.begin(), totals.end());
  const Buffer<T> in(x), out(results);
  const int n = int(x.size());
  launch(name, kernel, {(n + kThreads - 1) / kThreads, kThreads}, nullptr, in.get(), n, out.get());
  return out.copy();
}

}  // namespace

std::vector<unsigned> votes(const std::vector<int>& x) {
  return run<int, unsigned>("votes", votes_kernel, x, 6);
}
std::vector<int> warp_reductions(const std::vector<int>& x) {
  return run<int, int>("warp_reductions", warp_reductions_kernel, x, 6);
}
std::vector<int> half_warps(const std::vector<int>& x) {
  return run<int, int>("half_warps", half_warps_kernel, x, 1);
}
std::vector<int> barrier_votes(const std::vector<int>& x) {
  return run<int, int>("barrier_votes", barrier_votes_kernel, x, 3);
}
std::vector<unsigned> bits(const std::vector<unsigned>& x) {
  return run<unsigned, unsigned>("bits", bits_kernel, x, 4);
}

template <class T>
std::vector<T> shuffles(const std::vector<T>& x, int width) {
  const Buffer<T> in(x), out(x.size() * 4);
  launch("shuffles", shuffles_kernel<T>, {1, int(x.size())}, nullptr, in.get(), width, out.get());
  return out.copy();
}
template std::vector<int> shuffles(const std::vector<int>&, int);
template std::vector<float> shuffles(const std::vector<float>&, int);
template std::vector<double> shuffles(const std::vector<double>&, int);

template <class T>
std::vector<T> atomic_add(const std::vector<T>& x) {
  return run_atomics<T>("atomic_add", atomic_add_kernel<T>, x, {0});
}
template std::vector<int> atomic_add(const std::vector<int>&);
template std::vector<unsigned> atomic_add(const std::vector<unsigned>&);
template std::vector<unsigned long long> atomic_add(const std::vector<unsigned long long>&);
template std::vector<float> atomic_add(const std::vector<float>&);
template std::vector<double> atomic_add(const std::vector<double>&);

template <class T>
std::vector<T> atomic_others(const std::vector<T>& x) {
  using Limits = std::numeric_limits<T>;
  return run_atomics<T>("atomic_others", atomic_others_kernel<T>, x,
                        {0, Limits::min(), Limits::max(), 0, T(-1), 0});
}
template std::vector<int> atomic_others(const std::vector<int>&);
template std::vector<unsigned> atomic_others(const std::vector<unsigned>&);
template std::vector<unsigned long long> atomic_others(const std::vector<unsigned long long>&);

}  // namespace lb::simt_kernels
