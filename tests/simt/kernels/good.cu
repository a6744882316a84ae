// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Kernels that are right, as kernels are usually written: blocks and grids. The executor has to get
// the right result under every schedule, and the race detector has to keep quiet.
#include <cooperative_groups.h>

#include "core/launch.cuh"
#include "core/tile.cuh"
#include "kernels/device.cuh"
#include "kernels/kernels.h"

namespace lb::simt_kernels {

using cuda::block_sum;
using cuda::launch;

// ---------------------------------------------------------------- kernels

namespace {

constexpr int kThreads = 256;
constexpr int kSide = 32;  // of the tile that is transposed
constexpr int kRows = 8;   // of it at a time
constexpr int kMaxBins = 64;

// Each sum uses the shared memory of the one before again, the second with no barrier between.
__global__ void __launch_bounds__(kThreads)
    sum_and_spread_kernel(const float* x, int n, double* out) {
  __shared__ double mean;
  double sum[1] = {0}, count[1] = {0}, spread[1] = {0};
  for (int i = int(threadIdx.x); i < n; i += kThreads) {
    sum[0] += double(x[i]);
    count[0] += 1;
  }
  block_sum<kThreads>(sum);
  block_sum<kThreads>(count);
  if (threadIdx.x == 0) mean = sum[0] / max(count[0], 1.0);
  __syncthreads();
  for (int i = int(threadIdx.x); i < n; i += kThreads) {
    spread[0] += (double(x[i]) - mean) * (double(x[i]) - mean);
  }
  block_sum<kThreads>(spread);
  if (threadIdx.x != 0) return;
  out[0] = sum[0];
  out[1] = spread[0];
}

// One block walks over the data and carries the total of what it has passed.
__global__ void __launch_bounds__(kThreads) inclusive_scan_kernel(const int* x, int n, int* out) {
  __shared__ int warps[kThreads / 32];
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  int carry = 0;
  for (int first = 0; first < n; first += kThreads) {
    const int i = first + int(threadIdx.x);
    int sum = i < n ? x[i] : 0;
    for (int by = 1; by < 32; by *= 2) {
      const int before = __shfl_up_sync(~0u, sum, unsigned(by));
      if (lane >= by) sum += before;
    }
    if (lane == 31) warps[warp] = sum;
    __syncthreads();
    sum += carry;
    for (int w = 0; w < kThreads / 32; ++w) {
      if (w < warp) sum += warps[w];
      carry += warps[w];
    }
    if (i < n) out[i] = sum;
    __syncthreads();  // the next round writes `warps` again
  }
}

__global__ void __launch_bounds__(kThreads)
    histogram_kernel(const int* x, int n, int bins, int* counts) {
  __shared__ int here[kMaxBins];
  const int t = int(threadIdx.x), i = int(blockIdx.x) * kThreads + t;
  if (t < bins) here[t] = 0;
  __syncthreads();
  if (i < n) atomicAdd(&here[x[i]], 1);
  __syncthreads();
  if (t < bins && here[t] > 0) atomicAdd(&counts[t], here[t]);
}

// Blocks of [kRows, kSide] threads; dynamic shared memory [kSide, kSide + 1], so that no two
// threads of a warp meet in a bank.
__global__ void __launch_bounds__(kRows* kSide)
    transpose_kernel(const float* x, int rows, int columns, float* out) {
  float* tile = cuda::dynamic_shared<float>();
  const int tx = int(threadIdx.x), ty = int(threadIdx.y);
  const int row = int(blockIdx.y) * kSide, column = int(blockIdx.x) * kSide;
  for (int y = ty; y < kSide && row + y < rows; y += kRows) {
    if (column + tx < columns) {
      tile[y * (kSide + 1) + tx] = x[(row + y) * columns + column + tx];
    }
  }
  __syncthreads();
  for (int y = ty; y < kSide && column + y < columns; y += kRows) {
    if (row + tx < rows) out[(column + y) * rows + row + tx] = tile[tx * (kSide + 1) + y];
  }
}

// Every block needs the sum over all blocks.
__global__ void __launch_bounds__(kThreads)
    normalize_kernel(const float* x, int n, double* partials, double* out) {
  const int first = int(blockIdx.x) * kThreads + int(threadIdx.x);
  const int step = int(gridDim.x) * kThreads;
  double sum[1] = {0};
  for (int i = first; i < n; i += step) sum[0] += double(x[i]);
  block_sum<kThreads>(sum);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum[0];
  cooperative_groups::this_grid().sync();
  double total = 0;
  for (unsigned b = 0; b < gridDim.x; ++b) total += partials[b];
  for (int i = first; i < n; i += step) out[i] = double(x[i]) / total;
}

// The block that finds all others done adds up, in the order of blocks.
__global__ void __launch_bounds__(kThreads)
    last_block_sum_kernel(const float* x, int n, double* partials, unsigned* done, double* out) {
  const int t = int(threadIdx.x), i = int(blockIdx.x) * kThreads + t;
  double sum[1] = {i < n ? double(x[i]) : 0};
  block_sum<kThreads>(sum);
  bool last = false;
  if (t == 0) {
    partials[blockIdx.x] = sum[0];
    __threadfence();  // the partial sum is seen before the count
    last = atomicAdd(done, 1u) == gridDim.x - 1;
    __threadfence();  // and the count before the partial sums of others
  }
  if (!__syncthreads_or(last)) return;
  sum[0] = 0;
  for (int b = t; b < int(gridDim.x); b += kThreads) sum[0] += partials[b];
  block_sum<kThreads>(sum);
  if (t == 0) *out = sum[0];
}

// Each block waits for the one before it, so all of them have to be alive.
__global__ void column_scan_kernel(int* x, volatile int* ready) {
  const unsigned b = blockIdx.x, i = b * blockDim.x + threadIdx.x;
  if (b > 0) {
    if (threadIdx.x == 0) {
      while (ready[b - 1] == 0) {
      }
      __threadfence();
    }
    __syncthreads();
    x[i] += x[i - blockDim.x];
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    ready[b] = 1;
  }
}

__global__ void scale_by_fours_kernel(const float* x, int n, float factor, float* out) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (4 * i + 4 <= n) {
    float4 four = reinterpret_cast<const float4*>(x)[i];
    four.x *= factor;
    four.y *= factor;
    four.z *= factor;
    four.w *= factor;
    reinterpret_cast<float4*>(out)[i] = four;
  } else {
    for (int k = 4 * i; k < n; ++k) out[k] = x[k] * factor;
  }
}

__global__ void add_kernel(int* x, int n, int term) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) x[i] += term;
}

__global__ void multiply_kernel(int* x, int n, int factor) {
  const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) x[i] *= factor;
}

__global__ void indices_kernel(int* out) {
  const dim3 g = gridDim, s = blockDim;
  const unsigned block = (blockIdx.z * g.y + blockIdx.y) * g.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * s.y + threadIdx.y) * s.x + threadIdx.x;
  int* row = out + (block * s.x * s.y * s.z + thread) * 6;
  row[0] = int(blockIdx.z);
  row[1] = int(blockIdx.y);
  row[2] = int(blockIdx.x);
  row[3] = int(threadIdx.z);
  row[4] = int(threadIdx.y);
  row[5] = int(threadIdx.x);
}

int divide_up(size_t n, int by) { return (int(n) + by - 1) / by; }

}  // namespace

// -------------------------------------------------------------- launchers

std::vector<double> sum_and_spread(const std::vector<float>& x) {
  const Buffer<float> in(x);
  const Buffer<double> out(2);
  launch("sum_and_spread", sum_and_spread_kernel, {1, kThreads}, nullptr, in.get(), int(x.size()),
         out.get());
  return out.copy();
}

std::vector<int> inclusive_scan(const std::vector<int>& x) {
  const Buffer<int> in(x), out(x.size());
  launch("inclusive_scan", inclusive_scan_kernel, {1, kThreads}, nullptr, in.get(), int(x.size()),
         out.get());
  return out.copy();
}

std::vector<int> histogram(const std::vector<int>& x, int bins) {
  const Buffer<int> in(x), counts(std::vector<int>(size_t(bins), 0));
  launch("histogram", histogram_kernel, {divide_up(x.size(), kThreads), kThreads}, nullptr,
         in.get(), int(x.size()), bins, counts.get());
  return counts.copy();
}

std::vector<float> transpose(const std::vector<float>& x, int rows, int columns) {
  const Buffer<float> in(x), out(x.size());
  const dim3 blocks(divide_up(size_t(columns), kSide), divide_up(size_t(rows), kSide));
  launch("transpose", transpose_kernel,
         {blocks, dim3(kSide, kRows), kSide * (kSide + 1) * sizeof(float)}, nullptr, in.get(), rows,
         columns, out.get());
  return out.copy();
}

std::vector<double> normalize(const std::vector<float>& x, int blocks) {
  const Buffer<float> in(x);
  const Buffer<double> partials{size_t(blocks)}, out(x.size());
  launch("normalize", normalize_kernel, {blocks, kThreads, 0, true}, nullptr, in.get(),
         int(x.size()), partials.get(), out.get());
  return out.copy();
}

double last_block_sum(const std::vector<float>& x) {
  const int blocks = divide_up(x.size(), kThreads);
  const Buffer<float> in(x);
  const Buffer<double> partials{size_t(blocks)}, out(std::vector<double>(1, 0));
  const Buffer<unsigned> done(std::vector<unsigned>(1, 0));
  launch("last_block_sum", last_block_sum_kernel, {blocks, kThreads}, nullptr, in.get(),
         int(x.size()), partials.get(), done.get(), out.get());
  return out.copy()[0];
}

std::vector<int> column_scan(const std::vector<int>& x, int blocks) {
  const Buffer<int> data(x), ready(std::vector<int>(size_t(blocks), 0));
  launch("column_scan", column_scan_kernel, {blocks, int(x.size()) / blocks, 0, true}, nullptr,
         data.get(), ready.get());
  return data.copy();
}

std::vector<float> scale_by_fours(const std::vector<float>& x, float factor) {
  const Buffer<float> in(x), out(x.size());
  launch("scale_by_fours", scale_by_fours_kernel, {divide_up(x.size(), 4 * kThreads), kThreads},
         nullptr, in.get(), int(x.size()), factor, out.get());
  return out.copy();
}

std::vector<int> two_streams(const std::vector<int>& x) {
  const int n = int(x.size()), blocks = divide_up(x.size(), kThreads);
  const Buffer<int> data(x);
  const Stream terms, factors;
  const Event added, doubled;
  launch("add", add_kernel, {blocks, kThreads}, terms.get(), data.get(), n, 1);
  added.order(terms, factors);
  launch("multiply", multiply_kernel, {blocks, kThreads}, factors.get(), data.get(), n, 2);
  doubled.order(factors, terms);
  launch("add", add_kernel, {blocks, kThreads}, terms.get(), data.get(), n, 3);
  return data.copy();
}

std::vector<int> indices(std::array<unsigned, 3> blocks, std::array<unsigned, 3> threads) {
  const dim3 b = to_dim3(blocks), t = to_dim3(threads);
  const Buffer<int> out(size_t(b.x) * b.y * b.z * t.x * t.y * t.z * 6);
  launch("indices", indices_kernel, {b, t}, nullptr, out.get());
  return out.copy();
}

}  // namespace lb::simt_kernels
