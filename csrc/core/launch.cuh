// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// The one way a kernel is launched.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "core/error.h"

#define LB_CUDA_CHECK(call) ::lb::cuda::check((call), #call)

namespace lb::cuda {

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw CudaError(std::string(what) + ": " + cudaGetErrorName(error) + ": " +
                  cudaGetErrorString(error));
}

// An empty grid is no launch: CUDA refuses it.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), int64_t blocks, int threads,
            void* stream, Arguments&&... arguments) {
  if (blocks == 0) return;
  kernel<<<dim3(unsigned(blocks)), dim3(unsigned(threads)), 0, static_cast<cudaStream_t>(stream)>>>(
      static_cast<Parameters>(arguments)...);
  check(cudaGetLastError(), name);
}

}  // namespace lb::cuda
