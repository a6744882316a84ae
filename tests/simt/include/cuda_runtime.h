// SPDX-FileCopyrightText: 2026 the largebatch authors
// SPDX-License-Identifier: Apache-2.0
//
// The part of CUDA's runtime interface that the library and the executor's own tests use, under the
// names that CUDA has. What a function does is in executor/runtime.cpp.
#pragma once

#include <cstddef>
#include <tuple>

#include "device_functions.h"

struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};

#define LB_SIMT_ERRORS(X)             \
  X(cudaSuccess, 0)                   \
  X(cudaErrorInvalidValue, 1)         \
  X(cudaErrorMemoryAllocation, 2)     \
  X(cudaErrorInvalidConfiguration, 9) \
  X(cudaErrorInsufficientDriver, 35)  \
  X(cudaErrorInvalidDevice, 101)      \
  X(cudaErrorCooperativeLaunchTooLarge, 720)
enum cudaError_t {
#define LB_SIMT_ERROR(name, number) name = number,
  LB_SIMT_ERRORS(LB_SIMT_ERROR)
#undef LB_SIMT_ERROR
};
const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();  // and forgets it

cudaError_t cudaGetDevice(int* device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaDeviceSynchronize();

enum cudaMemcpyKind {
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice
};
cudaError_t cudaMalloc(void** data, size_t bytes);
cudaError_t cudaFree(void* data);
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind);
template <class T>
cudaError_t cudaMalloc(T** data, size_t bytes) {
  return cudaMalloc(reinterpret_cast<void**>(data), bytes);
}

typedef struct CUstream_st* cudaStream_t;
typedef struct CUevent_st* cudaEvent_t;
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
cudaError_t cudaStreamCreate(cudaStream_t* stream);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status);
cudaError_t cudaEventCreate(cudaEvent_t* event);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr);

enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative = 2 };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  union {
    int cooperative;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

namespace lb::simt {

cudaError_t allow_shared(const void* kernel, int bytes);
cudaError_t submit(const cudaLaunchConfig_t& config, const void* kernel,
                   void (*run)(const void* call), void (*destroy)(const void* call),
                   const void* call, size_t call_bytes);

template <class... Parameters>
struct Call {
  void (*kernel)(Parameters...);
  std::tuple<std::decay_t<Parameters>...> values;

  static void run(const void* call) {
    const Call& self = *static_cast<const Call*>(call);
    std::apply(self.kernel, self.values);
  }
  static void destroy(const void* call) { delete static_cast<const Call*>(call); }
};

}  // namespace lb::simt

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  using Call = lb::simt::Call<Parameters...>;
  return lb::simt::submit(*config, reinterpret_cast<const void*>(kernel), Call::run, Call::destroy,
                          new Call{kernel, {static_cast<Parameters>(arguments)...}}, sizeof(Call));
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  return lb::simt::allow_shared(reinterpret_cast<const void*>(kernel), bytes);
}
