// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// The one way a kernel is launched, and comes by dynamic shared memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>
#include <utility>

#include "core/error.h"

#define LB_CUDA_CHECK(call) ::lb::cuda::check((call), #call)

namespace lb::cuda {

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // told here, and not again by who asks next
  throw CudaError(std::string(what) + ": " + cudaGetErrorName(error) + ": " +
                  cudaGetErrorString(error));
}

struct Grid {
  dim3 blocks, threads;
  size_t shared_bytes;  // dynamic shared memory of a block
  bool cooperative;     // all blocks at once, so that they may wait for each other

  Grid(dim3 blocks_, dim3 threads_, size_t shared_bytes_ = 0, bool cooperative_ = false)
      : blocks(blocks_),
        threads(threads_),
        shared_bytes(shared_bytes_),
        cooperative(cooperative_) {}
  // More blocks than CUDA has are not cut to 32 bits: they are left too many, for CUDA to refuse.
  Grid(int64_t blocks_, int threads_, size_t shared_bytes_ = 0, bool cooperative_ = false)
      : Grid(dim3(blocks_ < UINT32_MAX ? unsigned(blocks_) : UINT32_MAX), dim3(unsigned(threads_)),
             shared_bytes_, cooperative_) {}
};

// An empty grid is no launch: CUDA refuses it.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const Grid& grid, void* stream,
            Arguments&&... arguments) {
  constexpr size_t kWithoutLeave = 48 << 10;
  if (grid.blocks.x == 0) return;
  if (grid.shared_bytes > kWithoutLeave) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               int(grid.shared_bytes)),
          name);
  }
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &cooperative;
  config.numAttrs = grid.cooperative ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), name);
}

// The dynamic shared memory of the block.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
#if LB_SIMT
  return static_cast<T*>(simt::dynamic_shared());
#else
  extern __shared__ double2 dynamic_shared_memory[];  // 16-byte aligned
  return reinterpret_cast<T*>(dynamic_shared_memory);
#endif
}

}  // namespace lb::cuda
