// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Bugs of the host, with kernels that are right: memory freed too early, streams that nothing
// orders, launches and copies that are too large.
#include <memory>

#include "core/launch.cuh"
#include "kernels/device.cuh"
#include "kernels/kernels.h"

namespace lb::simt_kernels {

using cuda::launch;

// ---------------------------------------------------------------- kernels

namespace {

__global__ void copy_kernel(const int* in, int* out) {
  out[threadIdx.x] = in[threadIdx.x];  // BUG: use_after_free
}

__global__ void add_one_kernel(int* x) { x[threadIdx.x] += 1; }

__global__ void double_kernel(int* x) { x[threadIdx.x] *= 2; }

__global__ void empty_kernel() {}

}  // namespace

// -------------------------------------------------------------- launchers

std::vector<int> use_after_free(bool mended, const std::vector<int>& in) {
  auto from = std::make_unique<Buffer<int>>(in);
  const int* data = from->get();
  const Buffer<int> to(in.size());
  if (!mended) from.reset();
  launch("use_after_free", copy_kernel, {1, int(in.size())}, nullptr, data, to.get());
  return to.copy();
}

std::vector<int> missing_event(bool mended, const std::vector<int>& in) {
  const Buffer<int> data(in);
  const Stream first, second;
  const Event added;
  launch("add_one", add_one_kernel, {1, int(in.size())}, first.get(), data.get());
  if (mended) added.order(first, second);
  launch("double", double_kernel, {1, int(in.size())}, second.get(), data.get());
  return data.copy();
}

void launch_empty(std::array<unsigned, 3> blocks, std::array<unsigned, 3> threads,
                  size_t shared_bytes, bool cooperative) {
  launch("empty", empty_kernel, {to_dim3(blocks), to_dim3(threads), shared_bytes, cooperative},
         nullptr);
  LB_CUDA_CHECK(cudaDeviceSynchronize());
}

void copy_to_device(size_t bytes, size_t buffer_bytes) {
  const std::vector<char> from(bytes);
  const Buffer<char> to(buffer_bytes);
  LB_CUDA_CHECK(cudaMemcpy(to.get(), from.data(), bytes, cudaMemcpyHostToDevice));
}

}  // namespace lb::simt_kernels
