// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// Kernels with one bug each, for the executor to find. With `mended` the same kernel is right,
// which shows that it is the bug that was found. The tests look for the line of each bug by its
// comment.
#include <cooperative_groups.h>

#include <cstring>
#include <map>

#include "core/launch.cuh"
#include "kernels/device.cuh"
#include "kernels/kernels.h"

namespace lb::simt_kernels {

using cuda::launch;

// ---------------------------------------------------------------- kernels

namespace {

constexpr int kNumbers = 64;

// ---- barriers

__global__ void missing_barrier_kernel(const int* in, int* out, bool mended) {
  __shared__ int tile[kNumbers];
  const unsigned t = threadIdx.x;
  tile[t] = 0;
  __syncthreads();
  tile[t] = in[t];
  if (mended) __syncthreads();
  out[t] = tile[kNumbers - 1 - t];  // BUG: missing_barrier
}

// The lanes of a warp do not go in step.
__global__ void missing_syncwarp_kernel(const int* in, int* out, bool mended) {
  __shared__ int tile[kNumbers];
  const unsigned t = threadIdx.x;
  tile[t] = 0;
  __syncwarp();
  tile[t] = in[t];
  if (mended) __syncwarp();
  out[t] = tile[t ^ 1];  // BUG: missing_syncwarp
}

__global__ void divergent_barrier_kernel(const int* in, int* out, bool mended) {
  if (!mended && threadIdx.x >= 16) return;
  __syncthreads();  // BUG: divergent_barrier
  out[threadIdx.x] = in[threadIdx.x];
}

__global__ void different_barriers_kernel(const int* in, int* out, bool mended) {
  const unsigned t = threadIdx.x;
  if (mended || t < 32) {
    __syncthreads();  // BUG: different_barriers
  } else {
    __syncthreads_or(0);
  }
  out[t] = in[t];
}

__global__ void divergent_warp_kernel(const int* in, int* out, bool mended) {
  if (!mended && threadIdx.x == 5) __syncthreads();
  __syncwarp();  // BUG: divergent_warp
  if (mended || threadIdx.x != 5) __syncthreads();
  out[threadIdx.x] = in[threadIdx.x];
}

__global__ void grid_sync_kernel(const int* in, int* out, bool) {
  cooperative_groups::this_grid().sync();  // BUG: grid_sync
  out[threadIdx.x] = in[threadIdx.x];
}

__global__ void endless_spin_kernel(const int* in, int* out, bool mended) {
  volatile int* flag = out;
  if (mended && threadIdx.x == kNumbers - 1) *flag = 1;
  while (*flag == 0) {  // BUG: endless_spin
  }
  __syncthreads();
  out[threadIdx.x] = in[threadIdx.x];
}

// ---- addresses

__global__ void store_past_end_kernel(const int* in, int* out, bool mended) {
  const unsigned t = threadIdx.x;
  out[mended ? t : t + 1] = in[t];  // BUG: store_past_end
}

__global__ void load_past_end_kernel(const int* in, int* out, bool mended) {
  const unsigned t = threadIdx.x;
  out[t] = in[mended ? t : t + 1];  // BUG: load_past_end
}

__global__ void load_before_start_kernel(const int* in, int* out, bool mended) {
  const int t = int(threadIdx.x);
  out[t] = in[mended ? t : t - 1];  // BUG: load_before_start
}

__global__ void atomic_past_end_kernel(const int* in, int* out, bool mended) {
  const unsigned t = threadIdx.x;
  atomicAdd(&out[mended ? t : t + 1], in[t]);  // BUG: atomic_past_end
}

__global__ void memcpy_kernel(const int* in, int* out, bool mended) {
  if (threadIdx.x != 0) return;
  memcpy(out, mended ? in : in + 1, kNumbers * sizeof(int));  // BUG: memcpy
}

__global__ void memset_kernel(const int* in, int* out, bool mended) {
  if (threadIdx.x != 0) return;
  memset(mended ? out : out - 1, in[0], kNumbers * sizeof(int));  // BUG: memset
}

struct Large {
  int x[kNumbers];
};
__global__ void large_copy_kernel(const int* in, int* out, bool mended) {
  if (threadIdx.x != 0) return;
  const auto* from = reinterpret_cast<const Large*>(mended ? in : in + 1);
  *reinterpret_cast<Large*>(out) = *from;  // BUG: large_copy
}

__global__ void misaligned_kernel(const int* in, int* out, bool mended) {
  const int t = int(threadIdx.x);
  if (t >= kNumbers / 4) return;
  const int* from = in + (mended ? 4 * t : t);
  const float4 four = *reinterpret_cast<const float4*>(from);  // BUG: misaligned
  reinterpret_cast<float4*>(out)[t] = four;
}

struct Fours {
  float4 first, second;
};

__global__ void misaligned_long_kernel(const int* in, int* out, bool mended) {
  const int t = int(threadIdx.x);
  if (t >= kNumbers / 8) return;
  const int* from = in + (mended ? 8 * t : t);
  const Fours fours = *reinterpret_cast<const Fours*>(from);  // BUG: misaligned_long
  reinterpret_cast<Fours*>(out)[t] = fours;
}

// Each thread has its own local memory.
__global__ void local_of_another_kernel(const int* in, int* out, bool mended) {
  __shared__ const int* first;
  const int local = in[threadIdx.x];
  if (threadIdx.x == 0) first = mended ? in : &local;
  __syncthreads();
  out[threadIdx.x] = *first;  // BUG: local_of_another
  __syncthreads();
}

// ---- shared memory

__global__ void unwritten_shared_kernel(const int* in, int* out, bool mended) {
  __shared__ int tile[kNumbers];
  const unsigned t = threadIdx.x;
  if (mended || t != 40) tile[t] = in[t];
  __syncthreads();
  out[t] = tile[kNumbers - 1 - t];  // BUG: unwritten_shared
}

__global__ void static_past_end_kernel(const int* in, int* out, bool mended) {
  __shared__ int tile[kNumbers];
  const unsigned t = threadIdx.x;
  tile[mended ? t : t + 1] = in[t];  // BUG: static_past_end
  __syncthreads();
  out[t] = tile[t];
}

// The launch gives room for a number a thread.
__global__ void shared_past_end_kernel(const int* in, int* out, bool mended) {
  int* tile = cuda::dynamic_shared<int>();
  const unsigned t = threadIdx.x;
  tile[mended ? t : t + 1] = in[t];  // BUG: shared_past_end
  __syncthreads();
  out[t] = tile[t];
}

// ---- warps

__global__ void shuffle_lane_kernel(const int* in, int* out, bool mended) {
  const int next = int(threadIdx.x % 32 + 1), last = mended ? 31 : 32;
  const int from = next > last ? 0 : next;
  out[threadIdx.x] = __shfl_sync(~0u, in[threadIdx.x], from);  // BUG: shuffle_lane
}

__global__ void shuffle_outside_mask_kernel(const int* in, int* out, bool mended) {
  const unsigned t = threadIdx.x, mask = mended ? ~0u : 0x0000ffffu;
  int value = in[t];
  if (t % 32 < 16 || mended) {
    value = __shfl_sync(mask, value, 16);  // BUG: shuffle_outside_mask
  }
  out[t] = value;
}

__global__ void shuffle_not_in_mask_kernel(const int* in, int* out, bool mended) {
  const unsigned t = threadIdx.x, mask = mended ? ~0u : 0xfffffffeu;
  out[t] = __shfl_sync(mask, in[t], 1);  // BUG: shuffle_not_in_mask
}

__global__ void different_calls_kernel(const int* in, int* out, bool mended) {
  const unsigned t = threadIdx.x;
  int value = in[t];
  if (mended || t % 32 < 16) {
    value = __shfl_sync(~0u, value, 0);  // BUG: different_calls
  } else {
    value = __any_sync(~0u, value);
  }
  out[t] = value;
}

// ---- races

__global__ void racy_histogram_kernel(const int* in, int* out, bool mended) {
  __shared__ int bins[4];
  const unsigned t = threadIdx.x;
  if (t < 4) bins[t] = 0;
  __syncthreads();
  if (mended) {
    atomicAdd(&bins[in[t] % 4], 1);
  } else {
    ++bins[in[t] % 4];  // BUG: racy_histogram
  }
  __syncthreads();
  out[t] = t < 4 ? bins[t] : 0;
}

// Two blocks add to one number.
__global__ void racy_blocks_kernel(const int* in, int* out, bool mended) {
  if (threadIdx.x != 0) return;
  if (mended) {
    atomicAdd(out, in[blockIdx.x]);
  } else {
    *out += in[blockIdx.x];  // BUG: racy_blocks
  }
}

// Blocks of 16 leave their sums in out[1] ...; out[63] counts those that are done.
__global__ void missing_fence_kernel(const int* in, int* out, bool mended) {
  if (threadIdx.x != 0) return;
  int sum = 0;
  for (unsigned i = 0; i < 16; ++i) sum += in[blockIdx.x * 16 + i];
  out[1 + blockIdx.x] = sum;  // BUG: missing_fence
  if (mended) __threadfence();
  if (atomicAdd(&out[63], 1) != int(gridDim.x) - 1) return;
  __threadfence();
  for (unsigned b = 0; b < gridDim.x; ++b) out[0] += out[1 + b];
}

}  // namespace

// -------------------------------------------------------------- launchers

namespace {

struct Bug {
  void (*kernel)(const int* in, int* out, bool mended);
  cuda::Grid grid = {1, kNumbers};
};

const std::map<std::string, Bug>& bugs() {
  static const std::map<std::string, Bug> all = {
      {"missing_barrier", {missing_barrier_kernel}},
      {"missing_syncwarp", {missing_syncwarp_kernel}},
      {"divergent_barrier", {divergent_barrier_kernel, {1, 32}}},
      {"different_barriers", {different_barriers_kernel}},
      {"divergent_warp", {divergent_warp_kernel, {1, 32}}},
      {"grid_sync", {grid_sync_kernel}},
      {"endless_spin", {endless_spin_kernel}},
      {"store_past_end", {store_past_end_kernel}},
      {"load_past_end", {load_past_end_kernel}},
      {"load_before_start", {load_before_start_kernel}},
      {"atomic_past_end", {atomic_past_end_kernel}},
      {"memcpy", {memcpy_kernel}},
      {"memset", {memset_kernel}},
      {"large_copy", {large_copy_kernel}},
      {"misaligned", {misaligned_kernel}},
      {"misaligned_long", {misaligned_long_kernel}},
      {"local_of_another", {local_of_another_kernel}},
      {"unwritten_shared", {unwritten_shared_kernel}},
      {"static_past_end", {static_past_end_kernel}},
      {"shared_past_end", {shared_past_end_kernel, {1, kNumbers, kNumbers * sizeof(int)}}},
      {"shuffle_lane", {shuffle_lane_kernel}},
      {"shuffle_outside_mask", {shuffle_outside_mask_kernel}},
      {"shuffle_not_in_mask", {shuffle_not_in_mask_kernel}},
      {"different_calls", {different_calls_kernel}},
      {"racy_histogram", {racy_histogram_kernel}},
      {"racy_blocks", {racy_blocks_kernel, {2, kNumbers / 2}}},
      {"missing_fence", {missing_fence_kernel, {4, 16}}},
  };
  return all;
}

}  // namespace

std::vector<std::string> planted() {
  std::vector<std::string> names;
  for (const auto& [name, bug] : bugs()) names.push_back(name);
  return names;
}

std::vector<int> run_planted(const std::string& name, bool mended, const std::vector<int>& in,
                             bool queued) {
  const Bug& bug = bugs().at(name);
  cuda::Grid grid = bug.grid;
  grid.cooperative = name == "grid_sync" && mended;
  const Buffer<int> from(in), to(std::vector<int>(kNumbers, 0));
  const Stream stream;
  void* queue = queued ? stream.get() : nullptr;
  for (int time = 0; time < (queued ? 2 : 1); ++time) {
    launch(name.c_str(), bug.kernel, grid, queue, from.get(), to.get(), mended);
  }
  return to.copy();
}

}  // namespace lb::simt_kernels
